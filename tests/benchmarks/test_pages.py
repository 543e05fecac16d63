"""Pages of docs/results and the CSV files that hold their tables."""

import ast

import pytest

from tests.benchmarks.conftest import FOLDER

RESULTS = FOLDER.parent / "docs" / "results"
SCRIPTS = sorted(
    file.stem for file in FOLDER.glob("*.py") if "pages.answer_check" in file.read_text()
)
MARKED = sorted(file.stem for file in RESULTS.glob("*.md") if "<!-- table: " in file.read_text())


@pytest.fixture
def pages(load):
    return load("pages")


@pytest.fixture
def page(pages, tmp_path):
    file = tmp_path / "page.md"
    text = "# Title\n\nProse.\n\n## A\n\n| x | x |\n| --- | --- |\n| 1 | a \\| b |\n\nMore.\n"
    pages.publish(file, text, [pages.provenance("python it.py")])
    return file


@pytest.mark.parametrize("name", MARKED)
def test_tables_are_those_of_the_rows(pages, name):
    assert pages.differences(RESULTS / f"{name}.md") == []


@pytest.mark.long  # reading them in takes seconds
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_checks_its_page(load, monkeypatch, capsys, script):
    module = load(script)
    monkeypatch.setattr("sys.argv", [f"{script}.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0, capsys.readouterr().err


def test_every_page_has_its_script():
    calls = (
        node.args[0].value
        for script in SCRIPTS
        for node in ast.walk(ast.parse((FOLDER / f"{script}.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pages.answer_check"
    )
    assert sorted(calls) == MARKED
    assert len(MARKED) == 15


def test_the_study_shows_its_runs(pages):
    shown = pages.read_tables(RESULTS / "study.csv")
    runs = pages.read_rows(RESULTS / "study_runs.csv")
    assert len(runs) == 54
    for title, data in (("Tiny ImageNet", "tiny_imagenet"), ("Fashion-MNIST", "fashion_mnist")):
        (table,) = (table for name, table in shown.items() if name.startswith(title))
        place = table[0].index("top-1 by seed (%)")
        for row in table[1:]:
            own = [one for one in runs if (one["data"], one["network"]) == (data, row[0])]
            assert row[place] == " / ".join(f"{100 * float(one['top1']):.2f}" for one in own)


def test_a_page_made_of_rows_whole_tells_its_lines(pages, page, monkeypatch, capsys):
    made = "Torch 2.15.0, one thread of a machine; 2026-11-30."
    page.write_text(f"# Title\n\n{made}\n\nold\n")
    assert pages.made_line_of(page.read_text()) == made
    monkeypatch.setattr("sys.argv", ["law.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        pages.answer_check_of_rows(page, lambda text: text.replace("old", "new"))
    assert ended.value.code == 1
    assert "page.md:5 is not what the rows give" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        pages.answer_check_of_rows(page, lambda text: f"# Title\n\n{made}\n\nold\n")
    assert ended.value.code == 0
    monkeypatch.setattr("sys.argv", ["law.py"])
    pages.answer_check_of_rows(page, lambda text: "")


def test_the_sentence_of_a_law_is_found_again(pages):
    made = pages.made_line("an AMD EPYC (AVX-512, no AMX)", "2026-11-30")
    assert pages.made_line_of(f"Objects; of things. {made}\n\nmore") == made
    assert pages.made_line_of("nothing") == ""


def test_a_page_of_its_own_is_marked_and_has_rows(pages, page):
    assert pages.differences(page) == []
    tables = pages.read_tables(page.with_suffix(".csv"))
    assert tables["A"] == [["x", "x"], ["1", "a \\| b"]]
    assert tables["measured"][1][1] == "`python it.py`"


def test_prose_and_other_tables_stay(pages, page):
    page.write_text(page.read_text().replace("Prose.", "By hand."))
    new = "# Title\n\nProse.\n\n## A\n\n| y |\n| --- |\n| 2 |\n\n## B\n\n| z |\n| --- |\n| 3 |\n"
    pages.publish(page, new, [pages.provenance("python other.py", "B")])
    text = page.read_text()
    assert "By hand." in text
    assert "More." in text
    assert "| 2 |" in text
    assert "| 1 |" not in text
    assert text.index("## B") < text.index("| 3 |")
    tables = pages.read_tables(page.with_suffix(".csv"))
    assert [row[0] for row in tables["measured"][1:]] == ["all", "B"]
    assert pages.differences(page) == []


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("| 1 |", "| 2 |", "is not that of page.csv"),
        ("More.", "| t |\n| --- |\n| 4 |\n", "a table without marks"),
        ("<!-- table: A -->", "<!-- A -->", "is not shown"),
        ("| 0 |", "|  |", "does not tell"),
    ],
)
def test_what_differs_is_told(pages, page, monkeypatch, capsys, old, new, sentence):
    text = page.read_text()
    assert old in text
    page.write_text(text.replace(old, new))
    monkeypatch.setattr(pages, "RESULTS", page.parent)
    assert pages.main(["page", "--check"]) == 1
    assert sentence in capsys.readouterr().err


def test_a_page_is_written_anew_from_its_rows(pages, page, monkeypatch):
    before = page.read_text()
    page.write_text(before.replace("| 1 |", "| 7 |"))
    monkeypatch.setattr(pages, "RESULTS", page.parent)
    assert pages.main([]) == 0
    assert page.read_text() == before
