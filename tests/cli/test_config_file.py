"""--config FILE and --print-config."""

import json

import pytest
import yaml

from convattn import __version__
from convattn.cli import main

COMMANDS = [
    "finetune IMAGES",
    "train quickstart",
    "train wide_resnet28_10_cifar100",
    "train finetune_retinanet",
    "probe IMAGES",
    "check-data IMAGES",
    "augment resnet18",
    "bench resnet18",
    "bench AAConv2d",
    "export patchconvnet_nano",
    "explain patchconvnet_nano x.png",
    "evaluate patchconvnet_nano",
    "demo",
    "list",
    "reproduce",
    "push RUN REPO",
]


def printed(capsys, *words):
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--print-config"])
    return capsys.readouterr().out


def fails(capsys, *words):
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", ["yaml", "json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_is_read(command, kind, tmp_path, capsys):
    words = command.split()
    told = printed(capsys, *words)
    file = tmp_path / f"flags.{kind}"
    file.write_text(told if kind == "yaml" else json.dumps(yaml.safe_load(told)))
    again = printed(capsys, *words, "--config", str(file))
    assert yaml.safe_load(again) == yaml.safe_load(told)
    assert yaml.safe_load(told)["convattn"] == __version__


def test_values_are_those_of_the_flags_and_the_command_line_wins(tmp_path, capsys):
    file = tmp_path / "flags.yaml"
    file.write_text(
        "seed: 3\noptim:\n  lr: 1e-3\ndata:\n  num_train: 40\n  ratio: [0.5, 2]\n  download: yes\n"
        "  auto-augment: null\nmodel:\n  pretrained: true\n  model-args: {drop_rate: 0.5}\n"
    )
    flags = [
        "--seed",
        "3",
        "--optim.lr",
        "1e-3",
        "--data.num-train",
        "40",
        "--data.ratio",
        "0.5",
        "2",
    ]
    flags += ["--data.download", "--model.pretrained", "--model.model-args", "drop_rate", "0.5"]
    expected = printed(capsys, "train", "finetune", *flags)
    assert printed(capsys, "train", "finetune", f"--config={file}") == expected
    over = ["--data.num-train=50", "--model.no-pretrained", "--seed", "4"]
    found = printed(capsys, "train", "finetune", "--config", str(file), *over)
    assert found == printed(capsys, "train", "finetune", *flags, *over)
    assert yaml.safe_load(found)["data"]["num-train"] == 50
    assert yaml.safe_load(found)["optim"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ndata:\n  num-tain: 3\n", "line 3: unknown key 'data.num-tain'; the nearest is "),
        ("data:\n  name: folder\nseed: x\n", "line 3: --seed x; expected a whole number"),
        ("seed: 1\nseed: 2\n", "line 2: 'seed' stands here a second time"),
        ("data: 3\n", "line 1: 'data' has keys of its own"),
        ("data:\n  download: 3\n", "line 2: 'data.download' is true or false"),
        ("data:\n  ratio: [[1]]\n", "line 2: 'data.ratio' holds lists of lists"),
        ("- 1\n", "holds no flags; expected lines as `seed: 1`"),
        ("", "holds no flags"),
        ("a: [\n", "cannot be read as YAML"),
        ("\udcff", "cannot be read as YAML"),
        ("convattn: 99.0\nnew: 1\n", f"; the file is of convattn 99.0, and this is {__version__}"),
    ],
)
def test_mistakes_name_file_and_line(text, said, tmp_path, capsys):
    file = tmp_path / "flags.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    line = fails(capsys, "train", "quickstart", "--config", str(file))
    assert str(file) in line
    assert said in line


def test_a_file_that_nothing_asks_for_is_refused(tmp_path, capsys):
    file = tmp_path / "flags.yaml"
    file.write_text("seed: 1\n")
    assert "does not exist" in fails(capsys, "list", "--config", str(tmp_path / "none.yaml"))
    assert "takes one file" in fails(capsys, "list", "--config")
    twice = ["--config", str(file), "--config", str(file)]
    assert "takes one file" in fails(capsys, "train", "quickstart", *twice)
    assert "line 1: unknown key 'seed'" in fails(capsys, "list", "--config", str(file))


@pytest.mark.parametrize(
    "command",
    ["train quickstart", "train patchconvnet_tiny_imagenet"],  # of no keyword arguments; of two
)
def test_keyword_arguments_join_those_of_the_recipe(command, capsys):
    words = "--model.model-args global_pool attention mlp_ratio 2.5 depth 3 --epochs 2"
    found = yaml.safe_load(printed(capsys, *command.split(), *words.split()))
    given = {"global_pool": "attention", "mlp_ratio": 2.5, "depth": 3}
    kept = {"embed_dim": 96} if "tiny" in command else {}
    assert found["model"]["model-args"] == kept | given
    assert found["epochs"] == 2


def test_a_keyword_without_its_value_is_refused(capsys):
    words = "train patchconvnet_tiny_imagenet --model.model-args global_pool --epochs 2"
    assert fails(capsys, *words.split()).endswith(
        "--model.model-args takes names and values in turn, for example --model.model-args "
        "global_pool avg; got global_pool"
    )
