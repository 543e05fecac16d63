"""Names are data, whatever they are made of."""

import csv
import io
import json

import pytest

from convattn.results import Results
from convattn.text import (
    aligned,
    csv_text,
    figure_text,
    json_text,
    markdown_table,
    markdown_text,
    printable,
    report,
    say,
)
from tests.nasty import NASTY


def harmless(text: str) -> bool:
    """Whether a terminal does nothing with it: no control character, nothing that turns text."""
    return not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2028" for c in text)


@pytest.mark.parametrize("name", NASTY)
def test_terminal_is_left_alone(name, capsys):
    say(printable(name))
    (line,) = capsys.readouterr().out.splitlines()
    assert harmless(line)


@pytest.mark.parametrize("name", NASTY)
def test_table_keeps_its_lines_and_columns(name, capsys):
    lines = aligned([("name", "share"), (name, "1")])
    assert len(lines) == 2
    assert all(map(harmless, lines))


@pytest.mark.parametrize("name", NASTY)
def test_markdown_shows_the_name_and_nothing_else(name):
    _, _, row = markdown_table(("name", "share"), [(name, "1")]).splitlines()
    bars = sum(c == "|" and row[place - 1] != "\\" for place, c in enumerate(row))
    assert bars == 3
    assert "<" not in row
    assert harmless(row)
    for mark in "`[]":
        assert all(row[place - 1] == "\\" for place, c in enumerate(row) if c == mark)


@pytest.mark.parametrize("name", NASTY)
def test_spreadsheet_computes_nothing_and_no_row_is_split(name):
    text = csv_text([["name", "share"], [name, -0.5], [name, "-0.5"]])
    assert len(text.splitlines()) == 3
    _, (cell, share), (_, other) = csv.reader(io.StringIO(text))
    assert cell[0] not in "=+-@\t\r"
    assert (share, other) == ("-0.5", "-0.5")


def test_ordinary_names_stay_as_they_are():
    for name in ("Jürgen's cat", "tench_Tinca tinca", "猫", "a-b", "10.5", "-1", "+3"):
        assert printable(name) == name == markdown_text(name)
        assert csv_text([[name]]) == f"{name}\n"


def test_figures_draw_no_formula():
    assert figure_text("$x^$") == r"\$x^\$"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_json(value):
    text = json_text({"a": [1, (value, "x")], "b": value})
    strict = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert strict == {"a": [1, [None, "x"]], "b": None}


class OneClass(Results):
    def rows(self):
        return [(f"worst class, {NASTY[0]}", "1")]


def test_results_are_shown_without_what_a_name_would_do():
    assert harmless(OneClass(num_images=1).table())


@pytest.mark.parametrize(("by_each", "told"), [(False, ""), (True, "convattn: gone\n")])
def test_helping_processes_tell_what_only_they_can(by_each, told, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    report("gone", by_each=by_each)
    assert capsys.readouterr().err == told
