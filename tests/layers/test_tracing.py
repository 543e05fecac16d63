"""``torch.jit.trace`` holds at every size, whichever it was traced at."""

import pytest
import torch

from convattn import AAConv2d, LearnedAggregation2d
from convattn.layers.pools import create_pool

LAYERS = {
    "relative": lambda: AAConv2d(8, 16, 3, padding=1, num_heads=2, feat_size=(4, 4)),
    "sine": lambda: AAConv2d(8, 16, 3, padding=1, num_heads=2, position="sine", feat_size=4),
    "coord": lambda: AAConv2d(8, 16, 3, padding=1, num_heads=2, position="coord", feat_size=4),
    "residual": lambda: AAConv2d(
        8, 16, 3, stride=2, padding=1, num_heads=2, feat_size=2, residual=True
    ),
    "smaller attention": lambda: AAConv2d(
        8, 16, 3, padding=1, num_heads=2, feat_size=4, attn_downsample=2
    ),
    "aggregation": lambda: LearnedAggregation2d(8, 5, layer_scale=1.0),
    "pool": lambda: create_pool("residual", 8, gate=0.5),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is (deprecated|not supported)")
@pytest.mark.parametrize("traced_at", [4, 6])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_traced_layer_is_right_at_other_sizes(kind, traced_at):
    torch.manual_seed(0)
    layer = LAYERS[kind]().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                parameter.normal_()
        side = torch.randn(2, 8, traced_at, traced_at)
        traced = torch.jit.trace(layer, side, check_trace=False)
        for size in ((2, 2), (3, 4), (4, 4), (5, 6), (9, 7)):
            x = torch.randn(3, 8, *size)
            torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)
