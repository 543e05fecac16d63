import re
from pathlib import Path

import pytest
import timm
import torch

from convattn import OUR_MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
NETWORKS = (ROOT / "docs" / "explanation" / "networks.md").read_text()


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert names["found"].heat.shape == (90, 160)
    assert len(names["found"].top) == 5
    logits = names["ours"].eval()(x := torch.randn(1, 3, 96, 96))
    torch.testing.assert_close(logits, names["yours"].eval()(x), atol=1e-4, rtol=1e-4)
    assert names["shares"].shape == (1, 1, 7, 7)


def test_it_is_short():
    assert len(README.splitlines()) < 70


def test_every_model_is_in_the_table():
    assert sorted(re.findall(r"^\| `(\w+)` \|", NETWORKS, re.MULTILINE)) == sorted(OUR_MODELS)


@pytest.mark.parametrize("name", OUR_MODELS)
def test_the_table_tells_the_parameters(name):
    (told,) = re.findall(rf"^\| `{name}` \| ([\d.]+) M \|", NETWORKS, re.MULTILINE)
    with torch.device("meta"):
        model = timm.create_model(name)
    count = sum(p.numel() for p in model.parameters())
    assert f"{count / 1e6:.2f}" == told


def test_images_are_there():
    images = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert images
    for image in images:
        assert (ROOT / image).is_file()
