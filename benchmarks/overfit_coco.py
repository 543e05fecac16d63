"""Can the detectors learn real images by heart? RetinaNet and Mask R-CNN on eight of COCO's.

    python benchmarks/overfit_coco.py instances_train2017.json train2017 --out DIR

The json holds masks, the folder its images. The first images with objects become a set of
their own whose test images are its training images; small networks are trained on it from
scratch, and found to know it or not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from convattn.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from convattn.tasks import train


def subset(file: Path, images: Path, out: Path, count: int) -> Path:
    """A set of the first images with objects, for training and test alike."""
    content = json.loads(file.read_text(encoding="utf-8"))
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [image for image in content["images"] if image["id"] in objects][:count]
    part = {
        "images": chosen,
        "categories": content["categories"],
        "annotations": [one for image in chosen for one in objects[image["id"]]],
    }
    (out / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(part))
        (out / split).mkdir()
        for image in chosen:
            (out / split / image["file_name"]).symlink_to((images / image["file_name"]).resolve())
    return out


def configs(root: Path, out: Path, *, image_size: int, epochs: int, seed: int) -> list[TrainConfig]:
    """One run of each detector; an epoch is one step on all images."""
    count = len(list((root / "train2017").iterdir()))
    detectors = {
        "retinanet": ModelConfig(
            name="retinanet",
            backbone="aa_resnet_nano",
            backbone_args={"img_size": image_size},
            model_args={
                "channels": 64,
                "anchor_scale": 2.0,
                "head_convs": 2,
                "head_init": "kaiming",
            },
        ),
        "mask_rcnn": ModelConfig(
            name="mask_rcnn",
            backbone="aa_resnet_nano",
            backbone_args={"img_size": image_size},
            model_args={"channels": 64, "anchor_scale": 4.0, "box_channels": 256},
        ),
    }
    return [
        TrainConfig(
            recipe=f"overfit_{name}",
            data=DataConfig(
                name="coco", root=str(root), batch_size=count, image_size=image_size, hflip=0.0
            ),
            model=model,
            optim=OptimConfig(opt="muon", lr=5e-3, weight_decay=0.0, warmup_epochs=10),
            epochs=epochs,
            seed=seed,
            clip_grad=10.0,
            channels_last=True,
            log_every=5,
            eval_every=max(1, epochs // 4),
            out=str(out / f"{name}_{seed}"),
        )
        for name, model in detectors.items()
    ]


def main() -> None:
    """Train both and print what they know."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-images", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("retinanet", "mask_rcnn"))
    options = parser.parse_args()
    root = options.out / "images"
    if not root.exists():
        subset(options.json, options.images, root, options.num_images)
    sizes = {"image_size": options.image_size, "epochs": options.epochs, "seed": options.seed}
    for config in configs(root, options.out, **sizes):
        if options.only not in (None, config.model.name):
            continue
        start = time.perf_counter()
        run = train(config)
        assert run is not None
        minutes = (time.perf_counter() - start) / 60
        result: Any = run.result
        masks = result.segm_map50
        masks_text = "" if masks is None else f", mask AP50 {masks:.3f}"
        print(f"{config.recipe}: box AP50 {result.map50:.3f}{masks_text}; {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
