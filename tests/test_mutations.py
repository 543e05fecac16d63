"""Whatever has become of a file, reading it works, or is refused in a sentence."""

import gzip
import json
import shutil

import pytest
import safetensors.torch
import torch
from PIL import Image

from convattn.classification.predictions import PredictionsFile
from convattn.classification.sharding import shard_data
from convattn.classification.testing import stopped_test
from convattn.config import DataConfig, FinetuneConfig, ProbeConfig
from convattn.data import read_image
from convattn.data.detection import load_detection
from convattn.data.shard_files import _members
from convattn.data.sources import load_source
from convattn.ownership import lock_of, owned
from convattn.runs import Run
from convattn.train.callbacks import read_metrics
from convattn.weights import read_checkpoint, read_weights, write_checkpoint
from tests.data.layouts import WRITERS, Picture, Thing
from tests.mutations import mutate
from tests.runs.finished import make_run

FEW, MANY = 12, 500


def image(folder, suffix):
    file = folder / f"image.{suffix}"
    Image.linear_gradient("L").convert("RGB").resize((24, 16)).save(file)
    return file, lambda: read_image(file)


def config_json(folder):
    run = make_run(folder / "run")
    return run / "config.json", lambda: Run.open(run)


def pretrained_cfg(folder):
    """The words in a file of weights alone: its tensors are another's business."""
    run = make_run(folder / "run")
    told = folder / "told.json"
    told.write_text(json.dumps(dict(Run.open(run).pretrained_cfg)))
    tensors = safetensors.torch.load_file(run / "model.safetensors")

    def read():
        text = told.read_bytes().decode(errors="replace")
        safetensors.torch.save_file(tensors, run / "model.safetensors", {"pretrained_cfg": text})
        Run.open(run).load_model()

    return told, read


def of_images(kind):
    def make(folder):
        file = folder / "config.json"
        file.write_text(
            kind.of_images("images", seed=3).to_json()
            if kind is FinetuneConfig
            else kind.of_images("images").to_json()
        )
        return file, lambda: kind.from_json(file.read_bytes().decode(errors="replace"), str(file))

    return make


def weights(folder):
    run = make_run(folder / "run")
    return run / "model.safetensors", lambda: read_weights(run)


def state_dict(folder):
    file = folder / "weights.pth"
    torch.save({"state_dict": {"a": torch.arange(30.0), "b": torch.ones(2, 2)}}, file)
    return file, lambda: read_weights(file)


def checkpoint(folder):
    file = folder / "last.ckpt"
    write_checkpoint(file, {"state_dict": {"a": torch.arange(30.0)}, "step": 3, "loops": [1, "x"]})
    return file, lambda: read_checkpoint(file, "redo")


def metrics(folder):
    file = folder / "metrics.csv"
    file.write_text("step,epoch,train_loss\n3,0.5,1.25\n6,1,\n9,1.5,0.75\n")
    return file, lambda: read_metrics(file)


def settings(folder):
    (folder / "predictions.part.csv").touch()
    file = folder / "evaluation_config.json"
    file.write_text(json.dumps({"arguments": ["run", "--data.root", "x"], "batch_size": 4}))
    return file, lambda: stopped_test(folder)


def predictions(folder):
    file = folder / "predictions.part.csv"
    names = [f"{number}.png" for number in range(6)]
    lines = [f"{name},{place % 3},0.5,1,2,0.75\n" for place, name in enumerate(names)]
    file.write_text("image,label,loss,rank1,rank2,confidence\n" + "".join(lines))
    return file, lambda: PredictionsFile(file, names).rewind(torch.arange(6) % 3, 2)


def lock(folder):
    file = lock_of(folder)
    with owned(folder):
        content = file.read_bytes()
    file.write_bytes(content)

    def read():
        with owned(folder):
            pass

    return file, read


def table(folder):
    lines = ["path,label,split\n"]
    for number in range(8):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]},{('train', 'test')[number % 4 // 2]}\n")
    file = folder / "table.csv"
    file.write_text("".join(lines))
    return file, lambda: load_source("folder", root=file)


def shards(damaged):
    def make(folder):
        file, _ = table(folder)
        out = folder / "shards"
        shard_data(DataConfig(name="folder", root=str(file)), out, shard_size=3)
        if damaged == "*.tar":
            for index in out.glob("*.json"):
                index.unlink()

        def read():
            _members.cache_clear()
            source = load_source("webdataset", root=out)
            for images in (source.train, source.test):
                list(images)

        return sorted(out.glob(damaged))[0], read

    return make


def idx(folder):
    for part, count in (("train", 3), ("t10k", 2)):
        for name, axes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            head = bytes([0, 0, 8, len(axes)]) + b"".join(n.to_bytes(4, "big") for n in axes)
            body = bytes(torch.Size(axes).numel())
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + body, mtime=0))
    file = folder / "train-images-idx3-ubyte.gz"
    return file, lambda: load_source("fashion_mnist", root=folder)


def annotations(kind, pattern):
    def make(folder):
        def place(picture, inside):
            inside.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (picture.width, picture.height)).save(inside / picture.name)

        def pictures(start):
            things = [Thing("cat", (2, 3, 20, 15)), Thing("dog", (5, 5, 12, 14))]
            return [Picture(f"{start + number}.png", 32, 24, things) for number in range(2)]

        root = folder / "root"
        WRITERS[kind](root, {"train": pictures(0), "val": pictures(5)}, ("cat", "dog"), place)
        file = sorted(root.glob(pattern))[0]
        return file, lambda: load_detection("folder", root=root, format=kind)

    return make


KINDS = {
    "annotations.coco": annotations("coco", "annotations/*.json"),
    "annotations.labelme": annotations("labelme", "*/*.json"),
    "annotations.voc": annotations("voc", "Annotations/*.xml"),
    "annotations.yolo": annotations("yolo", "*/labels/*.txt"),
    "checkpoint": checkpoint,
    "config of a finetuning": of_images(FinetuneConfig),
    "config of a probe": of_images(ProbeConfig),
    "config of a run": config_json,
    "data.yaml": annotations("yolo", "data.yaml"),
    "idx": idx,
    "index of a shard": shards("*.tar.json"),
    "index of shards": shards("index.json"),
    "jpeg": lambda folder: image(folder, "jpg"),
    "lock": lock,
    "metrics": metrics,
    "png": lambda folder: image(folder, "png"),
    "predictions": predictions,
    "pretrained_cfg": pretrained_cfg,
    "settings of a test": settings,
    "shard of others": shards("*.tar"),
    "state dict": state_dict,
    "table": table,
    "webp": lambda folder: image(folder, "webp"),
    "weights": weights,
}


def faults_of(kind, seeds, folder):
    """What else than a sentence came of reading mutations, by seed."""
    file, read = KINDS[kind](folder)
    if kind != "lock":
        read()
    whole, found = file.read_bytes(), {}
    for seed in seeds:
        file.write_bytes(mutate(whole, seed))
        try:
            read()
        except (ValueError, OSError) as error:
            if not str(error) or "Traceback" in str(error) or isinstance(error, UnicodeError):
                found[seed] = error
        except Exception as error:
            found[seed] = error
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_in_a_sentence(kind, tmp_path):
    assert faults_of(kind, range(FEW), tmp_path) == {}


@pytest.mark.parametrize(("column", "other"), [("loss", "lost"), ("rank", "runk")])
def test_predictions_of_other_columns_are_refused_with_their_name(column, other, tmp_path):
    file, read = predictions(tmp_path)
    content = file.read_text().replace(column, other)
    file.write_text(content)
    with pytest.raises(ValueError, match=r"predictions\.part\.csv is damaged .* begins anew"):
        read()
    assert file.read_text() == content


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused_in_a_sentence(kind, tmp_path):
    assert faults_of(kind, range(FEW, FEW + MANY), tmp_path) == {}


def test_mutations_differ_from_the_whole(tmp_path):
    file, _ = metrics(tmp_path)
    whole = file.read_bytes()
    changed = [mutate(whole, seed) for seed in range(100)]
    assert changed == [mutate(whole, seed) for seed in range(100)]
    assert sum(one != whole for one in changed) > 90
    shutil.rmtree(tmp_path)
