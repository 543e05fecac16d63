"""Networks in folders and repositories as timm reads them; nothing here reaches a network."""

import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image

from convattn.cli import main
from convattn.data import transform_of
from convattn.runs import Run
from convattn.runs.sharing import push, save_for_hub
from tests.runs.finished import make_dense_run, make_run


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: object, address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(make_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "arguments", "pool"),
    [
        (
            "map_classifier",
            {"backbone": "test_resnet", "pool": "attention", "image_size": 64},
            None,
        ),
        ("map_classifier", {"backbone": "test_resnet", "pool": "class", "image_size": 64}, None),
        ("patchconvnet_nano", {"embed_dim": 16, "depth": 1}, None),
        ("test_efficientnet", {}, None),
        ("test_resnet", {}, "attention"),
        ("test_resnet", {}, "class"),
    ],
)
def test_timm_loads_the_same_network_from_a_folder(
    name: str, arguments: dict, pool: str | None, tmp_path: Path
) -> None:
    run = Run.open(make_run(tmp_path / "run", name=name, arguments=arguments, pool=pool))
    folder = save_for_hub(run, tmp_path / "shared")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    images, expected = torch.randn(2, 3, 64, 64), run.load_model()
    assert torch.equal(names["model"](images), expected(images))
    cfg = names["model"].pretrained_cfg
    assert list(cfg["label_names"]) == ["ants", "bees"]
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    assert torch.equal(transform_of(cfg)(image), transform_of(run.pretrained_cfg)(image))


def test_a_folder_holds_three_files_and_not_the_way_to_the_images(run: Run, tmp_path: Path) -> None:
    folder = save_for_hub(run, tmp_path / "shared")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert not any(b"somebody" in file.read_bytes() for file in folder.iterdir())


def test_thresholds_of_several_classes_go_along(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", multi_label=True, thresholds=[0.3, 0.6])
    shared = save_for_hub(Run.open(folder), tmp_path / "shared")
    config = json.loads((shared / "config.json").read_text())
    assert (config["multi_label"], config["thresholds"]) == (True, [0.3, 0.6])
    timm.create_model(f"local-dir:{shared}", pretrained=True)


class Hub:
    """The hub's client, which notes what it is asked."""

    def __init__(self, **words: object) -> None:
        self.library = words

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> object:
        assert exist_ok
        Hub.private = private
        return SimpleNamespace(repo_id=f"somebody/{repo}")

    def file_exists(self, repo: str, name: str) -> bool:
        return Hub.has_card and (repo, name) == ("somebody/insects", "README.md")

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, ignore_patterns: list, commit_message: str
    ) -> None:
        Hub.files = {
            file.name: file.read_text(errors="replace")
            for file in folder_path.iterdir()
            if file.name not in ignore_patterns
        }


@pytest.mark.parametrize("has_card", [False, True])
def test_a_push_uploads_the_folder_and_keeps_a_card(
    run: Run, monkeypatch: pytest.MonkeyPatch, has_card: bool
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(Hub, "has_card", has_card, raising=False)
    push(run, "insects", private=True)
    assert Hub.private
    assert {"config.json", "model.safetensors"} <= Hub.files.keys()
    assert ("README.md" in Hub.files) is not has_card
    if not has_card:
        assert (
            "timm.create_model('hf-hub:somebody/insects', pretrained=True)"
            in Hub.files["README.md"]
        )


def test_without_a_login_nothing_is_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"nobody is logged in .* `hf auth login`"):
        push(run, "insects")


def test_what_the_hub_refuses_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("403 Forbidden\n\nno rights")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(
        ValueError, match=r"insects could not be written .*: 403 Forbidden no rights"
    ):
        push(run, "insects")


@pytest.mark.parametrize("name", ["retinanet", "upernet"])
def test_what_timm_does_not_build_is_shared_as_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = Run.open(make_dense_run(tmp_path / "run", name=name))
    shared = tmp_path / "shared"
    assert main(["push", str(run.folder), "--local", str(shared)]) == 0
    assert f"convattn.Run.open('{shared}').load_model()" in capsys.readouterr().out
    assert not any(b"somebody" in file.read_bytes() for file in shared.iterdir())
    (code,) = re.findall(r"```python\n(.*?)```", (shared / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    image, expected = torch.rand(3, 64, 64), run.load_model()
    images = [image] if name == "retinanet" else image[None]
    with torch.no_grad():
        torch.testing.assert_close(names["model"](images), expected(images), rtol=0, atol=0)


def test_a_pushed_run_is_opened_from_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(Hub, "has_card", False, raising=False)
    push(Run.open(make_dense_run(tmp_path / "run", name="retinanet")), "insects")
    assert {"config.json", "model.safetensors", "README.md"} == Hub.files.keys()
    assert "Run.open(snapshot_download('somebody/insects'))" in Hub.files["README.md"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], "takes a run, and a repository or a folder"),
        (["run", "insects", "--local", "shared"], "takes a run, and a repository or a folder"),
        (["nowhere", "insects"], "nowhere is no run folder"),
        (["run", "--local", "run"], "run exists and is never overwritten"),
        (["run", "--local", "shared", "--private"], "--private is for a repository"),
        (["run", "in sects"], "in sects"),
    ],
)
def test_mistakes_are_one_line(
    run: Run,
    words: list,
    expected: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run.folder.parent)
    assert main(["push", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert not Path("shared").exists()


def test_the_command_makes_a_folder(
    run: Run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.folder.parent)
    assert main(["push", "run", "--local", "shared"]) == 0
    assert "timm.create_model('local-dir:shared', pretrained=True)" in capsys.readouterr().out
    assert Path("shared/config.json").is_file()
