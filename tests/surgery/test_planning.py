import csv
import json
import re
from pathlib import Path
from statistics import mean

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convattn import augment, plan
from convattn.kernels import attention
from convattn.surgery.records import POOL_GAINS
from tests.surgery.networks import (
    TIMM,
    CallsMax,
    CallsMean,
    CallsMeanOfRelu,
    CallsMeanOfSquare,
    Plain,
    SharesPool,
    timm_network,
)

SIZE = 64
LINEAR = nn.Linear(8, 2)


def meta(name, **arguments):
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def replaced(found):
    return [conv.name for conv in found.convs if conv.replaced]


def conv_reason(found, name):
    return next(conv.reason for conv in found.convs if conv.name == name)


@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("pool", ["attention", "class-attention"])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "lcnet_035"])
def test_costs_are_those_of_the_augmented_network(name, pool, preserve):
    model = timm_network(name)
    wish = {"pool": pool, "conv": "last-3-stages" if name != "lcnet_035" else None}
    if name == "test_convnext" and not preserve:
        wish["conv"] = None
    found = plan(model, SIZE, preserve=preserve, **wish)
    ours = augment(model, input_size=SIZE, preserve=preserve, **wish)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(torch.zeros(1, 3, SIZE, SIZE))
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.params_after == sum(p.numel() for p in ours.parameters())
    assert found.macs_after == pytest.approx(counter.get_total_flops() // 2, rel=0.01)


def test_attention_memory_is_what_its_gradient_needs(monkeypatch):
    model = timm_network("test_resnet")
    found = plan(model, SIZE, pool=None, conv="last-1-stage")
    sizes = []
    kernel = attention.chunked_attention

    def watched(*inputs):
        out = kernel(*inputs)
        maxima_and_sums = inputs[0].shape[:-1].numel() * 8
        kept = (*inputs[:3], out)
        sizes.append(maxima_and_sums + sum(t.numel() * t.element_size() for t in kept))
        return out

    ours = augment(model, input_size=SIZE, conv="last-1-stage")
    monkeypatch.setattr(attention, "chunked_attention", watched)
    ours(torch.zeros(1, 3, SIZE, SIZE))
    assert sizes == [conv.attn_memory for conv in found.convs if conv.replaced]


def test_every_convolution_is_told():
    model = meta("resnet50")
    found = plan(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert [conv.name for conv in found.convs] == names


def test_stages_are_found_by_resolution():
    found = plan(meta("resnet50"), conv="last-2-stages")
    blocks = {"layer3": 6, "layer4": 3}
    assert replaced(found) == [f"{s}.{b}.conv2" for s, n in blocks.items() for b in range(n)]
    sizes = {(conv.stage, conv.out_size) for conv in found.convs if conv.replaced}
    assert sizes == {(16, (14, 14)), (32, (7, 7))}


def test_unpadded_convolutions_of_one_stage_stay_together():
    found = plan(torchvision.models.inception_v3(init_weights=False), 299, conv="last-3-stages")
    stages = {conv.out_size: conv.stage for conv in found.convs if conv.replaced}
    assert stages == {(35, 35): 8, (17, 17): 16, (8, 8): 32}


def test_names_patterns_and_stages_mix():
    found = plan(meta("resnet18"), conv=["layer1.0.conv1", "layer2.*.conv2"])
    assert replaced(found) == ["layer1.0.conv1", "layer2.0.conv2", "layer2.1.conv2"]


def test_a_part_of_the_network_is_named():
    found = plan(meta("resnet50"), conv="layer4")
    assert replaced(found) == [f"layer4.{block}.conv2" for block in range(3)]


def test_a_filter_sees_module_and_name():
    wide = plan(meta("resnet18"), conv=lambda m, name: m.out_channels == 512 and "conv2" in name)
    assert replaced(wide) == ["layer4.0.conv2", "layer4.1.conv2"]


def test_large_maps_are_attended_at_a_smaller_size():
    found = plan(meta("resnet18"), conv="all")
    assert {conv.out_size: conv.attn_downsample for conv in found.convs if conv.replaced} == {
        (112, 112): 8,
        (56, 56): 4,
        (28, 28): 2,
        (14, 14): 1,
        (7, 7): 1,
    }


def test_downsampling_by_stride():
    found = plan(meta("resnet18"), conv="last-2-stages", attn_downsample={16: 2})
    assert {c.stage: c.attn_downsample for c in found.convs if c.replaced} == {16: 2, 32: 1}


@pytest.mark.parametrize("name", TIMM)
def test_pool_and_classifier_are_found_whatever_they_are_called(name):
    model = timm_network(name)
    found = plan(model, SIZE)
    assert found.pool.replaced, found.pool.reason
    assert model.get_submodule(found.classifier_name) is model.get_classifier()
    assert found.pool.average


@pytest.mark.parametrize(
    ("model", "pool", "classifier"),
    [
        (Plain(), "gather", "say"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(62), nn.Flatten(), nn.Linear(8, 2)),
            "1",
            "3",
        ),
        (torchvision.models.mobilenet_v3_small(), "avgpool", "classifier.3"),
        (torchvision.models.convnext_tiny(), "avgpool", "classifier.2"),
        (torchvision.models.squeezenet1_1(), "classifier.3", "classifier.1"),
        (torchvision.models.googlenet(init_weights=False), "avgpool", "fc"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_pools_of_other_makes(model, pool, classifier):
    found = plan(model, SIZE)
    assert (found.pool.name, found.pool.classifier) == (pool, classifier)


def test_a_max_pool_is_no_average():
    assert not plan(Plain(nn.AdaptiveMaxPool2d(1)), SIZE).pool.average


def test_it_is_plain_data():
    found = plan(timm_network("test_resnet"), SIZE, conv=["layer4.*"])
    again = json.loads(json.dumps(found.to_dict()))
    assert again["params_after"] == found.params_after
    assert again["pool"]["name"] == "global_pool.pool"


def test_the_table_names_layers_costs_and_reasons():
    text = str(plan(meta("resnet50"), conv="last-1-stage"))
    assert "25.56 M -> 26" in text
    assert "layer4.2.conv2" in text
    assert "48 of 512 channels, 8 heads" in text
    assert "1x1, not a spatial convolution" in text


def test_input_size_is_taken_from_timms_configuration():
    assert plan(meta("inception_v3")).input_size == (3, 299, 299)


@pytest.mark.parametrize("size", [64, (64, 64), None])
def test_channels_are_those_of_the_first_convolution(size):
    found = plan(meta("test_resnet", in_chans=1), size)
    assert found.input_size[0] == 1


def test_channels_of_a_network_that_rearranges_the_image_first():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3), nn.AdaptiveAvgPool2d(1))
    assert plan(model, 64).input_size == (3, 64, 64)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (torchvision.models.alexnet(), "reads all positions of the 6x6 x 256 channels map"),
        (meta("vgg11"), "'pre_logits.fc1' reduces the 7x7 x 512 channels map to one"),
        (meta("test_mambaout"), "channels last"),
        (meta("test_vit"), "the network is a transformer"),
        (meta("resnet18", features_only=True), "returns several tensors"),
        (meta("resnet18", num_classes=0, global_pool=""), "returns a map of 7x7 x 512 channels"),
        (CallsMean(), r"mean\(\) in CallsMean.forward.*pool_name='trunk'"),
        (CallsMeanOfRelu(), r"mean\(\) in CallsMeanOfRelu.forward.*pool_name='trunk'"),
        (CallsMax(), r"amax\(\) in CallsMax.forward, which cannot be replaced; write"),
        (SharesPool(), "'gather' .* is called 2 times"),
        (CallsMeanOfSquare(), "by a function call.*write the pool as a module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 224**2, 5)), "makes no map"),
        (
            Plain(nn.AdaptiveAvgPool2d(2), channels=4, features=16),
            "no global pool: its classifier 'say' reads",
        ),
        (meta("test_resnet", global_pool="catavgmax"), "makes 192 features"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_why_a_pool_is_left_alone(model, reason):
    found = plan(model, 224).pool
    assert not found.replaced
    assert re.search(reason, found.reason), found.reason
    with pytest.raises(ValueError, match="pool='attention' cannot be done") as caught:
        augment(model, pool="attention", input_size=224)
    assert found.reason in str(caught.value)


def test_a_map_too_small_to_pool_is_told():
    found = plan(meta("resnet18"), 32).pool
    assert "'layer4.0.conv1' reduces the 2x2 x 256 channels map to one position" in found.reason


def test_a_call_is_pooled_behind_the_named_module():
    found = plan(CallsMeanOfRelu(), SIZE, pool_name="trunk").pool
    assert (found.replaced, found.place, found.in_features) == (True, "behind-relu", 16)


def test_a_named_module_that_has_nothing_to_do_with_the_pool():
    found = plan(CallsMean(), SIZE, pool_name="trunk.0").pool
    assert "pool_name='trunk.0' is a Conv2d that neither pools" in found.reason


def test_class_attention_needs_a_classifier_behind_the_pool():
    found = plan(torchvision.models.squeezenet1_1(), 224, pool="class-attention").pool
    assert "'classifier.1' stands before the pool" in found.reason


@pytest.mark.parametrize(
    ("words", "name", "reason"),
    [
        ({}, "layer4.0.conv1", "one position at this input_size"),
        ({"conv": None}, "layer1.0.conv1", "not asked for"),
        ({"num_heads": 24, "v_ratio": 1.0}, "layer1.0.conv1", "num_heads=24 cannot share"),
    ],
)
def test_why_a_convolution_is_left_alone(words, name, reason):
    found = plan(meta("resnet18"), 32, **words)
    assert reason in conv_reason(found, name)


def test_depthwise_convolutions_need_preserve():
    model = timm_network("test_efficientnet")
    depthwise = next(n for n, m in model.named_modules() if "conv_dw" in n and m.groups > 1)
    assert "it is depthwise" in conv_reason(plan(model, SIZE, preserve=False), depthwise)
    assert conv_reason(plan(model, SIZE, preserve=True), depthwise) is None


def test_an_unreached_convolution_is_said_to_be():
    model = torchvision.models.googlenet(init_weights=False, aux_logits=True)
    assert "not reached" in conv_reason(plan(model, 64), "aux1.conv.conv")


def test_attention_layers_are_not_looked_into():
    found = plan(meta("aa_resnet_nano"))
    assert not any("qkv" in conv.name for conv in found.convs)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        ("layer9.0.conv1", "names no convolution of ResNet; the nearest are layer4.0.conv1"),
        (["layer1.0.conv1", "stage*"], r"'stage\*' names no convolution"),
        (lambda module, name: False, "matches none of the 20 convolutions.*conv1"),
        ("last-9-stages", r"have 5 resolutions \(strides 2, 4, 8, 16, 32\).*'last-5-stages'"),
        ("last-0-stages", "'last-1-stages'"),
    ],
)
def test_what_names_nothing_is_refused(conv, message):
    with pytest.raises(ValueError, match=message):
        plan(meta("resnet18"), conv=conv)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"pool": "most"}, "unknown pool 'most'; the nearest is 'lse'|'max'"),
        ({"pool_name": "layre4"}, "pool_name='layre4' names no module; the nearest are layer4"),
        ({"classifier_name": "fcc"}, "classifier_name='fcc' names no module; the nearest are fc"),
        ({"attn_downsample": 0}, "attn_downsample=0 is not"),
        ({"pool": "aggregation", "mlp_ratio": 0}, "mlp_ratio=0 is not above 0"),
        ({"input_size": (1, 2, 3, 4)}, r"input_size=\(1, 2, 3, 4\) is not"),
        ({"input_size": (5, 64, 64)}, "cannot run on an image of 5 x 64 x 64"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        plan(timm_network("resnet10t"), **words)


def test_wrapped_networks_are_refused():
    with pytest.raises(ValueError, match=r"wrapped by torch\.compile; augment model\._orig_mod"):
        plan(torch.compile(Plain(), backend="eager"))
    with pytest.raises(ValueError, match=r"wrapped by DataParallel; augment model\.module"):
        plan(nn.DataParallel(Plain()))


def test_what_is_no_network_is_refused():
    with pytest.raises(ValueError, match="'resnet50' is no network"):
        plan("resnet50")


def test_what_a_pool_can_matter_is_what_was_measured():
    file = Path(__file__).parents[2] / "docs" / "results" / "law_of_pooling.csv"
    found: dict = {}
    with file.open() as table:
        for row in csv.DictReader(table):
            if float(row["object_share"]) == 2:
                key = int(row["map_size"]), row["pool"]
                found.setdefault(key, []).append(100 * float(row["accuracy"]))
    for side, gains in POOL_GAINS.items():
        means = {pool: mean(found[side, pool]) for pool in ("avg-bn", "oracle", "query")}
        measured = [means[pool] - means["avg-bn"] for pool in ("oracle", "query")]
        assert gains == pytest.approx(measured, abs=0.06)
    told = str(plan(timm.create_model("resnet18"), pool="attention"))
    ideal, learnt = POOL_GAINS[7]
    assert "on 7x7 positions: on 7x7, objects on 2 % of a cluttered image" in told
    assert f"gained {ideal:.0f} points over the average, and the pool query {learnt:+.0f}" in told
    few = str(plan(timm.create_model("resnet18"), pool="attention", input_size=64))
    assert "2x2 positions are too few" in few
    assert "positions" not in str(
        plan(timm.create_model("resnet18"), pool=None, conv="last-1-stage")
    )
