"""Running one job in this process, and telling whoever watches it."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ntkmtl.bench.compute.processes import announced, follow, is_raised_on_all_ranks, launched
from ntkmtl.bench.compute.stop_requests import stop_requests

if TYPE_CHECKING:
    import torch

    from ntkmtl.bench.jobs.job import Message, RunnableJob

__all__ = ["POLL_SECONDS", "ProgressChannel", "follow_jobs", "run_job"]

POLL_SECONDS = 0.2
"""Time between two looks at the messages of jobs, in seconds."""


class ProgressChannel(Protocol):
    """Connects a job to the process that started it."""

    def send(self, message: Message) -> None:
        """Send a message."""

    def should_stop(self) -> bool:
        """Return whether the job is to stop."""


def run_job(job: RunnableJob, shared: dict[str, Any], channel: ProgressChannel) -> None:
    """Run one job and send what happens; its last message is finished, stopped or failed.

    Args:
        job: The job.
        shared: See :meth:`RunnableJob.run`.
        channel: Where messages go.
    """
    started = time.monotonic()
    last_sent = 0.0
    last_words = words_sent = ""

    def send_words() -> None:
        nonlocal words_sent
        if last_words != words_sent:
            words_sent = last_words
            channel.send(("note", last_words))

    def show(done: int, words: str) -> None:
        nonlocal last_sent, last_words
        last_words = words
        now = time.monotonic()
        if now - last_sent >= POLL_SECONDS / 2:
            last_sent = now
            send_words()
            channel.send(("step", done))

    try:
        with _warnings_sent(channel.send), announced(job):
            complete = job.run(shared, show, channel.should_stop)
    except Exception as error:
        if launched() > 1 and not is_raised_on_all_ranks(error):
            # The other processes know nothing of it and would wait forever.
            raise
        # The failure of one job must not stop the others.
        seconds = time.monotonic() - started
        name = type(error).__name__
        channel.send(("failed", name, str(error), traceback.format_exc(), seconds))
    else:
        send_words()
        channel.send(("finished", time.monotonic() - started) if complete else ("stopped",))


def follow_jobs(device: torch.device) -> None:
    """In a process launched beside the first one, run with it each job that it runs.

    Args:
        device: Where the jobs compute.
    """
    shared: dict[str, Any] = {}
    with stop_requests() as requested:
        follow(device, lambda job: job.run(shared, lambda done, words: None, requested))


@contextmanager
def _warnings_sent(send: Callable[[Message], None]) -> Iterator[None]:
    """Send warnings as messages instead of printing them across the progress bars."""

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: object) -> None:
        send(("warning", f"{category.__name__}: {message}"))

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
