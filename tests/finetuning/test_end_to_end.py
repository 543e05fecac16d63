"""The second stage of a finetuning: how long, whether it is kept, and what a kill does."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy

from convattn.config import DataConfig, FinetuneConfig
from convattn.finetuning import end_to_end
from convattn.finetuning import run as finetuning
from convattn.finetuning.end_to_end import Speed, is_better, plan_epochs
from convattn.finetuning.folder import FinetunedRun
from convattn.finetuning.run import resume_finetune, run_finetune
from convattn.runs import Run
from convattn.train.callbacks import Checkpoints
from tests.finetuning.conftest import config_in, contents

COUNTS = {"fit": 800, "train": 1000, "test": 500}


def _plan(monkeypatch: pytest.MonkeyPatch, *, seconds: float, **words: int) -> int:
    monkeypatch.setattr(end_to_end, "_SLACK", 1.0)
    speed = Speed(training=0.01, testing=0.002)
    monkeypatch.setattr(end_to_end, "measure_speed", lambda *arguments: speed)
    config = FinetuneConfig(data=DataConfig(name="folder", root="x"), **words)  # type: ignore[arg-type]
    return plan_epochs(torch.nn.Identity(), (3, 8, 8), config, seconds=seconds, **COUNTS)


def test_epochs_are_as_many_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An epoch: 800 + 1,000 images are learnt and 200 looked at, 18.4 s; the test takes 1 s.
    assert _plan(monkeypatch, seconds=1 + 5 * 18.4 + 0.1) == 5
    assert _plan(monkeypatch, seconds=1e6) == end_to_end.MOST_EPOCHS
    assert _plan(monkeypatch, seconds=1 + 2 * 18.4 + 0.1) == 0
    assert "an epoch end to end takes about 0.31 minutes" in capsys.readouterr().err
    # Each of 4 folds learns 3/4 of 800 images and looks at 3/4 of 200; 1,000 are predicted.
    assert _plan(monkeypatch, seconds=3 + 3 * (18.4 + 4 * 6.3) + 0.1, folds=4) == 3
    assert _plan(monkeypatch, seconds=3 + 3 * (18.4 + 4 * 6.3) - 0.1, folds=4) == 0


def test_epochs_that_were_asked_for_are_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _plan(monkeypatch, seconds=1, epochs=2) == 2
    assert "more than --minutes" in capsys.readouterr().err
    assert _plan(monkeypatch, seconds=1e6, epochs=0) == 0


def test_few_images_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COUNTS, "fit", 851)
    assert _plan(monkeypatch, seconds=1e6) == 0
    assert "149 validation images are too few" in capsys.readouterr().err
    assert _plan(monkeypatch, seconds=1e6, epochs=2) == 2


def test_a_network_is_better_only_beyond_its_standard_error() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator)
    sure = 4 * torch.nn.functional.one_hot(labels, 3).float()
    before = sure + 3 * torch.randn(60, 3, generator=generator)
    after = sure + 2 * torch.randn(60, 3, generator=generator)
    assert is_better(before, after, labels)
    assert not is_better(after, before, labels)
    assert not is_better(before, before, labels)
    assert not is_better(before, before * 5, labels)  # only another temperature
    # The same by hand: the best of many temperatures, image by image.
    grid = [math.exp(step / 200) for step in range(-130, 320)]

    def losses(logits: torch.Tensor) -> list[float]:
        best = min(grid, key=lambda t: float(cross_entropy(logits.double() / t, labels)))
        return [
            float(cross_entropy(row[None].double() / best, label[None]))
            for row, label in zip(logits, labels, strict=True)
        ]

    for other in (after, before + 0.6 * torch.randn(60, 3, generator=generator)):
        gains = [a - b for a, b in zip(losses(before), losses(other), strict=True)]
        mean = sum(gains) / 60
        error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 59 / 60)
        assert is_better(before, other, labels) == (mean > error)


@pytest.fixture(autouse=True, scope="module")
def kept() -> Iterator[None]:
    """The second stage is kept whatever validation images say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(end_to_end, "is_better", lambda *arguments: True)
        yield


@pytest.fixture
def two_epochs(config: FinetuneConfig) -> FinetuneConfig:
    return dataclasses.replace(config, epochs=2)


@pytest.fixture(scope="module")
def both(
    kept: None, images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> FinetunedRun:
    """The run of ``two_epochs``, which tests only read."""
    config = config_in(tmp_path_factory.mktemp("both"), images, weights)
    return run_finetune(dataclasses.replace(config, epochs=2))


@pytest.mark.long
def test_the_whole_network_is_trained_on(finished: FinetunedRun, both: FinetunedRun) -> None:
    before, after = (
        safetensors.torch.load_file(run.folder / "model.safetensors") for run in (finished, both)
    )
    assert before.keys() == after.keys()
    kernels = [name for name, x in before.items() if name.startswith("backbone") and x.ndim == 4]
    assert all(not torch.equal(before[name], after[name]) for name in kernels)
    assert Run.open(both.folder).load_model()
    page = both.report.read_text()
    assert "the whole network" in page
    assert "epochs end to end" in page
    assert not list(both.folder.glob("**/*.ckpt"))


@pytest.mark.long
def test_it_is_dropped_where_validation_images_find_it_no_better(
    two_epochs: FinetuneConfig, finished: FinetunedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end, "is_better", lambda *arguments: False)
    dropped = run_finetune(two_epochs).folder
    for name in ("model.safetensors", "evaluation.json"):
        assert (finished.folder / name).read_bytes() == (dropped / name).read_bytes()


class _Killed(BaseException):
    pass


@pytest.mark.long
@pytest.mark.parametrize(
    "checkpoint", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 3))]
)
def test_a_kill_changes_nothing(
    two_epochs: FinetuneConfig, both: FinetunedRun, monkeypatch: pytest.MonkeyPatch, checkpoint: int
) -> None:
    """A checkpoint an epoch: two of the training that chooses, then of that on all images."""
    save, count = Checkpoints.save, [0]

    def die(self: Checkpoints, *arguments: object) -> None:
        save(self, *arguments)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == checkpoint:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(_Killed):
            run_finetune(two_epochs)
    folder = resume_finetune(Path(str(two_epochs.out))).folder
    assert contents(folder) == contents(both.folder)


@pytest.mark.long
def test_rows_of_a_training_that_kept_nothing_are_not_told_twice(
    two_epochs: FinetuneConfig, both: FinetunedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first epoch's rows and before its checkpoint."""

    def die(*arguments: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(_Killed):
            run_finetune(two_epochs)
    folder = Path(str(two_epochs.out))
    assert len((folder / "stages/end-to-end/metrics.csv").read_text().splitlines()) > 1
    again = resume_finetune(folder)
    pages = [run.report.read_text().replace(str(run.folder.parent), "DIR") for run in (both, again)]
    assert pages[0] == pages[1]


@pytest.mark.long
def test_folds_are_trained_as_the_final_network_is(
    two_epochs: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    own = finetuning.second_stage.train_end_to_end

    def watch(*arguments: object, **words: object) -> object:
        trained.append((words["fit_on"], words["valid"]))
        return own(*arguments, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning.second_stage, "train_end_to_end", watch)
    found = run_finetune(dataclasses.replace(two_epochs, folds=2))
    assert [valid is None for _, valid in trained] == [False, True, False, False]
    assert trained[1][0].tolist() == list(range(60))
    learnt = [set(fit.tolist()) | set(valid.tolist()) for fit, valid in trained[2:]]
    assert learnt[0] | learnt[1] == set(range(60))
    assert not learnt[0] & learnt[1]
    lines = (found.folder / "out_of_fold.csv").read_text().splitlines()
    for number, row in enumerate(lines[1:]):
        own_fold = int(row.split(",")[2]) - 1
        assert number not in learnt[own_fold]
    result = json.loads((found.folder / "evaluation.json").read_text())
    assert result["out_of_fold"]["num_images"] == 60
