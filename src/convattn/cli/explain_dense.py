"""``convattn explain`` of detectors and segmenters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convattn.cli.targets import Target, find_images
from convattn.cli.words import UsageError, fail
from convattn.text import json_text, printable, say

if TYPE_CHECKING:
    from PIL import Image

    from convattn.explanation.dense import DenseExplanation

_OF_CLASSIFIERS = (
    "view",
    "layers",
    "weights",
    "num_classes",
    "faithfulness",
    "truth",
    "num_steps",
    "seed",
)


def check_options(target: Target, options: Any, default: Any) -> None:
    """Refuse what only classifiers heed, and words that contradict each other.

    Args:
        target: A run of a detector or segmenter.
        options: Of the command.
        default: Those that nobody gave.

    Raises:
        UsageError: If there is such an option.
    """
    does = f"{target.name} does {target.task.name}"
    for name in _OF_CLASSIFIERS:
        if getattr(options, name) != getattr(default, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is for networks that classify images; {does}")
    if options.method == "evidence":
        raise UsageError(
            f"--method evidence is for networks that classify images; {does}: give gradcam, or "
            "attention with --query Y X"
        )
    if options.query is None:
        for name in ("layer", "head"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} chooses attention: give --query Y X, too")
        if options.method == "attention":
            raise UsageError(
                f"--method attention needs a point, --query Y X in pixels of the image; {does}"
            )
    elif options.target or options.top_k is not None or options.method == "gradcam":
        raise UsageError(
            "--query shows attention from a point, of no class; leave --target, --top-k and "
            "--method gradcam out"
        )


def command(target: Target, options: Any) -> int:
    """Explain every image; one that cannot be read or explained is told, and the others go on.

    Args:
        target: A run of a detector or segmenter.
        options: Of the command, checked.
    """
    from convattn.data.reading import read_or_error
    from convattn.files import new_folder, replace_atomically, unused_name
    from convattn.modes import default_device

    model = target.load_model().to(default_device(options.device))
    images = find_images(Path(options.image))
    explained: list[Mapping[str, Any]] = []
    used: set[str] = set()
    out: Path | None = None
    for number, file in enumerate(images, 1):
        image = read_or_error(file)
        try:
            if isinstance(image, Exception):
                raise image
            found = _explain(target, model, image, options)
        except ValueError as error:
            if len(images) == 1:
                raise
            fail(f"{file}: {error}" if str(file) not in str(error) else str(error), 2)
            continue
        out = out or new_folder(options.out, "explained")
        for one in found:
            _write(one, out, unused_name(file.stem, used))
            say(printable(f"{number}/{len(images)}  {file}  {_told(one)}"), flush=True)
        described = [one.to_dict() for one in found]
        explained.append({"image": str(file), "explanations": described})
    if out is None:
        raise UsageError(f"none of the {len(images)} images could be explained")
    replace_atomically(out / "explanations.json", (json_text(explained, indent=2) + "\n").encode())
    say(f"\n{printable(str(out))}")
    failed = len(images) - len(explained)
    if failed:
        return fail(f"{failed} of {len(images)} files could not be explained", 2)
    return 0


def _explain(
    target: Target, model: Any, image: Image.Image, options: Any
) -> Sequence[DenseExplanation]:
    task: Any = target.task
    if options.query is not None:
        return [task.attend(model, image, options.query, layer=options.layer, head=options.head)]
    count = 1 if options.top_k is None else options.top_k
    found: Sequence[DenseExplanation] = task.explain(model, image, options.target, count=count)
    return found


def _told(one: DenseExplanation) -> str:
    if one.name is None:
        return "attention"
    return f"{one.name}  {one.score:.1%}"


def _write(one: DenseExplanation, out: Path, stem: str) -> None:
    import numpy as np

    one.drawing().save(out / f"{stem}.png")
    np.savez_compressed(out / f"{stem}.npz", heat=one.heat)
