"""The page of the truth suite's study says what its rows give."""

import csv
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def script(load):
    return load("truth_table")


def test_page_is_of_its_rows(script):
    page = (RESULTS / "truth_table.md").read_text()
    with (RESULTS / "truth_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert script.page_of(rows, page) == page
    rows[0]["value"] = "0.123"
    assert script.page_of(rows, page) != page
