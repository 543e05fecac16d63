"""The class of an image by a file of ``convattn export RUN --format openvino``.

python classify_openvino.py RUN.xml IMAGE ... needs openvino, NumPy and Pillow, and no PyTorch.
"""

import json
import sys

import numpy as np
from PIL import Image

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else its makers are told
import openvino  # noqa: E402 - not before the line above


def read_image(path: str, cfg: dict) -> np.ndarray:
    """A normalised image, (1, C, H, W): resized by its shorter side and cropped in the middle."""
    channels, height, width = cfg["input_size"]
    image = Image.open(path).convert("RGB" if channels == 3 else "L")
    shorter = int(min(height, width) / cfg["crop_pct"])
    scale = shorter / min(image.size)
    size = [shorter if side == min(image.size) else int(side * scale) for side in image.size]
    resized = image.resize(size, Image.Resampling[cfg["interpolation"].upper()])
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    cropped = resized.crop((left, top, left + width, top + height))
    pixels = np.asarray(cropped, np.float32).reshape(height, width, channels) / 255
    normalised = (pixels - cfg["mean"]) / cfg["std"]
    return normalised.transpose(2, 0, 1)[None].astype(np.float32)


def main(file: str, *images: str) -> None:
    """Print each image's likeliest class and its probability."""
    core = openvino.Core()
    model = core.read_model(file)
    cfg = json.loads(model.get_rt_info(["convattn", "pretrained_cfg"]).astype(str))
    compiled = core.compile_model(model, "CPU")
    for path in images:
        (logits,) = compiled(read_image(path, cfg))["logits"]
        shares = np.exp(logits - logits.max())
        best = logits.argmax()
        print(f"{path}  {cfg['label_names'][best]}  {shares[best] / shares.sum():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
