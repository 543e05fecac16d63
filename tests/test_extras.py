"""Each extra alone: its commands work, and the others say what to install."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from PIL import Image

import convattn.__main__
from convattn.__main__ import find_too_old
from convattn.__main__ import main as module_main

TESTS = Path(__file__).parent
BUNDLED = "patchconvnet_nano.cluttered_digits"


def extras_and_words(folder):
    """Extra, the words of a command, and the extra that it says is missing; "": it works."""
    images = str(folder / "images")
    list_, train = ["list"], ["train", "quickstart", "--dry-run"]
    explain = ["explain", BUNDLED, f"{images}/red/1.png", "--out", f"{folder}/maps"]
    shard = ["shard", images, f"{folder}/shards"]
    export = ["export", BUNDLED, "--size", "64", "64", "--out"]
    return [
        ("", list_, "train"),
        ("train", list_, ""),
        ("train", train, ""),
        ("train", ["export", BUNDLED], "export"),
        ("train", ["demo"], "demo"),
        ("explain", list_, ""),
        ("explain", explain, ""),
        ("explain", ["train", "quickstart", "--out", f"{folder}/run"], "train"),
        ("check", ["check-data", images], ""),
        ("check", ["export", BUNDLED], "export"),
        ("shards", [*shard, "--format", "litdata"], ""),
        ("shards", ["demo"], "demo"),
        ("export", [*export, f"{folder}/network.onnx"], ""),
        ("export", ["demo"], "demo"),
        ("openvino", [*export, f"{folder}/network.xml", "--format", "openvino"], ""),
        ("demo", [*explain[:-1], f"{folder}/maps_of_demo"], ""),
        ("detection", list_, "train"),
        ("segmentation", list_, "train"),
    ]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What each of the commands ended with: the case, its exit status and stderr."""
    folder = tmp_path_factory.mktemp("extras")
    for number in range(8):
        for name in ("red", "green"):
            file = folder / "images" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), (255 * (name == "red"), 200, 30 * number)).save(file)
    cases = extras_and_words(folder)
    done = subprocess.run(
        [sys.executable, str(TESTS / "extras_alone.py")],
        input=json.dumps([(extra, words) for extra, words, _ in cases]),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return list(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.slow
def test_an_extras_own_commands_work(ended):
    own = [(case, result) for case, result in ended if not case[2]]
    assert own
    for (extra, words, _), (status, errors) in own:
        assert status == 0, f"{extra}: {words}: {errors}"


@pytest.mark.slow
def test_other_commands_say_what_to_install(ended):
    others = [(case, result) for case, result in ended if case[2]]
    assert others
    for (extra, words, missing), (status, errors) in others:
        assert status == 2, f"{extra}: {words}: {errors}"
        assert f"install it with: pip install 'convattn[{missing}]'" in errors
        assert "Traceback" not in errors


# --- too old


@pytest.fixture
def old_gradio(monkeypatch):
    """Have the installed gradio be of 2024, and the installed convattn ask for a newer one."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "4.9" if n == "gradio" else real(n))
    asked = ["torch>=2.7", 'gradio>=6.31; extra == "demo"', 'ruff>=99; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: asked)


SENTENCE = (
    "gradio 4.9 is installed, and convattn[demo] needs gradio>=6.31; mend it with: "
    "pip install --upgrade 'convattn[demo]'"
)


def test_what_is_too_old_is_named_with_what_mends_it(old_gradio):
    assert find_too_old() == [SENTENCE]


def test_what_several_extras_need_is_told_once(old_gradio, monkeypatch):
    asked = [f'gradio>=6.31; extra == "{extra}"' for extra in ("all", "demo", "dev")]
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    assert find_too_old() == [
        "gradio 4.9 is installed, and convattn[all] and convattn[demo] need gradio>=6.31; mend it "
        "with: pip install --upgrade 'gradio>=6.31'"
    ]


def test_what_is_not_installed_is_not_too_old(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ['nowhere>=1; extra == "demo"'])
    assert find_too_old() == []


def test_a_command_that_fails_over_it_ends_without_a_traceback(old_gradio, monkeypatch, capsys):
    def fails():
        raise AttributeError("module 'gradio' has no attribute 'Page'")

    monkeypatch.setattr("convattn.cli.main", fails)
    monkeypatch.setattr(sys, "argv", ["convattn", "demo"])
    assert module_main() == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"convattn: {SENTENCE}"
    assert second.endswith("may be why: module 'gradio' has no attribute 'Page'")


def test_a_fault_where_nothing_is_old_is_shown_whole(monkeypatch):
    def fails():
        raise AttributeError("ours")

    monkeypatch.setattr("convattn.cli.main", fails)
    monkeypatch.setattr(convattn.__main__, "find_too_old", list)
    with pytest.raises(AttributeError, match="ours"):
        module_main()
