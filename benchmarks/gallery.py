"""The pages of docs/gallery: each file of ``examples/`` that has cells, and the picture it draws.

``python benchmarks/gallery.py`` runs them and writes pages and pictures, ``--check`` compares the
pages that are there with what the examples say, and runs nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
import tempfile
from pathlib import Path

from convattn.files import replace_atomically

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
GALLERY = ROOT / "docs" / "gallery"
_CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)


def examples() -> list[Path]:
    """The files that have cells, by their names."""
    return sorted(file for file in EXAMPLES.glob("*.py") if _CELL.match(file.read_text()))


def page_of(example: Path) -> str:
    """An example as a page: cells of words, cells of code, and the picture under the first."""
    _, *parts = _CELL.split(example.read_text())
    words, *cells = [
        _words(text) if "markdown" in kind else f"```python\n{text.strip()}\n```\n"
        for kind, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    picture = f"![{title_of(example)}]({example.stem}.png)\n"
    file = f"`examples/{example.name}`, run in the tests as it stands:\n"
    return "\n".join([words, picture, file, *cells])


def title_of(example: Path) -> str:
    """The first heading."""
    found = re.search(r"^# # (.*)$", example.read_text(), re.MULTILINE)
    assert found is not None, f"{example} has no heading"
    return found[1]


def index() -> str:
    """The page that shows all pictures."""
    rows = [
        f"## [{title_of(file)}]({file.stem}.md)\n\n"
        f"[![{title_of(file)}]({file.stem}.png)]({file.stem}.md)\n"
        for file in examples()
    ]
    intro = "Each picture is what a file of `examples/` draws, in seconds and without a download.\n"
    return "\n".join(["# Gallery\n", intro, *rows])


def pages() -> dict[Path, str]:
    """File -> text of all pages."""
    return {GALLERY / "index.md": index()} | {
        GALLERY / f"{file.stem}.md": page_of(file) for file in examples()
    }


def _words(text: str) -> str:
    return re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() + "\n"


def _read(page: Path) -> str:
    return page.read_text() if page.exists() else ""


def _draw(example: Path) -> bytes:
    os.environ["MPLBACKEND"] = "Agg"
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            runpy.run_path(str(example))
            return Path(f"{example.stem}.png").read_bytes()
        finally:
            os.chdir(before)


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write and run nothing")
    if parser.parse_args().check:
        stale = [str(page) for page, text in pages().items() if _read(page) != text]
        print("\n".join(stale) or "the gallery is what the examples say")
        return bool(stale)
    GALLERY.mkdir(exist_ok=True)
    for example in examples():
        print(example.name)
        replace_atomically(GALLERY / f"{example.stem}.png", _draw(example))
    for page, text in pages().items():
        replace_atomically(page, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
