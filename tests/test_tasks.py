import ast
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import timm

import convattn
from convattn.config import DataConfig, EvaluateConfig, PredictConfig, TrainConfig
from convattn.detection import DETECTORS, finds_masks
from convattn.recipes import RECIPES
from convattn.segmentation import SEGMENTERS
from convattn.tasks import TASKS, task_of

SOURCES = sorted(Path(convattn.__file__).parent.rglob("*.py"))


def test_a_networks_name_tells_its_task():
    assert {task_of(name).name for name in DETECTORS} == {"detection"}
    assert {task_of(name).name for name in SEGMENTERS} == {"segmentation"}
    assert {task_of(name).name for name in timm.list_models("*resnet*")} == {"classification"}


def test_detectors_that_find_masks_are_those_with_a_head_for_them():
    for name, create in DETECTORS.items():
        kind = inspect.signature(create, eval_str=True).return_annotation
        assert finds_masks(name) == (kind.__name__ == "MaskRCNN")


def test_every_recipe_has_a_task_that_knows_its_data():
    for recipe in RECIPES.values():
        config = recipe()
        assert config.data.name in task_of(config.model.name).datasets


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_assumed_size_is_that_of_the_opened_data(task):
    config = {
        "classification": RECIPES["quickstart"](),
        "detection": RECIPES["cluttered_digits_retinanet"](),
        "segmentation": RECIPES["cluttered_digits_upernet"](),
    }[task.name]
    found = task.describe(_shortened(config))
    assert found.shape[1:] == task.assumed_size(config.data)
    assert (found.num_train, found.num_classes) == (8, task.published["cluttered_digits"][1])


def _shortened(config: TrainConfig) -> TrainConfig:
    return replace(config, data=replace(config.data, num_train=8, num_test=2))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_options_of_other_tasks_are_refused_and_defaults_are_not(task):
    dense = "detection and segmentation"
    for options in (EvaluateConfig(), PredictConfig()):
        task.check_options(options, "runs/a")
    for options, flag, heeding in (
        (EvaluateConfig(dtype="bfloat16"), "--dtype", "classification"),
        (EvaluateConfig(window=(9, 9)), "--window", "segmentation"),
        (EvaluateConfig(data=DataConfig(path_column="x")), "--data.path-column", "classification"),
        (EvaluateConfig(data=DataConfig(labels_column="y")), "--data.labels-col", "classification"),
        (EvaluateConfig(data=DataConfig(in_chans=1)), "--data.in-chans", "classification"),
        (EvaluateConfig(threshold=0.1), "--threshold", "detection"),
        (EvaluateConfig(data=DataConfig(split="test")), "--data.split", dense),
        (PredictConfig(threshold=0.1), "--threshold", "detection"),
        (PredictConfig(window=(9, 9)), "--window", "segmentation"),
    ):
        if task.name in heeding.split(" and "):
            task.check_options(options, "runs/a")
            continue
        with pytest.raises(ValueError, match=f"{flag}.* is for {heeding}; runs/a does {task.name}"):
            task.check_options(options, "runs/a")


def test_nobody_else_asks_which_task_it_is():
    """No comparison with a task's name, no look at how a model's name begins."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "startswith":
                words = node.args
            else:
                continue
            texts = {word.value for word in words if isinstance(word, ast.Constant)}
            if texts & {*TASKS, *DETECTORS, *SEGMENTERS}:
                found.append(f"{file.name}:{node.lineno}")
    assert found == []
