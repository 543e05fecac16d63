"""A run of one class an image, and one of several."""

import pytest

from tests.classification.runs import CLASSES, make_run


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "single", CLASSES)


@pytest.fixture(scope="package")
def several(tmp_path_factory):
    thresholds = [0.9, 0.1, 0.5, 0.3, 0.99, 0.7, 0.01]
    folder = tmp_path_factory.mktemp("runs") / "several"
    return make_run(folder, CLASSES, multi_label=True, thresholds=thresholds)
