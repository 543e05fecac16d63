import pytest
import timm
import torch
import torchvision
from torch import nn

import convattn
from convattn import augment, create_pool, evidence
from convattn.exceptions import NoEvidenceError
from convattn.explanation.linear_evidence import evidence_maps


def woken(model, seed=0):
    """Zeros and ones of a fresh network hide errors: everything gets a value."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats:
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def images(height=64, width=96, batch=2, channels=3):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def assert_sums_are_logits(model, x, classes=None, tolerance=1e-5):
    found = evidence(model, x, classes)
    with torch.no_grad():
        logits = model.eval()(x)
    logits = logits if classes is None else logits[:, classes]
    assert found.maps.shape[:2] == logits.shape
    assert found.bias.shape == logits.shape[1:]
    error = (found.maps.sum((2, 3)) + found.bias - logits).abs().max()
    assert error <= tolerance * logits.abs().max()
    return found


TIMM = (
    "test_resnet",
    "test_efficientnet",
    "resnet10t",
    "regnetx_002",
    "repvgg_a0",
    "seresnet18",
    "aa_resnet_nano",
    "aa_wide_resnet_nano",
    "resnet_nano",
)
TORCHVISION = ("resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "densenet121")


@pytest.mark.parametrize("name", TIMM)
def test_sums_are_the_logits_of_timms_networks(name):
    assert_sums_are_logits(woken(timm.create_model(name, num_classes=7)), images())


@pytest.mark.parametrize("name", TORCHVISION)
def test_sums_are_the_logits_of_torchvisions_networks(name):
    model = getattr(torchvision.models, name)(weights=None, num_classes=7)
    assert_sums_are_logits(woken(model), images())


def test_augmented_convolutions_change_nothing_about_it():
    model = augment(timm.create_model("resnet10t", num_classes=7), pool=None, conv="last-2-stages")
    assert_sums_are_logits(woken(model), images())


def test_average_pool_gives_the_class_activation_map():
    model = woken(timm.create_model("test_resnet", num_classes=7)).eval()
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
    cam = torch.einsum("bchw,kc->bkhw", features, model.fc.weight) / features[0, 0].numel()
    found = evidence(model, x)
    torch.testing.assert_close(found.maps, cam)
    torch.testing.assert_close(found.bias, model.fc.bias)


def test_chosen_classes_are_those_of_all_in_their_order():
    model = woken(timm.create_model("test_resnet", num_classes=200))
    every, some = evidence(model, images()), evidence(model, images(), [150, 3, 3])
    torch.testing.assert_close(some.maps, every.maps[:, [150, 3, 3]])
    torch.testing.assert_close(some.bias, every.bias[[150, 3, 3]])
    assert evidence(model, images(), []).maps.shape[:2] == (2, 0)


def attentive(name):
    return augment(timm.create_model(name), pool="aggregation")


class Pooled(nn.Module):
    """A trunk, a pool, and what is behind it."""

    def __init__(self, pool, *behind):
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3, stride=4)
        self.pool = pool
        self.behind = nn.Sequential(*behind)

    def forward(self, x):
        return self.behind(self.pool(self.trunk(x)))


LIGHT = {
    "avg": {},
    "residual": {},
    "ep": {"num_queries": 4},
    "simpool": {"num_heads": 2},
    "abmil": {"hidden": 5},
    "class": {"num_classes": 6},
}


@pytest.mark.parametrize("name", LIGHT)
def test_light_pools_of_ours(name):
    pool = create_pool(name, 8, **LIGHT[name])
    behind = [nn.Linear(pool.out_features, 6)] if name != "class" else []
    assert_sums_are_logits(woken(Pooled(pool, *behind)), images())


@pytest.mark.parametrize("name", LIGHT)
def test_what_is_linear_behind_the_pool_is_folded(name):
    pool = create_pool(name, 8, **LIGHT[name])
    behind = [
        nn.BatchNorm1d(pool.out_features, affine=False, eps=1e-6),
        nn.Dropout(0.5),
        nn.Linear(pool.out_features, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 4),
    ]
    assert_sums_are_logits(woken(Pooled(pool, *behind)), images())


@pytest.mark.parametrize("name", sorted(LIGHT.keys() - {"simpool"}))  # it norms one channel away
def test_what_speaks_is_where_the_object_is(name):
    """A bright spot in a dark image has the largest share of the class that likes brightness."""
    pool = create_pool(name, 1, **{"num_queries": 1} if name == "ep" else LIGHT[name])
    model = nn.Sequential(nn.AvgPool2d(4), pool, nn.Linear(pool.out_features, 2, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    x = torch.zeros(1, 1, 16, 24)
    x[:, :, 4:8, 12:16] = 1
    maps = evidence(model, x).maps
    assert (maps[0].flatten(1).argmax(1) == 1 * 6 + 3).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: timm.create_model("convnext_atto"), r"'head.norm' \(LayerNorm2d\), which is not"),
        (lambda: timm.create_model("mobilenetv3_small_050"), r"'act2' \(Hardswish\), which is not"),
        (lambda: timm.create_model("patchconvnet_nano"), "'head' is learned aggregation, with an"),
        (lambda: attentive("test_resnet"), "is learned aggregation, with an MLP"),
        (lambda: timm.create_model("test_resnet", global_pool="max"), "is no mean of the map"),
        (lambda: torchvision.models.vgg11(num_classes=3), "no module that pools"),
        (lambda: timm.create_model("test_resnet", features_only=True), "does not give logits"),
        (lambda: timm.create_model("test_vit"), "no module that pools"),
        (
            lambda: Pooled(create_pool("gem", 8), nn.Linear(8, 3)),
            r"'pool' \(GeMPool\) is not linear in the map",
        ),
        (
            lambda: Pooled(create_pool("avg", 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)),
            r"'behind.1' \(ReLU\), which is not linear",
        ),
    ],
)
def test_network_without_such_a_form_says_what_stands_in_the_way(model, message):
    with pytest.raises(ValueError, match=message) as caught:
        evidence(woken(model()), images())
    assert "\n" not in str(caught.value)


def test_unknown_class_is_refused():
    model = timm.create_model("test_resnet", num_classes=7)
    with pytest.raises(ValueError, match="class 7 is not among the network's 0 to 6"):
        evidence(model, images(), [7])


def test_the_model_is_left_as_it_was():
    model = woken(timm.create_model("test_resnet", num_classes=7)).train()
    model.layer1.eval()
    model.fc.weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evidence(model, images())
    with pytest.raises(ValueError, match="is not among"):
        evidence(model, images(), [99])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.fc.weight.requires_grad
    assert model.fc.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_images_of_inference_mode_are_taken():
    model = woken(timm.create_model("test_resnet", num_classes=7))
    with torch.inference_mode():
        x = images()
        found = evidence(model, x)
    assert_sums_are_logits(model, images())
    assert found.maps.shape[:2] == (2, 7)


def test_it_is_public():
    assert convattn.evidence is evidence


ATTENTIVE = ("attention", "class", "ep", "simpool", "abmil")


@pytest.mark.parametrize("pool", ATTENTIVE)
def test_a_norm_behind_any_pool_stands_in_the_way(pool):
    model = augment(timm.create_model("test_convnext"), pool=pool)
    with pytest.raises(NoEvidenceError, match=r"\(LayerNorm2d\), which is not linear"):
        evidence(model, images())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("pool", ATTENTIVE)
@pytest.mark.parametrize("preserve", [True, False])
def test_augmented_networks(name, pool, preserve):
    options = {"pool_queries": 4} if pool == "ep" else {}
    options |= {"pool_norm": pool in ("attention", "class")}
    plain = timm.create_model(name, num_classes=9)
    model = augment(plain, pool=pool, preserve=preserve, **options)
    assert_sums_are_logits(woken(model), images())


def test_a_query_a_class_gives_chosen_classes_as_among_all():
    model = woken(augment(timm.create_model("test_resnet", num_classes=300), pool="class"))
    every, some = evidence(model, images()), evidence(model, images(), [250, 3])
    torch.testing.assert_close(some.maps, every.maps[:, [250, 3]])
    torch.testing.assert_close(some.bias, every.bias[[250, 3]])


def test_attention_beside_a_maximum_says_what_stands_in_the_way():
    model = augment(timm.create_model("test_resnet", global_pool="max"), pool="attention")
    with pytest.raises(NoEvidenceError, match=r"adds attention to a .*no mean of the map"):
        evidence(model, images()[:1])


def test_maps_of_targets_are_those_of_their_classes():
    model = woken(timm.create_model("test_resnet", num_classes=7)).eval().requires_grad_(False)
    maps, grid = evidence_maps(model, images(), torch.tensor([5, 2]))
    every = evidence(model, images()).maps
    torch.testing.assert_close(maps, torch.stack([every[0, 5], every[1, 2]]))
    assert grid.feat_size == tuple(maps.shape[1:])
    assert grid.image_size == tuple(images().shape[2:])
