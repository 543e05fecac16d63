"""The suite's numbers are those of captum, Quantus, torch-cam and pytorch-grad-cam."""

from pathlib import Path

import pytest
import torch
from pytorch_grad_cam.metrics.perturbation_confidence import (
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from safetensors.torch import load_file
from torch import nn

from convattn.explanation.faithfulness import deletion_insertion
from convattn.explanation.geometry import Grid
from convattn.explanation.gradcam import grad_cam, layer_cam
from convattn.explanation.truth.measures import (
    energy_in_mask,
    impute,
    max_sensitivity,
    peak_in_mask,
    road,
)
from convattn.explanation.truth.methods import integrated_gradients, occlusion
from convattn.explanation.truth.sanity import agreements, randomised_copies, rank_correlation

GOLDEN = Path(__file__).parents[2] / "golden" / "truth.safetensors"  # see make_truth.py there
STEPS, RADIUS = 16, 0.05


@pytest.fixture(scope="module")
def stored():
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def model(stored):
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1)]
    network = nn.Sequential(
        *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    state = {k.removeprefix("state/"): v for k, v in stored.items() if k.startswith("state/")}
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def assert_equal(found, expected):
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-4)


def gradients(model, stored):
    return integrated_gradients(model, stored["images"], stored["targets"], num_steps=STEPS)


def test_methods_are_captums_and_torch_cams(model, stored):
    asked = model, stored["images"], stored["targets"]
    assert_equal(gradients(model, stored), stored["captum/integrated_gradients"])
    found = occlusion(*asked, window=(5, 4), stride=(3, 2))
    assert_equal(found, stored["captum/occlusion"])
    # torch-cam lets negative sums be.
    assert_equal(grad_cam(*asked)[0], stored["torchcam/grad_cam"].clamp(min=0))
    assert_equal(layer_cam(*asked)[0], stored["torchcam/layer_cam"].clamp(min=0))


def test_pointing_and_energy_are_quantus(stored):
    grid = Grid.of_pixels((16, 16))
    given = stored["heats"], stored["masks"], grid
    assert_equal(peak_in_mask(*given), stored["quantus/pointing"])
    assert_equal(energy_in_mask(*given), stored["quantus/energy"])
    assert 0 < stored["quantus/pointing"].sum() < 5 or stored["quantus/energy"].std() > 0.01


def test_deletion_is_quantus_pixel_flipping(model, stored):
    given = stored["images"], stored["heats"], stored["targets"]
    curves = deletion_insertion(model, *given, num_steps=STEPS)
    assert_equal(curves.deletion[:, 1:], stored["quantus/deletion"])


@pytest.mark.parametrize("name", ["captum/sensitivity_max", "quantus/max_sensitivity"])
def test_max_sensitivity_is_captums_and_quantus(name, model, stored):
    found = max_sensitivity(
        lambda images: integrated_gradients(model, images, stored["targets"], num_steps=STEPS),
        stored["images"],
        gradients(model, stored),
        RADIUS * stored["draws"],
    )
    assert_equal(found, stored[name])
    assert found.min() > 0.01


def test_the_cascade_is_quantus_mprt(model, stored):
    stages = [gradients(copy, stored) for copy in randomised_copies(model, seed=43)]
    found = agreements(gradients(model, stored), stages)
    assert_equal(found, stored["quantus/randomised"])


def test_another_class_is_quantus_random_logit(model, stored):
    zeros = torch.zeros_like(stored["targets"])
    maps = [
        integrated_gradients(model, stored["images"], zeros + c, num_steps=STEPS) for c in (0, 1)
    ]
    assert_equal(rank_correlation(*maps), stored["quantus/other_class"])


# pytorch-grad-cam hands tensors to NumPy's functions.
library_warns = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")


@library_warns
def test_imputed_pixels_are_pytorch_grad_cams(stored):
    images = stored["images"].repeat(1, 3, 1, 1)
    images[:, 1] *= 2
    stays = stored["heats"] > 0.6
    found = impute(images, stays, noise=0.0)
    for image, mask, imputed in zip(images, stays, found, strict=True):
        assert_equal(imputed, NoisyLinearImputer(noise=0.0)(image, mask.float()))


@library_warns
def test_road_is_pytorch_grad_cams(model, stored):
    images, heats, targets = stored["images"], stored["heats"], stored["targets"]
    percentiles, scores = (10, 30, 50, 70, 90), []
    for percentile in percentiles:
        first, last = (
            PerturbationConfidenceMetric(kind(percentile, NoisyLinearImputer(noise=0.0)))(
                images, heats.numpy(), list(map(ClassifierOutputSoftmaxTarget, targets)), model
            )
            for kind in (RemoveMostRelevantFirst, RemoveLeastRelevantFirst)
        )
        scores.append(torch.from_numpy(last - first) / 2)
    found = road(model, images, heats, targets, percentiles=percentiles, noise=0.0)
    assert_equal(found, torch.stack(scores).mean(0))
    assert found.abs().max() > 0.01
