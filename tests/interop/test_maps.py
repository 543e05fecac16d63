"""Tools that ask where a network looks: a right map with their own choice of layer, or an error."""

import pytest
import torch

from tests.interop.networks import images, woken

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


def expected(name, layer):
    """Grad-CAM by its formula, (8, 12) for images of 64 x 96."""
    model, kept = woken(name), {}
    module = model.get_submodule(layer)
    module.register_forward_hook(lambda _, __, out: kept.update(map=out))
    logits = model(images(1, 64, 96))
    (gradient,) = torch.autograd.grad(logits[0, 1], kept["map"])
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * kept["map"]).sum(1)[0].relu().detach()


LAYERS = {"patchconvnet_nano": "blocks", "plain": "layer4", "augmented": "layer4"}


@pytest.mark.parametrize("name", LAYERS)
def test_captum(name):
    attr = pytest.importorskip("captum.attr")
    model = woken(name)
    layer = model.get_submodule(LAYERS[name])
    found = attr.LayerGradCam(model, layer).attribute(
        images(1, 64, 96), target=1, relu_attributions=True
    )
    torch.testing.assert_close(found[0, 0].detach(), expected(name, LAYERS[name]))


@pytest.mark.parametrize("name", LAYERS)
def test_pytorch_grad_cam(name):
    cam = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model = woken(name)
    with cam.GradCAM(model, [model.get_submodule(LAYERS[name])]) as tool:
        found = tool(images(1, 64, 96), [targets.ClassifierOutputTarget(1)])[0]
    own = expected(name, LAYERS[name])
    assert found.shape == (64, 96)
    rows, columns = own.shape
    row, column = divmod(int(found.argmax()), 96)
    peak = divmod(int(own.argmax()), columns)
    assert abs(row * rows // 64 - peak[0]) <= 1
    assert abs(column * columns // 96 - peak[1]) <= 1


@pytest.mark.parametrize("name", LAYERS)
def test_torchcam(name):
    methods = pytest.importorskip("torchcam.methods")
    model = woken(name)
    with methods.GradCAM(model, LAYERS[name]) as tool:
        logits = model(images(1, 64, 96))
        (found,) = tool(1, logits, normalized=False)
    torch.testing.assert_close(found[0].detach(), expected(name, LAYERS[name]))
