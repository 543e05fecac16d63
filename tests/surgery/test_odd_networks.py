"""Networks that are not plain stacks of layers: left as they were, and augmented or refused."""

import threading

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torchvision.models.feature_extraction import create_feature_extractor

from convattn import augment, plan
from convattn.modes import eval_mode
from convattn.surgery.copying import copy_network
from tests.surgery.networks import Plain, timm_network

SIZE = 32


def images(batch=2):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def wake(model):
    """Gives what begins at zero some values, or an error behind it would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def l1_pruned(layer):
    return prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("hook", [weight_norm, spectral_norm, l1_pruned])
@pytest.mark.parametrize("part", ["body", "say"])
def test_weights_that_a_hook_computes_stay(hook, part):
    model = Plain().eval()
    hook(getattr(model, part))
    before = model(images())
    ours = augment(model, conv=["body"], pool="attention", input_size=SIZE)
    torch.testing.assert_close(ours(images()), before)
    assert not any(tensor.is_meta for tensor in [*ours.parameters(), model.body.weight])
    assert wake(ours)(images()).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_computed_weight_cannot_lose_filters():
    model = Plain().eval()
    weight_norm(model.body)
    with pytest.raises(ValueError, match=r"'body' cannot be replaced: .* computed from others"):
        augment(model, conv="body", preserve=False, input_size=SIZE, num_heads=1)


@pytest.mark.parametrize("parametrised", [False, True])
def test_a_computed_classifier_has_no_rows_to_take(parametrised):
    norm = torch.nn.utils.parametrizations.spectral_norm if parametrised else spectral_norm
    model = Plain().eval()
    norm(model.say)
    with pytest.raises(ValueError, match="weight of the classifier 'say' is computed"):
        augment(model, pool="class-attention", input_size=SIZE)


class Coordinates(nn.Module):
    """Keeps a grid of the last image's size in an attribute, or in a dictionary."""

    def __init__(self, keep):
        super().__init__()
        self.keep, self.grids, self.lock = keep, {}, threading.Lock()
        self.conv, self.pool, self.fc = nn.Conv2d(4, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), None
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        with self.lock:
            grid = self.grids.get("grid")
            if grid is None or grid.shape[-2:] != x.shape[-2:]:
                grid = torch.linspace(-1, 1, x.shape[2], device=x.device)
                grid = grid[:, None].expand(x.shape[2:]).clone()
                self.grids["grid"] = grid
                if self.keep:
                    self.last = grid
        x = torch.cat([x, grid.expand(len(x), 1, -1, -1)], 1)
        return self.fc(self.pool(self.conv(x)).flatten(1))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_what_a_network_keeps_of_a_run_is_not_ours(keep, warm):
    model = Coordinates(keep).eval()
    if warm:
        model(images())
    held = dict(model.grids)
    plan(model, SIZE)
    assert model.grids == held
    ours = augment(model, conv=["conv"], input_size=SIZE)
    assert model.grids == held
    torch.testing.assert_close(ours(images()), model(images()))


@pytest.mark.parametrize("inplace", [False, True])
def test_hooks_of_the_user_see_nothing(inplace):
    model, seen = Plain().eval(), []
    for module in model.modules():
        module.register_forward_hook(lambda *call: seen.append(call))
        module.register_forward_pre_hook(lambda *call: seen.append(call))
    plan(model, SIZE)
    ours = augment(model, conv="all", pool="attention", input_size=SIZE, inplace=inplace)
    assert not seen
    ours(images())
    assert seen


def test_a_detector_runs_after_its_plan():
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=2
    ).eval()
    before = model.anchor_generator.__dict__.copy()
    with pytest.raises(ValueError, match="no pool that all of them read"):
        augment(model, pool="attention", input_size=64)
    assert model.anchor_generator.__dict__.keys() == before.keys()
    assert len(model([torch.rand(3, 64, 64)])) == 1


@pytest.mark.parametrize("training", [False, True])
def test_a_copy_of_a_graph_module_is_in_its_mode(training):
    model = create_feature_extractor(torchvision.models.resnet18(weights=None), ["layer4", "fc"])
    model.train(training)
    code = model.code
    copied = copy_network(model)
    assert all(m.training == training for m in copied.modules())
    assert copied.code == code
    copied.train(not training)
    assert model.code == code
    with eval_mode(model):
        pass
    assert model.code == code


def test_a_graph_module_keeps_its_outputs():
    model = create_feature_extractor(torchvision.models.resnet18(weights=None), ["layer3"]).eval()
    ours = augment(model, conv=["layer3.1.conv1"], input_size=SIZE)
    torch.testing.assert_close(ours(images())["layer3"], model(images())["layer3"])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # PyTorch's own layer says so
def test_a_quantised_network_is_refused():
    model = torchvision.models.quantization.mobilenet_v2(weights=None, quantize=False).eval()
    assert plan(model, SIZE).pool.replaced or plan(model, SIZE).pool.reason
    model.classifier[1] = torch.ao.nn.quantized.dynamic.Linear(1280, 1000)
    with pytest.raises(ValueError, match=r"is quantised \('classifier.1' .*augment the float"):
        augment(model, pool="attention", input_size=SIZE)


def test_a_lazy_network_is_refused():
    model = Plain()
    model.say = nn.LazyLinear(5)
    with pytest.raises(ValueError, match=r"'say\.weight' is a UninitializedParameter"):
        plan(model, SIZE)


def test_two_inputs_are_named():
    class TwoInputs(Plain):
        def forward(self, picture, table):
            return super().forward(picture) + table

    with pytest.raises(ValueError, match=r"needs 2 inputs \(picture, table\)"):
        augment(TwoInputs(), conv=["body"], input_size=SIZE)


class TwoHeads(Plain):
    """Two classifiers on one pool; with ``maps`` the map beside them."""

    def __init__(self, maps=False):
        super().__init__()
        self.other, self.maps = nn.Linear(16, 2), maps

    def forward(self, x):
        features = self.features(x)
        pooled = self.gather(features).flatten(1)
        found = {"age": self.say(pooled), "sex": self.other(pooled)}
        return found | ({"map": features} if self.maps else {})


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("pool_name", [None, "gather"])
def test_two_classifiers_share_a_pool(maps, pool_name):
    model = TwoHeads(maps).eval()
    ours = augment(model, pool="attention", pool_name=pool_name, input_size=SIZE)
    before, after = model(images()), ours(images())
    for name in before:
        torch.testing.assert_close(after[name], before[name])
    changed = wake(ours)(images())
    assert all(not torch.allclose(changed[name], before[name]) for name in ("age", "sex"))


def test_two_classifiers_have_no_map_a_class():
    with pytest.raises(ValueError, match="returns 2 tensors"):
        augment(TwoHeads(), pool="class", input_size=SIZE)


@pytest.mark.parametrize("size", [np.int64(SIZE), torch.tensor(SIZE), (np.int32(SIZE), SIZE)])
def test_numbers_of_other_libraries_are_numbers(size):
    found = plan(Plain(), size, num_heads=np.int64(2), v_ratio=np.float64(0.5), conv="body")
    assert found.input_size == (3, SIZE, SIZE)
    assert found.convs[1].num_heads == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"conv": "body", "input_size": 32.0}, "input_size=32.0 is not a side"),
        ({"conv": []}, r"conv=\[\] is no name"),
        ({"conv": 4}, "conv=4 is no name"),
        ({"conv": nn.Conv2d(1, 1, 1)}, "conv=Conv2d.* is no name"),
        ({"conv": [nn.Conv2d(1, 1, 1)]}, "is no name of convolutions"),
        ({"conv": "body", "num_heads": 2.0}, "num_heads=2.0 is not an integer"),
        ({"conv": "body", "qk_ratio": "0.2"}, "qk_ratio='0.2' is not a number"),
        ({"pool": "attention", "pool_name": nn.Identity()}, "pool_name=.* is no name of a module"),
    ],
)
def test_an_argument_of_the_wrong_kind_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        augment(timm_network("test_resnet"), **{"input_size": SIZE} | words)
