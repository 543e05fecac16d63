import pytest
import torch

from convattn.data.annotated import AnnotatedImages


def _numbers(total):
    return AnnotatedImages(range(total), lambda k: (k, -k), [str(k) for k in range(total)])


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 4, [0, 2, 5, 7]), (3, 8, [0, 1, 2]), (0, 4, []), (5, 0, [])],
)
def test_a_spread_takes_equal_steps_through_the_set(total, count, expected):
    assert list(_numbers(total).spread(count)) == [(k, -k) for k in expected]


def test_a_selection_keeps_the_transform():
    doubled = _numbers(4).with_transform(lambda image, truth: (2 * image, truth))
    assert doubled.select(torch.tensor([3]))[0] == (6, -3)
