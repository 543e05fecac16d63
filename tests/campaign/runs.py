"""Tiny runs that the rows kill, damage and attack."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convattn.classification import figures
from convattn.train import callbacks, classification
from convattn.train import run as training
from tests.campaign.running import call

_DATA = "--data.num-train 48 --data.num-test 16 --data.image-size 32 --data.batch-size 16"
_MODEL = "--model.model-args embed_dim 16 depth 2 --optim.opt adamw"
_STEPS = "--epochs 2 --checkpoint-every 1 --log-every 1 --eval-every 2 --accelerator cpu"
TRAIN = f"train quickstart {_DATA} {_MODEL} {_STEPS} --out".split()
"""Six steps on generated digits, a checkpoint a step."""


@dataclass(frozen=True)
class Runs:
    """What was trained once; rows copy it."""

    finished: Path
    stopped: Path
    """After its step 4 of 6, with a checkpoint."""
    image: Path

    def copy(self, run: Path, folder: Path) -> Path:
        """A run as ``run`` in another folder."""
        return shutil.copytree(run, folder / "run")


def without_figures() -> None:
    """Leave out what takes most of a tiny run's time; called in its process."""
    training.draw_curves = lambda *_, **__: None
    classification.draw_attention = lambda *_, **__: None
    figures.draw_confusion = lambda labels, taken, names, out, **_: out.touch()


def make_runs(folder: Path) -> Runs:
    """Train them."""
    ended = call([*TRAIN, folder / "finished"], folder / "words", before=without_figures)
    assert ended.status == 0, ended.errors
    ended = call([*TRAIN, folder / "stopped"], folder / "words", before=_die_after_step_4)
    assert ended.status == 77, ended.errors
    image = folder / "image.png"
    Image.linear_gradient("L").convert("RGB").resize((40, 30)).save(image)
    return Runs(folder / "finished", folder / "stopped", image)


def _die_after_step_4() -> None:
    save = callbacks.Checkpoints.save

    def save_and_die(self, trainer):
        save(self, trainer)
        if trainer.global_step == 4:
            os._exit(77)

    callbacks.Checkpoints.save = save_and_die


def digest(run: Path) -> str | None:
    """Of its weights; None if it has none."""
    file = run / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def resume_to_the_end(run: Path, words: Sequence[object], folder: Path, expected: str) -> str:
    """What comes of resuming a killed run, or of training anew what had no checkpoint yet.

    Args:
        words: Of the training, but for its ``--out``.
        expected: Digest of the weights of a run that nobody killed.
    """
    if (run / "report.md").exists() and digest(run) == expected:  # killed when all was done
        ended = call(["evaluate", run], folder, before=without_figures)
        return _whole(run) if ended.outcome == "right" else ended.outcome
    ended = call(["train", "--resume", run], folder, before=without_figures)
    if ended.status == 2 and not (run / "checkpoints" / "last.ckpt").exists():
        if ended.outcome != "refused":
            return ended.outcome
        shutil.rmtree(run, ignore_errors=True)
        ended = call([*words, run], folder, before=without_figures)
    if ended.outcome != "right":
        return ended.outcome
    return _whole(run) if digest(run) == expected else "other weights than a run never killed"


def _whole(run: Path) -> str:
    if not (run / "README.md").exists():
        return "no model card"
    left = [str(one.relative_to(run)) for one in run.rglob("*") if ".part" in one.name]
    left += [".lock"] if (run / ".lock").exists() else []
    return f"left behind: {', '.join(left)}" if left else "right"
