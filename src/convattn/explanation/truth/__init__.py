"""Whether a network's maps can be believed: methods by measures, with intervals and a verdict.

``run_study`` is its door, ``TruthReport.of`` sums up.
"""

from convattn.explanation.truth.methods import NETWORK_METHODS, YARDSTICKS
from convattn.explanation.truth.report import MEASURES, TruthReport, check_enough
from convattn.explanation.truth.study import Protocol, Study, run_study
from convattn.explanation.truth.trained_maps import train_masks, trained_look
from convattn.explanation.truth.verdict import Verdict

__all__ = [
    "MEASURES",
    "NETWORK_METHODS",
    "YARDSTICKS",
    "Protocol",
    "Study",
    "TruthReport",
    "Verdict",
    "check_enough",
    "run_study",
    "train_masks",
    "trained_look",
]
