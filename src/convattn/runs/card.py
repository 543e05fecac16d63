"""A run's ``README.md`` in the format of the Hugging Face hub: its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from convattn.config import TrainConfig
from convattn.detection import DETECTORS
from convattn.files import replace_atomically
from convattn.runs.folder import Run
from convattn.segmentation import SEGMENTERS
from convattn.text import list_names, markdown_table, markdown_text

CARD = "README.md"
"""Name of the file."""

_FIGURES = {
    "top1": ("accuracy", "top-1"),
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "map": ("mean_average_precision", "mAP"),
    "map50": ("mean_average_precision_50", "mAP at an IoU of 0.5"),
    "miou": ("mean_iou", "mIoU"),
    "macro_f1": ("f1", "macro F1"),
    "ece": ("expected_calibration_error", "calibration error"),
}
"""Key of ``evaluation.json`` -> the hub's name of it, and people's."""
_MOST_CLASSES = 200


def write_card(folder: Path) -> Path:
    """Write the model card of a finished run into its folder.

    Args:
        folder: Of the run.

    Returns:
        The file.
    """
    run = Run.open(folder)
    file = folder / CARD
    own = f"from convattn.runs import Run\n\nmodel = Run.open({folder.name!r}).load_model()"
    replace_atomically(file, model_card(run, name=folder.resolve().name, load=own).encode())
    return file


def model_card(run: Run, *, name: str, load: str) -> str:
    """What a network is, was trained on and can do: YAML for the hub, Markdown for people.

    A license is not told: it depends on the images and on the weights that training began with.

    Args:
        run: A finished one.
        name: What the network is called.
        load: Lines of Python that make ``model``.
    """
    cfg, figures = run.pretrained_cfg, _figures_of(run.folder / "evaluation.json")
    config = run.config
    task = _pipeline(config.model.name)
    header = ModelCardData(
        library_name="timm",
        pipeline_tag=task,
        tags=[task, "timm", "convattn"],
        metrics=[_FIGURES[key][0] for key in _FIGURES if figures.get(key) is not None],
        model_name=name,
        eval_results=_eval_results(figures, task, data_name(config)),
    ).to_yaml()
    names = [_plain(one) for one in cfg.get("label_names") or ()]
    parts = [
        f"---\n{header}\n---\n",
        f"# {_plain(name)}\n",
        f"{_what(config)}\n",
        f"## Classes\n\n{len(names):,}: {list_names(names, _MOST_CLASSES)}.\n",
        f"## Test\n\n{_test(figures)}\n",
        f"## Images\n\n{_images(cfg)}\n",
        f"## Use\n\n```python\n{load}\n```\n\n{_use(config.model.name)}\n",
    ]
    return "\n".join(parts)


def data_name(config: TrainConfig) -> str:
    """What people call the data; a folder by its own name, without the way to it."""
    root = config.data.root
    return config.data.name if root is None else Path(root).resolve().name


def _pipeline(model: str) -> str:
    if model in DETECTORS:
        return "object-detection"
    return "image-segmentation" if model in SEGMENTERS else "image-classification"


def _figures_of(file: Path) -> Mapping[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _plain(name: str) -> str:
    """A name from outside, which shall be text and nothing else."""
    return markdown_text(" ".join(name.split()))


def _eval_results(figures: Mapping[str, Any], task: str, data: str) -> list[EvalResult] | None:
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data,
            dataset_name=data,
            dataset_split="test",
            metric_type=metric,
            metric_name=called,
            metric_value=figures[key],
        )
        for key, (metric, called) in _FIGURES.items()
        if figures.get(key) is not None
    ]
    return results or None


def _what(config: TrainConfig) -> str:
    arguments = {**config.model.backbone_args, **config.model.model_args}
    given = ", ".join(f"{key}={value}" for key, value in arguments.items())
    model = f"`{config.model.title}`" + (f" ({given})" if given else "")
    attention = config.augment.pool or config.augment.conv
    return (
        f"{model}{' with attention added' if attention else ''}, trained on "
        f"{_plain(data_name(config))} by `convattn` (`{config.recipe}`, seed {config.seed})."
    )


def _test(figures: Mapping[str, Any]) -> str:
    rows = []
    for key, (_, called) in _FIGURES.items():
        if figures.get(key) is not None:
            interval = figures.get(f"{key}_interval")
            bounds = f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""
            rows.append((called, f"{figures[key]:.2%}", bounds))
    if not rows:
        return "No figures are kept."
    images = f"On {figures['num_images']:,} images" if "num_images" in figures else "On the images"
    table = markdown_table(("figure", "value", "95 % interval"), rows)
    return f"{images} that training did not see:\n\n{table}"


def _images(cfg: Mapping[str, Any]) -> str:
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    rows = [(key, _short(cfg[key])) for key in keys if key in cfg]
    rows += [(key, str(cfg[key])) for key in ("image_size", "max_size") if key in cfg]
    return markdown_table(("in timm's words", "value"), rows)


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_short(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _use(model: str) -> str:
    if _pipeline(model) != "image-classification":
        return "`convattn predict` and `convattn explain` take the folder, too."
    return (
        "`convattn.data.transform_of(model.pretrained_cfg)` is the transform of an image, "
        '`model.pretrained_cfg["label_names"]` are the classes in the order of the logits, and '
        "`convattn.explain(model, image)` shows where the network looks."
    )
