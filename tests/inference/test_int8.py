import copy
import io
import itertools

import pytest
import timm
import torch
from torch import nn

from convattn.inference.int8 import Int8Linear, quantize_int8, to_steps


class Block(nn.Module):
    """What quantisation sees of a PatchConvNet's block, on (B, H, W, C) maps."""

    def __init__(self, dim):
        super().__init__()
        self.conv_pw = nn.Linear(dim, dim)
        self.se = nn.Linear(dim, dim)
        self.conv_pwl = nn.Linear(dim, dim)

    def forward(self, x):
        gate = self.se(x.mean((1, 2), keepdim=True)).sigmoid()
        return x + self.conv_pwl(gate * self.conv_pw(x).relu())


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def in_steps(row):
    """One row's whole numbers and step, in float64 and number by number."""
    step = max(abs(value) for value in row) / 127
    return [round(value / step) if step else 0 for value in row], step


def integer_oracle(x, linear):
    """The product by whole numbers, every one of them in a double loop."""
    rows = [in_steps(row) for row in x.tolist()]
    columns = [in_steps(row) for row in linear.weight.tolist()]
    y = torch.empty(len(rows), len(columns), dtype=torch.float64)
    for (i, (row, step)), (j, (column, width)) in itertools.product(
        enumerate(rows), enumerate(columns)
    ):
        total = sum(a * b for a, b in zip(row, column, strict=True))
        y[i, j] = total * step * width + linear.bias[j].item()
    return y


def test_the_product_is_that_of_whole_numbers():
    linear, x = nn.Linear(12, 7), torch.randn(5, 12)
    torch.testing.assert_close(
        Int8Linear(linear)(x).double(), integer_oracle(x, linear), rtol=1e-5, atol=1e-6
    )


def test_a_sum_is_exact_where_sixteen_bits_would_overflow():
    linear, x = nn.Linear(512, 3, bias=False), torch.ones(2, 512)
    nn.init.ones_(linear.weight)
    torch.testing.assert_close(Int8Linear(linear)(x), torch.full((2, 3), 512.0))


def test_the_product_is_near_the_exact_one():
    linear, x = nn.Linear(384, 96), torch.randn(50, 384)
    exact = linear(x)
    error = (Int8Linear(linear)(x) - exact).square().mean().sqrt()
    assert error < 0.02 * exact.std()


def test_maps_keep_their_shape():
    assert Int8Linear(nn.Linear(64, 72))(torch.randn(2, 3, 5, 64)).shape == (2, 3, 5, 72)


def test_a_single_row_keeps_its_shape():
    assert Int8Linear(nn.Linear(64, 72))(torch.randn(64)).shape == (72,)


def test_an_empty_batch_passes():
    assert Int8Linear(nn.Linear(64, 72))(torch.randn(0, 3, 5, 64)).shape == (0, 3, 5, 72)


def test_no_number_is_further_from_its_step_than_half_of_it():
    x = torch.randn(20, 33) * torch.logspace(-30, 30, 20)[:, None]
    levels, step = to_steps(x)
    assert ((levels * step - x).abs() <= 0.5001 * step).all()


def test_the_largest_number_of_a_row_fills_the_range():
    levels, _ = to_steps(torch.randn(20, 33))
    assert levels.abs().amax(1).tolist() == [127] * 20


def test_the_step_of_zeros_is_not_zero():
    assert (to_steps(torch.zeros(3, 64))[1] > 0).all()  # 0 / 0 has no whole number


def test_rows_of_zeros_give_the_bias():
    linear = nn.Linear(64, 72)
    y = Int8Linear(linear)(torch.zeros(3, 64))
    torch.testing.assert_close(y, linear.bias.expand(3, 72), rtol=0, atol=0)


def test_an_output_channel_of_zeros_gives_its_bias():
    linear = nn.Linear(64, 72)
    nn.init.zeros_(linear.weight[5])
    y = Int8Linear(linear)(torch.randn(3, 64))
    torch.testing.assert_close(y[:, 5], linear.bias[5].expand(3), rtol=0, atol=0)


def test_an_outlier_coarsens_its_own_row_alone():
    int8, x = Int8Linear(nn.Linear(64, 72)), torch.randn(4, 64)
    spoilt = x.clone()
    spoilt[2, 7] = 1e6
    rest = [0, 1, 3]
    torch.testing.assert_close(int8(spoilt)[rest], int8(x)[rest], rtol=0, atol=0)


def test_nan_spoils_its_own_row_alone():
    x = torch.randn(3, 64)
    x[1, 7] = torch.nan
    assert Int8Linear(nn.Linear(64, 72))(x).isnan().all(1).tolist() == [False, True, False]


def test_half_precision_is_not_rounded_past_the_range():
    x = torch.randn(500, 64)
    linear = Int8Linear(nn.Linear(64, 72))
    rounded = x.bfloat16()
    torch.testing.assert_close(linear(rounded), linear(rounded.float()), rtol=0, atol=0)


def test_a_map_that_wants_gradients_is_taken_and_gets_none():
    y = Int8Linear(nn.Linear(64, 72))(torch.randn(3, 64, requires_grad=True))
    assert not y.requires_grad


def test_the_pointwise_layers_are_replaced():
    network = nn.Sequential(Block(64), Block(64))
    quantize_int8(network)
    names = [name for name, layer in network.named_modules() if isinstance(layer, Int8Linear)]
    assert names == ["0.conv_pw", "0.conv_pwl", "1.conv_pw", "1.conv_pwl"]


def test_all_other_layers_keep_every_bit():
    network = timm.create_model("patchconvnet_nano", num_classes=80).eval()
    before = copy.deepcopy(network.state_dict())
    quantize_int8(network)
    after = network.state_dict()
    kept = [name for name in before if ".conv_pw" not in name]
    assert len(kept) > 30
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_network_stays_close_to_itself():
    network = timm.create_model("patchconvnet_nano", layer_scale=0.1).eval().requires_grad_(False)
    x = torch.randn(2, 3, 64, 64)
    exact = network.forward_features(x)
    quantize_int8(network)
    error = (network.forward_features(x) - exact).square().mean().sqrt()
    assert 0 < error < 0.01 * exact.std()


def test_weights_take_a_quarter_of_the_room():
    linear = nn.Linear(512, 512, bias=False)
    sizes = [tensor.nbytes for tensor in Int8Linear(linear).state_dict().values()]
    assert sum(sizes) < 0.27 * linear.weight.nbytes


def copied(network):
    return copy.deepcopy(network)


def pickled(network):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(network):
    fresh = nn.Sequential(Block(64))
    quantize_int8(fresh)
    fresh.load_state_dict(network.state_dict())
    return fresh


@pytest.mark.parametrize("way", [copied, pickled, loaded])
def test_a_copy_gives_the_same(way):
    network, x = nn.Sequential(Block(64)), torch.randn(2, 3, 5, 64)
    quantize_int8(network)
    torch.testing.assert_close(way(network)(x), network(x), rtol=0, atol=0)


def test_compiling_breaks_no_graph():
    network, x = nn.Sequential(Block(64)), torch.randn(2, 3, 5, 64)
    quantize_int8(network)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize(
    "network",
    [nn.Linear(64, 64), nn.Sequential(Block(32)), nn.Sequential(Block(68))],
    ids=["no block", "narrow", "no multiple of 8"],
)
def test_a_network_with_nothing_to_quantise_is_refused(network):
    with pytest.raises(ValueError, match=r"has no layer for int8.*choose float32"):
        quantize_int8(network)


def test_a_network_elsewhere_is_refused_and_left_alone():
    network = nn.Sequential(Block(64)).to("meta")
    with pytest.raises(ValueError, match="runs on cpu and cuda, and Sequential is on meta"):
        quantize_int8(network)
    assert isinstance(network[0].conv_pw, nn.Linear)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 196])
def test_cuda_gives_what_the_processor_gives(rows):
    int8, x = Int8Linear(nn.Linear(64, 72)), torch.randn(rows, 64)
    torch.testing.assert_close(int8.cuda()(x.cuda()).cpu(), int8.cpu()(x), rtol=1e-4, atol=1e-4)
