"""A page in the browser that shows where a network looks."""

from convattn.demo.app import build, launch, start

__all__ = ["build", "launch", "start"]
