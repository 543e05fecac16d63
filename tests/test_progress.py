import io
import sys

import pytest

from convattn.progress import Progress, watched


def test_a_log_file_gets_a_line_now_and_then_and_one_at_the_end(capsys):
    with Progress(1_000, 200, seconds=0) as progress:
        progress.update(300)
        progress.tell("a.png is broken")
        progress.update(500)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("convattn: 500 of 1,000 images, ")
    assert lines[0].endswith(" left")
    assert lines[1] == "convattn: a.png is broken"
    assert lines[2].startswith("convattn: 1,000 of 1,000 images, ")
    assert "00:00 left" in lines[2]


def test_what_is_done_before_does_not_count_as_fast(capsys, monkeypatch):
    moments = iter((0.0, 10.0, 20.0))
    monkeypatch.setattr("convattn.progress.time.monotonic", lambda: next(moments))
    progress = Progress(1_000, 900, seconds=5)
    progress.update(20)
    progress.update(20)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "convattn: 920 of 1,000 images, 2 images/s, 00:40 left",
        "convattn: 940 of 1,000 images, 2 images/s, 00:30 left",
    ]


def test_between_two_lines_nothing_is_told(capsys):
    with Progress(1_000, seconds=1_000) as progress:
        for _ in range(9):
            progress.update(100)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_one_line_that_moves(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(100, seconds=0) as progress:
        progress.update(100)
    assert "100/100" in terminal.getvalue()
    assert "convattn:" not in terminal.getvalue()


@pytest.mark.parametrize("total", [1, 3])
def test_the_end_is_always_told(capsys, total):
    with Progress(total, seconds=1_000) as progress:
        for _ in range(total):
            progress.update(1)
    assert f"{total} of {total} images" in capsys.readouterr().err


def test_batches_are_watched_and_left_as_they_are(capsys):
    batches = [([1, 2, 3], "truth"), ([4, 5], "truth")]
    assert list(watched(iter(batches), 5, seconds=0)) == batches
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" images")[0] for line in lines] == ["convattn: 3 of 5", "convattn: 5 of 5"]
