"""One network explained in several threads, as a web service does."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from convattn import augment, capture_attention, evidence, explain

NETWORKS = {
    "attention": {"model_name": "patchconvnet_nano", "depth": 1, "embed_dim": 8},
    "convolutions": {"model_name": "aa_resnet_nano"},
    "evidence": {"model_name": "test_resnet"},
    "gradcam": {"model_name": "test_efficientnet", "global_pool": "max"},
}
WORKERS = 4


def pictures(count):
    drawn = np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in drawn]


@pytest.mark.parametrize("kind", NETWORKS)
def test_maps_are_those_of_one_thread(kind):
    torch.manual_seed(0)
    words = dict(NETWORKS[kind])
    model = timm.create_model(words.pop("model_name"), num_classes=3, **words)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 48, 48)}
    modes = [module.training for module in model.modules()]
    images = pictures(5)
    alone = [explain(model, image).heat for image in images]
    with ThreadPoolExecutor(WORKERS) as pool:
        together = list(pool.map(lambda image: explain(model, image).heat, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4 * abs(one).max())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())


def test_what_other_threads_run_is_not_captured():
    model = timm.create_model("patchconvnet_nano", depth=1, num_classes=3).eval()
    mine, other = torch.randn(1, 3, 32, 32), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), capture_attention(model) as maps:
        model(mine)
        thread = threading.Thread(target=lambda: model(other))
        thread.start()
        thread.join()
    assert maps["head"].shape == (1, 1, 1, 4, 4)


def test_evidence_is_of_the_thread_that_asks():
    model = augment(timm.create_model("test_resnet", num_classes=3), pool="attention").eval()
    stop = threading.Event()

    def others():
        with torch.no_grad():
            while not stop.is_set():
                model(torch.randn(1, 3, 32, 32))

    images = torch.randn(2, 3, 64, 64)
    thread = threading.Thread(target=others)
    thread.start()
    try:
        found = evidence(model, images)
    finally:
        stop.set()
        thread.join()
    with torch.no_grad():
        torch.testing.assert_close(found.maps.sum((2, 3)) + found.bias, model(images))
