"""Processes that launchers start: how many, jobs that are started again, and one that is gone."""

import signal
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
import torch.distributed as dist

from convattn import heartbeat
from convattn.config import TrainConfig
from convattn.exceptions import Interrupted
from convattn.tasks import resume, train, train_or_resume
from convattn.train import processes
from convattn.train.processes import Heartbeat, Started, check_processes, processes_of, started
from tests.train.conftest import digest, steady_columns, tiny
from tests.train.test_run import at_step

pytestmark = pytest.mark.usefixtures("no_images")

CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:33")


@pytest.fixture
def torchrun(monkeypatch):
    """Two machines of four processes each."""
    for name, value in (("RUN_ID", "none"), ("RESTART_COUNT", "0")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A job of one process, and a scontrol that notes what it is asked."""
    values = {
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    return tmp_path / "asked"


def crash(loss):
    raise RuntimeError("power cut")


@pytest.mark.usefixtures("torchrun")
def test_torchrun_says_how_many_processes_there_are():
    assert started() == Started(launcher="torchrun", devices=4, num_nodes=2)
    assert processes_of(TrainConfig()) == {"devices": 4, "num_nodes": 2}
    check_processes(TrainConfig())
    check_processes(TrainConfig(devices=4, num_nodes=2))
    with pytest.raises(ValueError, match="--devices 2, and torchrun has started 2 x 4 proc"):
        check_processes(TrainConfig(devices=2))
    with pytest.raises(ValueError, match="--num-nodes 3, and torchrun has started"):
        check_processes(TrainConfig(num_nodes=3))


def test_srun_says_how_many_processes_there_are(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "32")
    monkeypatch.setenv("SLURM_NNODES", "4")
    assert started() == Started(launcher="srun", devices=8, num_nodes=4)
    with pytest.raises(ValueError, match="--devices 2, and srun has started 4 x 8 processes"):
        check_processes(TrainConfig(devices=2))


def test_without_launcher_the_flags_say_so():
    assert started() is None
    assert processes_of(TrainConfig(devices=3)) == {"devices": 3, "num_nodes": 1}


# --- the same command again


@pytest.mark.parametrize("step", [1, 10])
def test_repeated_command_goes_on_where_it_was_killed(step, finished, tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", checkpoint_every=2)
    with monkeypatch.context() as patch:
        at_step(patch, step, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train_or_resume(config)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() == (step > 1)
    assert train_or_resume(config) is not None
    assert digest(tmp_path / "run") == digest(finished.folder)
    assert steady_columns(tmp_path / "run") == steady_columns(finished.folder)


def test_repeated_command_leaves_what_has_ended(finished, capsys):
    before = (finished.folder / "report.md").stat().st_mtime_ns
    assert train_or_resume(tiny(finished.folder)) is None
    assert "has ended: there is nothing left to do" in capsys.readouterr().err
    assert (finished.folder / "report.md").stat().st_mtime_ns == before


def test_repeated_command_with_other_flags_is_refused(finished):
    data = replace(tiny(finished.folder).data, batch_size=8)
    with pytest.raises(ValueError, match=r"data\.batch_size=16, and this one has 8; give the"):
        train_or_resume(tiny(finished.folder, data=data))


# --- SLURM's signal


def test_usr1_in_a_job_leaves_a_checkpoint_and_has_it_requeued(
    slurm, finished, tmp_path, monkeypatch
):
    def announce(loss):
        signal.raise_signal(signal.SIGUSR1)
        return loss

    handler = signal.getsignal(signal.SIGUSR1)
    config = tiny(tmp_path / "run", checkpoint_every=0)
    with monkeypatch.context() as patch:
        at_step(patch, 10, announce)
        with pytest.raises(Interrupted, match="of step 11; job 42 is requeued; resume with"):
            train_or_resume(config)
    assert slurm.read_text() == "requeue 42\n"
    assert not list((tmp_path / "run").rglob("hpc*"))
    assert signal.getsignal(signal.SIGUSR1) is handler
    assert train_or_resume(config) is not None
    assert digest(tmp_path / "run") == digest(finished.folder)


def test_job_that_cannot_be_requeued_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert processes.requeue("7").startswith("job 7 could not be requeued (")


def test_array_job_is_requeued_by_its_task(monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert processes.slurm_job() == "9_3"


# --- one that is gone


@pytest.fixture
def four(monkeypatch):
    """The heartbeats of four processes that have met in a store."""
    for name, seconds in (("BETWEEN_BEATS", 0.05), ("TO_BEAT", 0.4), ("TO_END", 0.2)):
        monkeypatch.setattr(heartbeat, f"_SECONDS_{name}", seconds)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=9))
    beats = [Heartbeat(lambda: "resume with: X") for _ in range(4)]
    for rank, beat in enumerate(beats):
        client = dist.TCPStore("127.0.0.1", server.port, timeout=timedelta(seconds=9))
        beat.begin(client, rank, 4)
    yield beats
    for beat in beats:
        beat.end()


@pytest.fixture
def ended(monkeypatch):
    """Notes how a thread would have ended this process."""
    statuses = []
    monkeypatch.setattr(heartbeat.os, "_exit", statuses.append)
    return statuses


def test_who_loses_a_connection_says_whose_it_was(four, ended):
    four[2].end()
    four[1].on_exception(None, None, CLOSED)
    assert four[1].told == "lost process 2, which was killed or ended"
    four[0].on_exception(None, None, CLOSED)
    assert four[0].told == four[1].told


def test_who_hangs_is_ended_by_its_thread(four, ended, capsys):
    four[2].end()
    four[1].on_exception(None, None, CLOSED)
    for rank in (0, 3):
        four[rank]._threads[0].join(5)
    assert ended == [130, 130]
    words = capsys.readouterr().err
    for rank in (0, 3):
        assert (
            f"convattn: process {rank} of 4 lost process 2, which was killed or ended; resume "
            "with: X\n"
        ) in words


def test_silence_is_enough(four, ended, monkeypatch):
    monkeypatch.setattr(heartbeat, "_SECONDS_OF_SILENCE", 0.5)
    four[3].end()
    four[0]._threads[0].join(5)
    assert 130 in ended
    assert four[1].said() == "lost process 3, which was killed or ended"


def test_who_fails_alone_tells_the_others_why(four, ended):
    four[1].on_exception(None, None, ValueError("a.jpg is no image"))
    four[0].on_exception(None, None, CLOSED)
    assert four[0].told == "stopped, as process 1 failed: a.jpg is no image"


def test_what_all_meet_together_is_told_by_none(four, ended):
    four[1].on_exception(None, None, Interrupted("stopped"))
    assert four[0].said() is None
    assert not ended


def test_nobody_is_left_waiting(four):
    for beat in four:
        beat.end()
    assert not [one for one in threading.enumerate() if one.name.startswith("heartbeat")]


def test_lock_of_the_same_job_on_a_machine_that_is_gone_is_taken_over(tmp_path, monkeypatch):
    from convattn import ownership

    (tmp_path / "run").mkdir()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job7")
    with monkeypatch.context() as patch:
        patch.setattr(ownership.socket, "gethostname", lambda: "elsewhere")
        lock = ownership.Owner.of_this_process()
    assert lock.has_died()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job8")
    assert not lock.has_died()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not lock.has_died()


def test_resume_under_torchrun_takes_its_processes(finished, tmp_path, monkeypatch):
    """A run of two processes a machine is gone on with by one."""
    config = tiny(tmp_path / "run", num_nodes=1)
    with monkeypatch.context() as patch:
        at_step(patch, 10, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config)
    written = tmp_path / "run" / "config.json"
    written.write_text(written.read_text().replace('"devices": 1', '"devices": 2'))
    for name, value in (("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    for name, value in (("RUN_ID", "a"), ("RESTART_COUNT", "0"), ("MAX_RESTARTS", "0")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in (("LOCAL_RANK", "0"), ("GROUP_RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    resume(tmp_path / "run")
    assert digest(tmp_path / "run") == digest(finished.folder)
