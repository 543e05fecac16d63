"""Make ``truth.safetensors``: what other libraries say of the same maps, network and pictures.

    pip install captum==0.9.0 quantus==0.6.0 torchcam==0.5.0
    python tests/golden/make_truth.py

Not a test; none of the three is needed by the tests.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import quantus
import torch
from captum.attr import IntegratedGradients, Occlusion
from captum.metrics import sensitivity_max
from safetensors.torch import save_file
from torch import nn
from torchcam.methods import GradCAM, LayerCAM

NUM, SIDE, CLASSES, SAMPLES, RADIUS, STEPS = 5, 16, 4, 3, 0.05, 16


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model.eval().requires_grad_(False)


def gradients(model, images, targets):
    return IntegratedGradients(model).attribute(images, target=targets, n_steps=STEPS).sum(1)


def first(given):
    """Captum hands out tuples of the images, and images."""
    return given[0] if isinstance(given, tuple) else given


def explain(model, inputs, targets, **_):
    """For Quantus: arrays in, arrays out."""
    images, classes = torch.as_tensor(inputs).float(), torch.as_tensor(targets).long()
    return gradients(model, images, classes)[:, None].detach().numpy()


def replay(draws):
    """A perturbation that takes one draw after the other."""
    left = iter(draws)

    def perturb(arr, indices, **_):
        return arr + RADIUS * next(left).flatten(1).numpy()

    return perturb


def main():
    model = network()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(NUM, 1, SIDE, SIDE, generator=generator)
    targets = torch.tensor([0, 1, 2, 3, 1])
    heats = torch.rand(NUM, SIDE, SIDE, generator=generator)
    masks = torch.zeros(NUM, SIDE, SIDE, dtype=torch.bool)
    for number in range(NUM):
        masks[number, 2 + number : 7 + number, 3 : 12 - number] = True
    draws = [2 * torch.rand(images.shape, generator=generator) - 1 for _ in range(SAMPLES)]
    x, y, a, s = (part.numpy() for part in (images, targets, heats[:, None], masks[:, None]))
    common = {"model": model, "x_batch": x, "y_batch": y, "device": "cpu"}
    plain = {"abs": False, "normalise": False, "disable_warnings": True}
    found = {"images": images, "targets": targets, "heats": heats, "masks": masks}
    found |= {"draws": torch.stack(draws)}
    found |= {f"state/{name}": value for name, value in model.state_dict().items()}

    maps = gradients(model, images, targets)
    found["captum/integrated_gradients"] = maps
    found["captum/occlusion"] = Occlusion(model).attribute(
        images, sliding_window_shapes=(1, 5, 4), strides=(1, 3, 2), target=targets
    )[:, 0]
    found["captum/sensitivity_max"] = sensitivity_max(
        lambda given, target: (gradients(model, first(given), target),),
        images,
        perturb_func=lambda inputs: inputs + RADIUS * torch.stack(draws, 1).flatten(0, 1),
        n_perturb_samples=SAMPLES,
        target=targets,
    )
    found["quantus/max_sensitivity"] = quantus.MaxSensitivity(
        nr_samples=SAMPLES, perturb_func=replay(draws), **plain
    )(**common, a_batch=maps[:, None].detach().numpy(), explain_func=explain, batch_size=NUM)
    for name, metric in (
        ("pointing", quantus.PointingGame(**plain)),
        ("energy", quantus.RelevanceMassAccuracy(**plain)),
    ):
        found[f"quantus/{name}"] = metric(**common, a_batch=a, s_batch=s, batch_size=NUM)
    found["quantus/deletion"] = quantus.PixelFlipping(
        features_in_step=SIDE * SIDE // STEPS, perturb_baseline=0.0, **plain
    )(**common, a_batch=a, softmax=True, batch_size=NUM)
    found["quantus/randomised"] = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman, seed=42, **plain
    )(**common, explain_func=explain, batch_size=NUM)
    stages = {k: v for k, v in found["quantus/randomised"].items() if k != "original"}
    found["quantus/randomised"] = np.array(list(stages.values()), dtype=np.float64).T
    others = quantus.RandomLogit(
        similarity_func=quantus.similarity_func.correlation_spearman,
        num_classes=2,
        seed=0,
        **plain,
    )
    two = dict(common, y_batch=np.zeros_like(y))  # of two classes the other one is known
    found["quantus/other_class"] = others(**two, explain_func=explain, batch_size=NUM)
    for name, kind in (("grad_cam", GradCAM), ("layer_cam", LayerCAM)):
        model.requires_grad_(True)
        with kind(model, target_layer="3") as extractor:
            logits = model(images.clone().requires_grad_())
            found[f"torchcam/{name}"] = extractor(targets.tolist(), logits, normalized=False)[0]
    tensors = {
        k: torch.as_tensor(np.asarray(v.detach() if torch.is_tensor(v) else v))
        for k, v in found.items()
    }
    for name, value in tensors.items():
        print(name, tuple(value.shape), value.dtype)
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        Path(__file__).with_name("truth.safetensors"),
        metadata={"radius": str(RADIUS), "steps": str(STEPS), "window": "5x4", "stride": "3x2"},
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
