import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from convattn.models.aa_wide_resnet import PreActBlock, WideResNet
from tests.models.networks import augmented, build

BIG = ("wide_resnet28_10", "se_wide_resnet28_10", "aa_wide_resnet28_10")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wide_resnet28_10", 36_536_884),
        # Squeeze and excitation, reduction 16: 2 * C * C / 16 weights, C + C / 16 biases a block.
        ("se_wide_resnet28_10", 36_536_884 + 4 * (3200 + 12800 + 51200 + 1120 * 17 // 16)),
    ],
)
def test_parameters_of_the_convolutional_twins(name, count):
    assert sum(p.numel() for p in build(name).parameters()) == count


def test_parameters_of_the_augmented_are_near_the_papers():
    count = sum(p.numel() for p in build("aa_wide_resnet28_10").parameters())
    assert f"{count / 1e6:.2f}" == "36.32"
    assert count / 1e6 == pytest.approx(36.2, abs=0.15)


@pytest.mark.parametrize(("name", "gflops"), list(zip(BIG, (10.4, 10.4, 10.9), strict=True)))
def test_flops_are_near_the_papers(name, gflops):
    with FlopCounterMode(display=False) as counter:
        build(name)(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, rel=0.03)


def test_first_convolution_of_every_block_is_augmented():
    layers = augmented(build("aa_wide_resnet28_10"))
    assert set(layers) == {f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in range(4)}
    assert {layer.num_heads for layer in layers.values()} == {8}
    assert {layer.qk_channels for layer in layers.values()} == {160}
    assert [layers[f"layer{s}.0.conv1"].v_channels for s in (1, 2, 3)] == [16, 32, 64]


@pytest.mark.parametrize("name", ["wide_resnet28_10", "se_wide_resnet28_10"])
def test_twins_have_no_attention(name):
    assert not augmented(build(name))


@pytest.mark.parametrize(
    ("img_size", "sizes"),
    [(32, [(32, 32), (16, 16), (8, 8)]), ((28, 41), [(28, 41), (14, 21), (7, 11)])],
)
def test_tables_fit_the_maps(img_size, sizes):
    layers = augmented(build("aa_wide_resnet28_10", img_size=img_size))
    for name, layer in layers.items():
        height, width = sizes[int(name[5]) - 1]
        assert layer.rel_pos.height.shape == (2 * height - 1, 20)
        assert layer.rel_pos.width.shape == (2 * width - 1, 20)


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("size", [(32, 32), (29, 44)])
def test_maps_shrink_in_the_last_two_stages(name, size):
    height, width = size
    maps = build(name, features_only=True)(torch.empty(1, 3, height, width, device="meta"))
    assert [m.shape[1:] for m in maps] == [
        (16, height, width),
        (160, height, width),
        (320, -(-height // 2), -(-width // 2)),
        (640, -(-height // 4), -(-width // 4)),
    ]


def test_block_activates_before_its_convolutions():
    torch.manual_seed(0)
    block = PreActBlock(4, 6, 2).double().eval()
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)

    def activate(norm, value):
        mean, var = (s[:, None, None] for s in (norm.running_mean, norm.running_var))
        return ((value - mean) / (var + norm.eps).sqrt()).clamp(min=0)

    first = activate(block.bn1, x)
    branch = F.conv2d(first, block.conv1.weight, stride=2, padding=1)
    branch = F.conv2d(activate(block.bn2, branch), block.conv2.weight, padding=1)
    shortcut = torch.einsum(
        "oc,bchw->bohw", block.shortcut.weight[:, :, 0, 0], first[..., ::2, ::2]
    )
    torch.testing.assert_close(block(x), shortcut + branch)


def test_block_without_change_of_shape_keeps_its_input():
    block = PreActBlock(4, 4)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 5, 7)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_intermediates_are_the_stages_outputs():
    torch.manual_seed(0)
    model = timm.create_model("aa_wide_resnet_nano").eval()
    x = torch.randn(2, 3, 28, 20)
    features, maps = model.forward_intermediates(x)
    stem = model.conv1(x)
    first = model.layer1(stem)
    second = model.layer2(first)
    third = model.layer3(second)
    for got, expected in zip(maps, (stem, first, second, third), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(features, model.forward_features(x), rtol=0, atol=0)
    (normed,) = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
    torch.testing.assert_close(normed, features, rtol=0, atol=0)


def test_stopping_early_gives_the_same_map():
    model = timm.create_model("wide_resnet_nano").eval()
    x = torch.randn(1, 3, 28, 28)
    _, maps = model.forward_intermediates(x)
    last, (early,) = model.forward_intermediates(x, indices=[1], stop_early=True)
    torch.testing.assert_close(early, maps[1], rtol=0, atol=0)
    torch.testing.assert_close(last, maps[1], rtol=0, atol=0)


@pytest.mark.parametrize("last", [0, 1, 2, 3])
def test_pruned_network_keeps_its_maps_and_drops_the_rest(last):
    model = timm.create_model("wide_resnet_nano").eval()
    x = torch.randn(1, 3, 28, 28)
    _, maps = model.forward_intermediates(x)
    assert model.prune_intermediate_layers([last], prune_norm=True) == [last]
    assert model.num_features == maps[last].shape[1]
    torch.testing.assert_close(model(x), maps[last], rtol=0, atol=0)
    kept = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert kept == {"conv1", "layer1", "layer2", "layer3"} - {
        f"layer{n}" for n in range(last + 1, 4)
    }


def test_other_output_format_is_refused():
    model = build("wide_resnet_nano")
    with pytest.raises(ValueError, match="output_fmt='NLC'"):
        model.forward_intermediates(torch.empty(1, 3, 28, 28, device="meta"), output_fmt="NLC")


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model = timm.create_model("aa_wide_resnet_nano", num_classes=3)
    x = torch.randn(2, 3, 14, 14)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for kept, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, kept, rtol=1e-4, atol=1e-5)


def test_last_block_is_dropped_most():
    blocks = [
        m
        for m in build("wide_resnet28_10", drop_path_rate=0.3).modules()
        if isinstance(m, PreActBlock)
    ]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * n / 11 for n in range(12)])


def test_impossible_depth_names_the_nearest():
    with pytest.raises(ValueError, match=r"depth=27 .* depth=28"):
        WideResNet(27)


def test_without_a_convolution_branch_it_trains():
    torch.manual_seed(0)
    model = timm.create_model("aa_wide_resnet_nano", qk_ratio=1.0, v_ratio=1.0, num_classes=2)
    assert all(layer.conv is None for layer in augmented(model).values())
    x, y = torch.randn(8, 3, 14, 10), torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
