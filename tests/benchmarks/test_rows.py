from pathlib import Path

import pytest


@pytest.fixture
def rows(load):
    return load("rows")


def test_what_is_appended_is_read(rows, tmp_path: Path) -> None:
    file = tmp_path / "results" / "study.csv"
    assert rows.read_rows(file) == []
    rows.append_rows(file, ("seed", "accuracy"), [{"seed": 0, "accuracy": 0.5}])
    rows.append_rows(file, ("seed", "accuracy"), [{"seed": 1}])
    assert file.read_bytes() == b"seed,accuracy\n0,0.5\n1,\n"
    assert rows.read_rows(file) == [{"seed": "0", "accuracy": "0.5"}, {"seed": "1", "accuracy": ""}]
