"""One run of a problem, as a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.problems import find_problem
from ntkmtl.bench.runs import RunInterrupted, canonical_json
from ntkmtl.bench.training.trainer import train_spec

if TYPE_CHECKING:
    from ntkmtl.bench.training.spec import RunSpec

__all__ = ["TrainingJob"]


@dataclass(frozen=True)
class TrainingJob:
    """One run of a problem.

    Attributes:
        problem: Name of the problem, or ``module:Class``.
        problem_options: Options given to the problem.
        spec: What the run is asked to be.
        folder: The run's folder.
        steps: Number of optimizer steps.
        identity: What determines the run, as :func:`ntkmtl.bench.training.identity.run_identity`
            returns it.
        key: Key in the cache of baselines, ``""`` for other runs.
        after: Folders of the runs that must be complete before this one can begin.
        scored: Whether the method is given scores, so that it needs a baseline, which is known once
            the runs in ``after`` are complete.
        trial: Number of the trial of a search, None for any other run.
    """

    problem: str
    problem_options: Mapping[str, Any]
    spec: RunSpec
    folder: Path
    steps: int
    identity: Mapping[str, Any]
    key: str = ""
    after: tuple[Path, ...] = ()
    scored: bool = False
    trial: int | None = None

    @property
    def label(self) -> str:
        """The run in a few words."""
        task = "" if self.spec.single_task is None else f" {self.spec.single_task}"
        trial = "" if self.trial is None else f" trial {self.trial}"
        return f"{self.spec.method}{task}{trial} seed {self.spec.seed}"

    @property
    def may_diverge(self) -> bool:
        """Whether a loss that becomes NaN or infinite is a result: in the trials of a search."""
        return self.trial is not None

    def run(
        self,
        shared: dict[str, Any],
        show: Callable[[int, str], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """See :meth:`ntkmtl.bench.jobs.job.RunnableJob.run`."""
        key = canonical_json([self.problem, dict(self.problem_options)])
        if key not in shared:
            shared[key] = find_problem(self.problem, self.problem_options)
        so_far = (0, "")

        def progress(done: int, total: int) -> None:
            nonlocal so_far
            so_far = done, so_far[1]
            show(*so_far)

        def note(words: str) -> None:
            nonlocal so_far
            so_far = so_far[0], words
            show(*so_far)

        try:
            train_spec(
                shared[key],
                self.spec,
                self.folder,
                progress=progress,
                should_stop=should_stop,
                note=note,
            )
        except RunInterrupted:
            return False
        return True
