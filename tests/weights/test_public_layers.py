import math

import pytest
import torch

from convattn import AAConv2d
from convattn.weights import aa_conv_from_public

HEIGHT, WIDTH, HEADS, QK, V = 3, 4, 2, 6, 4
NAMES = {
    "LegenDong": ("conv_layer", "qkv_layer", "attn_layer"),
    "sebastiani": ("conv_out", "conv_qkv", "conv_attn"),
}


def public_tensors(whose):
    """A layer of 5 to 10 channels with the names of that repository."""
    torch.manual_seed(0)
    conv, qkv, proj = NAMES[whose]
    shapes = {
        f"{conv}.weight": (10 - V, 5, 3, 3),
        f"{conv}.bias": (10 - V,),
        f"{qkv}.weight": (2 * QK + V, 5, 1, 1),
        f"{qkv}.bias": (2 * QK + V,),
        f"{proj}.weight": (V, V, 1, 1),
        f"{proj}.bias": (V,),
        "key_rel_w": (2 * WIDTH - 1, QK // HEADS),
        "key_rel_h": (2 * HEIGHT - 1, QK // HEADS),
    }
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def by_the_paper(tensors, whose, image, order):
    """Section 3 position by position, for one image: (5, H, W) -> (10, H, W)."""
    conv, qkv, proj = NAMES[whose]
    packed = torch.einsum("oi,ihw->ohw", tensors[f"{qkv}.weight"][:, :, 0, 0], image)
    packed += tensors[f"{qkv}.bias"][:, None, None]
    parts = dict(zip(order, packed.split([QK, QK, V]), strict=True))
    positions = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
    gathered = torch.zeros(V, HEIGHT, WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        qk = slice(head * QK // HEADS, (head + 1) * QK // HEADS)
        own = slice(head * V // HEADS, (head + 1) * V // HEADS)
        for y, x in positions:
            query = parts["q"][qk, y, x]
            logits = []
            for ky, kx in positions:
                key = parts["k"][qk, ky, kx]
                key = key + tensors["key_rel_w"][kx - x + WIDTH - 1]
                key = key + tensors["key_rel_h"][ky - y + HEIGHT - 1]
                logits.append((query @ key).item() / math.sqrt(QK / HEADS))
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
            for weight, (ky, kx) in zip(weights, positions, strict=True):
                gathered[own, y, x] += weight * parts["v"][own, ky, kx]
    attended = torch.einsum("oi,ihw->ohw", tensors[f"{proj}.weight"][:, :, 0, 0], gathered)
    attended += tensors[f"{proj}.bias"][:, None, None]
    convolved = torch.nn.functional.conv2d(
        image[None], tensors[f"{conv}.weight"], tensors[f"{conv}.bias"], padding=1
    )[0]
    return torch.cat([convolved, attended])


@pytest.mark.parametrize("order", ["qkv", "kqv"])
@pytest.mark.parametrize("whose", NAMES)
def test_the_layer_computes_what_the_paper_says_of_their_tensors(whose, order):
    tensors = public_tensors(whose)
    layer = AAConv2d(
        5, 10, 3, padding=1, num_heads=HEADS, qk_ratio=0.6, v_ratio=0.4, min_head_dim=1,
        feat_size=(HEIGHT, WIDTH),
    ).double()  # fmt: skip
    layer.load_state_dict(aa_conv_from_public(tensors, order=order))
    image = torch.randn(5, HEIGHT, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(
        layer(image[None])[0], by_the_paper(tensors, whose, image, order), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("part", ["qkv_conv", "kqv_conv"])
def test_layers_with_a_scrambled_output_are_refused(part):
    with pytest.raises(ValueError, match=f"'{part}.weight' is of a layer whose output is scrambl"):
        aa_conv_from_public({f"{part}.weight": torch.zeros(16, 5, 1, 1)})


def test_a_foreign_tensor_is_named():
    with pytest.raises(ValueError, match=r"'bn\.weight' is of no public .* expected conv_layer"):
        aa_conv_from_public({"bn.weight": torch.zeros(1)})


def test_another_order_is_refused():
    with pytest.raises(ValueError, match="order='vqk' is not 'qkv' or 'kqv'"):
        aa_conv_from_public({}, order="vqk")
