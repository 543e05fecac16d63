import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from convattn import AAConv2d, augment, capture_attention
from convattn.explanation import attention_layers
from convattn.models.patchconvnet import PatchConvNet
from convattn.weights import patchconvnet_from_released

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("single_token", {}),
        ("four_heads", {"num_heads": 4}),
        ("multi_token", {"class_tokens": True}),
    ],
)
def test_captured_pools_equal_the_golden(name, options):
    golden = load_file(GOLDEN / f"patchconvnet_{name}.safetensors")
    model = PatchConvNet(embed_dim=64, depth=3, num_classes=10, **options).double().eval()
    released = {n[6:]: t.double() for n, t in golden.items() if n.startswith("state/")}
    model.load_state_dict(patchconvnet_from_released(released))
    with capture_attention(model) as maps:
        model(golden["input"])
    captured = maps["head"].flatten(-2)
    expected = golden["attention"][..., -captured.shape[-1] :]  # a single token looks at itself
    torch.testing.assert_close(captured, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 4), (5, 7), (8, 8)])
def test_captured_convolutions_equal_the_golden(size):
    golden = load_file(GOLDEN / f"relative_attention_{size[0]}x{size[1]}.safetensors")
    q, k, v = (golden[n].mT.flatten(1, 2).unflatten(2, size) for n in "qkv")  # (B, C, H, W)
    heads = golden["q"].shape[1]
    layer = AAConv2d(
        q.shape[1] + k.shape[1] + v.shape[1],
        v.shape[1],
        1,
        bias=False,
        num_heads=heads,
        qk_ratio=0,
        v_ratio=1,
        min_head_dim=golden["q"].shape[-1],
        feat_size=size,
    ).double()
    layer.load_state_dict(
        {
            "qkv.weight": torch.eye(layer.in_channels, dtype=torch.float64)[:, :, None, None],
            "proj.weight": layer.proj.weight,
            "rel_pos.height": golden["rel_h"],
            "rel_pos.width": golden["rel_w"],
        }
    )
    with capture_attention(nn.Sequential(layer)) as maps:
        layer(torch.cat([q, k, v], 1))
    torch.testing.assert_close(maps["0"], golden["attention"], rtol=0, atol=1e-9)
    torch.testing.assert_close(maps["0"].sum(-1), torch.ones_like(maps["0"][..., 0]))


def all_of(model):
    """Everything about a model that capturing could have changed, but its outputs."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "hooks": [
            (list(m._forward_hooks), list(m._forward_pre_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "flags": [
            (m.training, {k: v for k, v in vars(m).items() if isinstance(v, bool | int | str)})
            for m in model.modules()
        ],
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
    }


def assert_same(before, after):
    assert before["state"].keys() == after["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    for part in ("hooks", "flags", "gradients"):
        assert before[part] == after[part]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("queries", [None, "mean", [(0, 1)]])
@pytest.mark.parametrize("name", ["patchconvnet_nano_multi", "aa_wide_resnet_nano"])
def test_the_model_is_left_as_it_was_and_computes_the_same(name, queries, training):
    model = timm.create_model(name, num_classes=4, drop_rate=0.3).train(training)
    model.get_classifier().register_forward_hook(lambda *_: None)  # a hook of the user's own
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    before = all_of(model)
    torch.manual_seed(0)
    with capture_attention(model, queries=queries) as maps:
        logits = model(x)
    torch.manual_seed(0)
    torch.testing.assert_close(logits, twin(x), rtol=0, atol=0)
    after = all_of(model)
    if training:  # its own BatchNorms have seen the batch, as the twin's have
        before["state"] = all_of(twin)["state"]
    assert_same(before, after)
    for one in maps.values():
        sums = one.sum((-2, -1)) if one.ndim == 5 else one.sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_the_model_is_left_as_it_was_after_an_error():
    model = timm.create_model("aa_wide_resnet_nano").eval()
    before = all_of(model)
    with pytest.raises(RuntimeError), capture_attention(model):
        model(torch.randn(1, 4, 32, 32))
    with (
        pytest.raises(ValueError, match="lies outside"),
        capture_attention(model, queries=[(9, 0)]),
    ):
        model(torch.randn(1, 3, 32, 32))
    assert_same(before, all_of(model))


def test_every_layer_is_captured_without_gradients():
    net = nn.Sequential(AAConv2d(3, 8, 3, padding=1, num_heads=2), AAConv2d(8, 8, 3, num_heads=2))
    with capture_attention(net) as maps:
        net(torch.randn(2, 3, 6, 5)).sum().backward()
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "0": (2, 2, 30, 30),
        "1": (2, 2, 12, 12),
    }
    assert not any(m.requires_grad for m in maps.values())


def test_chosen_queries_and_the_mean_are_rows_of_the_whole():
    model, x = timm.create_model("aa_wide_resnet_nano").eval(), torch.randn(2, 3, 32, 32)
    with capture_attention(model) as whole:
        model(x)
    with capture_attention(model, queries=[(0, 3), (7, 1)]) as rows:
        model(x)
    with capture_attention(model, queries="mean") as mean:
        model(x)
    for name, (height, width) in ((n, grid.feat_size) for n, grid in whole.grids.items()):
        picked = whole[name][:, :, [3, 7 * width + 1]].unflatten(-1, (height, width))
        torch.testing.assert_close(rows[name], picked)
        average = whole[name].mean(2, keepdim=True).unflatten(-1, (height, width))
        torch.testing.assert_close(mean[name], average)


def test_a_large_map_s_row_costs_no_whole_matrix():
    layer, x = AAConv2d(4, 8, 3, padding=1, num_heads=2), torch.randn(1, 4, 128, 128)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    with capture_attention(layer, queries=[(64, 64)]) as maps, Watch():
        layer(x)
    assert maps[""].shape == (1, 2, 1, 128, 128)
    # 2 x 128**4 floats would be 2 GB.
    assert largest < 64e6


def test_layers_choose_what_is_kept():
    model = timm.create_model("aa_wide_resnet_nano").eval()
    names = list(attention_layers(model))
    with capture_attention(model, layers=names[1:2]) as maps:
        model(torch.randn(1, 3, 32, 32))
    assert list(maps) == names[1:2]
    with (
        pytest.raises(ValueError, match=rf"no layer .* named 'head'; it has {names[0]}"),
        capture_attention(model, layers=["head"]),
    ):
        pass


def test_augmented_networks_are_captured():
    model = augment(
        timm.create_model("resnet18", num_classes=5),
        pool="class-attention",
        conv="last-3-stages",
        input_size=64,
    ).eval()
    with capture_attention(model, queries="mean") as maps:
        model(torch.randn(1, 3, 64, 64))
    assert list(maps) == list(attention_layers(model))
    assert maps["global_pool.pool.aggregation"].shape == (1, 1, 5, 2, 2)


@pytest.mark.parametrize("name", ["patchconvnet_nano", "aa_wide_resnet_nano"])
def test_autocast_gives_float32_near_the_exact(name):
    model, x = timm.create_model(name).eval(), torch.randn(2, 3, 32, 32)
    with capture_attention(model) as exact:
        model(x)
    with torch.autocast("cpu", torch.bfloat16), capture_attention(model) as maps:
        model(x)
    for layer, one in maps.items():
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, exact[layer], rtol=0.1, atol=2e-3)


def test_half_precision_models_give_float32():
    model = timm.create_model("patchconvnet_nano").eval().bfloat16()
    with capture_attention(model) as maps:
        model(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert maps["head"].dtype == torch.float32


def compiled_whole(model):
    return torch.compile(model, backend="aot_eager")


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model


def compiled_in_part(model):
    model.head = torch.compile(model.head, backend="aot_eager")
    return model


@pytest.mark.parametrize("wrap", [compiled_whole, compiled_in_place, compiled_in_part])
def test_compiled_models_run_uncompiled_with_a_note(wrap):
    model, x = (
        timm.create_model("patchconvnet_nano", num_classes=3).eval(),
        torch.randn(1, 3, 64, 64),
    )
    with capture_attention(model) as exact:
        logits = model(x)
    compiled = wrap(model)
    with torch.no_grad():
        compiled(x)
        with (
            pytest.warns(UserWarning, match="runs uncompiled"),
            capture_attention(compiled) as maps,
        ):
            torch.testing.assert_close(compiled(x), logits)
        assert dict(maps.grids) == dict(exact.grids)
        torch.testing.assert_close(maps["head"], exact["head"])
        # Afterwards it is compiled again: a frame that had to be compiled anew would be counted.
        torch._dynamo.utils.counters.clear()
        compiled(x)
    assert not torch._dynamo.utils.counters["frames"]


def test_a_network_without_attention_is_told_so():
    with (
        pytest.raises(ValueError, match="Linear holds no layer with attention"),
        capture_attention(nn.Linear(2, 2)),
    ):
        pass


@pytest.mark.parametrize(
    ("pool", "options", "shape"),
    [
        ("attention", {}, (2, 1, 1)),
        ("ep", {"pool_queries": 4}, (2, 4, 1)),
        ("simpool", {"pool_heads": 2}, (2, 2, 1)),
        ("class", {}, (2, 1, 5)),
        ("aggregation", {}, (2, 1, 1)),
    ],
)
def test_light_pools_are_seen(pool, options, shape):
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=5)
    model = augment(plain, pool=pool, **options).eval()
    x = torch.randn(2, 3, 64, 96)
    with capture_attention(model) as maps:
        model(x)
    ((name, found),) = maps.items()
    assert found.shape[:3] == shape
    features = model.forward_features(x)
    expected = model.get_submodule(name).attention_weights(features)
    torch.testing.assert_close(found.flatten(1, 2), expected.flatten(1, -3))
    assert maps.grids[name].feat_size == tuple(found.shape[3:])
