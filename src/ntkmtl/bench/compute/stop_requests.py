"""Stopping at a step boundary when the user or the system asks for it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["handlers_kept", "stop_requests", "without_interrupts"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ACTIVE: list[list[int]] = []
"""The signals seen so far, a list for each active block."""


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a request to stop.

    The first signal is recorded, and the caller acts on it at the next safe point. A second Ctrl-C
    raises ``KeyboardInterrupt`` at once. An enclosing block sees the signal as well, so that a job
    of several parts stops even if the signal comes when a part is about to end. Outside the main
    thread, where Python handles no signals, nothing is changed and the list stays empty.

    Yields:
        A function that says whether a stop was requested.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        for seen in _ACTIVE:
            seen.append(number)

    _ACTIVE.append(requests)
    try:
        with handlers_kept():
            for number in _SIGNALS:
                signal.signal(number, note)
            yield lambda: bool(requests)
    finally:
        _ACTIVE.pop()


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM afterwards, if others are set in between."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                # None means a handler that was not installed from Python; it cannot be restored.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C while processes are started, so that they ignore it from the start.

    A terminal sends Ctrl-C to every process of the group, but workers are stopped by their parent,
    and not in the middle of importing torch. The signal mask is inherited.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
