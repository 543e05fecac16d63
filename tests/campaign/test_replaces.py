import os
import signal
from functools import partial

import pytest

from tests.campaign.running import call
from tests.campaign.runs import TRAIN, digest, resume_to_the_end, without_figures

pytestmark = pytest.mark.timeout(3600)
_COUNT = 11
"""Files that the tiny run puts in their places."""


@pytest.mark.campaign("kill at every replace", 2 * _COUNT)
def test_runs_killed_at_a_replace_resume_to_the_same_weights(row, runs, tmp_path):
    """A training is killed right before and right after each os.replace that puts a file of its
    run in its place, and resumed, or trained anew where there is no checkpoint yet: same weights,
    nothing half-written left."""
    number = 0
    while True:
        for after in (False, True):
            run, words = tmp_path / f"run{number}{after}", tmp_path / "words"
            ended = call([*TRAIN, run], words, before=partial(_die_at, number, after))
            if ended.status == 0:
                assert digest(run) == digest(runs.finished)
                row.check()
                return
            assert ended.status == -signal.SIGKILL, ended.errors
            outcome = resume_to_the_end(run, TRAIN, words, digest(runs.finished))
            row.add(f"{'after' if after else 'before'} replace {number}", outcome)
        number += 1


def _die_at(number, after):
    """Have the process killed at its replace of that number."""
    without_figures()
    real, seen = os.replace, []

    def replace(*names, **places):
        seen.append(names)
        if len(seen) == number + 1:
            if after:
                real(*names, **places)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*names, **places)

    os.replace = replace
