"""One process at a time writes a folder."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import convattn
from convattn.ownership import lock_of, owned

ALONE = f"""
import sys, types
sys.modules["convattn"] = types.ModuleType("convattn")  # the package would take seconds to import
sys.modules["convattn"].__path__ = {convattn.__path__!r}
"""
HOLDS = ALONE + (
    "import time; from pathlib import Path; from convattn.ownership import owned\n"
    "with owned(Path(sys.argv[1])):\n"
    "    print('owned', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path):
    """A process that owns the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


def owner(**values: object) -> str:
    found = {"host": socket.gethostname(), "pid": os.getpid(), "start": None, "since": "yesterday"}
    return json.dumps({**found, **values})


def test_second_comer_is_told_who_writes(holder, tmp_path):
    with (
        pytest.raises(ValueError, match=rf"{tmp_path} is being written by process {holder.pid} "),
        owned(tmp_path),
    ):
        pass
    assert lock_of(tmp_path).exists()


def test_killed_owner_is_succeeded_before_anyone_has_waited_for_it(holder, tmp_path):
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    with owned(tmp_path):
        assert json.loads(lock_of(tmp_path).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_later_process_of_the_same_number_is_another(tmp_path):
    lock_of(tmp_path).write_text(owner(start="1"))
    with owned(tmp_path):
        assert json.loads(lock_of(tmp_path).read_text())["start"] != "1"


def test_another_computer_is_never_taken_for_dead(tmp_path):
    lock_of(tmp_path).write_text(owner(host="elsewhere", pid=2**22 + 1))
    with (
        pytest.raises(ValueError, match=rf"of elsewhere since .*, remove {lock_of(tmp_path)}"),
        owned(tmp_path),
    ):
        pass


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "\0\xff", owner(pid="x"), "[" * 9999])
def test_lock_that_tells_nothing_is_refused_in_a_sentence(content, tmp_path):
    lock_of(tmp_path).write_text(content)
    sentence = "does not tell by which; .* remove that file"
    with pytest.raises(ValueError, match=sentence), owned(tmp_path):
        pass


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda lock: lock.symlink_to("nowhere"),
        lambda lock: lock.symlink_to(lock.name),
        lambda lock: lock.symlink_to("/dev/zero"),
    ],
    ids=["folder", "pipe", "dangling", "endless", "device"],
)
@pytest.mark.timeout(20)
def test_lock_that_is_no_file_is_refused_in_a_sentence(make, tmp_path):
    make(lock_of(tmp_path))
    sentence = "does not tell by which; .* remove that file"
    with pytest.raises(ValueError, match=sentence), owned(tmp_path):
        pass


def test_error_inside_gives_the_folder_back(tmp_path):
    with pytest.raises(KeyError), owned(tmp_path):
        raise KeyError
    with owned(tmp_path):
        pass


def test_folder_that_is_removed_inside_is_no_second_error(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with owned(folder):
        lock_of(folder).unlink()
        folder.rmdir()


def test_file_that_does_not_exist_has_its_lock_beside_it(tmp_path):
    file = tmp_path / "network.onnx"
    with owned(file):
        assert [one.name for one in tmp_path.iterdir()] == ["network.onnx.lock"]
        with pytest.raises(ValueError, match="is being written"), owned(file):
            pass
    assert list(tmp_path.iterdir()) == []


def test_works_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with owned(tmp_path), pytest.raises(ValueError, match="is being written"), owned(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_parts_of_the_dead_go_and_those_of_the_living_stay(holder, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    dead = [f"model.{2**22 + 1}.part.safetensors", f"checkpoints/last.{2**22 + 1}.part.ckpt"]
    own, others = f"config.{os.getpid()}.part.json", f"report.{holder.pid}.part.md"
    named = ["a.part.csv", "predictions.part.csv", "class.1.parts.png", "3.part.d"]
    for name in [*dead, own, others, *named]:
        (folder / name).touch()
    with owned(folder):
        left = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    assert left == {".lock", others, *named}


CONTENDS = (
    ALONE
    + """
import time
from pathlib import Path
from convattn.ownership import owned
folder, inside = Path(sys.argv[1]), Path(sys.argv[2])
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        with owned(folder):
            inside.open("x").close()
            time.sleep(0.001)
            inside.unlink()
    except ValueError:
        pass
print("well")
"""
)


def test_no_two_of_many_are_ever_inside_at_once(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock_of(folder).write_text(owner(pid=2**22 + 1))  # a dead one's: all would take it over
    words = [sys.executable, "-c", CONTENDS, str(folder), str(tmp_path / "inside")]
    processes = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0] for process in processes] == ["well\n"] * 4
    assert not Path(folder / ".lock").exists()
