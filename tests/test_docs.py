"""The site and the README: their code runs, their commands and links lead somewhere."""

import contextlib
import io
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

from convattn.cli import COMMANDS, main
from convattn.cli.completion import SHELLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALL = (DOCS / "howto" / "install.md").read_text()
PAGE_LIST = (DOCS / "pages.md").read_text()
# Flags that only some runs, layers or data sets have, which --help without one does not list.
DEPENDING = {"--args.in-channels", "--args.num-heads", "--split", "--group"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
pages_and_readme = pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


# The gallery's code is that of examples/, which tests/test_gallery.py runs.
OUTSIDE_THE_GALLERY = [page for page in PAGES if page.parent.name != "gallery"]


@pytest.mark.parametrize("page", OUTSIDE_THE_GALLERY, ids=lambda page: str(page.relative_to(DOCS)))
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    names: dict = {}
    for code in blocks(page, "python"):
        exec(code, names)


@pages
def test_examples_that_need_more_are_python(page):
    for code in blocks(page, "py"):
        compile(code, str(page), "exec")


@pages_and_readme
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).is_file()


def commands(page):
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


@cache
def help_of(*words):
    """What a command says of its flags."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return told.getvalue()


def check_convattn(command, *words):
    if command == "--print-completion":
        assert words[0] in SHELLS
        return
    assert command in COMMANDS
    told = help_of(command) + (help_of(command, "quickstart") if command == "train" else "")
    for flag in {word for word in words if re.match(r"--[a-z]", word)} - DEPENDING:
        assert re.search(re.escape(flag) + r"(?![\w.-])", told), f"{command} has no {flag}"


def check_pip(verb, wanted):
    assert verb == "install"
    assert set(re.findall(r"\w+", wanted.partition("[")[2])) <= EXTRAS.keys()


def check_make(target):
    assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


def check_python(*words):
    (file,) = (word for word in words if word.endswith(".py"))
    assert (ROOT / file).is_file() or file == "tests/campaign/FILE.py"


CHECKS = {
    "convattn": check_convattn,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
}


@pages_and_readme
def test_commands_exist(page):
    for program, *words in commands(page):
        CHECKS[program](*words)


def test_the_number_of_blocks_is_told():
    def count(language, pages):
        return sum(len(blocks(page, language)) for page in pages)

    with_readme = [*OUTSIDE_THE_GALLERY, ROOT / "README.md"]
    gallery = [page for page in PAGES if page.parent.name == "gallery"]
    numbers = [int(word) for word in re.findall(r"\b\d+\b", PAGE_LIST.rpartition("|")[2])]
    wanted = [("python", with_readme), ("python", gallery), ("py", PAGES), ("sh", with_readme)]
    assert numbers == [count(*one) for one in wanted]


def paths_of(nav):
    for entry in nav:
        value = entry if isinstance(entry, str) else next(iter(entry.values()))
        yield from [value] if isinstance(value, str) else paths_of(value)


def test_every_page_is_in_the_navigation():
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(paths_of(nav)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_every_public_module_is_in_the_reference():
    sources = ROOT / "src"
    packages = (file for file in sources.rglob("__init__.py") if "\n__all__ = " in file.read_text())
    public = {".".join(file.parent.relative_to(sources).parts) for file in packages}
    written = (page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert {re.search(r"^::: (\S+)", text, re.MULTILINE)[1] for text in written} == public


def test_every_page_has_its_question():
    listed = set(re.findall(r"\]\(([^)#:]+)\)", PAGE_LIST))
    many = {"gallery", "reference"}  # of which the first page stands for all
    pages = {str(page.relative_to(DOCS)) for page in PAGES if page.parent.name not in many}
    firsts = {"gallery/index.md", "reference/convattn.md"}
    assert listed == pages - {"pages.md"} | firsts


def test_every_extra_is_told():
    told = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*? \|", INSTALL, re.MULTILINE)))
    assert sorted(told) == sorted(EXTRAS.keys() - {"dev", "docs"})
