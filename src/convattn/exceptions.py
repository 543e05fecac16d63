"""Errors that callers tell apart."""

from __future__ import annotations


class NonFiniteError(RuntimeError):
    """The loss or the weights are no longer numbers; the message says at which step."""


class Interrupted(RuntimeError):
    """The user stopped long work; the message says how to go on with it."""
