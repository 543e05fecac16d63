from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_data_config
from timm.layers import drop_path
from torch.utils.flop_counter import FlopCounterMode

from convattn.bench import HeldTensors
from convattn.data import generate_cluttered_digits
from convattn.kernels.patchconv_block.plain import plain_branch
from convattn.models.patchconvnet import PatchConvBlock, PatchConvNet
from convattn.weights import patchconvnet_from_released

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("single_token", {}),
        ("four_heads", {"num_heads": 4}),
        ("ratio4", {"mlp_ratio": 4.0}),
        ("multi_token", {"class_tokens": True}),
    ],
)
def test_golden_logits_attention_and_gradients(name, options, checkpoint):
    golden = load_file(GOLDEN / f"patchconvnet_{name}.safetensors")
    model = PatchConvNet(embed_dim=64, depth=3, num_classes=10, **options).double().eval()
    released = {n[6:]: t.double() for n, t in golden.items() if n.startswith("state/")}
    model.load_state_dict(patchconvnet_from_released(released))
    model.set_grad_checkpointing(checkpoint)
    x = golden["input"].clone().requires_grad_()
    logits = model(x)
    (logits * torch.arange(logits.numel()).double().sin().view_as(logits)).sum().backward()
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-9)
    scale = golden["input_grad"].abs().max()
    torch.testing.assert_close(x.grad / scale, golden["input_grad"] / scale, rtol=0, atol=1e-9)
    maps = model.head.attention_weights(model.forward_features(x)).flatten(-2)
    patches = golden["attention"][..., -maps.shape[-1] :]
    torch.testing.assert_close(maps, patches, rtol=0, atol=1e-9)


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize("size", [224, slow(384), slow(512)])
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("patchconvnet_s60", {224: 3.98, 384: 11.68, 512: 20.76}),
        slow("patchconvnet_s120", {224: 7.49, 384: 22.0, 512: 39.1}),
        slow("patchconvnet_b60", {224: 15.80, 384: 46.39, 512: 82.46}),
        slow("patchconvnet_b120", {224: 29.77, 384: 87.42, 512: 155.4}),
        slow("patchconvnet_l60", {224: 28.04, 384: 82.33, 512: 146.3}),
        slow("patchconvnet_l120", {224: 52.85, 384: 155.2, 512: 275.8}),
    ],
)
def test_multiply_adds_are_the_paper_s(name, gmacs, size):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    # The paper projects every patch to a key and a value, which ours leaves out.
    saved = 2 * (size // 16) ** 2 * model.embed_dim**2
    assert (counter.get_total_flops() / 2 + saved) / 1e9 == pytest.approx(gmacs[size], rel=0.01)


@pytest.mark.long
def test_multiply_adds_of_a_thousand_class_tokens_are_the_paper_s():
    with torch.device("meta"):
        model = timm.create_model("patchconvnet_s60_multi").eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    # The paper projects what every token has gathered; ours multiplies the two matrices instead.
    saved = 1000 * 384**2 - 384**3
    assert (counter.get_total_flops() / 2 + saved) / 1e9 == pytest.approx(5.31, rel=0.01)


def test_a_panorama_is_computed_on_its_own_grid():
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_s60", depth=2, embed_dim=32).eval()
    x = torch.randn(1, 3, 224, 896)
    features = model.forward_features(x)
    assert features.shape[2:] == (14, 56)
    assert model.head.attention_weights(features).shape[-2:] == (14, 56)
    # The right of the image changes the right of the grid; elsewhere squeeze-excite alone.
    changed = x.clone()
    changed[..., 600:] = 0
    difference = (model.forward_features(changed) - features).abs().amax((0, 1, 2))
    first = 600 // 16
    assert difference[first + 1 :].min() > 1e3 * difference[: first - 4].max()


def test_multi_class_tokens_work_for_any_number_of_classes():
    model = timm.create_model("patchconvnet_nano_multi", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 48)
    assert model(x).shape == (2, 7)
    model.reset_classifier(23)
    assert model(x).shape == (2, 23)
    assert model.head.token.shape == (23, 64)
    model.reset_classifier(1)
    assert model(x).shape == (2, 1)


def test_average_pool_is_an_option_of_the_same_network():
    model = timm.create_model("patchconvnet_nano", num_classes=7, global_pool="avg").eval()
    features = model.forward_features(torch.randn(2, 3, 64, 48))
    pooled = model.forward_head(features, pre_logits=True)
    expected = model.head.norm(features.mean((2, 3), keepdim=True)).flatten(1)
    torch.testing.assert_close(pooled, expected)
    model.reset_classifier(5, "attn")
    assert model.forward_head(features).shape == (2, 5)
    model.reset_classifier(5, "")
    assert model.forward_head(features).shape == features.shape


def test_published_initialisation():
    model = timm.create_model("patchconvnet_s60", depth=1)
    assert model.blocks[0].gamma[0].item() == pytest.approx(1e-4)
    assert model.head.gamma1[0].item() == pytest.approx(1e-4)
    assert model.head.token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.head.attn.q.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.no_weight_decay() == {"head.token"}
    assert timm.create_model("patchconvnet_s120", depth=1).blocks[0].gamma[
        0
    ].item() == pytest.approx(1e-6)


def test_stochastic_depth_is_the_same_at_every_block():
    model = timm.create_model("patchconvnet_nano", drop_path_rate=0.3)
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.3] * 4


def test_evaluation_transform_is_the_authors():
    config = resolve_data_config(model=timm.create_model("patchconvnet_s60", depth=1))
    assert config["crop_pct"] == 224 / 256
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 12}, "patch_size=12 is not one of 4, 8, 16, 32"),
        ({"embed_dim": 60}, "embed_dim=60 is not divisible by 8.*nearest that works: 64"),
        ({"norm": "rms"}, "norm='rms' is not one of"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PatchConvNet(**options)


def test_the_bundled_network_reaches_what_its_card_says():
    model = timm.create_model("patchconvnet_nano.cluttered_digits", pretrained=True).eval()
    cfg = model.pretrained_cfg
    digits = generate_cluttered_digits(400, split="test")
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        predicted = model((digits.images / 255 - mean) / std).argmax(1)
    assert (predicted == digits.labels).float().mean() > 0.93
    assert cfg["label_names"] == tuple("0123456789")


def test_the_bundled_network_is_small_and_has_a_card():
    file = Path(timm.models.get_pretrained_cfg("patchconvnet_nano.cluttered_digits").file)
    assert file.stat().st_size < 2**20
    assert "95.0 %" in file.with_suffix(".md").read_text()
    assert "patchconvnet_nano.cluttered_digits" in timm.list_pretrained()


def _run(block, x):
    """A block on (B, H, W, C), as its oracle is."""
    return block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _block(**options):
    torch.manual_seed(0)
    block = PatchConvBlock(8, layer_scale=0.5, dtype=torch.float64, **options)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.5)
    return block


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_block_and_its_gradients_are_the_definition_s(norm, recomputes, training):
    block = _block(norm=norm).train(training)
    block.recomputes_gelu = recomputes
    x = torch.randn(3, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    leaves = [x, *block.parameters()]
    out, expected = _run(block, x), x + plain_branch(block, x)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("recomputes", "maps"), [(False, 5), (True, 3)])
def test_maps_that_a_block_keeps(recomputes, maps, training):
    block = _block().train(training)
    block.recomputes_gelu = recomputes
    x = torch.randn(2, 32, 32, 8, dtype=torch.float64, requires_grad=True)
    with HeldTensors() as watched:
        out = _run(block, x)
    # All but the input, of which only views are made, and with the output, which the next keeps.
    kept = watched.held() / out.numel() - 1
    assert maps <= kept < maps + 0.3


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_block_without_gradients_computes_the_same_in_the_memory_of_two_maps(
    context, norm, autocast
):
    block = _block(norm=norm).float().eval()
    x = torch.randn(2, 32, 32, 8)
    given = x.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = _run(block, x)
        with context(), HeldTensors() as watched:
            out = _run(block, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert out.dtype == expected.dtype
    assert torch.equal(x, given)
    assert watched.most / x.numel() < 3.2 + autocast  # the input may be counted


@pytest.mark.parametrize("name", ["norm", "conv_pw", "conv_dw", "se", "conv_pwl"])
def test_what_a_hook_was_shown_without_gradients_stays_as_it_was(name):
    block = _block().eval()
    shown = []
    getattr(block, name).register_forward_hook(lambda _, given, out: shown.extend([*given, out]))
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    with torch.no_grad():
        _run(block, x)
    now = shown.copy()
    shown.clear()
    _run(block, x)
    for without, recorded in zip(now, shown, strict=True):
        torch.testing.assert_close(without, recorded, rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
def test_stochastic_depth_is_what_a_mask_gives(norm):
    block = _block(norm=norm, drop_path=0.5).train()
    x = torch.randn(9, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    out = _run(block, x)
    torch.manual_seed(1)
    expected = x + drop_path(plain_branch(block, x), 0.5, training=True)
    torch.testing.assert_close(out, expected)
    leaves = [x, *block.parameters()]
    weight = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad((out * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
    )


def test_dropped_images_cost_nothing():
    block = _block(drop_path=0.5).train()
    x = torch.randn(16, 8, 4, 5, dtype=torch.float64)
    macs = {}
    for training in (False, True):
        torch.manual_seed(0)
        with FlopCounterMode(display=False) as counter:
            block.train(training)(x)
        macs[training] = counter.get_total_flops()
    torch.manual_seed(0)
    kept = torch.empty(16, dtype=torch.float64).bernoulli_(0.5).sum().item()
    folding = 2 * 8 * 8  # the norm's shift goes into the bias after it, once for all images
    assert (macs[True] - folding) * 16 == macs[False] * kept


def test_a_block_that_is_dropped_for_all_images_still_has_gradients():
    block = _block(drop_path=0.999999).train()
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    out = _run(block, x)
    torch.testing.assert_close(out, x)
    out.sum().backward()
    assert all((p.grad == 0).all() for p in block.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residual_in_float32_and_small_layer_scales_alive(dtype):
    block = PatchConvBlock(8, layer_scale=1e-6).train()
    x = torch.zeros(2, 4, 5, 8)
    torch.nn.init.normal_(block.norm.bias)
    with torch.autocast("cpu", dtype):
        out = _run(block, x.to(dtype))
    assert out.dtype == torch.float32
    expected = plain_branch(block, x)
    torch.testing.assert_close(out / 1e-6, expected / 1e-6, rtol=0.05, atol=0.02)


def test_autocast_keeps_no_more_maps():
    block = PatchConvBlock(8).train()
    x = torch.randn(2, 32, 32, 8, requires_grad=True)
    with HeldTensors() as watched, torch.autocast("cpu", torch.bfloat16):
        _run(block, x)
    assert watched.held() / x.numel() < 5.3


@pytest.mark.parametrize("recomputes", [False, True])
def test_gradients_under_autocast_are_as_near_to_exact_ones_by_hand_as_by_autograd(recomputes):
    block = _block().float()
    block.recomputes_gelu = recomputes
    x = torch.randn(3, 4, 5, 8, requires_grad=True)
    weight = torch.randn_like(x)
    leaves = [x, *block.parameters()]
    exact = torch.autograd.grad(((x + plain_branch(block, x)) * weight).sum(), leaves)
    errors = {}
    for training in (False, True):  # in evaluation mode the backward pass is autograd's
        with torch.autocast("cpu", torch.bfloat16):
            out = _run(block.train(training), x)
        made = out.grad_fn
        while "Permute" in str(made):
            made = made.next_functions[0][0]
        assert ("ManualBackward" in str(made)) == training
        found = torch.autograd.grad((out * weight).sum(), leaves)
        assert all(f.dtype == e.dtype for f, e in zip(found, exact, strict=True))
        pairs = zip(found, exact, strict=True)
        errors[training] = torch.stack([(f - e).norm() / e.norm() for f, e in pairs])
    # Where the gate is saturated, few of its digits are left to either.
    assert (errors[True] < 2 * errors[False] + 0.01).all()


def test_what_hangs_on_the_last_convolution_is_called():
    block = _block()
    seen = []
    block.conv_pwl.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(_run(block, x), x + plain_branch(block, x))
    assert seen


def test_parts_of_a_block_can_be_frozen():
    block = _block().train()
    block.conv_pw.requires_grad_(False)
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p for p in block.parameters() if p.requires_grad)]
    found = torch.autograd.grad(_run(block, x).sin().sum(), leaves)
    expected = torch.autograd.grad((x + plain_branch(block, x)).sin().sum(), leaves)
    torch.testing.assert_close(found, expected)


def test_a_block_in_evaluation_mode_can_be_differentiated_twice():
    torch.manual_seed(0)
    block = PatchConvBlock(4, layer_scale=0.5, dtype=torch.float64).eval()
    x = torch.randn(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(partial(_run, block), x)


def test_pointwise_recomputation_changes_no_gradient():
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_nano", norm="layernorm").train()
    x = torch.randn(2, 3, 64, 48)
    gradients = []
    for enable in (False, True):
        model.set_pointwise_recomputation(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), [*model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_the_trunk_stays_channels_last():
    model = timm.create_model("patchconvnet_nano", norm="layernorm").eval()
    for block in model.blocks:
        block.register_forward_hook(lambda _, x, out: strides.append((x[0], out)))
    strides = []
    in_order = partial(torch.Tensor.is_contiguous, memory_format=torch.channels_last)
    model(torch.randn(2, 3, 64, 48))
    assert all(map(in_order, (tensor for pair in strides for tensor in pair)))
    assert len(strides) == 4


def test_whoever_looks_into_the_trunk_finds_channels_first():
    model = timm.create_model("patchconvnet_nano", features_only=True, feature_cls="hook").eval()
    image = torch.randn(1, 3, 64, 96)
    (found,) = model(image)
    assert found.shape == (1, model.feature_info.channels()[-1], 8, 12)
    # And the head reads just that map: from it alone come the logits.
    whole = timm.create_model("patchconvnet_nano").eval()
    seen = []
    whole.blocks[-1].register_forward_hook(lambda _, x, out: seen.append(out))
    with torch.no_grad():
        logits = whole(image)
        torch.testing.assert_close(whole.forward_head(seen[0]), logits)
