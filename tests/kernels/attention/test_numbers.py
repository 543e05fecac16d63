"""What is no number goes through every kernel, as through the definition."""

import pytest
import torch

from convattn.functional import relative_attention_2d


@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("size", [(1, 2), (2, 3), (4, 4), (9, 9)])
@pytest.mark.parametrize("where", range(5))
def test_what_is_no_number_shows(backend, where, size, gradients):
    torch.manual_seed(0)
    height, width = size
    tensors = [torch.randn(1, 2, height * width, 8) for _ in range(3)]
    tensors += [torch.randn(2 * side - 1, 8) for side in size]
    tensors[where].view(-1, 8)[0, 2] = torch.nan
    tensors[0].requires_grad_(gradients)
    expected, found = (
        relative_attention_2d(*tensors, feat_size=size, backend=name) for name in ("plain", backend)
    )
    assert expected.isnan().any()
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
