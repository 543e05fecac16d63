import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from convattn import augment
from convattn.explanation.geometry import Grid
from convattn.explanation.gradcam import cam_layers, grad_cam
from convattn.modes import frozen_eval_mode

pytest.importorskip("pytorch_grad_cam", reason="needs the extra 'explain'")

SMALL = {"embed_dim": 16, "depth": 2}


def network(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **arguments)


def augmented():
    model = augment(network("resnet18"), pool="class-attention", input_size=64)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)  # away from the average that it is
    return model


NETWORKS = {
    "patchconvnet": lambda: network("patchconvnet_nano"),
    "a token a class": lambda: network("patchconvnet_nano_multi"),
    "attention in convolutions": lambda: network("aa_wide_resnet_nano"),
    "plain": lambda: network("resnet18"),
    "augmented": augmented,
}


def slow_grad_cam(model, images, targets):
    """The paper's formulas, on the map that timm's contract gives."""
    model = model.eval()
    maps = model.forward_features(images)
    logits = model.forward_head(maps)
    expected = []
    for number, target in enumerate(targets.tolist()):
        (gradient,) = torch.autograd.grad(logits[number, target], maps, retain_graph=True)
        total = torch.zeros(maps.shape[2:], dtype=maps.dtype)
        for channel in range(maps.shape[1]):
            alpha = gradient[number, channel].sum() / gradient[number, channel].numel()
            total += alpha * maps[number, channel].detach()
        expected.append(total.clamp(min=0))
    return torch.stack(expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_the_papers_formulas(name):
    model = NETWORKS[name]().double()
    images = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    targets = torch.tensor([4, 0, 2])
    maps, _ = grad_cam(model, images, targets)
    expected = slow_grad_cam(model, images, targets)
    assert expected.amax((1, 2)).count_nonzero() >= 2
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)


def test_a_network_that_goes_on_in_place_is_the_papers_formulas():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 6, 3, padding=1)
            self.fc = nn.Linear(6, 5)

        def forward_features(self, x):
            return self.features(x)

        def forward_head(self, x):
            return self.fc(F.relu(x).mean((2, 3)))

        def forward(self, x):
            return self.fc(F.relu(self.features(x), inplace=True).mean((2, 3)))

    torch.manual_seed(0)
    model, images, targets = InPlace(), torch.randn(2, 3, 8, 8), torch.tensor([1, 3])
    torch.testing.assert_close(
        grad_cam(model, images, targets)[0], slow_grad_cam(model, images, targets)
    )


def test_cells_lie_where_the_layers_put_them():
    patches = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _, grid = grad_cam(patches, torch.randn(1, 3, 16, 24), torch.tensor([0]))
    assert grid == Grid((4, 6), (16, 24), start=(2.0, 2.0), stride=(4.0, 4.0))


@pytest.mark.parametrize(
    ("name", "layer", "reshaped"),
    [
        ("patchconvnet_nano", "blocks", False),
        ("aa_resnet_nano", "layer4", False),
        ("aa_wide_resnet_nano", "act", False),
        ("aa_mnasnet_nano", "bn2", False),
        ("test_convnext", "norm_pre", False),
        ("lcnet_035", "blocks", False),
    ],
)
def test_layer_is_the_last_before_the_pool(name, layer, reshaped):
    model = network(name)
    layers, reshape_transform = cam_layers(model, torch.randn(1, 3, 64, 64))
    assert layers == [model.get_submodule(layer)]
    assert (reshape_transform is not None) == reshaped


def test_layers_are_ready_for_pytorch_grad_cam():
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = network("patchconvnet_nano"), torch.randn(2, 3, 64, 64)
    layers, reshape_transform = cam_layers(model, images)
    with GradCAM(model, layers, reshape_transform) as cam:
        theirs = cam(images, [ClassifierOutputTarget(1), ClassifierOutputTarget(3)])
    ours, _ = grad_cam(model, images, torch.tensor([1, 3]))
    np.testing.assert_allclose(
        theirs, scale_cam_image(scale_cam_image(ours.numpy(), (64, 64))), atol=1e-5
    )


class ChannelsLast(nn.Module):
    """Its maps are (B, H, W, C)."""

    def __init__(self, channels):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.mix = nn.Linear(channels, channels)
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(self.mix(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.mark.parametrize("channels", [6, 8, 16])
def test_layout_is_told_whatever_the_number_of_channels(channels):
    for size in ((16, 16), (16, 32), (32, 16)):
        layers, reshape_transform = cam_layers(ChannelsLast(channels), torch.randn(1, 3, *size))
        assert isinstance(layers[0], nn.Linear)
        mapped = reshape_transform(torch.zeros(1, size[0] // 2, size[1] // 2, channels))
        assert mapped.shape == (1, channels, size[0] // 2, size[1] // 2)
        plain = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.AdaptiveAvgPool2d(1))
        assert cam_layers(plain, torch.randn(1, 3, *size))[1] is None


def test_layout_is_told_where_layers_shrink_the_map_unseen():
    class Strided(ChannelsLast):
        def forward(self, x):
            return self.fc(self.mix(self.stem(x).permute(0, 2, 3, 1)[:, ::2, ::2]).mean((1, 2)))

    maps, grid = grad_cam(Strided(6), torch.randn(1, 3, 32, 64), torch.tensor([0]))
    assert maps.shape == (1, 8, 16)
    assert grid == Grid.regular((8, 16), (32, 64))


def test_a_convolution_may_do_the_pooling():
    fully = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 5, 8), nn.Flatten())
    assert cam_layers(fully, torch.randn(1, 3, 16, 16))[0] == [fully[0]]


def test_a_layer_called_twice_is_passed_over():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.refine = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.refine(self.refine(self.stem(x))).mean((2, 3)))

    model = Repeated()
    assert cam_layers(model, torch.randn(1, 3, 16, 16))[0] == [model.stem]


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (lambda: network("test_vit"), 160),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Linear(4, 5)), 8),
        (lambda: network("patchconvnet_nano", **SMALL), 8),
        (lambda: network("aa_resnet_nano"), 32),
        (lambda: network("tf_mobilenetv3_small_minimal_100"), 32),
    ],
    ids=["tokens", "perceptron", "one position", "after stages", "TensorFlow's padding"],
)
def test_a_network_without_a_map_is_refused(model, size):
    with pytest.raises(ValueError, match=f"does not end in .* {size} x {size}"):
        grad_cam(model(), torch.randn(1, 3, size, size), torch.tensor([0]))


def state(model):
    hooks = [
        (dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks))
        for m in model.modules()
    ]
    parameters = [(p.requires_grad, id(p.grad)) for p in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [m.training for m in model.modules()], hooks, parameters, gradients, tensors


def disturbed_network():
    """Half in training, half frozen, some parameters with gradients."""
    model = network("resnet18").train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([0, 1])).backward()
    model.layer2.eval()
    for parameter in model.layer1.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return model


def assert_same(before, after):
    assert before[:3] == after[:3]
    torch.testing.assert_close(before[3:], after[3:], rtol=0, atol=0)


def test_the_model_is_left_as_it_was():
    model = disturbed_network()
    before = state(model)
    grad_cam(model, torch.randn(2, 3, 64, 64), torch.tensor([1, 2]))
    assert_same(before, state(model))


@pytest.mark.parametrize("runs_before", [0, 1], ids=["while looking", "while explaining"])
def test_the_model_is_left_as_it_was_after_an_error(runs_before):
    model = disturbed_network()
    runs = []

    def fail(module, args):
        runs.append(module)
        if len(runs) > runs_before:
            raise IndexError("out of paper")

    handle = model.fc.register_forward_pre_hook(fail)
    before = state(model)
    with pytest.raises(IndexError, match="out of paper"):
        grad_cam(model, torch.randn(2, 3, 64, 64), torch.tensor([1, 2]))
    assert_same(before, state(model))
    handle.remove()


def test_undisturbed_ends_training_of_every_module():
    model = disturbed_network()
    with frozen_eval_mode(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_maps_are_the_same_inside_a_mode_without_gradients(mode):
    model, images, targets = network("aa_resnet_nano"), torch.randn(2, 3, 64, 64), [1, 2]
    expected, _ = grad_cam(model, images, torch.tensor(targets))
    with mode():
        maps, _ = grad_cam(model, images * 1, torch.tensor(targets))
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    assert not maps.requires_grad


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.requires_grad_(False),
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.set_grad_checkpointing(True) or model,
        lambda model: torch.compile(model, backend="aot_eager"),
        lambda model: model.train(),
    ],
    ids=["frozen", "channels_last", "checkpointing", "compiled", "training"],
)
def test_maps_do_not_depend_on_how_the_model_is_held(change):
    model, targets = network("patchconvnet_nano", **SMALL), torch.tensor([1, 2])
    images = torch.randn(2, 3, 64, 64)
    expected, _ = grad_cam(model.eval(), images, targets)
    images = images.to(memory_format=torch.channels_last)
    maps, _ = grad_cam(change(model), images, targets)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


def test_half_precision_gives_maps():
    model, images = network("patchconvnet_nano", **SMALL), torch.randn(2, 3, 64, 64)
    targets = torch.tensor([1, 2])
    expected, _ = grad_cam(model, images, targets)
    maps, _ = grad_cam(model.bfloat16(), images.bfloat16(), targets)
    torch.testing.assert_close(maps, expected, rtol=0, atol=0.1 * float(expected.max()))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([1], r"shape \(1,\) for 2 images"),
        ([1, 5], "from 1 to 5, and the model has 5 classes"),
        ([-1, 2], "from -1 to 2"),
    ],
)
def test_wrong_targets_are_refused(targets, message):
    model = network("patchconvnet_nano", **SMALL)
    with pytest.raises(ValueError, match=message):
        grad_cam(model, torch.randn(2, 3, 64, 64), torch.tensor(targets))


def test_a_network_that_gives_maps_is_no_classifier():
    with pytest.raises(ValueError, match="no logits"):
        grad_cam(nn.Conv2d(3, 8, 3), torch.randn(1, 3, 16, 16), torch.tensor([0]))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam.utils.model_targets", None)
    model = network("patchconvnet_nano", **SMALL)
    with pytest.raises(ModuleNotFoundError, match="pytorch_grad_cam"):
        grad_cam(model, torch.randn(1, 3, 64, 64), torch.tensor([0]))
