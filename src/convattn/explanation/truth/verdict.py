"""Can a method's maps be believed? Fixed rules, each with its sentence.

Every rule is asked of a 95 % interval. One that fails means "do not believe", one that doubts
means "doubt":

- **knows**: the network is right more often than the images' commonest class alone would be, or
  doubts: the maps of a network that has not learned explain a guess.
- **needs**: the network needs what the map shows more than random cells: insertion less deletion,
  and ROAD, image by image. Neither above random cells' fails; one alone doubts, as do two that four
  times the images would probably put above.
- **weights**: the map changes when the network's layers are made random: the mean rank correlation
  with those maps lies below 0.5, or doubts; wholly above, fails.
- **sum**: evidence sums to its logit, to 1e-4 of the largest one, or fails; integrated gradients
  to 0.1, or doubt: they take too few steps.
- **middle**: insertion less deletion is above the image's middle's, or doubts.
- **object**: where objects are known, more of the map's energy lies on them than of random
  cells' and than of the middle's, or doubts: the network may look elsewhere.
- **class**: another class has another map: rank correlation below 0.9, or doubts.
- **calm**: an image that hardly moves leaves most of the map: a change wholly above the map's own
  size doubts.
- **seeds**: networks of other seeds agree more than by chance: rank correlation above 0, or doubts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from convattn.explanation.truth.intervals import Interval, images_to_decide, interval
from convattn.explanation.truth.methods import YARDSTICKS

Word = Literal["believe", "doubt", "do not believe"]
Values = Mapping[str, Tensor]
"""Name of a measure -> its values, (N,) or (N, K), of one method."""

SAME_WEIGHTS, SAME_CLASS = 0.5, 0.9
"""Rank correlations."""
OWN_SIZE = 1.0
"""Of a change, as a part of the map."""
MORE_IMAGES = 4
"""Times the images that are there: that a difference may yet be decided by."""
EXACT_SUM, NEAR_SUM = 1e-4, 0.1
"""Of evidence, and of a sum that is a rule of so many steps; parts of the largest logit."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a method's maps can be believed."""

    word: Word
    """In a word."""
    reasons: tuple[str, ...]
    """A sentence each, what speaks against them first."""


@dataclass(frozen=True)
class _Answer:
    """Of one rule."""

    grade: int
    """0 passes, 1 doubts, 2 fails."""
    reason: str


_WORDS: tuple[Word, ...] = ("believe", "doubt", "do not believe")


def judge(
    name: str, values: Mapping[str, Values], seed: int = 0, *, knows: Tensor | None = None
) -> Verdict:
    """Whether a method's maps can be believed.

    Args:
        name: Of the method.
        values: By method, the yardsticks among them.
        seed: Of the draws.
        knows: (N,), of the network, as ``Study`` has it; None: not known.
    """
    if name in YARDSTICKS:
        reason = "a yardstick: it is drawn without asking the network"
        return Verdict(word="do not believe", reasons=(reason,))
    found = [*_knows(knows, seed), *_answers(name, values, seed)]
    answers = sorted(found, key=lambda answer: -answer.grade)
    worst = max((answer.grade for answer in answers), default=1)
    return Verdict(word=_WORDS[worst], reasons=tuple(answer.reason for answer in answers))


def _knows(knows: Tensor | None, seed: int) -> Iterator[_Answer]:
    gain = None if knows is None else interval(knows, seed=seed)
    if gain is None:
        return
    than = "than the commonest class alone would be"
    if gain.low > 0:
        yield _Answer(0, f"the network is right more often {than}: by {gain}")
    else:
        told = f"the network is not surely right more often {than} ({gain})"
        yield _Answer(1, f"{told}: its maps explain a guess")


def _answers(name: str, values: Mapping[str, Values], seed: int) -> Iterator[_Answer]:
    own, random, centre = values[name], values["random"], values["centre"]
    yield _needs(own, random, seed)
    yield from _follows(own, seed)
    if "sum_error" in own:
        yield from _sums(name, interval(own["sum_error"], seed=seed))
    rivals = [("insertion less deletion", _need(own), _need(centre), "the image's middle")]
    if "energy" in own:
        rivals += [
            ("energy on the object", own["energy"], random["energy"], "random cells"),
            ("energy on the object", own["energy"], centre["energy"], "the image's middle"),
        ]
    for what, ours, theirs, rival in rivals:
        gain = interval(ours - theirs, seed=seed)
        if gain is not None:
            yield _Answer(int(gain.low <= 0), f"{what} is {_against(gain)} that of {rival}")


def _need(values: Values) -> Tensor:
    return values["insertion"] - values["deletion"]


def _needs(own: Values, random: Values, seed: int) -> _Answer:
    gains = {"insertion less deletion": interval(_need(own) - _need(random), seed=seed)}
    if "road" in own:
        gains["ROAD"] = interval(own["road"] - random["road"], seed=seed)
    known = {name: gain for name, gain in gains.items() if gain is not None}
    above = sum(gain.low > 0 for gain in known.values())
    likely = all(gain.value > 0 and _may_be_above(gain) for gain in known.values())
    grade = 0 if above == len(known) else 1 if above or likely else 2
    start = (
        "the network needs what the map shows",
        "it is not sure that the network needs what the map shows",
        "the network needs what the map shows no more than random cells",
    )[grade]
    told = ", ".join(f"{name} is {_against(gain)} theirs" for name, gain in known.items())
    rival = "" if grade == 2 else " more than random cells"
    return _Answer(grade, f"{start}{rival}: {told}")


def _may_be_above(gain: Interval) -> bool:
    return gain.low > 0 or images_to_decide(gain) <= MORE_IMAGES * gain.num_images


def _against(gain: Interval) -> str:
    """A difference in words, before what it is from."""
    if gain.low > 0:
        return f"{gain} above"
    if gain.high < 0:
        return f"{-gain.value:.3f} [{-gain.high:.3f}, {-gain.low:.3f}] below"
    wanted = f"about {images_to_decide(gain):,} images would decide"
    return f"not surely above ({gain}; {wanted})"


def _follows(own: Values, seed: int) -> Iterator[_Answer]:
    """The rules of rank correlations and calm."""
    found = {
        name: interval(own[name].reshape(len(own[name]), -1).mean(1), seed=seed)
        for name in ("randomised", "other_class", "max_sensitivity", "agreement")
        if name in own
    }
    if (one := found.get("randomised")) is not None:
        grade = 0 if one.high < SAME_WEIGHTS else 2 if one.low > SAME_WEIGHTS else 1
        does = ("changes", "may stay much the same", "stays much the same")[grade]
        yield _Answer(
            grade, f"the map {does} when the network's weights are random: rank correlation {one}"
        )
    if (one := found.get("other_class")) is not None:
        grade = int(one.high >= SAME_CLASS)
        does = (
            "is another for another class",
            "is the same for every class: it cannot say why this one",
        )[grade]
        yield _Answer(grade, f"the map {does}: rank correlation {one}")
    if (one := found.get("max_sensitivity")) is not None:
        grade = int(one.low > OWN_SIZE)
        does = ("stays", "changes by more than its own size")[grade]
        yield _Answer(grade, f"the map {does} when the image hardly moves: by {one} of its size")
    if (one := found.get("agreement")) is not None:
        grade = int(one.low <= 0)
        does = ("agree", "agree no more than by chance")[grade]
        yield _Answer(grade, f"networks of other seeds {does}: rank correlation {one}")


def _sums(name: str, error: Interval | None) -> Iterator[_Answer]:
    if error is None:
        return
    exact = name == "evidence"
    if error.high <= (EXACT_SUM if exact else NEAR_SUM):
        yield _Answer(0, f"the map sums to its logit: off by {error.value:.1e} of the largest")
    else:
        told = f"the map does not sum to its logit: off by {error.value:.1e} of the largest"
        yield _Answer(2 if exact else 1, told)
