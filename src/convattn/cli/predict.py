"""``convattn predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from convattn.cli.targets import (
    check_free,
    check_window,
    find_images,
    new_folder,
    task_of_run,
)
from convattn.cli.words import UsageError, fail, parse

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Find objects, or the class of every pixel, on an image or on every image of a folder."""

    image: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER")] = None
    """An image, or a folder of images."""
    threshold: float = 0.5
    """Detection: least score of what is drawn and written, from 0 to 1."""
    window: tuple[int, int] | None = None
    """Segmentation: height and width of the windows that images are cut into; None: whole."""
    out: str | None = None
    """Folder to make; None makes predicted, or predicted-2 where that is taken."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie between 0 and 1")


def command(arguments: list[str]) -> int:
    """Run ``convattn predict``.

    Args:
        arguments: Words behind the command.
    """
    prog = "convattn predict"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {prog} RUN IMAGE|FOLDER [OPTIONS]\n")
        if not arguments:
            raise UsageError("name a run folder and an image")
        parse(PredictOptions, PredictOptions(), ["--help"], prog=f"{prog} RUN")
    target = arguments[0]
    if not Path(target).is_dir():
        raise UsageError(f"{target!r} is no run folder; name one that `convattn train` has made")
    options = parse(PredictOptions, PredictOptions(), arguments[1:], prog=f"{prog} {target}")
    folder = Path(target)
    task = task_of_run(folder)
    if options.image is None:
        raise UsageError(f"{prog} {target} takes an image or a folder of images")
    if task == "classification":
        raise UsageError(
            f"{target} classifies images: convattn explain {target} {options.image} tells the "
            "classes and where they are seen"
        )
    check_window(options.window, target, task)
    check_free(options.out)

    import torch

    from convattn.data import read_image
    from convattn.evaluate import load_run
    from convattn.predict import predict_classes, predict_objects

    images = find_images(Path(options.image))
    if len(images) == 1:
        read_image(images[0])  # the only one must be readable; of several, some may not be
    model, _ = load_run(folder)
    model.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = new_folder(options.out, "predicted")
    if task == "detection":
        told = predict_objects(model, images, out, threshold=options.threshold)
    else:
        told = predict_classes(model, images, out, window=options.window)
    failed = 0
    for number, (file, found) in enumerate(zip(images, told, strict=True), 1):
        if isinstance(found, Exception):
            failed += 1
            fail(str(found), 2)
        else:
            print(f"{number}/{len(images)}  {file}  {found}", flush=True)
    print(f"\n{out}")
    if failed:
        return fail(f"{failed} of {len(images)} files could not be read as an image", 2)
    return 0
