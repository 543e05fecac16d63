import pytest
import timm
import torch

from convattn import AAConv2d
from convattn.bench import count


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs", "activations"),
    [("resnet50", 25.557032, 4.09, 11.11), ("vit_base_patch16_224", 86.567656, 17.56, 16.49)],
)
def test_counts_are_those_of_timms_tables(name, parameters, gmacs, activations):
    with torch.device("meta"):
        network = timm.create_model(name)
    found = count(network, (3, 224, 224))
    assert found.parameters == parameters * 1e6
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=0.006)
    assert found.activations / 1e6 == pytest.approx(activations, abs=0.006)


@pytest.mark.parametrize("backend", [None, "sdpa", "experimental_triton"])
def test_attention_counts_what_the_result_needs_whatever_computes_it(backend):
    layer = AAConv2d(160, 160, 3, padding=1, feat_size=32, attn_backend=backend)
    size, heads, head_dim, dim_v = 32 * 32, 8, 20, 16
    maps = size * (160 * (9 * 144 + 2 * 160 + dim_v) + dim_v**2)
    attention = size**2 * (heads * head_dim + dim_v)
    positions = heads * size * head_dim * (32 + 32)
    assert count(layer, (160, 32, 32)).macs == maps + attention + positions
    assert layer.attn_backend == backend
