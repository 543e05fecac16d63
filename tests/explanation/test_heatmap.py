import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import convattn
from convattn import AAConv2d, augment, capture_attention
from convattn.data import generate_cluttered_digits
from convattn.explanation import attention_maps, attention_through, class_names, explain_classes
from convattn.explanation.classes import find_class
from convattn.explanation.overlay import overlay
from convattn.layers import LearnedAggregation2d


@pytest.fixture(scope="module")
def bundled():
    return timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()


@pytest.fixture(scope="module")
def digits():
    return generate_cluttered_digits(200, split="test")


def digit(digits, bundled, *, side):
    """A digit that the bundled network knows, without its surroundings, on grey."""
    for image, mask, label in zip(digits.images, digits.masks, digits.labels, strict=True):
        if int(label) == 3 and mask.any():
            ys, xs = np.where(mask.numpy())
            ink = np.full((64, 64, 3), 110, np.uint8)
            ink[mask.numpy()] = image.permute(1, 2, 0).numpy()[mask.numpy()]
            crop = Image.fromarray(ink).crop((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
            return crop.resize((side * crop.width // crop.height, side))
    raise AssertionError("no 3 among the digits")


@pytest.mark.parametrize("corner", ["upper left", "upper right", "lower left", "lower right"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_heat_of_an_object_in_a_panorama_s_corner_lies_on_that_corner(
    bundled, digits, corner, turned
):
    size = (200, 600) if turned else (600, 200)  # 3:1
    panorama = Image.new("RGB", size, (110, 110, 110))
    object_ = digit(digits, bundled, side=80)
    left = 8 if "left" in corner else size[0] - object_.width - 8
    top = 8 if "upper" in corner else size[1] - object_.height - 8
    panorama.paste(object_, (left, top))
    found = convattn.explain(bundled, panorama)
    assert found.heat.shape == (size[1], size[0])
    y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert left <= x < left + object_.width
    assert top <= y < top + object_.height
    inside = found.heat[top : top + object_.height, left : left + object_.width]
    assert inside.sum() > 0.6 * found.heat.sum()


@pytest.mark.parametrize("method", ["attention", "gradcam"])
def test_heat_lies_inside_what_the_crop_shows_and_moves_with_it(bundled, digits, method):
    """The same square, alone and as the middle of a wider image, has the same heat there."""
    image = Image.fromarray(digits.images[5].permute(1, 2, 0).numpy())
    wide = Image.new("RGB", (104, 64), (10, 200, 10))
    wide.paste(image, (20, 0))
    alone = convattn.explain(bundled, image, method=method)
    found = convattn.explain(bundled, wide, method=method)
    assert found.region == (20, 0, 84, 64)
    np.testing.assert_allclose(found.heat[:, 20:84], alone.heat, atol=1e-6)
    assert found.heat[:, :20].max() == found.heat[:, 84:].max() == 0


def test_a_crop_of_a_larger_image_is_scaled_back(bundled, digits):
    image = Image.fromarray(digits.images[5].permute(1, 2, 0).numpy())
    large = image.resize((192, 192), Image.Resampling.NEAREST)
    small, big = convattn.explain(bundled, image), convattn.explain(bundled, large)
    assert big.heat.shape == (192, 192)
    y, x = np.unravel_index(small.heat.argmax(), (64, 64))
    v, u = np.unravel_index(big.heat.argmax(), (192, 192))
    assert abs(v - 3 * y - 1) <= 3
    assert abs(u - 3 * x - 1) <= 3


def test_shrunk_it_is_the_same_on_a_smaller_image(bundled):
    found = convattn.explain(bundled, Image.new("RGB", (300, 200), (9, 80, 200)))
    small = found.shrink(150)
    assert small.image.size == (150, 100)
    assert small.region == tuple(edge / 2 for edge in found.region)
    blocks = found.heat.reshape(100, 2, 150, 2).mean((1, 3))
    np.testing.assert_allclose(small.heat, blocks, atol=0.02 * found.heat.max())
    assert found.shrink(300) is found
    assert found.overlay(max_side=150).size == (150, 100)


def test_every_kind_of_source_gives_the_same(bundled, digits, tmp_path):
    tensor = digits.images[0]
    image = Image.fromarray(tensor.permute(1, 2, 0).numpy())
    image.save(tmp_path / "digit.png")
    path = tmp_path / "digit.png"
    expected = convattn.explain(bundled, image).heat
    with path.open("rb") as file:
        for source in (path, str(path), file, tensor, tensor / 255, np.asarray(image)):
            np.testing.assert_array_equal(convattn.explain(bundled, source).heat, expected)


def test_the_likeliest_classes_are_the_network_s_own(bundled, digits):
    image = digits.images[0]
    found = convattn.explain(bundled, image)
    mean, std = (torch.tensor(bundled.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        probabilities = bundled((image / 255 - mean)[None] / std)[0].softmax(0)
    order = probabilities.argsort(descending=True)[:5].tolist()
    assert [one.index for one in found.top] == order
    assert [one.probability for one in found.top] == pytest.approx(probabilities[order].tolist())
    assert found.target == found.top[0]
    json.dumps(found.to_dict())


def test_a_class_is_named_by_name_or_number(bundled, digits):
    assert convattn.explain(bundled, digits.images[0], target="7").target.index == 7
    assert convattn.explain(bundled, digits.images[0], target=7).target.name == "7"
    found = explain_classes(bundled, digits.images[0], ["7", 2])
    assert [one.target.index for one in found] == [7, 2]
    found = explain_classes(bundled, digits.images[0], top_k=4)
    assert [one.target for one in found] == list(found[0].top[:4])


NAMES = ("tench, Tinca tinca", "crane", "Tabby, tabby cat", "crane", "7")


@pytest.mark.parametrize(
    ("target", "index"),
    [
        ("tench", 0),
        ("tinca TINCA", 0),
        ("tabby cat", 2),
        (3, 3),
        (np.int64(3), 3),
        ("7", 4),
        ("1", 1),
        (" 7 ", 4),
    ],
)
def test_names_are_found_by_a_synonym_in_any_case(target, index):
    assert find_class(target, NAMES) == index


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tabbi cat", "unknown class 'tabbi cat'; the nearest are 'tabby cat', "),
        ("crane", "2 classes are called 'crane'; give a number instead: 1, 3"),
        (5, "no class number 5; give one from 0 to 4"),
        (-1, "no class number -1"),
        (["crane"], "expected one name or number, explain_classes takes several"),
        ("9", "unknown class '9'"),
    ],
)
def test_an_unknown_class_is_told_with_the_nearest(target, message):
    with pytest.raises(ValueError, match=message):
        find_class(target, NAMES)


def test_names_come_from_the_model_or_imagenet_or_are_numbers(bundled):
    assert class_names(bundled, 10) == list("0123456789")
    assert class_names(nn.Identity(), 1000)[281] == "tabby, tabby cat"
    assert class_names(bundled, 7) == ["0", "1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("name", ["nano", "augmented"])
def test_a_token_a_class_shows_that_class_s_map(name):
    if name == "nano":
        model, layer = timm.create_model("patchconvnet_nano_multi", num_classes=4).eval(), "head"
    else:
        model = augment(timm.create_model("resnet18", num_classes=4), pool="class-attention").eval()
        layer = "global_pool.pool.aggregation"
        nn.init.normal_(model.get_submodule(layer).token)
        nn.init.normal_(model.get_submodule(layer).attn.q.weight)
    images = torch.randn(3, 3, 96, 96)
    with torch.no_grad(), capture_attention(model) as maps:
        expected = model(images)
    logits, attention, grid = attention_maps(model, images, torch.tensor([3, 0, 2]))
    torch.testing.assert_close(logits, expected)
    chosen = maps[layer].mean(1)[range(3), [3, 0, 2]]
    torch.testing.assert_close(attention, chosen / chosen.sum((1, 2), keepdim=True))
    assert grid == maps.grids[layer]
    _, predicted, _ = attention_maps(model, images)
    best = maps[layer].mean(1)[range(3), expected.argmax(1)]
    torch.testing.assert_close(predicted, best / best.sum((1, 2), keepdim=True))
    image = Image.new("RGB", (96, 96))
    found = explain_classes(model, image, [0, 1], view="whole")
    assert found[0].class_specific
    assert not torch.equal(found[0].map, found[1].map)


class PoolAndConvolutions(nn.Module):
    """A pool of several heads behind two attention convolutions of different sizes."""

    def __init__(self):
        super().__init__()
        self.first = AAConv2d(3, 8, 3, padding=1, num_heads=2)
        self.last = AAConv2d(8, 12, 3, stride=2, padding=1, num_heads=3)
        self.head = LearnedAggregation2d(12, 5, num_heads=3)
        self.pretrained_cfg = {"input_size": (3, 16, 16), "crop_pct": 1.0}

    def forward(self, x):
        return self.head(self.last(self.first(x).relu()).relu())


def test_the_pool_is_shown_before_convolutions_averaged_over_heads():
    model, images = PoolAndConvolutions().eval(), torch.randn(2, 3, 10, 14)
    with torch.no_grad(), capture_attention(model) as maps:
        model(images)
    _, attention, _ = attention_maps(model, images)
    expected = maps["head"][:, :, 0].mean(1)
    torch.testing.assert_close(attention, expected / expected.sum((1, 2), keepdim=True))
    _, attention, _ = attention_maps(model, images, head=2)
    expected = maps["head"][:, 2, 0]
    torch.testing.assert_close(attention, expected / expected.sum((1, 2), keepdim=True))


@pytest.mark.parametrize(("layer", "size"), [("first", (10, 14)), ("last", (5, 7))])
def test_convolutions_show_how_much_a_position_is_looked_at(layer, size):
    model, images = PoolAndConvolutions().eval(), torch.randn(2, 3, 10, 14)
    with torch.no_grad(), capture_attention(model) as maps:
        model(images)
    _, attention, grid = attention_maps(model, images, layer=layer, head=1)
    expected = torch.zeros(2, *size)
    for query in range(size[0] * size[1]):
        expected += maps[layer][:, 1, query].view(2, *size)
    torch.testing.assert_close(attention, expected / expected.sum((1, 2), keepdim=True))
    assert grid.feat_size == size


def test_a_pixel_looks_from_the_nearest_cell():
    model, image = PoolAndConvolutions().eval(), Image.new("RGB", (14, 10), (50, 90, 10))
    image.putpixel((3, 4), (255, 255, 255))
    model.pretrained_cfg = {"input_size": (3, 10, 14), "crop_pct": 1.0, "num_classes": 5}
    found = convattn.explain(model, image, layer="last", query=(4, 7))
    seen = (torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255)[None]
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad(), capture_attention(model) as maps:
        model((seen - mean) / std)
    # Cells look at rows 0.5, 2.5, 4.5 and columns 0.5, 2.5, 4.5, 6.5, 8.5: (4.5, 7.5) is nearest
    # to row 2 and between columns 3 and 4.
    row = maps["last"].mean(1)[0].view(5, 7, 5, 7)
    assert any(torch.allclose(found.map, row[2, column]) for column in (3, 4))
    with pytest.raises(ValueError, match="lies outside what the network sees"):
        convattn.explain(model, image, layer="last", query=(10, 3))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"layer": "middle"}, "no layer with attention named 'middle'; it has first, last, head"),
        ({"head": 3}, "head=3, but head has 3; give a number from 0 to 2"),
        ({"query": (9, 9)}, "a learned token looks, not a position"),
        ({"method": "gradcam", "head": 1}, "Grad-CAM has none"),
        ({"method": "evidence", "head": 1}, "evidence has none"),
        ({"method": "evidence"}, "'head' is learned aggregation"),
        ({"method": "lime"}, "expected auto, evidence, attention, gradcam"),
    ],
)
def test_what_a_network_cannot_show_is_told(words, message):
    with pytest.raises(ValueError, match=message):
        convattn.explain(PoolAndConvolutions(), Image.new("RGB", (32, 32)), **words)


def test_attention_of_a_network_without_any_is_told():
    model = timm.create_model("resnet18", num_classes=3)
    with pytest.raises(ValueError, match="holds no layer with attention"):
        convattn.explain(model, Image.new("RGB", (64, 64)), method="attention")
    found = convattn.explain(model, Image.new("RGB", (64, 64), (9, 80, 200)))
    assert found.method == "evidence"


@pytest.mark.long
def test_evidence_is_the_default_where_it_exists_and_sums_to_the_logit():
    torch.manual_seed(0)
    plain = shaken(timm.create_model("resnet18", num_classes=5))
    image = Image.effect_noise((96, 64), 90).convert("RGB")
    for model in (
        plain,
        shaken(convattn.augment(plain, pool="attention")),
        shaken(convattn.augment(plain, pool="class")),
        shaken(convattn.augment(plain, conv="last-2-stages")),
    ):
        for found in explain_classes(model, image, top_k=5):
            assert (found.method, found.class_specific) == ("evidence", True)
            total = float(found.map.sum()) + found.bias
            assert total == pytest.approx(found.logit, rel=1e-4, abs=1e-4)
        assert f"logit {found.logit:.1f}" in found.describe_sum()
        assert float(found.map.min()) < 0
        assert found.heat.shape == (64, 96)


def shaken(model):
    """As after training: nothing is multiplied by zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize(
    "model",
    [
        lambda: timm.create_model("convnext_atto", num_classes=3),  # a norm behind its pool
        lambda: convattn.augment(
            timm.create_model("resnet18", num_classes=3), pool="max", preserve=False
        ),
    ],
)
def test_without_evidence_it_is_what_else_there_is(model):
    found = convattn.explain(model().eval(), Image.new("RGB", (96, 96), (9, 80, 200)))
    assert found.method in ("attention", "gradcam")
    assert found.bias is None
    with pytest.raises(ValueError, match="no sum that means anything"):
        found.describe_sum()


def test_overlay_of_evidence_is_red_for_and_blue_against():
    heat = np.array([[1.0, -0.5, 0.0]], np.float32)
    grey = Image.new("RGB", (3, 1), (128, 128, 128))
    shown = np.asarray(overlay(grey, heat, opacity=1.0, signed=True)).astype(int)[0]
    assert shown[0, 0] - shown[0, 2] > 60
    assert shown[1, 2] - shown[1, 0] > 30
    assert np.ptp(shown[2]) == 0


def test_many_images_are_those_of_each():
    model, images = timm.create_model("patchconvnet_nano").eval(), torch.randn(35, 3, 32, 32)
    logits, maps, _ = attention_maps(model, images)
    alone_logits, alone, _ = attention_maps(model, images[34:])
    torch.testing.assert_close(logits[34:], alone_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps[34:], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["attention", "gradcam"])
def test_explaining_leaves_the_network_as_it_was(method):
    model = timm.create_model("patchconvnet_nano", num_classes=3).train()
    model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convattn.explain(model, Image.new("RGB", (64, 64)), method=method)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_one_by_one_pixels_and_grey_networks():
    model = timm.create_model("patchconvnet_nano", num_classes=3, in_chans=1)
    model.pretrained_cfg = model.pretrained_cfg | {
        "input_size": (1, 28, 28),
        "mean": (0.3,),
        "std": (0.3,),
    }
    assert convattn.explain(model, Image.new("RGB", (1, 1))).heat.shape == (1, 1)


@pytest.mark.parametrize("words", [{}, {"layer": "last", "query": (9, 9)}])
def test_attention_of_several_classes_and_of_a_pixel_takes_one_run(words):
    model, seen = PoolAndConvolutions(), []
    model.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    explain_classes(model, Image.new("RGB", (16, 16)), top_k=3, **words)
    assert seen == [1]


def test_a_network_that_refuses_the_image_says_what_to_set():
    model = timm.create_model("patchconvnet_nano", num_classes=3, in_chans=1)
    with pytest.raises(ValueError, match=r"refuses an image of shape \(3, 64, 64\) .* must say"):
        convattn.explain(model, Image.new("RGB", (64, 64)))


def test_an_image_goes_through_all_convolutions():
    model = PoolAndConvolutions().eval()
    image, layers = attention_through(model, Image.new("RGB", (60, 40)))
    assert image.size == (60, 40)
    assert {name: len(heads) for name, heads in layers.items()} == {"first": 2, "last": 3}
    assert all(heat.shape == (40, 60) for heads in layers.values() for heat in heads)
    _, asked = attention_through(model, Image.new("RGB", (60, 40)), query=(20, 30))
    assert not np.allclose(asked["last"][0], layers["last"][0])
    with pytest.raises(ValueError, match="no convolution with attention"):
        attention_through(timm.create_model("patchconvnet_nano"), Image.new("RGB", (64, 64)))
