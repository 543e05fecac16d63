"""``convattn explain``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import tyro

from convattn.cli import explain_dense
from convattn.cli.targets import (
    Target,
    Weights,
    check_free,
    check_weights,
    find_images,
    find_target,
    with_data_flags,
)
from convattn.cli.words import UsageError, fail, parse
from convattn.config import DataConfig
from convattn.data import UnreadableImageError
from convattn.text import json_text, printable, say

if TYPE_CHECKING:
    from torch import nn

    from convattn.explanation import Explanation


# Of the sheet that shows all images at once; every image has files of its own.
_MOST_ROWS, _MOST_COLUMNS = 24, 6


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Show where a network looks on an image, or on every image of a folder."""

    image: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER")] = None
    """An image, or a folder of images."""
    target: tuple[str, ...] = ()
    """Classes to explain, by name or number; none: the likeliest one. Of a detector the surest box
    of each; of a segmenter the pixels of each."""
    top_k: int | None = None
    """Explain so many of the likeliest classes instead, or of a detector's surest boxes."""
    method: Literal["auto", "evidence", "attention", "gradcam"] = "auto"
    """evidence: exact shares of the logit; attention; gradcam; auto: the first that there is. Of
    detectors and segmenters gradcam, or attention with --query."""
    view: Literal["auto", "crop", "whole"] = "auto"
    """crop: what the network is tested with; whole: all of it; auto: whole for panoramas only."""
    layer: str | None = None
    """Name of the layer whose attention is shown; None takes the pool, else the last layer."""
    head: int | None = None
    """Number of the attention head; None takes their mean."""
    query: tuple[float, float] | None = None
    """y and x of a pixel: what does an attention convolution look at from there?"""
    layers: bool = False
    """Also draw the image through all attention convolutions."""
    out: str | None = None
    """Folder to make; None makes explained, or explained-2 where that is taken."""
    weights: Weights = None
    """Weights of a model that is given by name; None takes its released ones."""
    num_classes: int | None = None
    """Number of classes of those weights; None takes the model's own."""
    device: str | None = None
    """Where to compute, for example cpu or cuda; None takes the GPU if there is one."""
    faithfulness: bool = False
    """Take no image: test on a data set whether the maps tell the truth, beside Grad-CAM."""
    truth: bool = False
    """Take no image: say of six methods whether their maps can be believed, by twelve measures with
    intervals; the same command with the --out of a stopped one goes on."""
    num_images: int = 500
    """Test images of --truth, at most; drawn."""
    masks: str | None = None
    """Folder of the objects' masks for --truth: PNGs, white on the object, that lie as the images
    do below --data.root. Without it boxes are used where the data set has them."""
    others: tuple[str, ...] = ()
    """Runs of other seeds for --truth: do their maps agree?"""
    trained_steps: int = 0
    """Also learn a method of its own for --truth, masks that keep the class (T-TAME), from so many
    batches of 32 training images; 200 is a start."""
    num_steps: int = 16
    """Steps of the deletion and insertion curves of these tests."""
    seed: int = 0
    """Seed of their random maps, and of all draws of --truth."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images of these tests; of a run, its own test images."""


def command(arguments: list[str]) -> int:
    """Run ``convattn explain``."""
    prog = "convattn explain"
    target = find_target(
        ExplainOptions(), arguments, prog=prog, model="MODEL", rest="IMAGE|FOLDER ", dense=True
    )
    options = parse(
        ExplainOptions,
        ExplainOptions(data=target.data),
        with_data_flags(arguments[1:]),
        prog=f"{prog} {target.name}",
    )
    check_weights(target.run, options.weights)
    if target.task.models:
        explain_dense.check_options(target, options, ExplainOptions())
    _check_choice(options, f"{prog} {target.name}")
    if target.task.models:
        check_free(options.out)
        return explain_dense.command(target, options)

    from convattn.modes import default_device

    if options.truth:
        return _test_truth(target, options)
    check_free(options.out)
    model = target.load_model(checkpoint=options.weights, num_classes=options.num_classes)
    model.to(default_device(options.device))
    if options.faithfulness:
        return _test_faithfulness(model, target.name, target.folder, options)
    assert options.image is not None
    images = find_images(Path(options.image))
    return _explain_images(model, target.name, images, options)


_OF_IMAGES = ("target", "top_k", "view", "layer", "head", "query", "layers")
_OF_TRUTH = ("num_images", "masks", "others", "trained_steps")


def _check_choice(options: ExplainOptions, command: str) -> None:
    """Refuse flags that contradict each other, or would have no effect.

    Raises:
        UsageError: If there are such.
    """
    tests = [name for name in ("faithfulness", "truth") if getattr(options, name)]
    if len(tests) + (options.image is not None) != 1:
        raise UsageError(
            f"{command} takes an image or a folder of images, or else --faithfulness or --truth"
        )
    if options.target and options.top_k is not None:
        raise UsageError("--target and --top-k both choose classes; give one of them")
    usual = ExplainOptions()
    refused = {
        "images": () if options.image is not None else _OF_IMAGES,
        "--truth": () if options.truth else _OF_TRUTH,
    }
    for what, names in refused.items():
        for name in names:
            if getattr(options, name) != getattr(usual, name):
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} goes with {what} alone; leave it out")


def _test_truth(target: Target, options: ExplainOptions) -> int:
    """Say whether the maps can be believed; files in a folder, the table on the screen."""
    from convattn.classification.truth import TruthConfig, check_truth_folder, measure_maps
    from convattn.explanation.truth import NETWORK_METHODS, Protocol
    from convattn.runs import Run

    check_truth_folder(options.out)
    config = TruthConfig(
        data=options.data,
        out=options.out,
        masks=options.masks,
        num_images=options.num_images,
        methods=NETWORK_METHODS if options.method == "auto" else (options.method,),
        protocol=Protocol(
            num_steps=options.num_steps, trained_steps=options.trained_steps, seed=options.seed
        ),
        device=options.device,
    )
    model = target.load_model(checkpoint=options.weights, num_classes=options.num_classes)
    others = {other: Run.open(other).load_model() for other in options.others}
    found, folder = measure_maps(model, Path(target.name).name, config, others)
    say(f"{found.table()}\n")
    for suffix in ("csv", "json", "md", "png"):
        say(str(folder / f"truth.{suffix}"))
    return 0


def _explain_images(
    model: nn.Module, name: str, images: Sequence[Path], options: ExplainOptions
) -> int:
    """Write an overlay and a map for every image, a sheet of all, and what they were taken for.

    One image that cannot be explained is the user's mistake; among several it is told, and the
    others go on.
    """
    import numpy as np

    from convattn.explanation import attention_through, explain_classes
    from convattn.explanation.figures import FIGURE_SIDE, draw_explanations, draw_layers
    from convattn.files import new_folder, replace_atomically, unused_name

    sheet: list[list[Explanation]] = []
    explained: list[dict[str, Any]] = []
    used = {"sheet"}
    out: Path | None = None
    for number, file in enumerate(images, 1):
        try:
            found = explain_classes(
                model,
                file,
                options.target or None,
                top_k=1 if options.top_k is None else options.top_k,
                method=options.method,
                view=options.view,
                layer=options.layer,
                head=options.head,
                query=options.query,
            )
            if options.layers:
                image, layers = attention_through(
                    model, file, query=options.query, view=options.view
                )
        except ValueError as error:
            # What fails for the first image and is not its fault would fail for all of them.
            about_image = isinstance(error, UnreadableImageError)
            if len(images) == 1 or (out is None and not about_image):
                raise
            text = str(error)
            fail(text if str(file) in text else f"{file}: {text}", 2)
            continue
        if out is None:
            out = new_folder(options.out, "explained")
        for one in found:
            several = "" if len(found) == 1 else f"_{_file_name(one.target.name)}"
            stem = unused_name(file.stem + several, used)
            one.overlay().save(out / f"{stem}.png")
            np.savez_compressed(out / f"{stem}.npz", heat=one.heat, map=one.map.numpy())
        if options.layers:
            draw_layers(
                image,
                layers,
                out / f"{unused_name(f'{file.stem}_layers', used)}.png",
                title=f"{file.name} through {Path(name).name}",
                query=options.query,
            )
        explained.append({"image": str(file), "explanations": [one.to_dict() for one in found]})
        if len(sheet) < _MOST_ROWS:
            row = found[: _MOST_COLUMNS if found[0].class_specific else 1]
            sheet.append([one.shrink(FIGURE_SIDE) for one in row])
        best = found[0].top[0]
        told = f"{number}/{len(images)}  {file}  {best.name}  {best.probability:.1%}"
        say(printable(told), flush=True)
    failed = len(images) - len(explained)
    if out is None:
        raise UsageError(f"none of the {failed} files could be read as an image")
    replace_atomically(out / "explanations.json", (json_text(explained, indent=2) + "\n").encode())
    draw_explanations(sheet, out / "sheet.png", title=_sheet_title(sheet, name))
    say(f"\n{out / 'sheet.png'}")
    if failed:
        return fail(f"{failed} of {len(images)} files could not be explained", 2)
    return 0


def _sheet_title(rows: Sequence[Sequence[Explanation]], name: str) -> str:
    how = {
        "attention": "where it looks",
        "gradcam": "Grad-CAM",
        "evidence": "what speaks for a class (red) and against it (blue)",
    }[rows[0][0].method]
    return f"{Path(name).name}: {how}"


def _file_name(text: str) -> str:
    """A class's name as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", text.split(", ")[0]).strip("_") or "class"


def _test_faithfulness(
    model: nn.Module, name: str, folder: Path | None, options: ExplainOptions
) -> int:
    """Measure the maps on test images; a run keeps the report, a model's gets a new folder."""
    from tqdm import tqdm

    from convattn.classification.dataset import open_data, test_batches
    from convattn.explanation import measure_faithfulness
    from convattn.explanation.figures import draw_faithfulness
    from convattn.files import new_folder, replace_atomically, written_whole

    cfg = cast(Mapping[str, Any], model.pretrained_cfg)
    source = open_data(options.data, training=False, class_names=cfg.get("label_names"))
    if source.multi_label:
        raise UsageError(
            f"{options.data.root} gives images several classes, and faithfulness is measured on "
            "the one class of each; name data of one class an image by --data"
        )
    loader, boxes = test_batches(options.data, source, cfg)
    num_classes, total = len(source.class_names), len(source.test)
    if model.num_classes != num_classes:
        raise UsageError(
            f"{name} has {model.num_classes} classes and {options.data.name} {num_classes}; name "
            "the data that it was trained on by --data"
        )

    with tqdm(total=total, unit=" images", disable=None) as bar:
        report = measure_faithfulness(
            model,
            loader,
            boxes=boxes,
            methods=None if options.method == "auto" else [options.method, "random", "centre"],
            num_steps=options.num_steps,
            seed=options.seed,
            device=options.device,
            progress=lambda done: bar.update(done - bar.n),
        )
    if folder is None or options.out is not None:
        folder = new_folder(options.out, "explained")
    title = f"{Path(name).name} on {options.data.name}: do the maps tell the truth?"
    with written_whole(folder / "faithfulness.png") as drawing:
        draw_faithfulness(report, drawing, title=title)
    text = f"# {title}\n\n{report.markdown()}\n![curves](faithfulness.png)\n"
    replace_atomically(folder / "faithfulness.md", text.encode())
    replace_atomically(folder / "faithfulness.json", report.to_json().encode())
    say(f"{report.table()}\n")
    for suffix in ("json", "md", "png"):
        say(str(folder / f"faithfulness.{suffix}"))
    return 0
