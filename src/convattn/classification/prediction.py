"""Images in, their likeliest classes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from convattn.data import UnreadableImageError
from convattn.explanation import Prediction, class_names, class_probabilities, preprocess
from convattn.explanation.classes import pretrained_cfg
from convattn.explanation.preprocessing import read_as_seen
from convattn.files import replace_atomically
from convattn.modes import eval_mode
from convattn.text import json_text

_NUM_TOP = 5


def classify(model: nn.Module, image: Image.Image | Tensor) -> list[Prediction]:
    """The five likeliest classes of an image, the likeliest first; fewer where there are fewer.

    Args:
        model: A classifier; its ``pretrained_cfg`` says what it needs of an image.
        image: In RGB, as ``read_image`` gives it, or bytes (C, H, W), as ``read_bands`` does.

    Raises:
        ValueError: If the network takes other channels.
    """
    weight = next(model.parameters())
    pixels = preprocess(image, pretrained_cfg(model), "crop").pixels.to(weight.device, weight.dtype)
    with eval_mode(model), torch.inference_mode():
        shares = class_probabilities(model, model(pixels[None]))[0]
    names = class_names(model, len(shares))
    found = shares.topk(min(_NUM_TOP, len(shares)))
    ranked = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [Prediction(index, names[index], share) for index, share in ranked]


def predict_images(
    model: nn.Module, files: Sequence[Path], out: Path
) -> Iterator[tuple[str, str | UnreadableImageError]]:
    """Classify images, one after the other.

    At the end ``predictions.json`` holds, for each image that could be read, its path under
    ``image`` and under ``top`` the likeliest classes with ``class`` and ``probability``.

    Args:
        model: A classifier, as ``Run.load_model`` gives it.
        files: The images.
        out: A folder.

    Yields:
        Path of each image, and its likeliest class; or why it could not be read.
    """
    content = []
    cfg = pretrained_cfg(model)
    for file in files:
        try:
            image = read_as_seen(file, cfg)
        except UnreadableImageError as error:
            yield str(file), error
            continue
        found = classify(model, image)
        top = [{"class": one.name, "probability": one.probability} for one in found]
        content.append({"image": str(file), "top": top})
        yield str(file), f"{found[0].name}  {found[0].probability:.1%}"
    replace_atomically(out / "predictions.json", (json_text(content, indent=2) + "\n").encode())
