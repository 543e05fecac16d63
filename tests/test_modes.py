"""The device that networks are run on."""

import pytest
import torch

from convattn.modes import default_device, multiplies_in_tf32


def test_a_device_is_taken_by_its_name() -> None:
    assert default_device("cpu") == torch.device("cpu")
    assert default_device(torch.device("meta")) == torch.device("meta")


def test_a_name_of_no_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device='gpu7' is none of PyTorch's; expected cpu, cuda"):
        default_device("gpu7")


def test_a_gpu_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert default_device(None) == torch.device("cpu")
    with pytest.raises(ValueError, match="finds no GPU here; leave it out"):
        default_device("cuda")


@pytest.mark.parametrize(("precision", "said"), [("tf32", True), ("ieee", False)])
def test_tf32_is_told_by_either_name_that_pytorch_has_for_it(
    precision: str, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = type("New", (), {"fp32_precision": precision}), type("Old", (), {"allow_tf32": said})
    for matmul in (new, old):
        monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
        assert multiplies_in_tf32() is said
