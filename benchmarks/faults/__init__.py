"""Faults made on purpose, and what came of them: one module per kind of fault."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Outcome"]


@dataclass
class Outcome:
    """What came of one fault.

    Attributes:
        tried: How often it was made.
        broken: One text for every time that what must hold did not.
        notes: What else is worth a word in the table.
    """

    tried: int = 0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        """Note what did not hold."""
        if not holds:
            self.broken.append(what)
