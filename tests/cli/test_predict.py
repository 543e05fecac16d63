import json
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image
from safetensors.torch import load_file, save_file

from convattn.cli import main
from convattn.data import transform_of
from convattn.data.scenes import generate_scenes
from convattn.data.video import read_frames
from convattn.runs import Run
from tests.data.test_video import frames, write_video

NANO = ["--data.num-train", "8", "--data.num-test", "4", "--data.image-size", "48"]
NANO += ["--data.batch-size", "4", "--epochs", "1", "--devices", "1", "--accelerator", "cpu"]
NANO += ["--model.backbone-args", "embed_dim", "16", "depth", "4"]


def trained(folder, recipe, **model_args):
    flags = [word for key, value in model_args.items() for word in (key, str(value))]
    flags[::2] = [f"--model.model-args.{key}" for key in flags[::2]]
    assert main(["train", recipe, *NANO, *flags, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "detector"
    narrow = {"channels": 16, "box_channels": 16, "mask_channels": 8}
    return trained(folder, "cluttered_digits_mask_rcnn", **narrow)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "segmenter"
    return trained(folder, "cluttered_digits_upernet", channels=16, aux_channels=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    top = tmp_path_factory.mktemp("images")
    scenes = generate_scenes(2, split="test", image_size=64).images.permute(0, 2, 3, 1).numpy()
    (top / "more").mkdir()
    Image.fromarray(scenes[0]).save(top / "scene.png")
    Image.fromarray(scenes[1]).resize((90, 50)).save(top / "more" / "scene.jpg")
    (top / "broken.jpg").write_bytes(b"no image")
    (top / "notes.txt").write_text("no image")
    return top


def fails(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("convattn: ")
    return lines[0]


@pytest.mark.long
def test_found_objects_are_drawn_and_written_as_coco(detector, images, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["predict", str(detector), str(images), "--threshold", "0", "--out", str(out)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert "1 of 3 files could not be read as an image" in captured.err
    assert {file.name for file in out.iterdir()} == {
        "scene.png",
        "scene-2.png",
        "predictions.csv",
        "predictions.json",
    }
    content = json.loads((out / "predictions.json").read_text())
    assert [image["width"] for image in content["images"]] == [90, 64]
    assert [category["name"] for category in content["categories"]] == list("0123456789")
    read = COCO(content)
    first = content["annotations"][0]
    assert read.annToMask(first).shape == (50, 90)
    assert 0 <= first["score"] <= 1
    assert first["category_id"] in range(1, 11)


def test_images_named_by_coco_keep_their_ids(detector, images, tmp_path):
    for name in ("000000000139.png", "7.png"):
        Image.open(images / "scene.png").save(tmp_path / name)
    assert main(["predict", str(detector), str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [image["id"] for image in content["images"]] == [139, 7]


@pytest.mark.long
@pytest.mark.parametrize("network", ["detector", "segmenter"])
def test_a_videos_frames_are_predicted_as_images(network, request, tmp_path, capsys):
    run = request.getfixturevalue(network)
    clip = write_video(tmp_path / "clip.mp4", frames(size=(64, 48)))
    (tmp_path / "images").mkdir()
    for number, image in read_frames(clip, every=2):
        image.save(tmp_path / "images" / f"clip_{number:06}.png")
    flags = ["--threshold", "0"] if network == "detector" else []
    found = {}
    for name, given in (("video", [clip, "--every", "2"]), ("images", [tmp_path / "images"])):
        out = tmp_path / f"{name}-out"
        words = ["predict", run, *given, *flags, "--out", out]
        assert main([str(word) for word in words]) == 0
        drawn = {file.name: file.read_bytes() for file in out.iterdir() if file.suffix == ".png"}
        table = (out / "predictions.csv").read_text().splitlines()
        found[name] = (drawn, [row.partition(",")[2] for row in table], table)
    assert found["video"][:2] == found["images"][:2]
    assert {row.split(",")[0] for row in found["video"][2][1:]} <= {
        f"{clip}#{n}" for n in (0, 2, 4)
    }
    assert f"2  {clip}#2  " in capsys.readouterr().out


def test_videos_are_refused_in_a_sentence(detector, classifier, images, tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    clip, image = tmp_path / "clip.mp4", images / "scene.png"
    assert "which detectors and segmenters take" in fails(capsys, "predict", classifier, clip)
    assert "--every is for videos" in fails(capsys, "predict", detector, image, "--every", "2")
    out = tmp_path / "out"
    told = fails(capsys, "predict", detector, clip, "--out", out)
    assert "cannot be read as a video" in told or "convattn[video]" in told
    assert not out.exists()


def test_every_pixels_class_is_drawn_and_written(segmenter, images, tmp_path, capsys):
    out = tmp_path / "out"
    image = images / "more" / "scene.jpg"
    assert main(["predict", str(segmenter), str(image), "--out", str(out)]) == 0
    assert "%" in capsys.readouterr().out
    names = (out / "classes.txt").read_text().split()
    assert names == ["background", *"0123456789"]
    with Image.open(out / "scene_mask.png") as mask:
        assert mask.mode == "P"
        assert mask.size == (90, 50)
        assert np.asarray(mask).max() < len(names)
    assert (out / "scene.png").is_file()


def test_windows_are_put_together(segmenter, images, tmp_path):
    image = images / "scene.png"
    arguments = ["predict", str(segmenter), str(image), "--window", "48", "48"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "scene_mask.png") as mask:
        assert mask.size == (64, 64)


def test_run_is_evaluated_again(detector, segmenter, capsys):
    for folder, number in ((detector, "mask mAP"), (segmenter, "mIoU")):
        before = json.loads((folder / "evaluation.json").read_text())
        assert main(["evaluate", str(folder)]) == 0
        assert number in capsys.readouterr().out
        after = json.loads((folder / "evaluation.json").read_text())
        speed = "images_per_second"
        assert {**before, speed: 0} == {**after, speed: 0}


def test_evaluation_tells_other_weights(segmenter, tmp_path):
    """Were the run's own weights not used, the result could not change with them."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((segmenter / name).read_bytes())
    assert main(["evaluate", str(folder)]) == 0
    before = json.loads((folder / "evaluation.json").read_text())
    weights = load_file(folder / "model.safetensors")
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    bias = next(name for name in weights if weights[name].shape == (11,) and "aux" not in name)
    weights[bias] = torch.arange(11.0)
    del metadata["tensors_sha256"]  # else it would be told that they have changed
    save_file(weights, folder / "model.safetensors", metadata)
    assert main(["evaluate", str(folder)]) == 0
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["pixel_accuracy"] != before["pixel_accuracy"]


def test_lists_name_dense_models_and_what_data_are_for(capsys):
    assert main(["list", "--dense"]) == 0
    listed = capsys.readouterr().out
    assert "aa_retinanet_resnet50" in listed
    assert "upernet_patchconvnet_s60" in listed
    assert main(["list", "--data"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "classification, detection, segmentation" in rows["cluttered_digits"]
    assert "detection" in rows["coco"]


def test_wrong_words_get_one_sentence(detector, segmenter, images, tmp_path, capsys):
    image = images / "scene.png"
    assert "is no run folder" in fails(capsys, "predict", "nothing", image)
    assert "takes an image or a folder" in fails(capsys, "predict", detector)
    assert "does not exist" in fails(capsys, "predict", detector, tmp_path / "no.png")
    out = tmp_path / "new"
    broken = images / "broken.jpg"
    assert "cannot be read" in fails(capsys, "predict", detector, broken, "--out", out)
    assert not out.exists()
    assert "holds no image" in fails(capsys, "predict", detector, tmp_path)
    assert "is for segmentation" in fails(capsys, "predict", detector, image, "--window", "9", "9")
    assert "between 0 and 1" in fails(capsys, "predict", detector, image, "--threshold", "3")
    assert "never overwritten" in fails(capsys, "predict", detector, image, "--out", tmp_path)
    other = ["--data.name", "camvid", "--data.root", camvid(tmp_path), "--data.num-test", "1"]
    assert "the class 'sky' and 10 more" in fails(capsys, "evaluate", segmenter, *other)


def camvid(folder):
    for split in ("train", "val"):
        (folder / split).mkdir()
        (folder / f"{split}annot").mkdir()
        Image.new("RGB", (8, 6)).save(folder / split / "a.png")
        Image.new("L", (8, 6)).save(folder / f"{split}annot" / "a.png")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    flags = ["--data.num-train", "8", "--data.num-test", "4", "--data.image-size", "32"]
    flags += ["--data.batch-size", "4", "--epochs", "1", "--devices", "1", "--accelerator", "cpu"]
    assert main(["train", "quickstart", *flags, "--out", str(folder)]) == 0
    return folder


def test_classifier_gives_the_likeliest_classes_of_each_image(classifier, tmp_path, capsys):
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40 + number, 50), colour).save(folder / f"{number}.png")
    assert main(["predict", str(classifier), str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "predictions.json").read_text())
    assert [Path(one["image"]).name for one in content] == ["0.png", "1.png", "2.png"]
    run = Run.open(classifier)
    model, transform = run.load_model(), transform_of(run.pretrained_cfg)
    for one in content:
        with torch.no_grad():
            shares = model(transform(Image.open(one["image"]))[None])[0].softmax(0)
        assert [top["class"] for top in one["top"]] == [
            str(label) for label in shares.argsort(descending=True)[:5].tolist()
        ]
        for top in one["top"]:
            assert top["probability"] == pytest.approx(float(shares[int(top["class"])]), abs=1e-6)
        assert f"{one['image']}  {one['top'][0]['class']}  " in printed


def test_unreadable_images_among_others_are_told(classifier, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    out = tmp_path / "out"
    assert main(["predict", str(classifier), str(tmp_path), "--out", str(out)]) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
    assert len(json.loads((out / "predictions.json").read_text())) == 1


def test_options_of_other_tasks_are_refused(classifier, detector, segmenter, tmp_path, capsys):
    image = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    for run, flag, values in (
        (classifier, "threshold", ["0.3"]),
        (segmenter, "threshold", ["0.3"]),
        (classifier, "window", ["9", "9"]),
        (detector, "window", ["9", "9"]),
    ):
        assert f"--{flag} is for" in fails(capsys, "predict", run, image, f"--{flag}", *values)
