import pytest
import timm
import torch

import convattn  # noqa: F401  (registers the models)
from convattn.explain import cell_centres, image_sized


def windows(name):
    """Kernel, stride and padding of what shrinks a network's maps."""
    model = timm.create_model(name)
    layers = model.stem if "patch" in name else torch.nn.Sequential(model.conv1, model.maxpool)
    kinds = torch.nn.Conv2d | torch.nn.MaxPool2d
    return [(m.kernel_size, m.stride, m.padding) for m in layers.modules() if isinstance(m, kinds)]


@pytest.mark.parametrize("name", ["patchconvnet_s60", "patchconvnet_nano", "aa_resnet50"])
def test_cells_look_at_the_centres_of_their_receptive_fields(name):
    x = torch.ones(1, 1, 256, 256, dtype=torch.float64, requires_grad=True)
    y = x
    for kernel, stride, padding in windows(name):
        y = torch.nn.functional.avg_pool2d(y, kernel, stride, padding)
    cell = y.shape[-1] // 2
    (field,) = torch.autograd.grad(y[0, 0, cell, cell], x)
    weight = field[0, 0].sum(0)
    centre = (weight * (torch.arange(256) + 0.5)).sum() / weight.sum()
    centres, stride = cell_centres(y.shape[-1], 256)
    assert centres[cell].item() == pytest.approx(centre.item())
    assert stride == 256 / y.shape[-1]


def test_sides_that_the_stride_does_not_divide():
    centres, stride = cell_centres(7, 27)
    assert stride == 4
    assert centres.tolist() == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5]
    centres, stride = cell_centres(6, 36)
    assert stride == 6
    assert centres.tolist() == [3, 9, 15, 21, 27, 33]


def test_heat_map_holds_each_cell_s_value_at_its_point():
    maps = torch.rand(2, 4, 3)
    heat = image_sized(maps, (32, 24))
    assert heat.shape == (2, 32, 24)
    torch.testing.assert_close(heat[:, ::8, ::8], maps)
    torch.testing.assert_close(heat[:, 4, 8], (maps[:, 0, 1] + maps[:, 1, 1]) / 2)
    torch.testing.assert_close(heat[:, 31, 23], maps[:, 3, 2])
