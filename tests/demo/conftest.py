import gc

import pytest


@pytest.fixture(autouse=True, scope="module")
def _gradio_loops_end_here():
    """Or they would be collected, and complain, in a test of somebody else."""
    yield
    gc.collect()
