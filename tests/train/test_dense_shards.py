"""Training of detectors and segmenters on shards: what it sees is the folder's."""

import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from convattn.cli import main
from convattn.data.batches import collate_lists
from convattn.tasks import resume, train
from convattn.train.datamodule import EpochBatches, SeededBatches
from convattn.train.detection import DetectionJob, DetectionTask
from convattn.train.segmentation import SegmentationJob, SegmentationTask
from tests.data.dense_folders import write_coco, write_masks
from tests.train import test_detection, test_segmentation
from tests.train.conftest import digest, steady_columns

pytestmark = pytest.mark.usefixtures("no_images")

FORMATS = ["webdataset", "litdata"]
TASKS = {
    "boxes": (write_coco, test_detection.TINY, DetectionTask, DetectionJob),
    "outlines": (
        write_coco,
        replace(test_detection.TINY, model=test_detection.MASKS),
        DetectionTask,
        DetectionJob,
    ),
    "masks": (write_masks, test_segmentation.TINY, SegmentationTask, SegmentationJob),
    "painted": (write_coco, test_segmentation.TINY, SegmentationTask, SegmentationJob),
}
RUNS = ["boxes", "masks"]


def config(kind, name, root, out, **data):
    tiny = TASKS[kind][1]
    images = replace(
        tiny.data, name=name, root=str(root), num_train=None, num_test=None, batch_size=2, **data
    )
    return replace(tiny, data=images, checkpoint_every=1, out=str(out))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders of boxes and of masks, and their shards of three images."""
    place = tmp_path_factory.mktemp("dense")
    pytest.importorskip("litdata")
    for write in (write_coco, write_masks):
        folder = write(place / write.__name__)
        for name in FORMATS:
            words = [str(folder), str(place / f"{folder.name}_{name}"), "--format", name]
            assert main(["shard", *words, "--shard-size", "3"]) == 0
    return place


@pytest.fixture(scope="module")
def folder_runs(place, tmp_path_factory):
    """Kind -> the run on its folder."""
    runs = {}

    def run(kind):
        if kind not in runs:
            out = tmp_path_factory.mktemp("runs") / kind
            runs[kind] = train(config(kind, "folder", place / TASKS[kind][0].__name__, out)).folder
        return runs[kind]

    return run


def found_in(folder):
    """What a test found, without its speed."""
    found = json.loads((folder / "evaluation.json").read_text())
    return {name: value for name, value in found.items() if "second" not in name}


def loss_of_first_step(kind, name, root):
    job = TASKS[kind][3](config(kind, name, root, "run"))
    task = job.make_task(None).train()
    batch = next(iter(EpochBatches(7, 2, seed=0)))
    items = SeededBatches(job.data.train_images).__getitems__(batch)
    torch.manual_seed(0)
    with patch.object(type(task), "current_epoch", 0):
        return float(task.training_step(collate_lists(items), 0).detach())


@pytest.mark.parametrize("kind", TASKS)
def test_loss_of_the_first_step_is_the_folders(kind, place):
    name = TASKS[kind][0].__name__
    expected = loss_of_first_step(kind, "folder", place / name)
    assert expected > 0
    for format in FORMATS:
        assert loss_of_first_step(kind, format, place / f"{name}_{format}") == expected


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("format", FORMATS)
def test_run_on_shards_is_the_folders(format, kind, place, folder_runs, tmp_path):
    root = place / f"{TASKS[kind][0].__name__}_{format}"
    run = train(config(kind, format, root, tmp_path / "run", num_workers=2))
    assert digest(run.folder) == digest(folder_runs(kind))
    assert steady_columns(run.folder) == steady_columns(folder_runs(kind))
    assert found_in(run.folder) == found_in(folder_runs(kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("format", FORMATS)
def test_stopped_in_an_epoch_it_goes_on(format, kind, place, folder_runs, tmp_path, monkeypatch):
    write, _, task, _ = TASKS[kind]
    step = task.training_step

    def crash(self, batch, batch_idx):
        if self.global_step == 4:
            raise RuntimeError("power cut")
        return step(self, batch, batch_idx)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(task, "training_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config(kind, format, place / f"{write.__name__}_{format}", out))
    resume(out)
    assert digest(out) == digest(folder_runs(kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
def test_evaluate_says_of_shards_what_it_says_of_the_folder(kind, place, folder_runs, tmp_path):
    name = TASKS[kind][0].__name__
    for format in ("folder", *FORMATS):
        root = place / (name if format == "folder" else f"{name}_{format}")
        words = ["--data", format, "--data.root", str(root), "--out", str(tmp_path / format)]
        assert main(["evaluate", str(folder_runs(kind)), *words, "--device", "cpu"]) == 0
    for format in FORMATS:
        assert found_in(tmp_path / format) == found_in(tmp_path / "folder")


@pytest.mark.slow
def test_two_processes_share_shards_as_they_share_a_folder(place, train_apart, tmp_path):
    runs = []
    for name, root in (("folder", "write_masks"), ("webdataset", "write_masks_webdataset")):
        both = config("masks", name, place / root, tmp_path / name)
        train_apart(replace(both, devices=2, strategy="ddp", epochs=1))
        runs.append(digest(tmp_path / name))
    assert runs[0] == runs[1]
