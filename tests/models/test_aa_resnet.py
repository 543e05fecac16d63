import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import convattn.models.aa_resnet  # noqa: F401 registers the models
from convattn import augment
from tests.models.networks import augmented, build

BLOCKS = {
    "aa_resnet34": (3, 4, 6, 3),
    "aa_resnet50": (3, 4, 6, 3),
    "aa_resnet101": (3, 4, 23, 3),
    "aa_resnet152": (3, 8, 36, 3),
}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("aa_resnet34", "20.76"),
        ("aa_resnet50", "25.82"),
        ("aa_resnet101", "45.40"),
        ("aa_resnet152", "61.64"),
    ],
)
def test_parameters(name, millions):
    assert f"{sum(p.numel() for p in build(name).parameters()) / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    ("ratio", "millions"), [(0.25, "24.31"), (0.5, "22.36"), (0.75, "20.75"), (1.0, "19.40")]
)
def test_parameters_by_ratio(ratio, millions):
    model = build("aa_resnet50", qk_ratio=ratio, v_ratio=ratio)
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}" == millions


@pytest.mark.parametrize(
    ("name", "gflops"),
    [("aa_resnet34", 7.1), ("aa_resnet50", 8.3), ("aa_resnet101", 16.1), ("aa_resnet152", 23.8)],
)
def test_flops_are_near_the_papers(name, gflops):
    with FlopCounterMode(display=False) as counter:
        build(name)(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, rel=0.03)


@pytest.mark.parametrize("name", BLOCKS)
def test_last_three_stages_are_augmented(name):
    conv = "conv1" if name == "aa_resnet34" else "conv2"
    expected = {
        f"layer{stage}.{block}.{conv}"
        for stage in (2, 3, 4)
        for block in range(BLOCKS[name][stage - 1])
    }
    assert set(augmented(build(name))) == expected


@pytest.mark.parametrize(
    ("img_size", "sizes"),
    [(224, [(28, 28), (14, 14), (7, 7)]), ((256, 200), [(32, 25), (16, 13), (8, 7)])],
)
def test_tables_fit_the_maps(img_size, sizes):
    layers = augmented(build("aa_resnet50", img_size=img_size))
    for stage, (height, width) in zip((2, 3, 4), sizes, strict=True):
        for name, layer in layers.items():
            if name.startswith(f"layer{stage}."):
                assert layer.rel_pos.height.shape == (2 * height - 1, 20)
                assert layer.rel_pos.width.shape == (2 * width - 1, 20)


def test_only_the_stage_of_stride_8_attends_on_a_smaller_map():
    downsample = {n[:6]: m.attn_downsample for n, m in augmented(build("aa_resnet50")).items()}
    assert downsample == {"layer2": 2, "layer3": 1, "layer4": 1}


def test_attention_is_downsampled_where_asked():
    layers = augmented(timm.create_model("aa_resnet_nano", attn_downsample={8: 4, 16: 2}))
    assert [layer.attn_downsample for layer in layers.values()] == [4, 2, 1]


@pytest.mark.parametrize("size", [(224, 224), (320, 192), (225, 161)])
def test_maps_have_resnets_sizes(size):
    x = torch.empty(1, 3, *size, device="meta")
    ours = build("aa_resnet50", features_only=True)(x)
    theirs = build("resnet50", features_only=True)(x)
    assert [m.shape for m in ours] == [m.shape for m in theirs]


def test_dilation_keeps_the_larger_map():
    model = build("aa_resnet50", output_stride=8)
    features = model.forward_features(torch.empty(1, 3, 224, 224, device="meta"))
    assert features.shape == (1, 2048, 28, 28)
    assert {m.attn_downsample for m in augmented(model).values()} == {2}


def test_convolution_branch_holds_the_filters_that_timm_drew():
    torch.manual_seed(0)
    layer = timm.create_model("aa_resnet_nano").layer4[0].conv1
    torch.manual_seed(0)
    plain = timm.create_model("resnet_nano").layer4[0].conv1
    assert torch.equal(layer.conv.weight, plain.weight[: layer.conv.out_channels])
    assert layer.conv.bias is None


def test_plain_twin_differs_in_the_augmented_convolutions_alone():
    ours, twin = (
        {n: p.shape for n, p in build(name).named_parameters()}
        for name in ("aa_resnet_nano", "resnet_nano")
    )
    different = {name for name in ours.keys() | twin.keys() if ours.get(name) != twin.get(name)}
    assert {name.split(".conv1.")[0] for name in different} == {"layer2.0", "layer3.0", "layer4.0"}
    assert not augmented(build("resnet_nano"))


def test_augmenting_timms_network_gives_ours():
    plain = build("resnet50")
    ours = augment(plain, conv="last-3-stages", preserve=False)
    assert {n: p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in build("aa_resnet50").named_parameters()
    }


def test_without_a_convolution_branch_it_trains():
    torch.manual_seed(0)
    model = timm.create_model("aa_resnet_nano", qk_ratio=1.0, v_ratio=1.0, num_classes=2)
    assert all(layer.conv is None for layer in augmented(model).values())
    x, y = torch.randn(8, 3, 32, 48), torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="num_heads=24"):
        build("aa_resnet_nano", num_heads=24, v_ratio=1.0)
