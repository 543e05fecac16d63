"""What every registered network must do, whatever it is: timm's contract and PyTorch's tools."""

import copy
import pickle
import runpy
import warnings

import pytest
import timm
import torch
from timm.models import model_entrypoint
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn
from torch.export import Dim, export

from convattn import OUR_MODELS
from convattn.models import patchconvnet
from tests.slow import slow_but

SMALL = tuple(name for name in OUR_MODELS if "nano" in name)
LARGE = tuple(name for name in OUR_MODELS if name not in SMALL)
FIRST = tuple({model_entrypoint(name).__module__: name for name in reversed(SMALL)}.values())
"""One small network of each file: what the tools that take seconds a network are tried on."""
FAST = ("patchconvnet_nano", "aa_resnet18_nano")
"""Of these what is tried each time."""


def make(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 5} | kwargs)


def image(name, batch=2, scale=1.0, in_chans=3):
    _, height, width = timm.get_pretrained_cfg(name).input_size
    return torch.randn(batch, in_chans, int(height * scale), int(width * scale))


def test_the_papers_networks_are_registered():
    expected = {
        *(f"patchconvnet_{size}" for size in ("s60", "s120", "b60", "b120", "l60", "l120")),
        "patchconvnet_s60_multi",
        *(f"aa_resnet{depth}" for depth in (34, 50, 101, 152)),
        *(f"{kind}wide_resnet28_10" for kind in ("aa_", "", "se_")),
        *(f"aa_mnasnet_{width}" for width in ("075", "100", "125", "140")),
    }
    assert expected <= set(OUR_MODELS)
    assert set(OUR_MODELS) <= set(timm.list_models())


@pytest.mark.filterwarnings("error:Overwriting")  # also where the command asks for none
def test_registering_overwrites_nothing_of_timm_s():
    # timm only warns of a clash, then overwrites; pytest turns the warning into an error.
    # Run under a name of its own: a reloaded module would be another than everybody else's.
    with pytest.raises(UserWarning, match="Overwriting patchconvnet"):
        runpy.run_path(patchconvnet.__file__, run_name="convattn.models.patchconvnet")


@pytest.mark.parametrize("name", SMALL)
def test_forward_at_two_sizes_one_not_square(name):
    model = make(name).eval()
    x = image(name)
    assert model(x).shape == (2, 5)
    wide = torch.cat([x, x.flip(-1)], -1)[..., : x.shape[-1] * 3 // 2]
    assert model(wide).shape == (2, 5)


@pytest.mark.parametrize("name", slow_but(("patchconvnet_s60", "aa_resnet50"), LARGE))
def test_large_networks_run_at_another_size_on_meta(name):
    """Their own size is the next test's."""
    with torch.device("meta"):
        model = make(name).eval()
        features = model.forward_features(image(name, scale=1.5)[..., :-32])
        assert features.dim() == 4
        assert features.shape[1] == model.num_features
        assert model.forward_head(features).shape == (2, 5)


@pytest.mark.parametrize("name", slow_but((*SMALL, "patchconvnet_s60"), OUR_MODELS))
def test_configuration_names_the_first_and_the_last_layer(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        config = model.pretrained_cfg
        model_modules = dict(model.named_modules())
        assert isinstance(model_modules[config["first_conv"]], nn.Conv2d)
        assert model_modules[config["classifier"]] is model.get_classifier()
        features = model.forward_features(image(name, batch=1))
        assert features.shape[1] == model.num_features
        # PatchConvNets name none, or fastai would put a pool of its own in their attention's place.
        assert config.get("pool_size") in (None, tuple(features.shape[2:]))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model = make(name)
    model(image(name)).sin().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_features_then_head_is_forward(name):
    model = make(name).eval()
    x = image(name)
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)


@pytest.mark.parametrize("name", SMALL)
def test_reset_classifier(name):
    model, x = make(name).eval(), image(name)
    model.reset_classifier(7)
    assert model.num_classes == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", SMALL)
def test_other_input_channels(name):
    model = make(name, in_chans=1).eval()
    assert model(image(name, in_chans=1)).shape == (2, 5)


@pytest.mark.parametrize("name", SMALL)
def test_features_only(name):
    model = timm.create_model(name, features_only=True).eval()
    x = image(name)
    maps = model(x)
    assert len(maps) == len(model.feature_info.channels())
    for feature, channels, reduction in zip(
        maps, model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert feature.shape == (2, channels, x.shape[2] // reduction, x.shape[3] // reduction)


@pytest.mark.parametrize("name", SMALL)
def test_forward_intermediates(name):
    model = make(name).eval()
    x = image(name)
    last, maps = model.forward_intermediates(x)
    assert len(maps) == len(model.feature_info)
    torch.testing.assert_close(last, model.forward_features(x))
    for feature, info in zip(maps, model.feature_info, strict=True):
        assert feature.shape[1] == info["num_chs"]
        assert feature.shape[2] == x.shape[2] // info["reduction"]
    only = model.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
    torch.testing.assert_close(only, [maps[1]])


@pytest.mark.parametrize("name", SMALL)
def test_prune_intermediate_layers(name):
    model = make(name).eval()
    x = image(name)
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    before = sum(p.numel() for p in model.parameters())
    model.prune_intermediate_layers([1])
    assert sum(p.numel() for p in model.parameters()) < before
    pruned = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(pruned, expected)


@pytest.mark.parametrize("name", OUR_MODELS)
def test_layer_groups_cover_every_parameter(name):
    with torch.device("meta"):
        model = make(name)
    groups = group_parameters(model, model.group_matcher())
    names = [n for group in groups.values() for n in group]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    assert len(groups) > 2


@pytest.mark.parametrize("name", SMALL)
def test_layer_decay_builds_an_optimiser(name):
    optimiser = create_optimizer_v2(make(name), opt="adamw", lr=1e-3, layer_decay=0.7)
    rates = {group["lr_scale"] for group in optimiser.param_groups}
    assert max(rates) == 1.0
    assert min(rates) < 0.7


@pytest.mark.parametrize("name", SMALL)
def test_gradient_checkpointing_changes_no_gradient(name):
    x = image(name)
    grads = []
    for enable in (False, True):
        model = make(name).double()
        model.set_grad_checkpointing(enable)
        model(x.double()).sin().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_drop_rates_are_taken(name):
    model = make(name, drop_rate=0.2, drop_path_rate=0.1)
    assert model(image(name)).shape == (2, 5)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(name, clone):
    model, x = make(name).eval(), image(name)
    torch.testing.assert_close(clone(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_batch_of_zero(name):
    assert make(name).eval()(image(name, batch=0)).shape == (0, 5)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last(name):
    model, x = make(name).double().eval(), image(name).double()
    expected = model(x)
    last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.long
@pytest.mark.parametrize("name", slow_but(FAST, FIRST))
def test_compiles_whole(name):
    model, x = make(name).eval(), image(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_compiles_whole_with_inductor(name):
    model, x = make(name).eval(), image(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the compiler says of its own machine
        out = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(out, model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", slow_but(FAST, FIRST))
def test_exports_with_dynamic_batch(name):
    model, x = make(name).eval(), image(name)
    program = export(model, (x,), dynamic_shapes=({0: Dim("batch")},))
    other = image(name, batch=3)
    torch.testing.assert_close(program.module()(other), model(other), rtol=1e-4, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", slow_but(FAST, SMALL))
def test_eight_images_are_learned_by_heart_in_twenty_steps(name):
    model = make(name)
    x, labels = image(name, batch=8), torch.arange(8) % 5
    optimiser = create_optimizer_v2(model, opt="muon", lr=2e-2)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02
