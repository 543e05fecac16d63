"""Where a network looks."""

from convattn.explain.capture import capture_attention

__all__ = ["capture_attention"]
