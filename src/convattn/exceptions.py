"""Errors that callers tell apart: unreadable images, work that ends early, no evidence."""

from __future__ import annotations

INTERRUPTED = 130
"""What a shell reports for a program that Ctrl-C has ended."""


class UnreadableImageError(ValueError):
    """A file that should hold an image does not: the message names it and what to do.

    A DataLoader's worker process sends an exception on with its traceback put before the message.
    The message of this one is the sentence alone, wherever it was raised.
    """

    def __str__(self) -> str:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        return super().__str__().strip().splitlines()[-1].removeprefix(name)


class NonFiniteError(RuntimeError):
    """The loss or the weights are no longer numbers; the message says at which step."""


class Interrupted(RuntimeError):
    """Long work was stopped, by the user or as a process is gone; says how to go on with it."""


class LostProcess(Interrupted):
    """Another process of the same training is gone; whichever is left has to say so."""


class NoEvidenceError(ValueError):
    """A network's logits have no exact shares; the message says which layer is in the way."""
