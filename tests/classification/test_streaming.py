"""What a classifier says of many images, beside the slow loop over them."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import convattn
from convattn.classification import streaming
from convattn.classification.streaming import Pictures, classify_batches
from convattn.config import ModelConfig, TrainConfig
from convattn.data import read_image
from convattn.modes import hooks_of
from tests.classification.runs import CLASSES, IN_ORDER, make_run, paint, paint_folder, slowly


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return paint_folder(tmp_path_factory.mktemp("images"))


def test_every_image_of_a_folder_gets_what_the_slow_loop_finds(run, folder):
    found = list(convattn.Run.open(run).predict(folder, batch_size=3, device="cpu"))
    assert [one.path for one in found] == [f"{folder}/{name}" for name in IN_ORDER]
    assert len({one.prediction for one in found}) > 1
    for one in found:
        shares, embedding = slowly(run, one.path)
        assert one.prediction == CLASSES[int(shares.argmax())]
        assert one.probability == pytest.approx(float(shares.max()), abs=1e-5)
        assert list(one.probabilities) == CLASSES
        assert list(one.probabilities.values()) == pytest.approx(shares.tolist(), abs=1e-5)
        torch.testing.assert_close(one.embedding, embedding, rtol=1e-4, atol=1e-5)
        assert (one.rejected, one.error) == (False, None)


def test_classes_of_an_image_are_those_that_reach_the_runs_thresholds(several, folder):
    thresholds = convattn.Run.open(several).pretrained_cfg["thresholds"]
    found = list(convattn.Run.open(several).predict(folder, device="cpu"))
    counts = set()
    for one in found:
        shares, _ = slowly(several, one.path)
        taken = {name: float(share) for name, share in zip(CLASSES, shares, strict=True)}
        reached = [name for name, least in zip(CLASSES, thresholds, strict=True)
                   if taken[name] >= least]  # fmt: skip
        reached.sort(key=taken.__getitem__, reverse=True)
        assert one.prediction == tuple(reached)
        assert one.probability == pytest.approx([taken[name] for name in reached], abs=1e-5)
        counts.add(len(reached))
    assert len(counts) > 1


def test_without_thresholds_a_class_counts_from_a_half(tmp_path, folder):
    run = make_run(tmp_path / "run", CLASSES, multi_label=True)
    for one in convattn.Run.open(run).predict(folder, device="cpu"):
        assert set(one.prediction) == {
            name for name, share in one.probabilities.items() if share >= 0.5
        }


def test_what_cannot_be_read_says_why_and_changes_no_other(run, folder, tmp_path):
    files = [tmp_path / name for name in ("0.png", "1.png", "2.png", "3.png", "4.png")]
    for number, file in enumerate(files):
        paint(file, number)
    for broken in files[1:4]:
        broken.write_bytes(broken.read_bytes()[:60])
    found = list(convattn.Run.open(run).predict(tmp_path, batch_size=2, device="cpu"))
    assert [one.error is None for one in found] == [True, False, False, False, True]
    for one, file in zip(found, files, strict=True):
        assert one.path == str(file)
        if one.error is not None:
            assert one.path in one.error
            assert (one.prediction, one.embedding, one.probabilities) == (None, None, {})
        else:
            assert one.probability == pytest.approx(float(slowly(run, file)[0].max()), abs=1e-5)


def test_an_image_too_long_and_thin_is_told_with_its_name(run, tmp_path):
    Image.new("RGB", (150_000, 1)).save(tmp_path / "thin.png")
    (found,) = convattn.Run.open(run).predict(tmp_path / "thin.png", device="cpu")
    assert "thin.png" in found.error
    assert "too long and thin" in found.error


def test_images_in_memory_are_taken_as_files_are(run, folder):
    opened, file = convattn.Run.open(run), folder / "b.png"
    image = read_image(file)
    (expected,) = opened.predict(file, device="cpu")
    assert expected.path == str(file)
    pixels = torch.tensor(np.array(image)).permute(2, 0, 1)
    found = list(opened.predict([image, pixels, file, str(file)], device="cpu"))
    found += opened.predict(image, device="cpu")
    assert [one.path for one in found] == [None, None, str(file), str(file), None]
    for one in found:
        assert one.probability == pytest.approx(expected.probability, abs=1e-5)


def test_worker_processes_change_nothing(run, folder):
    alone, helped = (
        list(convattn.Run.open(run).predict(folder, batch_size=2, num_workers=count, device="cpu"))
        for count in (0, 2)
    )
    for one, other in zip(alone, helped, strict=True):
        assert (one.path, one.probabilities) == (other.path, other.probabilities)
        assert torch.equal(one.embedding, other.embedding)


def test_no_more_is_read_than_is_asked_for(run, folder, monkeypatch):
    read = []
    original = Pictures.__getitem__
    monkeypatch.setattr(
        Pictures, "__getitem__", lambda self, k: read.append(k) or original(self, k)
    )
    predictions = convattn.Run.open(run).predict(folder, batch_size=2, device="cpu", num_workers=0)
    list(itertools.islice(predictions, 2))
    assert read == [0, 1]


def test_each_class_may_read_features_of_its_own(tmp_path, folder):
    network = "patchconvnet_nano"
    run = convattn.Run.open(make_run(tmp_path / "run", CLASSES, model=network))
    (found,) = run.predict(folder / "b.png", device="cpu")
    assert found.embedding.ndim == 1
    model = convattn.models.patchconvnet.PatchConvNet(
        num_classes=7, embed_dim=8, depth=1, class_tokens=True
    )
    batches = classify_batches(
        model, Pictures([folder / "b.png"], run.pretrained_cfg), device="cpu", embeddings=True
    )
    assert next(batches).features.shape == (1, 7, 8)


def test_the_network_is_left_as_it_was(run, folder):
    model = convattn.Run.open(run).load_model().train()
    pictures = Pictures([folder / "b.png"], model.pretrained_cfg)
    (batch,) = classify_batches(model, pictures, device="cpu", embeddings=True)
    assert batch.features is not None
    assert model.training
    assert hooks_of(model.get_classifier()) == []


def test_what_is_less_probable_is_rejected(run, folder):
    found = list(convattn.Run.open(run).predict(folder, reject_below=0.5, device="cpu"))
    assert [one.rejected for one in found] == [one.probability < 0.5 for one in found]
    assert len({one.rejected for one in found}) == 2


def test_bad_input_is_one_sentence(run, several, folder, tmp_path):
    opened = convattn.Run.open(run)
    with pytest.raises(FileNotFoundError, match="name an image or a folder"):
        opened.predict(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no image"):
        opened.predict(tmp_path)
    with pytest.raises(ValueError, match=r"give out='FILE.csv'"):
        opened.predict(folder, embeddings=tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        opened.predict(folder, out=tmp_path / "a.tsv")
    with pytest.raises(ValueError, match=r"must end in \.npy or \.safetensors"):
        opened.predict(folder, out=tmp_path / "a.csv", embeddings=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not of list"):
        opened.predict([folder / "b.png"], out=tmp_path / "a.csv")
    with pytest.raises(ValueError, match="batch_size=0"):
        opened.predict(folder, batch_size=0)
    with pytest.raises(ValueError, match="at most at 1"):
        opened.predict(folder, reject_below=1.5)
    with pytest.raises(ValueError, match="may find several"):
        convattn.Run.open(several).predict(folder, reject_below=0.5)
    with pytest.raises(ValueError, match="this network has none; give a number"):
        opened.predict(folder, reject_below="auto")


def test_detectors_are_told_where_to_go(run, tmp_path):
    (tmp_path / "config.json").write_text(
        TrainConfig(model=ModelConfig(name="retinanet", backbone="resnet_nano")).to_json()
    )
    with pytest.raises(ValueError, match="for networks that classify images"):
        convattn.Run.open(tmp_path).predict(tmp_path)


def test_many_images_are_read_by_as_many_processes_as_there_are_cores(run, monkeypatch):
    monkeypatch.setattr(streaming, "num_cores", lambda: 1)
    cfg = convattn.Run.open(run).pretrained_cfg
    for count, workers in ((199, 0), (200, 1)):
        pictures = Pictures(["a.png"] * count, cfg)
        found = streaming.load_batches(pictures, batch_size=8, num_workers=None)
        assert found.num_workers == workers
