"""Red and green spots, and a network with random weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from convattn.config import DataConfig, FinetuneConfig
from convattn.finetuning import frozen
from convattn.finetuning.folder import FinetunedRun
from convattn.finetuning.run import run_finetune

MODEL, SIDE = "test_resnet", 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(MODEL)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)  # residual branches begin at zero
    file = tmp_path_factory.mktemp("weights") / "network.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    return file


def paint(folder: Path, name: str, number: int) -> None:
    """Red or green spots on grey."""
    generator = torch.Generator().manual_seed(number + 1000 * (name == "green"))
    pixels = torch.randint(90, 130, (24, 24, 3), generator=generator, dtype=torch.uint8)
    top, left = torch.randint(0, 14, (2,), generator=generator).tolist()
    pixels[top : top + 10, left : left + 10, 0 if name == "red" else 1] = 250
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(folder / name / f"{number:02}.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", 30), ("test", 8)):
        for name in ("red", "green"):
            for number in range(count):
                paint(root / part, name, number + 500 * (part == "test"))
    return root


@pytest.fixture(autouse=True, scope="module")
def short() -> Iterator[None]:
    """Heads are trained for a few epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "_MOST_EPOCHS", 16)
        yield


def config_in(folder: Path, images: Path, weights: Path) -> FinetuneConfig:
    return FinetuneConfig(
        data=DataConfig(name="folder", root=str(images)),
        model=MODEL,
        weights=str(weights),
        image_size=SIDE,
        cache=str(folder / "cache"),
        device="cpu",
        out=str(folder / "run"),
        epochs=0,
    )


def contents(folder: Path) -> list[bytes]:
    """What runs that are the same have in common, wherever they lie."""
    names = ("model.safetensors", "evaluation.json", "config.json")
    where = str(folder.parent).encode()
    return [(folder / name).read_bytes().replace(where, b"DIR") for name in names]


@pytest.fixture
def config(images: Path, weights: Path, tmp_path: Path) -> FinetuneConfig:
    return config_in(tmp_path, images, weights)


@pytest.fixture(scope="module")
def finished(
    short: None, images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> FinetunedRun:
    """The run of ``config``, which tests only read."""
    return run_finetune(config_in(tmp_path_factory.mktemp("finished"), images, weights))
