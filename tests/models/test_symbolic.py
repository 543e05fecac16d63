"""Features by ``torch.fx``: our layers are single nodes for timm, and for torchvision if told."""

import pytest
import timm
import torch
from timm.models import get_notrace_modules
from timm.models._features_fx import create_feature_extractor as timms
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from convattn import AAConv2d
from tests.interop.networks import NETWORKS, images, woken

OURS = sorted(NETWORKS.keys() - {"plain"})
LEAVES = {"leaf_modules": get_notrace_modules()}
ATTENTION = {
    "aa_resnet_nano": "layer4.0.conv2",
    "patchconvnet_nano": "blocks.3",
    "augmented": "layer4.0.conv1",
    "aggregation": "layer4.0.act2",
}


@pytest.mark.parametrize("name", OURS)
def test_torchvision_takes_out_maps_at_any_size(name):
    model = woken(name)
    last = get_graph_node_names(model, tracer_kwargs=LEAVES)[1][-1]
    extractor = create_feature_extractor(model, [ATTENTION[name], last], tracer_kwargs=LEAVES)
    kept = []
    hook = model.get_submodule(ATTENTION[name]).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    for size in ((64, 64), (96, 80)):
        x = images(2, *size)
        with torch.no_grad():
            found, expected = extractor(x), model(x)
        assert torch.equal(found[last], expected)
        assert torch.equal(found[ATTENTION[name]], kept[-1])
    hook.remove()


@pytest.mark.parametrize("name", OURS)
def test_timm_takes_out_maps_by_fx(name):
    model, x = woken(name), images()
    last = get_graph_node_names(model, tracer_kwargs=LEAVES)[1][-1]
    with torch.no_grad():
        assert torch.equal(timms(model, [last])(x)[last], model(x))


def test_attention_learns_through_the_extractor():
    model = woken("aa_resnet_nano").train()
    layers = [name for name, module in model.named_modules() if isinstance(module, AAConv2d)]
    last = get_graph_node_names(model, tracer_kwargs=LEAVES)[1][-1]
    extractor = create_feature_extractor(model, [last], tracer_kwargs=LEAVES)
    extractor(images())[last].square().sum().backward()
    assert layers
    for name in layers:
        assert extractor.get_parameter(f"{name}.qkv.weight").grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["aa_resnet_nano", "aa_mnasnet_100"])
def test_smp_encoders_give_their_maps(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3).eval()
    x = images()
    with torch.no_grad():
        maps, scores = model.encoder(x), model(x)
    assert [a_map.shape[1] for a_map in maps] == list(model.encoder.out_channels)
    assert [x.shape[-1] // a_map.shape[-1] for a_map in maps] == [1, 2, 4, 8, 16, 32]
    assert scores.shape == (2, 3, 64, 64)
    network = timm.create_model(name, features_only=True)
    network.load_state_dict(model.encoder.model.state_dict())
    with torch.no_grad():
        assert torch.equal(network.eval()(x)[-1], maps[-1])


def test_smp_refuses_what_has_one_stride():
    smp = pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.Unet("tu-patchconvnet_nano", encoder_weights=None)
