import math

import pytest
import torch

from convattn.explanation.truth.intervals import Interval, images_to_decide, interval


def test_an_interval_is_that_of_the_mean():
    torch.manual_seed(0)
    values = torch.randn(400, dtype=torch.float64)
    found = interval(values)
    error = float(values.std()) / math.sqrt(400)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.3 * error)
    assert interval(values) == found


def test_rows_without_an_answer_do_not_count():
    values = torch.ones(50, 2)
    values[:5, 1] = math.nan
    assert interval(values).num_images == 45
    values[:31, 0] = math.nan
    assert interval(values) is None


def test_a_figure_may_follow_from_several_means():
    values = torch.tensor([[0.0, 1.0], [1.0, 1.0]]).repeat(20, 1)
    found = interval(values, lambda means: means.sum(1))
    assert found.value == pytest.approx(1.5)
    assert found.low < 1.5 < found.high


def test_how_many_images_would_decide():
    found = Interval(value=0.1, low=-0.1, high=0.3, num_images=100)
    assert images_to_decide(found) == 400
