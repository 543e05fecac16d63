import copy
import pickle

import pytest
import timm
import torch
from torch import nn

import convattn  # noqa: F401  (registers the models)
from convattn import evidence, explain
from convattn.explanation import attention_layers
from convattn.models.map_classifier import MapBackbone, create_backbone, stages_of

IMAGE = torch.zeros(1, 3, 64, 64)


def make(backbone="test_resnet", **more):
    torch.manual_seed(0)
    return timm.create_model(
        "map_classifier", backbone=backbone, image_size=64, num_classes=5, **more
    ).eval()


def images(batch=2):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "last"),
        ("resnet18", "stage3"),
        ("resnet18", "layer2.0"),
        ("convnext_atto", "last"),
        ("convnext_atto", "stage2"),
        ("mobilenetv3_small_050", "last"),
        ("tf_efficientnet_lite0", "stage4"),
        ("patchconvnet_nano", "stage2"),
        ("torchvision/resnet18", "last"),
        ("torchvision/convnext_tiny", "last"),
        ("torchvision/densenet121", "last"),
        ("torchvision/swin_t", "last"),
        ("torchvision/mobilenet_v3_small", "features.4"),
    ],
)
def test_any_map_is_what_a_hook_sees_of_the_whole_network(name, layer):
    torch.manual_seed(0)
    network = create_backbone(name).eval()
    whole = copy.deepcopy(network)
    seen = []

    def watch(module, args, out):
        if isinstance(out, torch.Tensor) and out.dim() == 4:
            seen.append(out)

    for module in whole.modules():
        module.register_forward_hook(watch)
    x = images()
    with torch.no_grad():
        whole(x)
        found = MapBackbone(network, layer, image=IMAGE)(x)
    assert found.dim() == 4
    assert found.shape[2] > 1
    candidates = [y for y in (*seen, *(y.relu() for y in seen)) if y.shape == found.shape]
    candidates += [
        y.permute(0, 3, 1, 2) for y in seen if y.permute(0, 3, 1, 2).shape == found.shape
    ]
    assert any(torch.allclose(y, found, atol=1e-5) for y in candidates)


def test_swin_s_map_with_its_channels_last_is_turned():
    network = create_backbone("swin_tiny_patch4_window7_224", img_size=64)
    backbone = MapBackbone(network.eval(), "last", image=IMAGE)
    assert backbone(images()).shape == (2, 768, 2, 2)


def test_tokens_are_read_as_a_map_where_that_is_asked_for():
    network = create_backbone("vit_tiny_patch16_224", img_size=64)
    with pytest.raises(ValueError, match=r"gives 17 tokens of 192 channels, no map; .*'stage12'"):
        MapBackbone(network, "last", image=IMAGE)
    assert MapBackbone(network, "stage12", image=IMAGE).eval()(images()).shape == (2, 192, 4, 4)


def test_torchvision_s_transformers_are_told():
    with pytest.raises(ValueError, match="makes tokens and no map"):
        MapBackbone(create_backbone("torchvision/vit_b_16", image_size=64), "last", image=IMAGE)


def test_stages_begin_at_a_quarter_of_the_image():
    assert stages_of(create_backbone("resnet18")) == {f"stage{n}": n for n in (1, 2, 3, 4)}
    assert stages_of(create_backbone("convnext_atto"))["stage1"] == 0
    assert stages_of(nn.Identity()) == {}


def test_it_keeps_the_contract_of_a_classifier():
    model, x = make(pool="ep", pool_num_queries=4), images()
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.get_classifier().out_features == 5
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("layer", ["last", "stage3", "layer2"])
def test_copies_compute_the_same(clone, layer):
    model, x = make(layer=layer), images()
    torch.testing.assert_close(clone(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("pool", ["avg", "residual", "class", "simpool"])
def test_evidence_sums_to_the_logits(pool):
    model, x = make(pool=pool), images()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    maps, bias = evidence(model, x)
    torch.testing.assert_close(maps.sum((2, 3)) + bias, model(x), rtol=1e-4, atol=1e-4)


def test_an_option_of_the_pool_and_one_of_the_backbone():
    model = make(pool="ep", pool_num_queries=4, backbone="resnet18", output_stride=16)
    assert model.head.pool.pool.num_queries == 4
    assert model.forward_features(images()).shape[2:] == (4, 4)


def test_torchvision_takes_three_channels():
    with pytest.raises(ValueError, match="takes images of 3 channels, and these have 1"):
        create_backbone("torchvision/resnet18", in_chans=1)


@pytest.mark.parametrize(
    ("name", "more"),
    [("patchconvnet_nano", {}), ("patchconvnet_nano", {"global_pool": "attention"})],
)
def test_a_network_s_own_attention_pool_is_not_taken_for_the_probe_s(name, more):
    model = make(name, pool="avg", **more)
    assert attention_layers(model) == {}
    with torch.no_grad():
        maps, bias = evidence(model, images())
        torch.testing.assert_close(maps.sum((2, 3)) + bias, model(images()), atol=1e-4, rtol=1e-4)
    assert explain(model, torch.rand(3, 64, 64)).method == "evidence"
