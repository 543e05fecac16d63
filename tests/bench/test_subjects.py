import pytest

from convattn.bench import layer_subject


def test_a_layer_takes_arguments_and_judges_them_at_once():
    layer = layer_subject("AAConv2d", in_channels=24, kernel_size=5, padding=2)
    assert layer.input_size == (24, 32, 32)
    assert layer.make().kernel_size == (5, 5)
    with pytest.raises(ValueError, match="num_heads=0 is not a positive integer"):
        layer_subject("AAConv2d", num_heads=0)
