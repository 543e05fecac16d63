import copy
import io
import pickle
from typing import get_args

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from convattn import augment, capture_attention, param_groups, plan
from convattn.config import PoolName
from convattn.layers import AAConv2d, LearnedAggregation2d, Pool
from convattn.layers.pools import GatedPool
from convattn.surgery import augmented_conv, new_parameters
from convattn.surgery.adapters import AggregationPool, GlobalPool, TokenClassifier
from tests.slow import slow_but
from tests.surgery.networks import (
    TIMM,
    CallsMean,
    CallsMeanOfRelu,
    Plain,
    images,
    relative,
    timm_network,
)

WISHES = {
    "pool": {"pool": "attention"},
    "normed": {"pool": "attention", "pool_norm": True},
    "paper": {"pool": "aggregation"},
    "light class": {"pool": "class"},
    "class": {"pool": "class-attention"},
    "conv": {"conv": "last-2-stages"},
    "both": {"pool": "attention", "conv": "all", "position": "sine"},
}
EVERYWHERE = {name: WISHES[name] for name in ("pool", "light class", "conv", "both")}
HEADS = {"num_heads": 4, "min_head_dim": 4}


def layers_of(model, kind):
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def train(model, steps=3, x=None):
    optimizer = torch.optim.SGD(param_groups(model, lr=1e-2), momentum=0.9)
    seen = set()
    for _ in range(steps):
        x = images() if x is None else x
        loss = F.cross_entropy(model(x), torch.arange(len(x)) % 5)
        optimizer.zero_grad()
        loss.backward()
        seen |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
    return seen


@pytest.mark.parametrize("wish", EVERYWHERE.values(), ids=EVERYWHERE)
@pytest.mark.parametrize("name", TIMM)
def test_logits_are_preserved(name, wish):
    plain = timm_network(name)
    ours = augment(plain, input_size=64, **HEADS, **wish)
    x = images((96, 64))
    assert relative(ours(x), plain(x)) < 1e-5


@pytest.mark.parametrize("wish", [wish for name, wish in WISHES.items() if name != "normed"])
def test_logits_are_preserved_while_training_too(wish):
    plain = timm_network("test_resnet").train()
    ours = augment(plain, input_size=64, **HEADS, **wish)
    assert relative(ours(images()), plain(images())) < 1e-5


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize(
    "name", slow_but(["test_resnet"], ["test_resnet", "test_convnext", "lcnet_035"])
)
def test_three_steps_reach_every_new_parameter(name, wish):
    ours = augment(timm_network(name), input_size=64, **HEADS, **wish).train()
    # A softmax cannot feel what is added to all of its logits alike.
    expected = {n for n in new_parameters(ours) if not n.endswith("attn.k.bias")}
    assert expected
    assert expected <= train(ours)


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_attention_learns_its_way_in(wish):
    ours = augment(timm_network("test_resnet"), input_size=64, **HEADS, **wish)
    before = ours(images())
    train(ours.train())
    with capture_attention(ours.eval()) as maps:
        after = ours(images())
    assert relative(after, before) > 1e-3
    convs = layers_of(ours, AAConv2d)
    pools = [m for name, m in maps.items() if name not in convs]
    assert len(pools) == ("pool" in wish)
    assert all((m / m.mean((-2, -1), keepdim=True) - 1).abs().max() > 1e-6 for m in pools)


@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_a_state_dict_goes_round(wish, preserve):
    def make():
        model = timm_network("test_resnet")
        return augment(model, input_size=64, preserve=preserve, **HEADS, **wish)

    trained, fresh = make().train(), make()
    train(trained)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(images()), trained.eval()(images()))


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_trained_weights_are_all_kept(wish):
    plain = timm_network("test_resnet")
    ours = augment(plain, input_size=64, **HEADS, **wish)
    kept = {tensor.flatten().double().sum().item() for tensor in ours.state_dict().values()}
    lost = [
        name
        for name, tensor in plain.state_dict().items()
        if tensor.flatten().double().sum().item() not in kept
    ]
    assert lost == []


def test_the_filters_of_channels_that_stay_are_kept():
    plain = timm_network("test_resnet")
    ours = augment(plain, input_size=64, conv="last-2-stages", preserve=False, **HEADS)
    layers = layers_of(ours, AAConv2d)
    assert layers
    for name, layer in layers.items():
        before = plain.get_submodule(name).weight
        assert layer.conv.out_channels == before.shape[0] - layer.v_channels
        assert torch.equal(layer.conv.weight, before[: layer.conv.out_channels])


def test_grouped_convolutions_keep_filters_of_every_group():
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    layer = augmented_conv(conv, num_heads=4, min_head_dim=4, v_ratio=0.25)
    x = images((6, 6))[:, :1].repeat(1, 8, 1, 1) * torch.arange(1, 9)[:, None, None]
    theirs = conv(x).unflatten(1, (4, 4))
    assert torch.allclose(layer.conv(x).unflatten(1, (4, 3)), theirs[:, :, :3], atol=1e-5)


def test_standardised_weights_stay_standardised():
    plain = timm_network("test_nfnet")
    kept = augment(plain, input_size=64, conv="last-1-stage", **HEADS)
    for name, layer in layers_of(kept, AAConv2d).items():
        assert type(layer.conv) is type(plain.get_submodule(name))
    conv = next(m for m in plain.modules() if "Std" in type(m).__name__ and m.groups == 1)
    less = augmented_conv(copy.deepcopy(conv), num_heads=4, min_head_dim=4)
    x = torch.randn(1, conv.in_channels, 8, 8)
    channels = less.conv.out_channels
    assert channels < conv.out_channels
    assert torch.allclose(less.conv(x), conv(x)[:, :channels], atol=1e-5)


@pytest.mark.parametrize("pool", ["aggregation", "class-attention"])
def test_without_preserve_it_is_the_papers_layer(pool):
    ours = augment(timm_network("test_resnet"), input_size=64, pool=pool, preserve=False)
    layer = ours.get_submodule("global_pool.pool").aggregation
    oracle = LearnedAggregation2d(
        layer.in_features, 5, class_tokens=pool == "class-attention"
    ).eval()
    missing, _ = oracle.load_state_dict(layer.state_dict(), strict=False)
    assert missing == ["fc.weight", "fc.bias"]
    fc = ours.fc.fc if pool == "class-attention" else ours.fc
    oracle.fc.load_state_dict(fc.state_dict())
    features = ours.forward_features(images())
    assert torch.allclose(ours.forward_head(features), oracle(features), atol=1e-5)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveMaxPool2d(1),
        timm.layers.SelectAdaptivePool2d(pool_type="avgmax"),
        nn.AvgPool2d(16),
    ],
    ids=["max", "avgmax", "fixed"],
)
def test_other_pools_are_preserved(pool):
    plain = Plain(pool).eval()
    ours = augment(plain, pool="attention", input_size=64)
    assert relative(ours(images()), plain(images())) < 1e-5
    expected = {n for n in new_parameters(ours) if not n.endswith("attn.k.bias")}
    assert expected <= train(ours)


def test_generalised_mean_pool_stays_and_gets_attention():
    class GeM(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            return x.clamp(min=1e-6).pow(self.p).mean((2, 3), keepdim=True).pow(1 / self.p)

    plain = Plain(GeM()).eval()
    ours = augment(plain, pool="attention", input_size=64)
    assert relative(ours(images()), plain(images())) < 1e-5
    assert "gather.other.p" in dict(ours.named_parameters())


@pytest.mark.parametrize("make", [CallsMean, CallsMeanOfRelu])
@pytest.mark.parametrize("pool", ["attention", "class", "class-attention"])
def test_a_pool_by_function_call_is_named(make, pool):
    plain = make().eval()
    ours = augment(plain, pool=pool, pool_name="trunk", input_size=64)
    assert relative(ours(images()), plain(images())) < 1e-5
    assert set(plain.state_dict()) - set(ours.state_dict()) == (
        {"head.weight", "head.bias"} if "class" in pool else set()
    )
    expected = {n for n in new_parameters(ours) if not n.endswith("attn.k.bias")}
    assert expected <= train(ours.train())


@pytest.mark.long
def test_torchvisions_densenet_by_name():
    torch.manual_seed(0)
    plain = torchvision.models.densenet121(num_classes=5).eval()
    ours = augment(plain, pool="attention", pool_name="features", input_size=64)
    assert relative(ours(images()), plain(images())) < 1e-5


def test_a_call_that_cannot_take_one_position_is_refused():
    class FixedCall(CallsMean):
        def forward(self, x):
            return self.head(F.avg_pool2d(self.trunk(x), 16).flatten(1))

    model = FixedCall()
    with pytest.raises(ValueError, match="does not run with trunk replaced"):
        augment(model, pool="attention", pool_name="trunk", input_size=64, inplace=True)
    assert not layers_of(model, (AggregationPool, GlobalPool))


@pytest.mark.parametrize("pool", ["class", "class-attention"])
def test_a_class_has_a_map_of_its_own(pool):
    ours = augment(timm_network("test_resnet"), pool=pool, input_size=64).train()
    train(ours)
    with capture_attention(ours.eval()) as maps:
        ours(images())
    (attention,) = maps.values()
    assert attention.shape[:3] == (2, 1, 5)
    assert not torch.allclose(attention[:, :, 0], attention[:, :, 1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("pool", ["attention", "class", "aggregation", "class-attention"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_timms_reset_classifier_keeps_the_attention(name, pool):
    ours = augment(timm_network(name), pool=pool, input_size=64)
    again = copy.deepcopy(ours)
    again.reset_classifier(7)
    assert again(images()).shape == (2, 7)
    assert len(layers_of(again, (LearnedAggregation2d, Pool))) == 1
    assert ours(images()).shape == (2, 5)


@pytest.mark.parametrize("pool", ["class", "class-attention"])
def test_maps_of_classes_need_classes(pool):
    ours = augment(timm_network("test_resnet"), pool=pool, input_size=64)
    with pytest.raises(ValueError, match="num_classes=0, but a map a class needs classes"):
        ours.reset_classifier(0)


def test_the_original_is_left_alone():
    plain = timm_network("test_resnet")
    state, names = copy.deepcopy(plain.state_dict()), [n for n, _ in plain.named_modules()]
    train(augment(plain, pool="attention", conv="all", input_size=64, **HEADS).train())
    assert names == [n for n, _ in plain.named_modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())


def test_inplace_changes_the_network_itself():
    plain = timm_network("test_resnet")
    assert augment(plain, pool="attention", input_size=64, inplace=True) is plain
    assert layers_of(plain, Pool)


@pytest.mark.parametrize("pool", sorted(set(get_args(PoolName)) - {"avg"}))
def test_every_pool_begins_as_the_average_learns_and_goes_round(pool):
    plain = timm_network("test_resnet")
    options = {"pool_heads": 2} if pool in ("simpool", "map") else {}
    ours = augment(plain, pool=pool, input_size=64, **options)
    assert relative(ours(images()), plain(images())) < 1e-5
    names = {n for n in new_parameters(ours) if not n.endswith(("k.bias", "c.bias"))}
    assert names == train(ours.train()) & names
    again = augment(plain, pool=pool, input_size=64, **options)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(images()), ours.eval()(images()))


@pytest.mark.parametrize("pool", sorted(set(get_args(PoolName)) - {"avg", "class"}))
def test_without_preserve_a_pool_stands_as_it_is_built(pool):
    options = {"pool_heads": 2} if pool in ("simpool", "map") else {}
    ours = augment(timm_network("test_resnet"), pool=pool, preserve=False, input_size=64, **options)
    assert not layers_of(ours, GatedPool)
    assert ours(images()).shape == (2, 5)


@pytest.mark.parametrize("width", ["resnet18", "resnet50"])
def test_the_default_is_a_tenth_of_the_papers_at_most_and_changes_no_logit(width):
    torch.manual_seed(0)
    plain = timm.create_model(width, num_classes=5).eval()
    light, paper = (augment(plain, pool=pool) for pool in ("attention", "aggregation"))
    before, more, most = (sum(p.numel() for p in m.parameters()) for m in (plain, light, paper))
    assert 0 < more - before <= (most - before) / 10
    x = images((96, 64))
    assert relative(light(x), plain(x)) < 1e-5


def test_a_norm_behind_the_pool_normalises_by_batch_in_training_alone():
    plain = timm_network("test_resnet")
    ours = augment(plain, pool="avg", pool_norm=True, input_size=64)
    assert relative(ours(images()), plain(images())) < 1e-5
    norm = ours.get_submodule("global_pool.pool").norm
    seen = []
    norm.register_forward_hook(lambda module, args, out: seen.append(out))
    ours.train()(torch.randn(16, 3, 64, 64))
    assert torch.allclose(seen[0].mean(0), torch.zeros(96), atol=1e-4)
    assert not list(norm.parameters())


def test_an_average_pool_in_an_average_pools_place_is_refused():
    with pytest.raises(ValueError, match="pools by the mean already; pool_norm=True"):
        augment(timm_network("test_resnet"), pool="avg", input_size=64)


def test_a_network_with_a_light_pool_is_not_given_another():
    ours = augment(timm_network("test_resnet"), pool="attention", input_size=64)
    with pytest.raises(ValueError, match="has one of convattn's pools already"):
        augment(ours, pool="attention", input_size=64)


def test_a_network_that_uses_weights_without_calling_is_put_back():
    class Peeks(Plain):
        def forward(self, x):
            return super().forward(x) + self.body.weight.sum()

    model = Peeks()
    with pytest.raises(ValueError, match=r"does not run with body replaced.*another way than call"):
        augment(model, conv=["body"], input_size=64, inplace=True, **HEADS)
    assert type(model.body) is nn.Conv2d


def test_a_shared_convolution_stays_shared():
    class Shares(Plain):
        def __init__(self):
            super().__init__()
            self.twin = self.body

    ours = augment(Shares(), conv=["body"], input_size=64, **HEADS)
    assert ours.twin is ours.body
    assert isinstance(ours.twin, AAConv2d)


def test_mode_precision_and_freezing_follow_the_network():
    plain = timm_network("test_resnet").double().train()
    plain.layer4.eval()
    plain.layer4.requires_grad_(False)
    ours = augment(plain, pool="attention", conv="last-2-stages", input_size=64, **HEADS)
    assert {p.dtype for p in ours.parameters()} == {torch.float64}
    layers = layers_of(ours, AAConv2d)
    flags = {name.split(".")[0]: layer.training for name, layer in layers.items()}
    assert flags == {"layer3": True, "layer4": False}
    last = next(layer for name, layer in layers.items() if name.startswith("layer4"))
    assert not last.conv.weight.requires_grad
    assert last.proj.weight.requires_grad


def test_a_backbone_of_features_gets_attention():
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", features_only=True).eval()
    ours = augment(plain, conv="last-2-stages", input_size=64, **HEADS)
    assert layers_of(ours, AAConv2d)
    for mine, theirs in zip(ours(images((96, 64))), plain(images((96, 64))), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_channels_last_goes_through():
    plain = timm_network("test_resnet")
    ours = augment(plain, pool="attention", conv="all", input_size=64, **HEADS)
    x = images().to(memory_format=torch.channels_last)
    ours = ours.to(memory_format=torch.channels_last)
    assert ours.forward_features(x).is_contiguous(memory_format=torch.channels_last)
    assert relative(ours(x), plain(images())) < 1e-5


TRACED = [
    *(
        pytest.param(Plain, wish, id=name, marks=[pytest.mark.slow] * (name == "paper"))
        for name, wish in WISHES.items()
    ),
    pytest.param(
        lambda: timm_network("test_resnet"),
        {"pool": "attention", "conv": "last-1-stage"},
        id="both in a ResNet",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(("network", "wish"), TRACED)
def test_it_compiles_without_a_break(network, wish):
    torch._dynamo.reset()
    ours = augment(network().eval(), input_size=64, **HEADS, **wish)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert relative(compiled(images()), ours(images())) < 1e-5


@pytest.mark.parametrize(("network", "wish"), TRACED)
def test_it_exports_with_any_batch_and_size(network, wish):
    ours = augment(network().eval(), input_size=64, **HEADS, **wish)
    dim = torch.export.Dim
    shapes = {
        0: dim("batch"),
        2: 32 * dim("rows", min=2, max=8),
        3: 32 * dim("columns", min=2, max=8),
    }
    program = torch.export.export(ours, (images(),), dynamic_shapes=(shapes,)).module()
    x = images((96, 160), batch=3)
    assert torch.allclose(program(x), ours(x), atol=1e-4)


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_it_is_copied_and_pickled(wish):
    ours = augment(timm_network("test_resnet"), input_size=64, **HEADS, **wish)
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(again(images()), ours(images()))


def test_weights_are_saved_by_name():
    ours = augment(timm_network("test_resnet"), pool="attention", input_size=64)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    assert set(torch.load(file, weights_only=True)) == set(ours.state_dict())


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_ddp_finds_every_parameter_in_use(wish, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1
    )
    try:
        ours = augment(timm_network("test_resnet"), input_size=64, **HEADS, **wish).train()
        wrapped = nn.parallel.DistributedDataParallel(ours)
        for _ in range(2):  # the second step would fail on a parameter the first left unused
            F.cross_entropy(wrapped(images()), torch.tensor([0, 1])).backward()
        assert all(p.grad is not None for p in ours.parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_other_sizes_than_the_planned_work():
    ours = augment(
        timm_network("test_resnet"), pool="attention", conv="all", input_size=64, **HEADS
    )
    assert ours(images((33, 97))).shape == (2, 5)


def test_autocast_trains():
    ours = augment(
        timm_network("test_resnet"), pool="attention", conv="all", input_size=64, **HEADS
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(ours.train()(images()), torch.tensor([0, 1]))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters())


def test_augmenting_twice_adds_what_is_missing():
    first = augment(timm_network("test_resnet"), conv="last-1-stage", input_size=64, **HEADS)
    second = augment(first, pool="attention", conv="last-2-stages", input_size=64, **HEADS)
    more = layers_of(second, AAConv2d)
    assert len(more) > len(layers_of(first, AAConv2d))
    assert not any(isinstance(layer.conv, AAConv2d) for layer in more.values())


def test_tokens_of_a_convolutional_classifier():
    conv = nn.Conv2d(6, 3, 1)
    x = torch.randn(4 * 3, 6, 1, 1)
    ours = TokenClassifier(conv)(x)
    theirs = conv(x).reshape(4, 3, 3).diagonal(dim1=1, dim2=2)
    assert ours.shape == (4, 3, 1, 1)
    assert torch.allclose(ours[:, :, 0, 0], theirs, atol=1e-6)


@pytest.mark.parametrize("preserve", [True, False])
def test_an_empty_batch(preserve):
    wish = {"pool": "class-attention", "conv": "last-1-stage", **HEADS}
    ours = augment(timm_network("test_resnet"), input_size=64, preserve=preserve, **wish)
    assert ours(images(batch=0)).shape == (0, 5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "asked for nothing; give pool='attention', conv='last-3-stages'"),
        ({"conv": ["layer4.0.conv1"], "num_heads": 7, "v_ratio": 1.0}, "num_heads=7 cannot share"),
        ({"conv": "all", "num_heads": 7, "v_ratio": 1.0}, "replaces no convolution of ResNet"),
        ({"pool": "aggregation", "pool_heads": 7}, "pool_heads=7 does not divide in_features=96"),
        ({"pool": "ep", "pool_queries": 7}, "pool_queries=7 does not divide .*works: 6"),
        ({"pool": "attention", "pool_heads": 2}, "pool_heads=2 means nothing to pool='attention'"),
        ({"pool": "ep", "mlp_ratio": 2.0}, "mlp_ratio=2.0 means nothing to pool='ep'"),
        ({"conv": "all", "pool_norm": True}, "pool_norm=True is about the pool"),
        ({"pool": "atention"}, "unknown pool 'atention'; the nearest is 'attention' of"),
    ],
)
def test_what_cannot_be_done_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        augment(timm_network("test_resnet"), input_size=64, **words)


@pytest.mark.parametrize("wish", [{"pool": "attention"}, {"conv": "all"}])
def test_a_transformer_is_refused(wish):
    with pytest.raises(ValueError, match="is a transformer"):
        augment(timm_network("test_vit"), **wish)


def test_a_network_without_convolutions_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(ValueError, match="it has no spatial convolution"):
        augment(model, conv="all", input_size=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is (deprecated|not supported)")
def test_a_scripted_network_is_refused():
    scripted = torch.jit.script(Plain())
    with pytest.raises(ValueError, match="scripted module"):
        augment(scripted, pool="attention")


def test_the_plan_counts_what_augment_replaces():
    model = timm_network("test_resnet")
    found = plan(model, 64, conv="last-2-stages", **HEADS)
    ours = augment(model, pool="attention", conv="last-2-stages", input_size=64, **HEADS)
    kinds = layers_of(ours, (AAConv2d, GlobalPool))
    assert set(found.replaced) == set(kinds)
