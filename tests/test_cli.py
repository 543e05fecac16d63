import json
import subprocess
import sys
from pathlib import Path

import pytest

from convattn import __version__
from convattn.__main__ import main as module_main
from convattn.cli import main
from convattn.train.classification import ClassificationTask

FLAGS = [
    *("--data.num-train", "48", "--data.num-test", "20", "--data.image-size", "32"),
    *("--data.batch-size", "16", "--epochs", "1", "--log-every", "1", "--accelerator", "cpu"),
    *("--devices", "1", "--model.model-args", "embed_dim", "16", "depth", "1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "quickstart", *FLAGS, "--out", str(folder)]) == 0
    return folder


def fails(capsys, *arguments, status=2):
    """The one line that a mistake leaves on stderr."""
    assert main(list(arguments)) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("convattn: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown command 'trian'; the nearest is 'train'"),
        (["train"], "name a recipe"),
        (["train", "quikstart"], "unknown recipe 'quikstart'; the nearest is 'quickstart'"),
        (["train", "--epochs", "3"], "name a recipe before --epochs"),
        (["train", "quickstart", "--epoch", "3"], "unknown flag --epoch; the nearest is --epochs"),
        (["train", "quickstart", "--data.rot=x"], "the nearest is --data.root"),
        (["train", "quickstart", "again"], "takes no 'again'"),
        (["train", "quickstart", "--epochs", "abc"], "--epochs: invalid literal"),
        (["train", "quickstart", "--epochs"], "Missing value for argument '--epochs'"),
        (["train", "quickstart", "--epochs", "0"], "epochs=0 must be at least 1"),
        (["train", "quickstart", "--precision", "8"], "invalid choice '8'"),
        (["train", "quickstart", "--data.scale", "1"], "--data.scale: no type matching"),
        (["train", "quickstart", "--resume", "x"], "--resume takes no recipe"),
        (["train", "--resume"], "--resume needs the run folder"),
        (["train", "--resume", "nowhere"], "nowhere/config.json does not exist"),
        (["train", "--resume", "x", "--epochs", "3"], "takes no --epochs"),
        (["train", "quickstart", "--data.name", "cifar"], "unknown data set 'cifar'"),
        (["evaluate"], "name a run folder or a model"),
        (["evaluate", "patchconvnet_nan"], "the nearest model is 'patchconvnet_nano'"),
        (["list", "nanoo"], "no name contains 'nanoo'; the nearest is 'aa_resnet_nano'"),
        (["list", "--recipe"], "unknown flag --recipe; the nearest is --recipes"),
    ],
)
def test_mistake_is_one_line_that_names_what_is_right(arguments, expected, capsys):
    assert expected in fails(capsys, *arguments)


def test_unknown_model_in_a_recipe_names_the_nearest(capsys, tmp_path):
    flags = [*FLAGS[:8], "--model.name", "patchconvnet_nan", "--out", str(tmp_path / "run")]
    assert "the nearest is 'patchconvnet_nano'" in fails(capsys, "train", "quickstart", *flags)
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown command"):
        main(["trian", "--debug"])


def test_existing_run_is_kept(run, capsys):
    line = fails(capsys, "train", "quickstart", *FLAGS, "--out", str(run))
    assert "give another --out" in line


def test_training_prints_the_result_and_where_things_are(capsys, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "quickstart", *FLAGS, "--out", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "attention peak inside the object's box" in printed.out
    for name in ("curves.png", "attention.png", "report.md"):
        assert str(folder / name) in printed.out
        assert (folder / name).exists()
    assert "step 3/3" in printed.err
    assert "images/s" in printed.err


def test_flags_override_the_recipe(run):
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"] == "quickstart"
    assert config["epochs"] == 1
    assert config["data"]["num_train"] == 48
    assert config["model"]["model_args"] == {"embed_dim": 16, "depth": 1}


def test_evaluating_a_run_repeats_its_result(run, capsys):
    before = json.loads((run / "evaluation.json").read_text())
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    after = json.loads((run / "evaluation.json").read_text())
    assert f"{before['top1']:.2%}" in capsys.readouterr().out
    for values in (before, after):
        del values["images_per_second"]
        del values["per_class"]
    assert after == pytest.approx(before)


def test_evaluating_takes_data_flags(run, capsys):
    assert main(["evaluate", str(run), "--data.num-test", "10", "--device", "cpu"]) == 0
    assert "10" in capsys.readouterr().out.splitlines()[0]


def test_evaluating_a_model_by_name_takes_its_weights(run, capsys):
    line = fails(
        capsys,
        *("evaluate", "patchconvnet_nano", "--data", "cluttered_digits", "--data.num-test", "10"),
        *("--checkpoint", str(run)),
    )
    assert "tensors differ" in line


def test_not_a_number_is_status_2(capsys, tmp_path, monkeypatch):
    real = ClassificationTask.training_step
    monkeypatch.setattr(
        ClassificationTask, "training_step", lambda *arguments: real(*arguments) * float("nan")
    )
    assert main(["train", "quickstart", *FLAGS, "--out", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "convattn: the loss is nan at step 1; there is nothing to resume"


def test_ctrl_c_before_the_first_step_is_status_130(capsys, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("convattn.train.run.train", interrupt)
    assert "interrupted" in fails(capsys, "train", "quickstart", status=130)


def test_unreadable_picture_is_named(capsys, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("ants", "bees"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), "red").save(folder / f"{number}.jpg")
    (tmp_path / "data" / "train" / "bees" / "2.jpg").write_bytes(b"no picture")
    flags = ["--data.name", "folder", "--data.root", str(tmp_path / "data")]
    small = ["--data.image-size", "32", "--data.batch-size", "8", "--accelerator", "cpu"]
    out = ["--out", str(tmp_path / "run"), "--data.num-train=8", "--data.num-test=8"]
    for workers in ("0", "1"):
        status = main(["train", "quickstart", *flags, *small, *out, "--data.num-workers", workers])
        assert status == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("convattn: ")
        assert str(Path("bees") / "2.jpg") in last
        out[1] += workers


def test_list_shows_models_recipes_and_data(capsys):
    main(["list", "nano"])
    models = capsys.readouterr().out
    main(["list", "--recipes"])
    recipes = capsys.readouterr().out
    main(["list", "--data"])
    data = capsys.readouterr().out
    assert "patchconvnet_nano" in models
    assert " M  " in models
    assert "patchconvnet_s60 " not in models
    assert "quickstart_avgpool" in recipes
    assert "fashion_mnist" in data


def test_help_comes_from_the_docstrings(capsys):
    main(["train", "--help"])
    assert "quickstart_avgpool" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["train", "quickstart", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--optim.weight-decay" in printed
    assert "Pictures per optimiser step" in printed
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_missing_extra_names_the_command_that_mends_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "convattn.train.run", raising=False)
    monkeypatch.setattr(sys, "argv", ["convattn", "train", "quickstart"])
    for name in [name for name in sys.modules if name.startswith("convattn.train.")]:
        if name.rsplit(".", 1)[-1] in ("classification", "datamodule", "callbacks"):
            monkeypatch.delitem(sys.modules, name)
    assert module_main() == 2
    assert "pip install 'convattn[train]'" in capsys.readouterr().err


def test_help_and_evaluate_start_without_lightning():
    code = (
        "import sys; from convattn.cli import main; main(['--help']); main(['list', 'nano']); "
        "import convattn.train.inputs; print('lightning' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == "False"
