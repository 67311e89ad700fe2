"""What a job is, and what can come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["DependencyError", "Failure", "JobT", "Message", "Outcome", "RunnableJob"]

Message = tuple[Any, ...]
"""What a job sends: its kind, then its content.

``("step", done)``, ``("note", words)``, ``("warning", text)``, and as the last one
``("finished", seconds)``, ``("stopped",)`` or ``("failed", error, message, traceback, seconds)``.
"""


class RunnableJob(Protocol):
    """One run: what a queue, an engine and a reporter need to know of it."""

    @property
    def label(self) -> str:
        """The run in a few words."""

    @property
    def folder(self) -> Path:
        """The run's folder."""

    @property
    def steps(self) -> int:
        """Number of its steps."""

    @property
    def after(self) -> tuple[Path, ...]:
        """Folders of the runs that must be complete before this one can begin."""

    @property
    def may_diverge(self) -> bool:
        """Whether a loss that becomes NaN or infinite is a result of this job, not a failure."""

    def run(
        self,
        shared: dict[str, Any],
        show: Callable[[int, str], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Run to the end, or until a stop is requested.

        Args:
            shared: What this process keeps from one job to the next, as problems and their data.
            show: Called with the number of steps done, and with a few words for the user.
            should_stop: Asked often; True stops the run, with a checkpoint.

        Returns:
            Whether the run is complete; False if it was stopped.
        """


JobT = TypeVar("JobT", bound=RunnableJob)


class DependencyError(ValueError):
    """A job cannot begin, as one that it needs has failed."""


@dataclass(frozen=True)
class Failure:
    """A job that failed.

    Attributes:
        label: The job in a few words.
        folder: Its folder, where ``failure.json`` says more.
        error: Name of the error's class.
        message: Message of the error.
    """

    label: str
    folder: Path
    error: str
    message: str


@dataclass(frozen=True)
class Outcome(Generic[JobT]):
    """The outcome of several jobs.

    Attributes:
        finished: Those that are complete, and those that diverged where that is a result.
        failures: Those that failed.
        interrupted: True if a stop was requested before all had ended.
    """

    finished: tuple[JobT, ...]
    failures: tuple[Failure, ...]
    interrupted: bool
