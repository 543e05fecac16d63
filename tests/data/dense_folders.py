"""Small data sets for detection and segmentation: images of noise, boxes, outlines, masks."""

import json

import numpy as np
from PIL import Image

CATEGORIES = [{"id": 9, "name": "bee"}, {"id": 3, "name": "ant"}]


def noise(file, height, width, seed):
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file)


def write_coco(root, train=7, val=3, *, outlines=True):
    """Images of 0 to 2 objects, polygons and run lengths, one of each three a crowd."""
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for number in range(count):
            height, width = 40 + number, 56 - number
            noise(root / split / f"{number}.jpg", height, width, number)
            image = {"id": 10 * number + 3, "width": width, "height": height}
            images.append({**image, "file_name": f"{number}.jpg"})
            for place in range(number % 3):
                x, y, wide, high = 1.37 * place + 2, 3.1, 17.3, 15.7 + place
                crowd = number == 2 and place == 1
                runs = {"size": [height, width], "counts": [5, 300, height * width - 305]}
                polygon = [[x, y, x + wide, y, x + wide, y + high]]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": (3, 9)[place],
                        "bbox": [x, y, wide, high],
                        "area": 31.7 + place,
                        "iscrowd": int(crowd),
                        "segmentation": (runs if crowd else polygon) if outlines else [],
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def write_masks(root, train=7, val=3, *, kind="indices"):
    """Images with masks of three classes, or of one object in 0 and 255, or in colours."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            noise(root / "images" / split / f"{number}.png", 40, 48, number)
            mask = np.random.default_rng(number).integers(0, 3, (40, 48), dtype=np.uint8)
            mask[:2] = 255
            if kind == "binary":
                mask = np.where(mask == 1, 255, 0).astype(np.uint8)
            if kind == "colours":
                mask = np.stack([mask, mask // 2, mask], axis=-1)
            file = root / "masks" / split / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    if kind == "colours":
        names = "name,r,g,b\nroad,0,0,0\ngrass,1,0,1\nsky,2,1,2\nvoid,255,127,255\n"
        (root / "class_dict.csv").write_text(names)
    elif kind == "indices":
        (root / "classes.txt").write_text("road\ngrass\nsky\n")
    return root
