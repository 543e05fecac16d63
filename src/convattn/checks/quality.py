"""What an image is like, and which of many are odd, by cleanvision's measures and limits.

Measures are taken of upright RGB images as ``read_image`` gives them, so that a camera's note or 16
bits do not count as a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from PIL import Image

NOT_LOOKED_AT = (
    "dark, bright, blurred and uninformative images, odd sizes and shapes, and near duplicates "
    "are not looked for: pip install 'convattn[check]'"
)
"""What is told where cleanvision is missing."""

ISSUES: Mapping[str, str] = {
    "dark": "are dark",
    "light": "are nearly white",
    "blurry": "are blurred",
    "low_information": "show next to nothing",
    "odd_size": "are of another size than most",
    "odd_aspect_ratio": "are very wide or very high",
}
"""cleanvision's name of each oddity -> what such images are."""

_LONGEST = 1024  # pixels of what is measured; the brightness of more takes seconds
_OF_SHAPE = ("odd_size", "odd_aspect_ratio")


def is_installed() -> bool:
    """Whether images can be measured: cleanvision, of the extra ``check``, is there."""
    return find_spec("cleanvision") is not None


def measure(image: Image.Image) -> dict[str, float]:
    """The measures that cleanvision takes of an image.

    Args:
        image: Upright, in RGB.
    """
    small = _shrunk(image)
    found: dict[str, float] = {}
    for issue, measured in _manager().image_properties.items():
        if issue in ISSUES:
            found |= measured.calculate(image if issue in _OF_SHAPE else small)
    return {name: float(value) for name, value in found.items()}


def fingerprint(image: Image.Image) -> str:
    """A code that images have in common which look alike: cleanvision's perceptual hash.

    Args:
        image: Upright, in RGB.
    """
    from cleanvision.issue_managers.duplicate_issue_manager import DuplicateIssueManager, get_hash

    return get_hash(_shrunk(image), DuplicateIssueManager().params["near_duplicates"])


def find_odd(measures: Sequence[Mapping[str, float]]) -> dict[str, list[int]]:
    """Which images are odd, by each of ``ISSUES``; the oddest first.

    Args:
        measures: Of all images, as ``measure`` gives them; sizes are odd among these.
    """
    import pandas as pd

    if not measures:
        return {issue: [] for issue in ISSUES}
    table, manager = pd.DataFrame(measures), _manager()
    found = {}
    for issue in ISSUES:
        measured, limits = manager.image_properties[issue], manager.params[issue]
        raw = table[measured.score_columns]
        scores = measured.get_scores(raw_scores=raw, issue_type=issue, **limits)
        odd = measured.mark_issue(
            scores=scores, issue_type=issue, threshold=limits.get("threshold")
        )
        score = scores.iloc[:, 0]
        found[issue] = score[odd.iloc[:, 0]].sort_values(kind="stable").index.tolist()
    return found


def _shrunk(image: Image.Image) -> Image.Image:
    factor = max(image.size) // _LONGEST
    return image.reduce(factor) if factor > 1 and min(image.size) >= factor else image


@cache
def _manager() -> Any:
    from cleanvision.issue_managers.image_property_issue_manager import ImagePropertyIssueManager

    return ImagePropertyIssueManager()
