import re

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from convattn import OUR_MODELS
from convattn.weights import RELEASES

# Name, pixels and top-1 as the issue of the release has them: the authors' table, read by eye.
TABLE = """
patchconvnet_s60.fb_in1k s60_224_1k 224 82.1
patchconvnet_s120.fb_in1k s120_224_1k 224 83.2
patchconvnet_b60.fb_in1k b60_224_1k 224 83.5
patchconvnet_b120.fb_in1k b120_224_1k 224 84.1
patchconvnet_s60.fb_in22k_ft_in1k s60_224_21k 224 83.5
patchconvnet_s60.fb_in22k_ft_in1k_384 s60_384_21k 384 84.9
patchconvnet_s60.fb_in22k_ft_in1k_512 s60_512_21k 512 85.4
patchconvnet_b60.fb_in22k_ft_in1k b60_224_21k 224 85.4
patchconvnet_b60.fb_in22k_ft_in1k_384 b60_384_21k 384 86.5
patchconvnet_b120.fb_in22k_ft_in1k b120_224_21k 224 86.0
patchconvnet_b120.fb_in22k_ft_in1k_384 b120_384_21k 384 86.9
patchconvnet_s60_multi.fb_in1k s60_multi_finetune_1k 224 82.0
patchconvnet_s60_multi.fb_in1k_scratch s60_multi_scratch_1k 224 81.1
"""


def test_the_releases_are_the_authors_table():
    rows = [f"{n} {r.file.removesuffix('.pth')} {r.pixels} {r.top1}" for n, r in RELEASES.items()]
    assert sorted(rows) == sorted(TABLE.split("\n")[1:-1])


def test_timm_lists_every_release():
    ours = {name for name in timm.list_pretrained("patchconvnet_*")}
    assert ours == {*RELEASES, "patchconvnet_nano.cluttered_digits"}


@pytest.mark.parametrize("name", [n for n in OUR_MODELS if re.fullmatch(r".*_[sb]\d+(_multi)?", n)])
def test_a_bare_name_is_the_1k_network_at_224(name):
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg.tag == "fb_in1k"
    assert cfg.input_size == (3, 224, 224)


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_a_config_tells_where_the_weights_are_and_whose(name):
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg.url == f"https://dl.fbaipublicfiles.com/deit/{RELEASES[name].file}"
    assert (cfg.license, cfg.paper_ids, cfg.num_classes) == ("apache-2.0", "arXiv:2112.13692", 1000)


@pytest.mark.parametrize("pixels", [224, 384, 512])
def test_the_short_side_is_resized_as_the_authors_do(pixels):
    name = next(name for name, one in RELEASES.items() if one.pixels == pixels)
    cfg = timm.models.get_pretrained_cfg(name).to_dict()
    resize, crop = create_transform(**resolve_data_config(pretrained_cfg=cfg)).transforms[:2]
    image = resize(Image.new("RGB", (901, 777)))
    assert min(image.size) == int(pixels * 256 / 224)
    assert crop(image).size == (pixels, pixels)
    assert resize.interpolation.value == "bicubic"


@pytest.mark.parametrize("name", ["patchconvnet_l60", "patchconvnet_l120"])
def test_the_large_networks_have_no_weights(name):
    with (
        torch.device("meta"),
        pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name}"),
    ):
        timm.create_model(name, pretrained=True, depth=1)
