import json

import numpy as np
import pytest
from PIL import Image

from convattn.cli import main
from convattn.data import generate_cluttered_digits

BUNDLED = "patchconvnet_nano.cluttered_digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in folders: two digits of one name, a panorama, a broken file and a text."""
    top = tmp_path_factory.mktemp("images")
    (top / "more").mkdir()
    digits = generate_cluttered_digits(2, split="test").images.permute(0, 2, 3, 1).numpy()
    Image.fromarray(digits[0]).save(top / "digit.png")
    Image.fromarray(digits[1]).save(top / "more" / "digit.png")
    Image.new("RGB", (300, 90), (90, 120, 30)).save(top / "wide.jpg")
    (top / "broken.jpg").write_bytes((top / "wide.jpg").read_bytes()[:200])
    (top / "notes.txt").write_text("no image")
    return top


def fails(capsys, *arguments):
    assert main(["explain", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("convattn: ")
    return lines[0]


def test_an_image_gets_an_overlay_a_map_a_sheet_and_its_classes(folder, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["explain", BUNDLED, str(folder / "wide.jpg"), "--out", str(out)]) == 0
    names = {"wide.png", "wide.npz", "sheet.png", "explanations.json"}
    assert {file.name for file in out.iterdir()} == names
    with Image.open(out / "wide.png") as overlay:
        assert overlay.size == (300, 90)
    with np.load(out / "wide.npz") as arrays:
        assert arrays["heat"].shape == (90, 300)
        assert arrays["map"].sum() == pytest.approx(1, abs=1e-5)
    (told,) = json.loads((out / "explanations.json").read_text())
    (explanation,) = told["explanations"]
    assert explanation["region"] == [0, 0, 300, 90]
    assert len(explanation["top"]) == 5
    assert str(out / "sheet.png") in capsys.readouterr().out


@pytest.mark.long
def test_evidence_of_a_plain_network_sums_to_its_logit(folder, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    flags = "--data.num-train 32 --data.num-test 12 --data.image-size 64 --data.batch-size 8"
    rest = "--epochs 1 --accelerator cpu --devices 1 --model.name resnet18_nano"
    assert main(["train", "quickstart", *flags.split(), *rest.split(), "--out", str(run)]) == 0
    words = ["--method", "evidence", "--top-k", "3", "--out", str(out)]
    assert main(["explain", str(run), str(folder / "digit.png"), *words]) == 0
    (told,) = json.loads((out / "explanations.json").read_text())
    assert len(told["explanations"]) == 3
    for explanation in told["explanations"]:
        assert explanation["method"] == "evidence"
        (file,) = out.glob(f"digit_{explanation['target']['name']}.npz")
        with np.load(file) as arrays:
            total = arrays["map"].sum() + explanation["bias"]
        assert total == pytest.approx(explanation["logit"], rel=1e-4, abs=1e-5)


def test_evidence_of_a_network_that_has_none_is_told(folder, capsys):
    message = fails(capsys, BUNDLED, folder / "digit.png", "--method", "evidence")
    assert "is learned aggregation" in message
    assert "ask for attention or Grad-CAM" in message


def test_a_folder_goes_on_past_what_cannot_be_read_and_says_so(folder, capsys, tmp_path):
    out = tmp_path / "out"
    assert main(["explain", BUNDLED, str(folder), "--target", "3", "8", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert "broken.jpg" in captured.err
    assert "1 of 4 files could not be explained" in captured.err
    overlays = {file.name for file in out.glob("*.png")}
    names = ("digit_3", "digit_8", "digit_3-2", "digit_8-2", "wide_3", "wide_8", "sheet")
    assert overlays == {f"{name}.png" for name in names}


def test_names_that_would_meet_are_numbered(tmp_path):
    images = tmp_path / "images"
    for name in ("a.png", "a.jpg", "a-2.png", "sheet.png", "thin.png"):
        (images / name[0]).mkdir(parents=True, exist_ok=True)
        size = (5000, 1) if name == "thin.png" else (64, 64)
        Image.new("RGB", size).save(images / name[0] / name)
    assert main(["explain", BUNDLED, str(images), "--out", str(tmp_path / "out")]) == 2
    told = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert len(told) == 4
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == {
        "sheet.png",  # of all
        "sheet-2.png",
        *("a.png", "a-2.png", "a-3.png"),
    }


@pytest.mark.long
def test_a_run_is_explained_and_its_maps_are_tested(folder, tmp_path, capsys):
    run = tmp_path / "run"
    flags = "--data.num-train 32 --data.num-test 12 --data.image-size 32 --data.batch-size 8"
    rest = "--epochs 1 --accelerator cpu --devices 1 --model.name aa_wide_resnet_nano"
    assert main(["train", "quickstart", *flags.split(), *rest.split(), "--out", str(run)]) == 0
    words = ["--layers", "--query", "10", "20", "--out", str(tmp_path / "out")]
    assert main(["explain", str(run), str(folder / "digit.png"), *words]) == 0
    assert (tmp_path / "out" / "digit_layers.png").is_file()
    capsys.readouterr()
    assert main(["explain", str(run), "--faithfulness", "--num-steps", "2"]) == 0
    assert "attention" in capsys.readouterr().out
    report = json.loads((run / "faithfulness.json").read_text())
    assert report["num_images"] == 12
    known = {"evidence", "attention", "gradcam", "random", "centre"}
    assert set(report["methods"]) == known
    assert (run / "faithfulness.md").is_file()
    with Image.open(run / "faithfulness.png") as plot:
        assert plot.width > 400
    assert not list(run.glob("*.tmp*"))


@pytest.mark.long
def test_the_truth_of_maps_is_told(tmp_path, capsys):
    out = tmp_path / "truth"
    words = "--truth --method attention --data.num-test 20 --num-steps 2 --device cpu --out"
    assert main(["explain", BUNDLED, *words.split(), str(out)]) == 0
    told = capsys.readouterr()
    assert "attention: doubt" in told.out
    assert str(out / "truth.csv") in told.out
    assert "20 of 20 images" in told.err
    assert json.loads((out / "truth.json").read_text())["num_images"] == 20
    assert main(["explain", BUNDLED, *words.split(), str(out)]) == 2
    assert "exists and is never overwritten" in capsys.readouterr().err


def test_a_folder_that_is_there_is_never_written_into(folder, capsys, tmp_path, monkeypatch):
    image = folder / "digit.png"
    message = fails(capsys, BUNDLED, image, "--out", folder)
    assert "exists and is never overwritten; give another --out" in message
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["explain", BUNDLED, str(image)]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"explained", "explained-2"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "takes an image or a folder of images, or else --faithfulness or --truth"),
        (["digit.png", "--faithfulness"], "or else --faithfulness"),
        (["digit.png", "--truth"], "or else --faithfulness or --truth"),
        (["--truth", "--faithfulness"], "or else --faithfulness or --truth"),
        (["--truth", "--top-k", "2"], "--top-k goes with images alone"),
        (["--faithfulness", "--layers"], "--layers goes with images alone"),
        (["digit.png", "--masks", "x"], "--masks goes with --truth alone"),
        (["--faithfulness", "--num-images", "5"], "--num-images goes with --truth alone"),
        (["--truth", "--data.num-test", "12"], "an interval needs at least 20"),
        (["none.png"], "none.png does not exist"),
        (["broken.jpg"], "cannot be read"),
        (["notes.txt"], "not in a known image format"),
        (["digit.png", "--target", "seven"], "unknown class 'seven'; the nearest are"),
        (["digit.png", "--target", "3", "--top-k", "2"], "both choose classes"),
        (["digit.png", "--method", "lime"], "--method lime; expected "),
        (["digit.png", "--layer", "body"], "no layer with attention named 'body'; it has head"),
        (["digit.png", "--tagret", "3"], "unknown flag --tagret; the nearest is --target"),
        (["digit.png", "--layers"], "has no convolution with attention"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(words, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    assert message in fails(capsys, BUNDLED, *words)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_without_images_is_told(capsys, tmp_path):
    assert "holds no image" in fails(capsys, BUNDLED, tmp_path)


def test_a_target_that_is_none_names_the_nearest(capsys):
    assert "the nearest model is" in fails(capsys, "patchconvnet_nona", "x.png")


def test_data_of_other_classes_are_refused(capsys, tmp_path):
    for name in ("train/ant", "train/bee", "val/ant", "val/bee"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name / "a.png")
    words = ["--faithfulness", "--data", "folder", "--data.root", tmp_path]
    assert "the class 'ant' and 1 more, which the network" in fails(capsys, BUNDLED, *words)
