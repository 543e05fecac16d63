import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from convattn import AAConv2d, augment, capture_attention
from convattn.explanation import Grid, GridTracker, cell_centres


def centre_of_field(network, cell, size):
    """What a cell of a network of positive weights looks at: its receptive field's middle."""
    x = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    y = network(x)
    (field,) = torch.autograd.grad(y[0, 0, cell[0], cell[1]], x)
    place = torch.arange(size) + 0.5
    weight = field[0, 0] / field.sum()
    return [(weight.sum(1) * place).sum().item(), (weight.sum(0) * place).sum().item()]


def ones(kernel_size, **window):
    conv = nn.Conv2d(1, 1, kernel_size, bias=False, dtype=torch.float64, **window)
    nn.init.ones_(conv.weight)
    return conv


class Pad(nn.Module):
    def __init__(self, pad):
        super().__init__()
        self.pad = pad

    def forward(self, x):
        return F.pad(x, self.pad)


convolutions = st.builds(
    ones,
    st.sampled_from([1, 2, 3, (3, 5), 4]),
    stride=st.sampled_from([1, 2, (2, 1)]),
    padding=st.sampled_from([0, 1, (1, 0)]),
    dilation=st.sampled_from([1, 2]),
)
pools = st.builds(nn.AvgPool2d, st.sampled_from([2, 3]), st.sampled_from([None, 1, 2]))
pads = st.builds(Pad, st.sampled_from([(1, 0), (0, 1, 2, 0), (-1, 0, 0, -1)]))
enlarged = st.builds(nn.Upsample, scale_factor=st.just(2), mode=st.just("bilinear"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(convolutions, pools, pads, enlarged), min_size=1, max_size=4))
def test_a_cell_lies_at_the_middle_of_its_receptive_field(layers):
    network, size = nn.Sequential(*layers), 160
    with torch.no_grad(), GridTracker() as grids:
        try:
            y = network(torch.ones(1, 1, size, size, dtype=torch.float64))
        except RuntimeError as error:
            if "Kernel size can't be greater" in str(error):
                reject()
            raise
        grid = grids.of(y)
    assume(min(y.shape[2:]) >= 12)  # the field of the cell in the middle lies inside
    assert grid.feat_size == tuple(y.shape[2:])
    assert grid.image_size == (size, size)
    cell = y.shape[2] // 2, y.shape[3] // 2
    expected = centre_of_field(network, cell, size)
    assert [grid.rows[cell[0]].item(), grid.columns[cell[1]].item()] == pytest.approx(expected)


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("window", [{"stride": 2, "padding": 1}, {}, {"ceil_mode": True}])
def test_every_pool_is_followed(pool, window):
    x = torch.zeros(1, 1, 17, 17)
    with GridTracker() as grids:
        grid = grids.of(pool(3, **window)(x))
    start, stride = (0.5, 2) if "padding" in window else (1.5, 3)
    assert (grid.start, grid.stride) == ((start, start), (stride, stride))


def test_same_padding_and_adaptive_pools():
    x = torch.zeros(1, 3, 24, 24)
    with GridTracker() as grids:
        same = grids.of(nn.Conv2d(3, 3, 3, padding="same")(x))
        tiles = grids.of(nn.AdaptiveAvgPool2d((4, 6))(x))
    assert same == Grid.of_pixels((24, 24))
    assert (tiles.rows.tolist(), tiles.columns.tolist()) == (
        [3, 9, 15, 21],
        [2, 6, 10, 14, 18, 22],
    )


@pytest.mark.parametrize(
    ("name", "start"), [("convnext_atto", 16), ("resnet18", 0.5), ("densenet121", 14.5)]
)
def test_networks_that_cut_patches_look_at_the_middle_of_them(name, start):
    model = timm.create_model(name).eval()
    with torch.no_grad(), GridTracker() as grids:
        grid = grids.of(model.forward_features(torch.zeros(1, 3, 96, 64)))
    assert grid == Grid((3, 2), (96, 64), (start, start), (32, 32))


def test_layout_does_not_matter():
    with GridTracker() as grids:
        y = nn.Conv2d(3, 8, 2, stride=2)(torch.zeros(1, 3, 8, 12))
        tokens = y.flatten(2).transpose(1, 2)
        assert grids.of(tokens.softmax(-1), (4, 6)) == grids.of(y)


def test_a_size_changed_in_ways_nobody_follows_gets_the_usual_grid():
    x = torch.zeros(1, 3, 32, 32)
    with GridTracker() as grids:
        y = nn.PixelUnshuffle(2)(nn.Conv2d(3, 4, 3, 2, 1)(x))
        assert grids.of(y, (8, 8)) == Grid.regular((8, 8), (32, 32))


def test_an_attention_convolution_without_padding_looks_at_its_windows_centres():
    layer = AAConv2d(3, 8, 5, stride=2, num_heads=2)
    with capture_attention(layer, queries="mean") as maps:
        y = layer(torch.zeros(1, 3, 21, 15))
    assert tuple(maps[""].shape[-2:]) == tuple(y.shape[2:])
    assert maps.grids[""] == Grid((9, 6), (21, 15), (2.5, 2.5), (2, 2))


def test_an_augmented_patchifying_network_is_placed_exactly():
    model = augment(timm.create_model("convnext_atto", num_classes=4), pool="attention").eval()
    with torch.no_grad(), capture_attention(model) as maps:
        model(torch.zeros(1, 3, 64, 64))
    (grid,) = maps.grids.values()
    assert (grid.start, grid.stride) == ((16, 16), (32, 32))


def test_what_is_done_to_images_before_the_network_does_not_count():
    model = timm.create_model("patchconvnet_nano", num_classes=3).eval()
    with torch.no_grad(), capture_attention(model) as maps:
        model(F.interpolate(torch.zeros(1, 3, 128, 128), (64, 64)))
    assert maps.grids["head"].image_size == (64, 64)


def test_the_usual_grid_of_sides_that_the_stride_does_not_divide():
    centres, stride = cell_centres(7, 27)
    assert stride == 4
    assert centres.tolist() == [0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5]
    centres, stride = cell_centres(6, 36)
    assert stride == 6
    assert centres.tolist() == [3, 9, 15, 21, 27, 33]


def test_heat_holds_each_cell_s_value_at_its_point():
    maps = torch.rand(2, 4, 3)
    heat = Grid.regular((4, 3), (32, 24)).heat(maps)
    assert heat.shape == (2, 32, 24)
    torch.testing.assert_close(heat[:, ::8, ::8], maps)
    torch.testing.assert_close(heat[:, 4, 8], (maps[:, 0, 1] + maps[:, 1, 1]) / 2)
    torch.testing.assert_close(heat[:, 31, 23], maps[:, 3, 2])


def test_heat_on_a_region_is_the_slow_loop_and_nothing_outside():
    torch.manual_seed(0)
    maps, grid = torch.rand(3, 4), Grid((3, 4), (24, 32), (4.0, 4.0), (8.0, 8.0))
    left, top, right, bottom = 10.0, -5.0, 50.0, 25.0
    heat = grid.heat(maps, (30, 60), (left, top, right, bottom))
    for y in range(30):
        for x in range(60):
            v = (y + 0.5 - top) / (bottom - top) * 24
            u = (x + 0.5 - left) / (right - left) * 32
            if not (0 <= v <= 24 and 0 <= u <= 32):
                assert heat[y, x] == 0
                continue
            row = min(max((v - 4) / 8, 0), 2)
            column = min(max((u - 4) / 8, 0), 3)
            value = sum(
                float(maps[i, j]) * max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j))
                for i in range(3)
                for j in range(4)
            )
            assert heat[y, x].item() == pytest.approx(value, rel=1e-5)


def test_the_cell_nearest_to_a_point():
    grid = Grid((3, 4), (24, 32), (4.0, 4.0), (8.0, 8.0))
    assert grid.cell((0.5, 31.5)) == (0, 3)
    assert grid.cell((8.5, 7.5)) == (1, 0)
