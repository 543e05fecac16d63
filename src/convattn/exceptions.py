"""How a training can end early."""

from __future__ import annotations


class NonFiniteError(RuntimeError):
    """The loss or the weights are no longer numbers; the message says at which step."""


class InterruptedTraining(RuntimeError):
    """The user stopped the training; the message says what is left of it."""
