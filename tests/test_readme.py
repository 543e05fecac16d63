import re
from pathlib import Path

import pytest
import timm
import torch

from convattn import OUR_MODELS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (1, 10)
    assert names["maps"]["head"].shape == (1, 1, 1, 14, 20)


def test_every_model_is_in_the_table():
    assert sorted(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == sorted(OUR_MODELS)


@pytest.mark.parametrize("name", OUR_MODELS)
def test_the_table_tells_the_parameters(name):
    (told,) = re.findall(rf"^\| `{name}` \| ([\d.]+) M \|", README, re.MULTILINE)
    with torch.device("meta"):
        model = timm.create_model(name)
    count = sum(p.numel() for p in model.parameters())
    assert f"{count / 1e6:.2f}" == told


def test_images_are_there():
    images = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert images
    for image in images:
        assert (Path(__file__).parents[1] / image).is_file()
