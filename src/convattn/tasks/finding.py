"""Which task a network or a data set is for."""

from __future__ import annotations

from collections.abc import Mapping

from convattn.config import DataConfig
from convattn.tasks.classification import Classification
from convattn.tasks.detection import Detection
from convattn.tasks.segmentation import Segmentation
from convattn.tasks.task import Task

TASKS: Mapping[str, Task] = {
    task.name: task for task in (Classification(), Detection(), Segmentation())
}
"""Every task by its name."""

_BY_SIGN = ("detection", "segmentation", "classification")
"""Tasks in the order in which data are tried for them."""


def task_of_data(data: DataConfig) -> Task:
    """The task that a data set looks like being for: boxes before masks before classes.

    Args:
        data: Its name, place and format.

    Raises:
        ValueError, FileNotFoundError: If it is in shards that are not what they should be.
    """
    named = data.path_column is not None or data.labels_column is not None
    tasks = ["classification"] if named else _BY_SIGN
    return next(TASKS[name] for name in tasks if TASKS[name].may_hold(data))


def task_of(model: str) -> Task:
    """What a network is for, by its name.

    Args:
        model: Of a detector, a segmenter, or a classifier of timm's.
    """
    dense = (task for task in TASKS.values() if model in task.models)
    return next(dense, TASKS["classification"])
