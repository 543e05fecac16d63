"""The door that all tasks keep: open data, build, train, test, predict, describe.

A task is a room, ``convattn.classification``, ``.detection`` or ``.segmentation``; which of them a
network is for, its name tells. Whoever needs something that differs between tasks asks here.

Rooms are entered only when something is asked of them: each needs an extra of its own, and training
needs Lightning.
"""

from convattn.tasks.dense import Dense
from convattn.tasks.finding import TASKS, task_of, task_of_data
from convattn.tasks.task import Contents, Task
from convattn.tasks.training import build_network, resume, train, train_or_resume

__all__ = [
    "TASKS",
    "Contents",
    "Dense",
    "Task",
    "build_network",
    "resume",
    "task_of",
    "task_of_data",
    "train",
    "train_or_resume",
]
