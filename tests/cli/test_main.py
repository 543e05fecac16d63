import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from PIL import Image

from convattn import __version__, augment, plan
from convattn.__main__ import main as module_main
from convattn.cli import main
from convattn.cli.words import UsageError, parse
from convattn.config import AugmentConfig, PredictConfig
from convattn.runs import Run
from convattn.train.classification import ClassificationTask

BUNDLED = "patchconvnet_nano.cluttered_digits"
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
        (["train", "quickstart", "--epochs", "abc"], "--epochs abc; expected a whole number"),
        (["train", "quickstart", "--epochs"], "Missing value for argument '--epochs'"),
        (["train", "quickstart", "--epochs", "0"], "epochs=0 must be at least 1"),
        (
            ["train", "quickstart", "--val-share", "2"],
            "data.val_share=2.0 must lie between 0 and 1",
        ),
        (["train", "quickstart", "--precision", "8"], "--precision 8; expected "),
        (["train", "quickstart", "--data.hflip", "often"], "--data.hflip often; expected a number"),
        (
            ["train", "quickstart", "--data.scale", "1"],
            "--data.scale 1; expected 2 numbers or None",
        ),
        (["train", "quickstart", "--resume", "x"], "--resume takes no recipe"),
        (["train", "--resume"], "--resume needs the run folder"),
        (["train", "--resume", "nowhere"], "nowhere/config.json does not exist"),
        (["train", "--resume", "x", "--epochs", "3"], "takes no --epochs"),
        (["train", "quickstart", "--data.name", "cifar"], "unknown data set 'cifar'"),
        (["evaluate"], "name a run folder or a model"),
        (["evaluate", "patchconvnet_nan"], "the nearest model is 'patchconvnet_nano'"),
        (["augment"], "name a run folder or a model"),
        (["augment", "--pool", "attention"], "name a run folder or a model before --pool"),
        (["augment", "test_resnett"], "the nearest model is 'test_resnet'"),
        (["augment", "test_resnet", "--pol", "x"], "unknown flag --pol; the nearest is --pool"),
        (["augment", "test_resnet", "--pool", "most"], "--pool most; expected "),
        (["augment", "test_resnet", "--freeze"], "unknown flag --freeze; the nearest is --"),
        (["augment", "test_resnet", "attention"], "takes no 'attention'"),
        (["augment", "test_resnet", "--conv", "lyer2"], "the nearest are layer"),
        (["augment", "test_resnet", "--conv", "last-9-stages"], "conv='last-9-stages', but"),
        (["augment", "test_resnet", "--pool-name", "pol"], "pool_name='pol' names no module"),
        (["augment", "test_resnet", "--input-size", "0"], "input_size=0 is not a side"),
        (["augment", str(Path(__file__).parent)], "config.json does not exist; name a folder"),
        (["train", "quickstart", "--augment.freeze"], "augment.freeze is about new attention"),
        (["train", "quickstart", "--augment.pol=x"], "the nearest is --augment.pool"),
        (["list", "nanoo"], "no name contains 'nanoo'; the nearest is 'resnet_nano'"),
        (["list", "--recipe"], "unknown flag --recipe; the nearest is --recipes"),
    ],
)
def test_mistake_is_one_line_that_names_what_is_right(arguments, expected, capsys):
    assert expected in fails(capsys, *arguments)


def test_unknown_model_in_a_recipe_names_the_nearest(capsys, tmp_path):
    flags = [*FLAGS[:8], "--model.name", "patchconvnet_nan", "--out", str(tmp_path / "run")]
    assert "the nearest is 'patchconvnet_nano'" in fails(capsys, "train", "quickstart", *flags)
    assert not (tmp_path / "run").exists()


def test_mistake_that_quotes_a_long_value_is_cut(capsys):
    assert main(["train", "quickstart", "--data.name", "x" * 5_000, "--out", "x" * 5_000]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("convattn: ")
    assert " ... " in line
    assert len(line) < 1_100


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


@pytest.mark.parametrize("flag", ["--weights", "--checkpoint"])
def test_evaluating_a_model_by_name_takes_its_weights(run, capsys, flag):
    line = fails(
        capsys,
        *("evaluate", "patchconvnet_nano", "--data", "cluttered_digits", "--data.num-test", "10"),
        *(flag, str(run)),
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

    monkeypatch.setattr("convattn.tasks.train", interrupt)
    assert "interrupted" in fails(capsys, "train", "quickstart", status=130)


def test_unreadable_image_is_named(capsys, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for name in ("ants", "bees"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), "red").save(folder / f"{number}.jpg")
    (tmp_path / "data" / "train" / "bees" / "2.jpg").write_bytes(b"no image")
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
    assert "Images per optimiser step" in printed
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


@pytest.mark.long
def test_all_but_training_starts_without_lightning_and_gradio(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    explain = [BUNDLED, str(tmp_path / "image.png"), "--out", str(tmp_path / "out")]
    code = (
        "import sys; from convattn.cli import main; main(['--help']); main(['list', 'nano']); "
        f"main(['augment', 'test_resnet']); main(['explain', *{explain}]); "
        "import convattn.classification.dataset; print({'lightning', 'gradio'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1] == "set()"


def test_augment_prints_names_totals_and_what_is_left_alone(capsys):
    flags = ["--pool", "attention", "--conv", "layer2.*", "layer3.0.conv2", "--input-size", "64"]
    assert main(["augment", "test_resnet", *flags, "--num-classes", "10"]) == 0
    printed = capsys.readouterr().out
    plain = timm.create_model("test_resnet", num_classes=10)
    conv = ["layer2.*", "layer3.0.conv2"]
    augmented = augment(plain, pool="attention", conv=conv, input_size=64)
    for model in (plain, augmented):
        assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" in printed
    for name in ("layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv2", "global_pool.pool"):
        assert re.search(rf"^{re.escape(name)} ", printed, re.MULTILINE)
    assert not re.search(r"^layer1", printed, re.MULTILINE)
    assert "left alone" in printed


def test_augment_shows_all_that_is_possible_if_asked_for_nothing(capsys):
    main(["augment", "test_resnet"])
    printed = capsys.readouterr().out
    assert printed.startswith(str(plan(timm.create_model("test_resnet"))))


def test_augment_as_json_is_the_plan_and_nothing_else(capsys):
    main(["augment", "test_resnet", "--conv", "last-2-stages", "--num-heads", "4", "--json"])
    found = plan(timm.create_model("test_resnet"), pool=None, conv="last-2-stages", num_heads=4)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.to_dict()))


def told_to_train(printed, monkeypatch):
    """The configuration that the printed command trains."""
    (command,) = re.findall(r"train it with:\n  convattn (.*)\n", printed)
    configs = []
    monkeypatch.setattr("convattn.tasks.train", configs.append)
    assert main(shlex.split(command)) == 0
    return configs[0]


def test_augment_tells_the_command_that_trains_it(capsys, monkeypatch):
    flags = ["--conv", "layer2.*", "layer3.0.conv2", "--v-ratio", "0.25", "--no-preserve"]
    main(["augment", "test_resnet", *flags, "--input-size", "96"])
    config = told_to_train(capsys.readouterr().out, monkeypatch)
    assert config.recipe == "finetune"
    assert config.model.name == "test_resnet"
    assert config.model.pretrained
    assert config.data.image_size == 96
    assert config.augment == AugmentConfig(
        conv=("layer2.*", "layer3.0.conv2"), v_ratio=0.25, preserve=False
    )


def test_augment_tells_only_what_is_possible(capsys, monkeypatch):
    # At 32 pixels its pool gets a map of one position.
    main(["augment", "test_resnet", "--pool", "attention", "--conv", "all", "--input-size", "32"])
    config = told_to_train(capsys.readouterr().out, monkeypatch)
    assert config.augment == AugmentConfig(conv=("all",))
    assert main(["augment", "vit_tiny_patch16_224"]) == 0
    printed = capsys.readouterr().out
    assert "transformer" in printed
    assert "train it with" not in printed


def test_augment_of_a_run_goes_on_from_its_weights(run, capsys, monkeypatch):
    assert main(["augment", str(run), "--conv", "blocks.*", "--num-heads", "2"]) == 0
    config = told_to_train(capsys.readouterr().out, monkeypatch)
    before = Run.open(run).config
    model = dataclasses.replace(before.model, checkpoint=str(run), num_classes=None)
    attention = AugmentConfig(conv=("blocks.*",), num_heads=2)
    assert config == dataclasses.replace(before, model=model, augment=attention, out=None)


@pytest.mark.long
def test_run_that_was_given_attention_is_shown_and_evaluated(capsys, tmp_path):
    folder = tmp_path / "run"
    attention = ["--augment.conv", "stem.6", "blocks.*", "--augment.num-heads", "2"]
    assert main(["train", "quickstart", *FLAGS, *attention, "--out", str(folder)]) == 0
    assert json.loads((folder / "config.json").read_text())["augment"]["conv"] == attention[1:3]
    assert main(["evaluate", str(folder), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["augment", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "it is learned aggregation already" in printed
    assert "train it with" not in printed
    line = fails(capsys, "augment", str(folder), "--num-classes", "3")
    assert "a run has its own classes" in line


def test_augment_explains_its_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["augment", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: convattn augment RUN" in printed
    assert "--qk-ratio" in printed
    assert "--lr-scale" not in printed


@pytest.mark.long
def test_a_reader_that_has_gone_is_no_error():
    command = f"{sys.executable} -m convattn list --data | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--reject-below", "soon"], "--reject-below soon; expected a number or auto or None"),
        (["--threshold", "high"], "--threshold high; expected a number"),
        (["--window", "3", "b"], "--window 3, b; expected 2 whole numbers or None"),
    ],
)
def test_value_of_another_type_is_told_in_words(words, expected):
    with pytest.raises(UsageError) as error:
        parse(PredictConfig, PredictConfig(), words, prog="predict")
    assert str(error.value) == expected


@pytest.mark.parametrize("command", ["check-data", "finetune", "export"])
def test_what_one_process_does_is_refused_to_several(command, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "somewhere"]) == 2
    assert capsys.readouterr().err == (
        f"convattn: convattn {command} works in one process, and 2 were started: run it without "
        "torchrun or srun\n"
    )


def test_auto_resume_needs_a_folder_and_a_training(capsys):
    assert main(["train", "quickstart", "--auto-resume"]) == 2
    assert "--auto-resume needs the folder to look in: give --out RUN" in capsys.readouterr().err
    assert main(["train", "quickstart", "--auto-resume", "--out", "x", "--dry-run"]) == 2
    assert "--dry-run trains nothing and takes no --auto-resume" in capsys.readouterr().err
