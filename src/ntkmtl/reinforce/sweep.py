"""Several rows and seeds, some at a time."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ntkmtl.reinforce.recipes import ReinforceRecipe, row_named
from ntkmtl.reinforce.training import PROBLEM, train
from ntkmtl.training.runs import RESULT, SINGLE_TASK, run_folder
from ntkmtl.training.trainer import RunInterrupted

__all__ = ["Job", "compare"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        row: Name of the row.
        seed: Seed.
        task: The task of a single-task agent.
        folder: The run's folder.
    """

    row: str
    seed: int
    task: str | None
    folder: Path

    @property
    def label(self) -> str:
        """The run in a few words."""
        return f"{self.row}{'' if self.task is None else ' ' + self.task} seed {self.seed}"


def jobs_of(
    recipe: ReinforceRecipe, rows: Sequence[str], seeds: Sequence[int], out: Path
) -> list[Job]:
    """Return the runs of a comparison, all of one seed first.

    Raises:
        ValueError: A row is unknown, or there are no seeds.
    """
    if not seeds or any(seed < 0 for seed in seeds):
        raise ValueError(f"at least one seed is needed, none negative. Found {list(seeds)}.")
    jobs = []
    for seed in dict.fromkeys(seeds):
        for name in dict.fromkeys(rows):
            row = row_named(name)
            method = SINGLE_TASK if row.single_task else row.name
            for task in recipe.tasks if row.single_task else (None,):
                folder = run_folder(out, PROBLEM, method, seed, task)
                jobs.append(Job(row.name, seed, task, folder))
    return jobs


def compare(
    recipe: ReinforceRecipe,
    rows: Sequence[str],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    device: str = "cpu",
    overwrite: bool = False,
    say: Say = print,
) -> list[tuple[Job, str]]:
    """Train every row with every seed; what is complete is not trained again.

    Args:
        recipe: How long and how.
        rows: Names that :func:`row_named` knows.
        seeds: Seeds.
        out: Folder for the runs.
        jobs: Runs at a time, each in a process of its own with one thread.
        device: Where networks and replays are.
        overwrite: Replace runs of other settings.
        say: Told in lines of text how it gets on.

    Returns:
        The runs that failed, and why.

    Raises:
        ValueError: A row is unknown, or a number is out of range.
        RunInterrupted: It was stopped; call again to go on.
    """
    recipe.check()
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, found {jobs}")
    planned = jobs_of(recipe, rows, seeds, Path(out))
    todo = [job for job in planned if not (job.folder / RESULT).exists() or overwrite]
    say(f"{len(planned) - len(todo)} of {len(planned)} runs are complete")
    failures: list[tuple[Job, str]] = []
    if jobs == 1:
        ended = [(job, _run(job, recipe, device, overwrite, say)) for job in todo]
        return [(job, why) for job, why in ended if why]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, max(1, len(todo))), context) as pool:
        futures: dict[Future[str], Job] = {
            pool.submit(_run, job, recipe, device, overwrite, _print): job for job in todo
        }
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when="FIRST_COMPLETED")
                failures += [(futures[f], why) for f in done if (why := f.result())]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def _print(text: str) -> None:
    print(text, flush=True)


def _run(job: Job, recipe: ReinforceRecipe, device: str, overwrite: bool, say: Say) -> str:
    """Train one run; return why it failed, ``""`` if it did not."""
    try:
        run = train(
            recipe,
            row_named(job.row),
            job.seed,
            job.folder,
            task=job.task,
            device=device,
            overwrite=overwrite,
            progress=functools.partial(_show, job, say, [0]),
        )
    except RunInterrupted:
        raise
    except (ArithmeticError, ValueError, RuntimeError, OSError) as error:
        say(f"{job.label}: failed: {error}")
        return f"{type(error).__name__}: {error}"
    success = sum(run.result.test) / len(run.result.test)
    say(f"{job.label}: success {success:.1f} % after {run.result.wall_seconds:.0f} s")
    return ""


def _show(
    job: Job, say: Say, told: list[int], done: int, total: int, rate: float, success: float | None
) -> None:
    # A line per twentieth of the run: readable in a log as well.
    share = 20 * done // total
    if share > told[0]:
        told[0] = share
        so_far = "" if success is None else f", success {success:.1f} %"
        say(f"{job.label}: {done} of {total} vector steps, {rate:.0f}/s{so_far}")
