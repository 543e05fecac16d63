"""What came of a row's cases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

RIGHT, REFUSED = "right", "refused"
_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Row:
    """One row of the table: so many cases, each right, refused in a sentence, or a fault."""

    name: str
    total: int
    tries: str
    command: str
    tell: Callable[[str], None]
    right: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> int:
        return self.right + self.refused + len(self.faults)

    def add(self, case: str, outcome: str) -> None:
        """Count a case; an outcome that is neither ``RIGHT`` nor ``REFUSED`` says what is wrong."""
        if outcome == RIGHT:
            self.right += 1
        elif outcome == REFUSED:
            self.refused += 1
        else:
            self.faults.append(f"{case}: {outcome}")
            self.tell(f"FAULT of {self.name}: {self.faults[-1]}")
        if time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self.tell(self.line())

    def line(self) -> str:
        self._told = time.monotonic()
        return (
            f"{self.name}: {self.count:,} of {self.total:,}, {self.right:,} right, "
            f"{self.refused:,} refused, {len(self.faults):,} faults, "
            f"{time.monotonic() - self.started:.0f} s"
        )

    def check(self) -> None:
        """Fail unless every case was counted and none was a fault."""
        self.tell(self.line())
        assert not self.faults, "\n".join(self.faults)
        assert self.count == self.total

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tries": self.tries,
            "command": self.command,
            "right": self.right,
            "refused": self.refused,
            "faults": len(self.faults),
            "figures": self.figures,
            "seconds": time.monotonic() - self.started,
        }
