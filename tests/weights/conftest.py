import pytest
import torch.hub

from tests.weights.checkpoints import LISTING, released_tensors, write_checkpoint


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """A cache of each test's own, and nothing that could fill it."""

    def refuse(url, *_, **__):
        raise AssertionError(f"a test asked the network for {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="session")
def s60(tmp_path_factory):
    """A file with the released names and shapes, whose values are random."""
    folder = tmp_path_factory.mktemp("released")
    return write_checkpoint(folder / "s60_224_1k.pth", released_tensors("S60"))


@pytest.fixture(scope="session")
def s60_multi(tmp_path_factory):
    """The same of the network with a token a class."""
    torch.manual_seed(0)
    shapes = LISTING["S60_multi"]["tensors"].items()
    tensors = {name: 0.02 * torch.randn(shape) for name, shape in shapes}
    folder = tmp_path_factory.mktemp("released")
    return write_checkpoint(folder / "s60_multi_finetune_1k.pth", tensors)
