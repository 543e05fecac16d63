"""Tools that draw a network: every convolution is in the picture, and the network is as before."""

import pytest
import torch
from torch import nn

from tests.interop.networks import NETWORKS, difference, images, woken

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


def num_convolutions(model):
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_torchview_draws_every_convolution(name):
    torchview = pytest.importorskip("torchview")
    model = woken(name)
    with torch.no_grad():
        expected = model(images())
        drawn = torchview.draw_graph(
            model, images(), device="cpu", depth=9, expand_nested=True, mode="eval"
        )
        assert difference(model(images()), expected) == 0
    assert drawn.visual_graph.source.count(">Conv2d<BR/>") == num_convolutions(model)


@pytest.mark.parametrize("name", NETWORKS)
def test_tensorboards_graph_has_every_convolution(name, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = woken(name)
    with tensorboard.SummaryWriter(tmp_path) as writer, torch.no_grad():
        writer.add_graph(model, images())
    read = events.EventAccumulator(str(tmp_path)).Reload()
    found = [node for node in read.Graph().node if node.op == "aten::_convolution"]
    assert len(found) == num_convolutions(model)
