import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Tests run side by side; threads of one, or of what it starts, would only get in another's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The same for this process, whose libraries have been loaded."""
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Spare the garbage collector the modules and thousands of tests that stay to the end."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let what stays be collected at the end, or compiled libraries report leaks."""
    gc.unfreeze()


@pytest.fixture
def data_dir() -> Path:
    """The folder of real data sets; tests that use it carry the marker ``data``."""
    folder = os.environ.get("CONVATTN_DATA")
    if not folder:
        pytest.skip("CONVATTN_DATA is not set: it names the folder of real data sets")
    return Path(folder)


@pytest.fixture(autouse=True)
def _skip_without_gpu(request: pytest.FixtureRequest) -> None:
    """Tests that carry the marker ``gpu``; Triton's interpreter stands in for one."""
    absent = not torch.cuda.is_available() and not os.environ.get("TRITON_INTERPRET")
    if absent and request.node.get_closest_marker("gpu"):
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Headless Chromium; tests that use it carry the marker ``browser``."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium in the path: install it with the system's packages")
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as which containers run.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()
