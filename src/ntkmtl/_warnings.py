"""Warnings that point to the line of the user's code."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warn"]


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the location of the nearest caller outside this package.

    A fixed ``stacklevel`` would point to the wrong line where a function in between is decorated.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as found:
        ...     warnings.simplefilter("always")
        ...     warn("scores were never given")
        >>> found[0].category.__name__, "_warnings.py" in found[0].filename
        ('UserWarning', False)
    """
    package = __name__.partition(".")[0]
    level = 1
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)
