"""Training with workers as Windows and macOS start them."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from convattn.config import DataConfig
from convattn.tasks import train
from tests.train.conftest import TINY, digest

CODE = """
import multiprocessing
from pathlib import Path
from convattn.config import TrainConfig
from convattn.tasks import train

multiprocessing.set_start_method("spawn")
train(TrainConfig.from_json(Path({file!r}).read_text()))
"""


@pytest.fixture
def config(tmp_path: Path):
    """Two steps on a folder of images."""
    for number in range(16):
        for name in ("red", "green"):
            file = tmp_path / "images" / ("train", "val")[number % 2] / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 36), (255 * (name == "red"), 200, 15 * number)).save(file)
    data = DataConfig(name="folder", root=str(tmp_path / "images"), image_size=32, batch_size=8)
    return replace(TINY, data=data, epochs=1)


@pytest.mark.long
@pytest.mark.usefixtures("no_images")
def test_two_spawned_workers_end_with_the_weights_of_none(config, start, tmp_path):
    whole = train(replace(config, out=str(tmp_path / "none")))
    assert whole is not None
    spawned = replace(
        config, data=replace(config.data, num_workers=2), out=str(tmp_path / "spawned")
    )
    file = tmp_path / "config.json"
    file.write_text(spawned.to_json())
    process = start("-c", CODE.format(file=str(file)))
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert digest(tmp_path / "spawned") == digest(whole.folder)
