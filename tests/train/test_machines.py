"""Several machines: network namespaces of this one, joined by a cable that can be pulled."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convattn.train.callbacks import read_metrics
from tests.train.conftest import digest

pytestmark = pytest.mark.timeout(1800)

FLAGS = (
    "--data.num-train 32 --data.num-test 8 --data.image-size 32 --data.batch-size 16 "
    "--data.random-crop-padding 0 --data.random-erasing 0 --data.mixup 0 --data.hflip 0 "
    "--model.name test_convnext --optim.opt sgd --optim.lr 0.1 --epochs 20 --eval-every 20 "
    "--accelerator cpu --checkpoint-every 3 --log-every 1"
)
STEPS = 40
STEPWISE = """
import sys, time
from convattn.cli import main
from convattn.train import classification, run

real = classification.ClassificationTask.training_step

def training_step(self, *args):
    time.sleep(0.1)
    return real(self, *args)

classification.ClassificationTask.training_step = training_step
run.draw_curves = classification.draw_attention = lambda *args, **kwargs: None
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Started:
    """A launcher that runs, and where its words go."""

    process: subprocess.Popen
    errors: Path

    def wait(self, seconds=300):
        return self.process.wait(seconds)

    @property
    def words(self):
        return self.errors.read_text()


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "stepwise.py"
    file.write_text(STEPWISE)
    return str(file)


@pytest.fixture
def launch(tmp_path):
    """Starts a command in a session of its own, and ends what is left of it afterwards."""
    running = []

    def start(*command, **environment):
        errors = tmp_path / f"{len(running)}.txt"
        with errors.open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                start_new_session=True,
            )
        running.append(process)
        return Started(process, errors)

    yield start
    for process in running:
        if process.poll() is None:
            for pid in [process.pid, *descendants(process.pid)]:
                kill(pid)
            process.wait()


def torchrun(*arguments):
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def descendants(pid):
    """Numbers of the processes that a process has started, and of those that these have."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        children = [int(child) for child in listed.read_text().split()]
    except FileNotFoundError:
        return []
    return [*children, *(one for child in children for one in descendants(child))]


def rank_of(pid):
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)


def wait_for_step(folder, step, *running):
    end = time.monotonic() + 240
    while not any(row["step"] >= step for row in read_metrics(folder / "metrics.csv")):
        for one in running:
            assert one.process.poll() is None, one.words
        assert time.monotonic() < end, [one.words for one in running]
        time.sleep(0.05)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pids, seconds):
    """Seconds until all processes are gone."""
    begun = time.monotonic()
    while any(map(lives, pids)):
        assert time.monotonic() - begun < seconds, "still there"
        time.sleep(0.1)
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of one process that nobody stops."""
    place = tmp_path_factory.mktemp("whole")
    (place / "stepwise.py").write_text(STEPWISE.replace("time.sleep(0.1)", "pass"))
    command = ["train", "quickstart", *FLAGS.split(), "--out", str(place / "run")]
    subprocess.run([sys.executable, str(place / "stepwise.py"), *command], check=True, cwd=place)
    return place / "run"


def largest_difference(folder, other):
    ours, theirs = (load_file(place / "model.safetensors") for place in (folder, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


# --- one machine


@pytest.mark.slow
def test_run_of_two_processes_goes_on_with_one_and_with_four(whole, launch, script, tmp_path):
    run = tmp_path / "run"
    command = [script, "train", "quickstart", *FLAGS.split(), "--out", str(run), "--auto-resume"]
    for processes, step in ((2, 8), (1, 20), (4, None)):
        start = torchrun("--standalone", "--nproc-per-node", str(processes), *command)
        one = launch(*start) if processes > 1 else launch(sys.executable, *command)
        if step is None:
            assert one.wait() == 0, one.words
            break
        wait_for_step(run, step, one)
        for pid in [one.process.pid, *descendants(one.process.pid)]:
            kill(pid)
        one.wait()
        content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert step - 4 < content["global_step"] < STEPS
    assert largest_difference(run, whole) < 1e-5
    steps = [row["step"] for row in read_metrics(run / "metrics.csv") if "train_loss" in row]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_all_end_soon_after_one_was_killed(launcher, launch, script, tmp_path):
    run = tmp_path / "run"
    command = [script, "train", "quickstart", *FLAGS.split(), "--out", str(run)]
    if launcher == "torchrun":
        one = launch(*torchrun("--standalone", "--nproc-per-node", "4", *command))
    else:
        one = launch(sys.executable, *command, "--devices", "4")
    wait_for_step(run, 6, one)
    pids = descendants(one.process.pid)
    if launcher == "torchrun":
        kill(next(pid for pid in pids if rank_of(pid) == 3))
    else:
        kill(pids[-1])
    assert wait_for_end([one.process.pid, *pids], 30) < 30
    lines = [line for line in one.words.splitlines() if line.startswith("convattn: process 0")]
    assert len(lines) == 1
    assert " of 4 lost process 3, which was killed or ended; resume with: " in lines[0]
    assert lines[0].endswith(f"convattn train --resume {run}")
    assert "convattn: process 1 of 4 lost process 3, " in one.words


@pytest.mark.slow
def test_sigterm_to_torchrun_leaves_a_checkpoint(launch, script, tmp_path):
    run = tmp_path / "run"
    command = [script, "train", "quickstart", *FLAGS.split(), "--checkpoint-every", "0"]
    start = torchrun("--standalone", "--nproc-per-node", "2", *command, "--out", str(run))
    one = launch(*start)
    wait_for_step(run, 7, one)
    last = max(row["step"] for row in read_metrics(run / "metrics.csv"))
    one.process.send_signal(signal.SIGTERM)
    assert one.wait() != 0
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] >= last
    assert f"resume with: convattn train --resume {run}" in one.words


# --- two machines


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Machine:
    """A network namespace."""

    name: str
    cable: str
    address: str

    def within(self, *command):
        return ["ip", "netns", "exec", self.name, *command]

    @property
    def pids(self):
        told = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, check=True)
        return [int(pid) for pid in told.stdout.split()]

    def lose(self):
        """End all that runs on it, as if the power went."""
        for pid in self.pids:
            kill(pid)


@pytest.fixture
def machines():
    """Two machines with a cable between them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip")
    number = os.getpid() % 100_000
    both = [
        Machine(f"convattn-{number}-{end}", f"ca{number}{end}", f"10.213.7.{place}")
        for place, end in enumerate("ab", start=1)
    ]
    try:
        for one in both:
            ip("netns", "add", one.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", both[0].cable, "type", "veth", "peer", "name", both[1].cable)
        for one in both:
            ip("link", "set", one.cable, "netns", one.name)
            ip("-n", one.name, "addr", "add", f"{one.address}/24", "dev", one.cable)
            ip("-n", one.name, "link", "set", one.cable, "up")
            ip("-n", one.name, "link", "set", "lo", "up")
        yield both
    finally:
        for one in both:
            one.lose()
            ip("netns", "del", one.name)


@pytest.fixture
def agent(machines, launch, script):
    """Starts torchrun on a machine, for one process of two."""

    def start(machine, out, *flags):
        return launch(
            *machine.within(
                *torchrun("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
                *("--rdzv-backend", "c10d", "--rdzv-id", "convattn-test"),
                *("--rdzv-endpoint", f"{machines[0].address}:29400"),
                *("--rdzv-conf", f"is_host={int(machine is machines[0])},join_timeout=120"),
                *("--local-addr", machine.address),
                *(script, "train", "quickstart", *FLAGS.split(), "--out", str(out)),
                *("--auto-resume", *flags),
            ),
            GLOO_SOCKET_IFNAME=machine.cable,
            TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        )

    return start


@pytest.mark.long
def test_lost_machine_that_comes_back_ends_in_the_same_weights(machines, agent, tmp_path):
    run, never = tmp_path / "run", tmp_path / "never"
    pair = [agent(machine, never) for machine in machines]
    assert [one.wait() for one in pair] == [0, 0], [one.words for one in pair]

    pair = [agent(machine, run) for machine in machines]
    wait_for_step(run, 12, *pair)
    machines[1].lose()
    pair[1].wait()
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 9 <= kept < STEPS
    back = agent(machines[1], run)
    assert [one.wait() for one in (pair[0], back)] == [0, 0], pair[0].words + back.words
    assert "process 0 of 2 lost process 1, which was killed or ended" in pair[0].words
    assert digest(run) == digest(never)
    steps = [row["step"] for row in read_metrics(run / "metrics.csv") if "train_loss" in row]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_pulled_cable_ends_the_training_on_both_machines(machines, agent, tmp_path):
    run = tmp_path / "run"
    pair = [agent(machine, run) for machine in machines]
    wait_for_step(run, 6, *pair)
    workers = [descendants(one.process.pid) for one in pair]
    trained = [next(pid for pid in pids if rank_of(pid) is not None) for pids in workers]
    ip("-n", machines[1].name, "link", "set", machines[1].cable, "down")
    assert wait_for_end(trained, 35) < 30
    words = "".join(one.words for one in pair)
    assert "convattn: process 0 of 2 lost process 1, which was killed or ended; resume wi" in words
    assert "convattn: process 1 of 2 lost process 0, which was killed or ended; resume wi" in words
