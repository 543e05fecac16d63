import pytest
import timm
import torch
from timm.models.efficientnet import _gen_mnasnet_a1
from torch.utils.flop_counter import FlopCounterMode

import convattn.models.aa_mnasnet  # noqa: F401 registers the models
from tests.models.networks import augmented, build

# Width, parameters in millions, GFLOPs: unconfirmed columns, to which the placement was fitted.
COLUMNS = [("075", 3.02, 0.51), ("100", 4.06, 0.70), ("125", 5.53, 1.07), ("140", 6.44, 1.25)]


@pytest.mark.parametrize(("width", "millions", "gflops"), COLUMNS)
def test_parameters_and_flops_are_near_the_columns(width, millions, gflops):
    model = build(f"aa_mnasnet_{width}")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, rel=0.02)


def test_every_expansion_but_the_first_is_augmented():
    expansions = {
        name
        for name, _ in build("semnasnet_100").named_modules()
        if name.endswith("conv_pw") and not name.startswith("blocks.0.")
    }
    layers = augmented(build("aa_mnasnet_100"))
    assert set(layers) == expansions - {"blocks.1.0.conv_pw"}
    assert {(m.num_heads, m.attn_downsample) for m in layers.values()} == {(4, 2)}


def test_all_else_is_timms_mnasnet():
    ours, theirs = build("aa_mnasnet_140"), build("semnasnet_140")
    layers = tuple(augmented(ours))
    expected = {n: p.shape for n, p in theirs.named_parameters() if not n.startswith(layers)}
    found = {n: p.shape for n, p in ours.named_parameters() if not n.startswith(layers)}
    assert found == expected


@pytest.mark.parametrize("img_size", [224, (200, 320)])
def test_layers_expect_the_size_they_see(img_size):
    model = build("aa_mnasnet_100", img_size=img_size)
    seen = {}

    def look(layer, _inputs, output):
        seen[layer] = tuple(output.shape[2:])

    hooks = [layer.register_forward_hook(look) for layer in augmented(model).values()]
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    model(torch.empty(1, 3, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 14
    assert all(layer.feat_size == map_size for layer, map_size in seen.items())


@pytest.mark.parametrize("size", [(224, 224), (320, 192), (225, 161)])
def test_maps_have_mnasnets_sizes(size):
    x = torch.empty(1, 3, *size, device="meta")
    ours = build("aa_mnasnet_100", features_only=True)(x)
    theirs = build("semnasnet_100", features_only=True)(x)
    assert [m.shape for m in ours] == [m.shape for m in theirs]


def test_without_a_convolution_branch_it_trains():
    torch.manual_seed(0)
    model = timm.create_model("aa_mnasnet_nano", qk_ratio=1.0, v_ratio=1.0, num_classes=2)
    assert all(layer.conv is None for layer in augmented(model).values())
    x, y = torch.randn(8, 3, 64, 48), torch.arange(8) % 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.05


def test_plain_twin_of_width_1_25_is_timms_network():
    with torch.device("meta"):
        ours = timm.create_model("mnasnet_a1_125").state_dict()
        theirs = _gen_mnasnet_a1("semnasnet_100", 1.25).state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }
