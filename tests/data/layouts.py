"""One set of images with objects, written as COCO's json, YOLO, Pascal VOC and LabelMe."""

import json
from dataclasses import dataclass, field
from xml.sax.saxutils import escape


@dataclass
class Thing:
    name: str
    box: tuple  # xmin, ymin, xmax, ymax in pixels
    polygon: list | None = None  # x, y in turn


@dataclass
class Picture:
    name: str
    width: int
    height: int
    things: list = field(default_factory=list)


def write_coco(root, pictures, classes, place):
    """``pictures`` is split -> list; ``place(picture, folder)`` puts the image there."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    for split, listed in pictures.items():
        images, annotations = [], []
        for number, picture in enumerate(listed, start=1):
            place(picture, root / split)
            images.append(
                {
                    "id": number,
                    "file_name": picture.name,
                    "width": picture.width,
                    "height": picture.height,
                }
            )
            for thing in picture.things:
                left, top, right, bottom = thing.box
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": classes.index(thing.name) + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "segmentation": [thing.polygon] if thing.polygon else [],
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_yolo(root, pictures, classes, place):
    names = "".join(f"  {number}: {name!r}\n" for number, name in enumerate(classes))
    splits = "".join(f"{split}: ../{split}/images\n" for split in pictures)
    root.mkdir(parents=True)
    (root / "data.yaml").write_text(f"{splits}nc: {len(classes)}\nnames:\n{names}")
    for split, listed in pictures.items():
        (root / split / "labels").mkdir(parents=True)
        for picture in listed:
            place(picture, root / split / "images")
            rows = []
            for thing in picture.things:
                left, top, right, bottom = thing.box
                numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
                numbers = thing.polygon or numbers
                sides = [picture.width, picture.height] * (len(numbers) // 2)
                shares = (f"{one / side:.9f}" for one, side in zip(numbers, sides, strict=True))
                rows.append(f"{classes.index(thing.name)} {' '.join(shares)}\n")
            stem = picture.name.rsplit(".", 1)[0]
            (root / split / "labels" / f"{stem}.txt").write_text("".join(rows))


def write_voc(root, pictures, classes, place, first_pixel=1):
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "labels.txt").write_text("\n".join(classes))
    for split, listed in pictures.items():
        stems = []
        for picture in listed:
            place(picture, root / "JPEGImages")
            stems.append(picture.name.rsplit(".", 1)[0])
            objects = "".join(_voc_object(thing, first_pixel) for thing in picture.things)
            (root / "Annotations" / f"{stems[-1]}.xml").write_text(
                f"<annotation>\n<filename>{picture.name}</filename>\n<size><width>{picture.width}"
                f"</width><height>{picture.height}</height><depth>3</depth></size>\n{objects}"
                "</annotation>\n"
            )
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def _voc_object(thing, first_pixel):
    left, top, right, bottom = map(int, thing.box)
    return (
        f"<object><name>{escape(thing.name)}</name><difficult>0</difficult><bndbox>"
        f"<xmin>{left + first_pixel}</xmin><ymin>{top + first_pixel}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>\n"
    )


def write_labelme(root, pictures, classes, place):
    root.mkdir(parents=True)
    (root / "labels.txt").write_text("\n".join(("__ignore__", "_background_", *classes)))
    for split, listed in pictures.items():
        for picture in listed:
            place(picture, root / split)
            shapes = []
            for thing in picture.things:
                flat = thing.polygon or thing.box
                shapes.append(
                    {
                        "label": thing.name,
                        "points": [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)],
                        "group_id": None,
                        "shape_type": "polygon" if thing.polygon else "rectangle",
                        "flags": {},
                    }
                )
            content = {
                "version": "5.4.1",
                "flags": {},
                "shapes": shapes,
                "imagePath": f"..\\{split}\\{picture.name}",
                "imageData": None,
                "imageHeight": picture.height,
                "imageWidth": picture.width,
            }
            stem = picture.name.rsplit(".", 1)[0]
            (root / split / f"{stem}.json").write_text(json.dumps(content))


WRITERS = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
}
