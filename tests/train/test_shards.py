"""Training on shards: what it sees is the folder's, killed and resumed, whoever shares the work."""

import contextlib
import io
import json
import os
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from convattn.classification.sharding import shard_data
from convattn.config import DataConfig
from convattn.data import load_source
from convattn.data.shard_files import shard_numbers
from convattn.tasks import resume, train
from convattn.train.callbacks import read_metrics
from convattn.train.datamodule import EpochBatches, SeededBatches
from tests.noise import write_noise
from tests.train.conftest import TINY, digest, steady_columns
from tests.train.test_run import at_step

pytestmark = pytest.mark.usefixtures("no_images")

FORMATS = ["webdataset", "litdata"]
STEPS = 6  # an epoch


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of noise, and its shards, more than there are ranks times workers and fewer."""
    place = tmp_path_factory.mktemp("shards")
    write_noise(place / "images", num_train=13)
    images = DataConfig(name="folder", root=str(place / "images"))
    shard_data(images, place / "webdataset", shard_size=5)
    shard_data(images, place / "one", shard_size=99)
    with contextlib.suppress(ModuleNotFoundError):
        shard_data(images, place / "litdata", shard_size=5, format="litdata")
    return place


def config(place, name, out, **data):
    images = replace(
        TINY.data, name=name, root=str(place), num_train=None, num_test=None, batch_size=4, **data
    )
    return replace(TINY, data=images, epochs=2, checkpoint_every=2, out=str(out))


@pytest.fixture(scope="module")
def folder_run(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convattn.train.run.draw_curves", lambda *args, **kwargs: None)
        patch.setattr("convattn.train.classification.draw_attention", lambda *_, **__: None)
        return train(config(place / "images", "folder", out))


def need(format):
    if format == "litdata":
        pytest.importorskip("litdata")


@pytest.mark.parametrize("format", FORMATS)
def test_run_on_shards_ends_with_the_weights_of_the_folders(format, place, folder_run, tmp_path):
    need(format)
    run = train(config(place / format, format, tmp_path / "run"))
    assert digest(run.folder) == digest(folder_run.folder)
    assert steady_columns(run.folder) == steady_columns(folder_run.folder)


def stopped(place, format, tmp_path, monkeypatch):
    """The folder of a training that failed in the middle of an epoch."""

    def crash(loss):
        raise RuntimeError("power cut")

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, STEPS + 3, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(config(place / format, format, out))
    return out


@pytest.mark.parametrize("format", FORMATS)
def test_stopped_in_an_epoch_it_goes_on_with_other_workers(
    format, place, folder_run, tmp_path, monkeypatch
):
    need(format)

    out = stopped(place, format, tmp_path, monkeypatch)
    written = json.loads((out / "config.json").read_text())
    assert written["data"]["num_workers"] == 0
    written["data"]["num_workers"] = 2
    (out / "config.json").write_text(json.dumps(written))
    resume(out)
    assert digest(out) == digest(folder_run.folder)
    assert steady_columns(out) == steady_columns(folder_run.folder)


def test_resume_on_other_shards_is_refused(place, tmp_path, monkeypatch):
    out = stopped(place, "webdataset", tmp_path, monkeypatch)
    written = json.loads((out / "config.json").read_text())
    written["data"]["root"] = str(place / "webdataset" / "train-{000000..000004}.tar")
    (out / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="images"):
        resume(out)


@pytest.fixture
def start_training(start, tmp_path):
    """Starts a training in a session of its own, with the processes that it starts."""

    def run(config):
        written = tmp_path / f"{Path(config.out).name}.json"
        script = written.with_suffix(".py")
        written.write_text(config.to_json())
        script.write_text(
            "import os\n"
            "if 'LOCAL_RANK' not in os.environ:\n"
            "    os.setsid()\n"
            "from pathlib import Path\n"
            "from convattn.config import TrainConfig\n"
            "from convattn.tasks import train\n"
            f"train(TrainConfig.from_json(Path({str(written)!r}).read_text()))\n"
        )
        return start(str(script))

    return run


def finish(process):
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", FORMATS)
def test_killed_with_two_processes_of_two_workers_it_resumes_to_the_same(
    format, place, start, start_training, tmp_path
):
    need(format)
    both = replace(config(place / format, format, tmp_path / "whole", num_workers=2), devices=2)
    finish(start_training(both))
    process = start_training(replace(both, out=str(tmp_path / "killed")))
    metrics = tmp_path / "killed" / "metrics.csv"
    while not any(row["step"] > STEPS for row in read_metrics(metrics)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    finish(start("-m", "convattn", "train", "--resume", str(tmp_path / "killed")))
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


# --- every image once an epoch


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Tars of 1 to 17 images."""
    folder = tmp_path_factory.mktemp("uneven")
    number = 0
    for size in range(1, 18):
        with tarfile.open(folder / f"train-{size:02d}.tar", "w") as tar:
            for _ in range(size):
                add_image(tar, number, png(number))
                number += 1
    (folder / "test-00.tar").write_bytes((folder / "train-17.tar").read_bytes())
    return folder


def add_image(tar, number, content):
    """An image and its class."""
    for end, part in ((".png", content), (".cls", str(number % 2).encode())):
        member = tarfile.TarInfo(f"{number:04d}{end}")
        member.size = len(part)
        tar.addfile(member, io.BytesIO(part))


def png(number):
    return png_of((number, 0, 0))


def png_of(colour):
    written = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(written, "PNG")
    return written.getvalue()


def reds_of(items):
    return [image.getpixel((0, 0))[0] for image, _ in items]


def numbers_of(items):
    return [number_of(image) for image, _ in items]


def shown(images, num_workers, rank, epoch, batch_size):
    """Numbers of the images that a rank is shown in an epoch, batch by batch."""
    batches = EpochBatches(len(images), batch_size, seed=1, rank=rank, world_size=3)
    batches.set_epoch(epoch)
    loader = DataLoader(
        SeededBatches(images),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=reds_of,
    )
    return list(loader)


def test_three_ranks_see_each_image_of_uneven_shards_once_an_epoch(uneven):
    images = load_source("webdataset", root=uneven).train
    assert len(images) == 153
    for epoch in (0, 1):
        ranks = [shown(images, rank, rank, epoch, batch_size=9) for rank in range(3)]
        assert [len(batches) for batches in ranks] == [17, 17, 17]
        seen = [number for batches in ranks for batch in batches for number in batch]
        assert sorted(seen) == list(range(153))


SIZES = [1, 997, 2, 89, 500, 7, 311, 1, 3, 393]


@pytest.fixture(scope="module")
def very_uneven(tmp_path_factory):
    """Tars of 1 to 997 images, whose pixel tells their number."""
    folder = tmp_path_factory.mktemp("very_uneven")
    number = 0
    for place, size in enumerate(SIZES):
        with tarfile.open(folder / f"train-{place:02d}.tar", "w") as tar:
            for _ in range(size):
                add_image(tar, number, png_of((number % 256, number // 256, 0)))
                number += 1
    (folder / "test-00.tar").write_bytes((folder / "train-03.tar").read_bytes())
    return folder


@pytest.mark.long
@pytest.mark.parametrize("sampler", ["shuffle", "shards"])
def test_three_ranks_see_each_image_of_shards_of_1_to_997_once_an_epoch(sampler, very_uneven):
    images = load_source("webdataset", root=very_uneven).train
    total = sum(SIZES)
    assert len(images) == total == 2304
    shards = torch.tensor(shard_numbers(images.paths)) if sampler == "shards" else None
    seen = {}
    for epoch in (0, 1):
        ranks = []
        for rank in range(3):
            batches = EpochBatches(total, 12, seed=1, rank=rank, world_size=3, shards=shards)
            batches.set_epoch(epoch)
            loader = DataLoader(
                SeededBatches(images),
                batch_sampler=batches,
                num_workers=rank,
                collate_fn=numbers_of,
            )
            ranks.append(list(loader))
        assert [len(batches) for batches in ranks] == [192, 192, 192]
        seen[epoch] = [number for batches in ranks for batch in batches for number in batch]
        assert sorted(seen[epoch]) == list(range(total))
    assert seen[0] != seen[1]


def number_of(image):
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def test_what_does_not_fill_a_batch_waits_for_the_next_epoch(uneven):
    images = load_source("webdataset", root=uneven).train
    ranks = [shown(images, 0, rank, 0, batch_size=12) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [12, 12, 12]
    seen = [number for batches in ranks for batch in batches for number in batch]
    assert len(seen) == len(set(seen)) == 144


def test_more_ranks_and_workers_than_shards(place):
    images = load_source("webdataset", root=place / "one").train
    assert len({path.rsplit("/", 1)[0] for path in images.paths}) == 1
    batches = [EpochBatches(26, 6, seed=1, rank=rank, world_size=3) for rank in range(3)]
    loaders = [
        DataLoader(SeededBatches(images), batch_sampler=one, num_workers=2, collate_fn=list)
        for one in batches
    ]
    seen = [image.tobytes() for loader in loaders for batch in loader for image, _ in batch]
    assert len(seen) == len(set(seen)) == 24


# --- shard after shard


def test_order_by_shards_goes_through_eight_at_a_time(uneven):
    paths = load_source("webdataset", root=uneven).train.paths
    shards = torch.tensor(shard_numbers(paths))
    assert shards.bincount().tolist() == list(range(1, 18))
    batches = EpochBatches(153, 1, seed=2, shards=shards)
    orders = []
    for epoch in (0, 1):
        batches.set_epoch(epoch)
        order = [batch.indices[0] for batch in batches]
        assert sorted(order) == list(range(153))
        last = {int(shards[index]): place for place, index in enumerate(order)}
        first = {int(shards[index]): -place for place, index in reversed(list(enumerate(order)))}
        together = sorted(last, key=last.get)
        for early in together[:8]:
            assert all(-first[late] > last[early] for late in together[8:])
        for early in together[8:16]:
            assert -first[together[16]] > last[early]
        orders.append(order)
    assert orders[0] != orders[1]
    assert [shards[index] for index in orders[0]] != sorted(shards.tolist())


def test_run_shard_after_shard_resumes_to_the_same(place, tmp_path, monkeypatch):
    def crash(loss):
        raise RuntimeError("power cut")

    outs = tmp_path / "whole", tmp_path / "stopped"
    configs = [config(place / "webdataset", "webdataset", out, sampler="shards") for out in outs]
    whole = train(configs[0])
    with monkeypatch.context() as patch:
        at_step(patch, STEPS + 3, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(configs[1])
    resume(outs[1])
    assert digest(outs[1]) == digest(whole.folder)


def test_images_in_no_shard_are_not_read_shard_after_shard(place, tmp_path):
    with pytest.raises(ValueError, match=r"sampler=shards .* and .*0.png lies in none; leave it"):
        train(config(place / "images", "folder", tmp_path / "run", sampler="shards"))
    with pytest.raises(ValueError, match=r"sampler=shards .* and cluttered_digits lies in none"):
        train(replace(TINY, data=replace(TINY.data, sampler="shards"), out=str(tmp_path / "run")))
