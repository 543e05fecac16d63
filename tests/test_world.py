"""Work that several processes share: what they leave is what one would, and they end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from convattn.cli import main
from convattn.world import World, share
from tests.classification.runs import CLASSES, make_run, paint
from tests.ranks import run_fresh_ranks, run_ranks

MODES = ["evaluate", "predict"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and 21 images of its classes in six batches of four, all of a test."""
    place = tmp_path_factory.mktemp("world")
    names = [name for name in CLASSES if "\n" not in name]
    make_run(place / "run", names)
    for number in range(21):
        paint(place / "images" / "test" / names[number % 6] / f"{number}.png", number)
    for number, name in enumerate(names):
        paint(place / "images" / "train" / name / "0.png", 99 + number)
    return place


def words_of(mode, place, out):
    if mode == "predict":
        own = [place / "images" / "test", "--batch-size", 4]
    else:
        own = ["--data", "folder", "--data.root", place / "images", "--data.batch-size", 4]
    return [mode, place / "run", *own, "--device", "cpu", "--out", out]


def out_of(mode, folder, name):
    return folder / (f"{name}.csv" if mode == "predict" else name)


def content_of(place):
    """What was left, but for what differs by the clock or by the number of processes."""
    if place.is_file():
        return {file.name: file.read_bytes() for file in place.parent.glob(f"{place.name}*")}
    found = {file.name: file.read_bytes() for file in place.iterdir()}
    settings = json.loads(found.pop("evaluation_config.json"))
    result = json.loads(found.pop("evaluation.json"))
    del settings["processes"], result["images_per_second"]
    return {**found, "settings": settings, "result": result}


@pytest.fixture(scope="module")
def alone(place):
    """What one process leaves, by command."""
    found = {}
    for mode in MODES:
        out = out_of(mode, place, "alone")
        assert main([str(word) for word in words_of(mode, place, out)]) == 0
        found[mode] = content_of(out)
    return found


def same(mode, out, alone):
    found = content_of(out)
    if mode == "predict":
        return list(found.values()) == list(alone[mode].values())
    return found == alone[mode]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_whole_batches_and_all_images(count):
    for total in (0, 1, 20, 21):
        parts = [share(rank, count, total, 4) for rank in range(count)]
        assert [one for part in parts for one in part] == list(range(total))
        assert all(part.start % 4 == 0 for part in parts if part)


def test_one_process_meets_nobody():
    handler = signal.getsignal(signal.SIGTERM)
    world = World()
    assert world.first_says(lambda: "a") == "a"
    assert world.all_say("b") == ["b"]
    world.leave()
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [2, 7])
def test_processes_leave_what_one_leaves(mode, count, place, alone, tmp_path):
    out = out_of(mode, tmp_path, "shared")
    ended = run_ranks(count, words_of(mode, place, out), tmp_path / "words")
    assert [one.status for one in ended] == [0] * count, [one.errors for one in ended]
    assert same(mode, out, alone)
    assert [bool(one.out) for one in ended] == [True] + [False] * (count - 1)


def killed_after(batches, mode, rank):
    """Has a process killed once it has written so many batches."""
    from convattn.classification import predictions, table

    kind = table._Table if mode == "predict" else predictions.PredictionsFile
    append, left = kind.append, [batches]

    def append_or_die(self, *given):
        append(self, *given)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(own):
        if own == rank:
            kind.append = append_or_die

    return before


@pytest.mark.long
@pytest.mark.parametrize("absent", [[0], [1], [1, 2]])
def test_who_never_comes_is_told_by_name(absent, place, tmp_path):
    def before(rank):
        from convattn import world

        world._SECONDS_TO_COME, world._SECONDS_TO_SAY_WHO = 10.0, 1.0
        if rank in absent:
            os._exit(7)

    words = words_of("evaluate", place, tmp_path / "out")
    began = time.monotonic()
    ended = run_ranks(3, words, tmp_path / "words", before=before)
    assert time.monotonic() - began < 60
    who = "processes 1, 2" if len(absent) == 2 else f"process {absent[0]}"
    for rank, one in enumerate(ended):
        if rank in absent:
            continue
        assert one.status == 130
        *_, last = one.errors.strip().splitlines()
        assert last.startswith(
            f"convattn: process {rank} of 3 has waited 10 seconds for {who} in vain; "
        )
    told = f"seconds for {who}, and gives up after 10"
    assert told in ended[0 if 0 not in absent else 1].errors
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_port_that_is_taken_is_told(place, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        words = words_of("evaluate", place, tmp_path / "out")

        def before(rank):
            if rank:
                os._exit(7)
            os.environ["MASTER_PORT"] = port

        first, _ = run_ranks(2, words, tmp_path / "words", before=before)
    assert first.status == 2
    (last,) = first.errors.strip().splitlines()[-1:]
    assert f"to meet at port {port} of 127.0.0.1, which cannot be listened on" in last
    assert last.endswith("set MASTER_PORT to one that is free")


TRAINING = """
import os
from convattn import world
world._SECONDS_TO_COME, world._SECONDS_TO_SAY_WHO = {seconds}
for name in ("NTASKS", "NTASKS_PER_NODE"):
    os.environ["SLURM_" + name] = "2"
os.environ.update(SLURM_JOB_ID="42", SLURM_JOB_NAME="train", SLURM_NNODES="1", SLURM_NODEID="0")
os.environ["SLURM_LOCALID"] = str(rank)
from convattn.train import classification, run
run.draw_curves = classification.draw_attention = lambda *args, **kwargs: None
if rank == {absent}:
    os._exit(7)
"""
TRAIN = (
    "train quickstart --data.num-train 32 --data.num-test 8 --data.image-size 32 --epochs 1 "
    "--data.batch-size 16 --model.name test_convnext --accelerator cpu --strategy ddp --out"
)


@pytest.mark.long
def test_training_by_srun_tells_who_never_comes(tmp_path):
    words = [*TRAIN.split(), tmp_path / "run"]
    before = TRAINING.format(seconds=(6.0, 2.0), absent=1)
    first, _ = run_fresh_ranks(2, words, tmp_path / "words", before=before)
    assert first.status == 130, first.errors
    assert "process 0 of 2 has waited 2 seconds for process 1, and gives up after 6" in first.errors
    *_, last = first.errors.strip().splitlines()
    assert "convattn: process 0 of 2 has waited 6 seconds for process 1 in vain; " in last


@pytest.mark.long
def test_training_by_srun_goes_on_once_all_have_come(tmp_path):
    words = [*TRAIN.split(), tmp_path / "run"]
    before = TRAINING.format(seconds=(300.0, 1.0), absent=None)
    before += "if rank == 0:\n    import time\n    time.sleep(4)\n"
    ended = run_fresh_ranks(2, words, tmp_path / "words", before=before)
    assert [one.status for one in ended] == [0, 0], [one.errors for one in ended]
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [0, 1])
def test_others_end_when_one_was_killed_and_the_same_goes_on(mode, rank, place, alone, tmp_path):
    out = out_of(mode, tmp_path, "shared")
    words = words_of(mode, place, out)
    began = time.monotonic()
    ended = run_ranks(2, words, tmp_path / "words", before=killed_after(2, mode, rank))
    assert time.monotonic() - began < 60
    assert ended[rank].status == -signal.SIGKILL
    left = ended[1 - rank]
    assert left.status == 130
    told = left.errors.strip().splitlines()[-1]
    assert told.startswith(
        f"convattn: process {1 - rank} of 2 lost process {rank}, which was killed or ended; "
    )
    if mode == "evaluate":
        assert told.endswith(f"go on with: convattn evaluate --resume {out}")
        words = ["evaluate", "--resume", out]
    again = run_ranks(2, words, tmp_path / "again")
    assert [one.status for one in again] == [0, 0], [one.errors for one in again]
    assert same(mode, out, alone)


@pytest.mark.long
def test_share_that_is_whole_is_not_made_again(place, alone, tmp_path):
    out = tmp_path / "shared.csv"
    words = words_of("predict", place, out)
    run_ranks(2, words, tmp_path / "words", before=killed_after(2, "predict", 0))
    (share,) = tmp_path.glob("shared.csv.*-1-of-2.csv")

    def before(rank):
        from convattn.classification import table

        if rank == 1:
            table.classify_batches = None

    assert [one.status for one in run_ranks(2, words, tmp_path / "again", before=before)] == [0, 0]
    assert not share.exists()
    assert same("predict", out, alone)


@pytest.mark.long
def test_processes_without_a_readable_image_say_so(place, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"no image")
    words = ["predict", place / "run", tmp_path, "--out", tmp_path / "out" / "table.csv"]
    ended = run_ranks(2, words, tmp_path / "words")
    assert [one.status for one in ended] == [2, 130]
    assert "convattn: none of the 3 files could be read as an image\n" in ended[0].errors


@pytest.mark.long
def test_processes_write_no_embeddings(place, tmp_path):
    words = [*words_of("predict", place, tmp_path / "t.csv"), "--embeddings", tmp_path / "v.npy"]
    ended = run_ranks(2, words, tmp_path / "words")
    assert ended[0].status == 2
    assert "--embeddings are written by one process, and there are 2: leave" in ended[0].errors


@pytest.mark.long
def test_test_of_two_processes_is_not_gone_on_with_by_one(place, tmp_path, capsys):
    out = tmp_path / "shared"
    words = words_of("evaluate", place, out)
    run_ranks(2, words, tmp_path / "words", before=killed_after(2, "evaluate", 1))
    assert main(["evaluate", "--resume", str(out)]) == 2
    assert "was begun with processes 2, which now is 1" in capsys.readouterr().err


@pytest.mark.long
def test_who_fails_alone_ends_all_with_its_reason(place, tmp_path):
    def before(rank):
        from convattn.classification import testing

        if rank == 1:
            testing.check_num_classes = fail

    def fail(*_):
        raise ValueError("a.jpg is no image")

    words = words_of("evaluate", place, tmp_path / "out")
    ended = run_ranks(2, words, tmp_path / "words", before=before)
    assert [one.status for one in ended] == [130, 2]
    assert (
        ended[0]
        .errors.strip()
        .splitlines()[-1]
        .startswith("convattn: process 0 of 2 stopped, as process 1 failed: a.jpg is no image; ")
    )


@pytest.mark.long
def test_torchrun_ends_all_when_one_was_killed(place, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, sys\n"
        "from convattn.cli import main\n"
        "from tests.test_world import killed_after\n"
        "killed_after(2, 'evaluate', 1)(int(os.environ['RANK']))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = map(str, words_of("evaluate", place, tmp_path / "out"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [sys.executable, *launcher, script, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert ended.returncode != 0
    expected = "convattn: process 0 of 2 lost process 1, which was killed or ended; go on with: con"
    assert expected in ended.stderr


# --- probe


PROBE = (
    "--data.num-train 150 --data.num-test 50 --model test_efficientnet "
    "--random --image-size 64 --pools ep --seeds 1 --epochs 1 --views 2 --device cpu"
)


def probe_words(folder):
    own = ["--cache", folder / "maps", "--out", folder / "run"]
    return ["probe", "cluttered_digits", *PROBE.split(), *own]


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probed")
    assert main([str(word) for word in probe_words(folder)]) == 0
    return maps_of(folder), rows_of(folder)


def maps_of(folder):
    """The files of its one cache."""
    (cache,) = (folder / "maps").iterdir()
    return {file.name: file.read_bytes() for file in cache.iterdir() if file.name != ".lock"}


def rows_of(folder):
    header, *rows = (folder / "run" / "probe.csv").read_text().splitlines()
    seconds = header.split(",").index("seconds")
    return [[*cells[:seconds], *cells[seconds + 1 :]] for cells in (r.split(",") for r in rows)]


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 9])
def test_processes_share_the_maps_of_a_probe(count, probed, tmp_path):
    ended = run_fresh_ranks(count, probe_words(tmp_path), tmp_path / "words")
    assert [one.status for one in ended] == [0] * count, [one.errors for one in ended]
    assert maps_of(tmp_path) == probed[0]
    assert rows_of(tmp_path) == probed[1]


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_probe_goes_on_after_one_was_killed(rank, probed, tmp_path):
    before = f"""
if rank == {rank}:
    import os
    from convattn.probing import cache
    tell = cache._Maps.tell
    def tell_and_die(self, done):
        tell(self, done)
        if done >= 64:
            os.kill(os.getpid(), {int(signal.SIGKILL)})
    cache._Maps.tell = tell_and_die
from convattn.probing import cache
cache._CHUNK = 1
"""
    ended = run_fresh_ranks(2, probe_words(tmp_path), tmp_path / "words", before=before)
    assert ended[rank].status == -signal.SIGKILL
    assert ended[1 - rank].status == 130, ended[1 - rank].errors
    assert f"of 2 lost process {rank}, " in ended[1 - rank].errors
    assert f"go on with: convattn probe --resume {tmp_path / 'run'}" in ended[1 - rank].errors
    again = run_fresh_ranks(2, ["probe", "--resume", tmp_path / "run"], tmp_path / "again")
    assert [one.status for one in again] == [0, 0], [one.errors for one in again]
    assert maps_of(tmp_path) == probed[0]
    assert rows_of(tmp_path) == probed[1]
