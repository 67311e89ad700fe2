"""A comparison of agents: what ``ntkmtl compare mt10`` asks for, its training and its results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ntkmtl.bench.jobs.engine import Engine, EngineError, JobProgress, Outcome, run_jobs
from ntkmtl.bench.jobs.local import LocalEngine
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.reinforce.environment import DrawingError
from ntkmtl.bench.reinforce.frames import film_run, save_strip
from ntkmtl.bench.reinforce.recipes import ReinforceRecipe, recipe_named, variant_named
from ntkmtl.bench.reinforce.results import (
    CURVES,
    FRAMES,
    NOT_COMPARABLE,
    Success,
    as_markdown,
    save_curves,
    summarize,
)
from ntkmtl.bench.reinforce.training import PROBLEM, config_of, train
from ntkmtl.bench.runs import (
    AGENT,
    CONFIG,
    RESULT,
    SINGLE_TASK,
    RunConfig,
    RunFileError,
    RunInterrupted,
    differences,
    folder_name,
    load_runs,
    read_config,
    run_folder,
)
from ntkmtl.bench.runs.folder import CheckpointError, remove_checkpoints, sweep_lock
from ntkmtl.bench.training.planning import conflict_message, damaged

__all__ = ["AgentComparison", "AgentJob", "Shown", "compare", "jobs_of"]


@dataclass(frozen=True)
class AgentJob:
    """One run of an agent, as a :class:`ntkmtl.bench.jobs.engine.RunnableJob`."""

    recipe: ReinforceRecipe
    variant: str
    seed: int
    task: str | None
    folder: Path
    device: str = "cpu"
    threads: int = 1
    overwrite: bool = False
    after: tuple[Path, ...] = ()

    @property
    def config(self) -> RunConfig:
        """What identifies the run."""
        return config_of(self.recipe, variant_named(self.variant), self.seed, self.task)

    @property
    def label(self) -> str:
        """The run in a few words."""
        return f"{self.variant}{'' if self.task is None else ' ' + self.task} seed {self.seed}"

    @property
    def steps(self) -> int:
        """Number of vector steps."""
        return self.recipe.vector_steps

    @property
    def may_diverge(self) -> bool:
        """False: an agent that diverges has failed."""
        return False

    def run(
        self,
        shared: dict[str, Any],
        progress: JobProgress,
        should_stop: Callable[[], bool],
    ) -> bool:
        """See :meth:`ntkmtl.bench.jobs.engine.RunnableJob.run`; agents share nothing."""

        def tell(done: int, total: int, success: float | None) -> None:
            progress.step(done)
            if success is not None:
                progress.note(f"success {success:.1f} %")

        try:
            train(
                self.recipe,
                variant_named(self.variant),
                self.seed,
                self.folder,
                task=self.task,
                device=self.device,
                threads=self.threads,
                overwrite=self.overwrite,
                progress=tell,
                should_stop=should_stop,
            )
        except RunInterrupted:
            return False
        return True


def jobs_of(
    recipe: ReinforceRecipe,
    variants: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    overwrite: bool = False,
) -> list[AgentJob]:
    """Return the runs of a comparison, all of one seed first.

    Raises:
        ValueError: A variant is unknown, or there are no variants or no seeds.
    """
    if not seeds or any(seed < 0 for seed in seeds):
        raise ValueError(f"at least one seed is needed, none negative. Found {list(seeds)}.")
    if not variants:
        raise ValueError("at least one variant is needed, found none")
    jobs = []
    for seed in dict.fromkeys(seeds):
        for name in dict.fromkeys(variants):
            variant = variant_named(name)
            method = SINGLE_TASK if variant.single_task else variant.name
            for task in recipe.tasks if variant.single_task else (None,):
                folder = run_folder(out, PROBLEM, method, seed, task)
                jobs.append(
                    AgentJob(recipe, variant.name, seed, task, folder, device, threads, overwrite)
                )
    return jobs


def compare(
    recipe: ReinforceRecipe,
    variants: Sequence[str],
    seeds: Sequence[int],
    out: str | os.PathLike[str],
    *,
    jobs: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    reporter: Reporter | None = None,
    engine: Engine | None = None,
) -> Outcome[AgentJob]:
    """Train every variant with every seed; what is complete is not trained again.

    A run that fails does not stop the others; its folder says why in ``failure.json``. Ctrl-C and
    SIGTERM stop every run at the end of its episode.

    Args:
        recipe: How long and how.
        variants: Names that :func:`variant_named` knows.
        seeds: Seeds.
        out: Folder for the runs. It is locked: a second process is refused.
        jobs: Runs at a time, each in a worker process; 1 trains in this process.
        threads: Threads that a run computes with; what the engine says if None, and one on this
            machine.
        device: Where networks and replays are.
        overwrite: Replace runs of other settings.
        reporter: Receives the progress; silent if None.
        engine: Trains the runs; processes on this machine if None.

    Returns:
        The outcome of the runs that were not complete.

    Raises:
        ValueError: A variant is unknown, a number is out of range, the folder is in use or holds
            runs of other settings, or the engine cannot be started.
    """
    recipe.check()
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, found {jobs}")
    reporter = reporter or Reporter()
    out = Path(out)
    if threads is None:
        threads = 1 if engine is None else engine.threads
    # Planned before the folder is made, so that a mistyped name leaves nothing behind.
    planned = jobs_of(
        recipe, variants, seeds, out, device=device, threads=threads, overwrite=overwrite
    )
    with sweep_lock(out), contextlib.ExitStack() as stack:
        todo = _incomplete(out, planned, overwrite)
        reporter.message(f"{len(planned) - len(todo)} of {len(planned)} runs are complete")
        chosen = LocalEngine(jobs) if engine is None or not todo else engine
        try:
            runner = stack.enter_context(chosen.start(out, reporter.message))
        except EngineError as error:
            raise ValueError(str(error)) from error
        return run_jobs(todo, runner, reporter)


def _incomplete(out: Path, planned: Sequence[AgentJob], overwrite: bool) -> list[AgentJob]:
    """Return the runs that are still to be trained."""
    todo, conflicts = [], {}
    for job in planned:
        found: list[str] = []
        if (job.folder / CONFIG).exists():
            try:
                there = read_config(job.folder / CONFIG).identity()
                found = differences(there, job.config.identity())
            except RunFileError as error:
                found = [damaged(error)]
        if found:
            conflicts[job.folder] = found
        if found or not (job.folder / RESULT).exists():
            todo.append(job)
        else:
            remove_checkpoints(job.folder)  # a kill may come between result and removal
    if conflicts and not overwrite:
        raise ValueError(conflict_message(conflicts))
    _refuse_other_recipes(out, planned)
    return todo


def _refuse_other_recipes(out: Path, planned: Sequence[AgentJob]) -> None:
    """Refuse a folder whose other runs could not share a table with the planned ones."""
    wanted = planned[0].config
    folders = {job.folder for job in planned}
    for path in sorted((out / folder_name(PROBLEM)).rglob(CONFIG)):
        if path.parent in folders:
            continue
        try:
            there = read_config(path)
        except RunFileError:
            # Named when the table is made.
            continue
        found = differences(there.problem_options, wanted.problem_options)
        if found:
            raise ValueError(
                f"{path.parent} was trained by another recipe ({'; '.join(found[:3])}), and would "
                f"share a table with these runs. Give another --out, or name "
                f"{there.method} as well, with its seeds and --overwrite."
            )


@dataclass(frozen=True)
class Shown:
    """Results of a comparison, ready to print.

    Attributes:
        text: The table.
        numbers: Everything as JSON values.
        notes: Lines for people.
        reportable: Whether there is a method for the report's table, not only baselines.
    """

    text: str
    numbers: dict[str, Any]
    notes: tuple[str, ...]
    reportable: bool = True


@dataclass(frozen=True)
class AgentComparison:
    """Several methods and seeds of multi-task SAC on Meta-World.

    Attributes:
        recipe: How long and how.
        methods: Names that :func:`~ntkmtl.bench.reinforce.variant_named` takes.
        seeds: Seeds.
        out: Folder for the runs.
        jobs: Runs at a time.
        device: Where networks and replays are.
        frames: Whether to draw what the trained agents do, where that can be done.
        threads: Threads of a run; what the engine says if None, and one on this machine.
        takes: Options of ``ntkmtl compare`` that have an effect here.
        refusal: The message for the others.
    """

    recipe: ReinforceRecipe
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    jobs: int = 1
    device: str = "cpu"
    frames: bool = True
    threads: int | None = None

    takes: ClassVar[frozenset[str]] = frozenset(
        {
            *("problem", "methods", "seeds", "seed_list", "jobs", "threads", "out"),
            *("recipe", "device", "problem_option", "compile", "overwrite", "as_json"),
            *("engine", "ray_address", "ray_cpus", "ray_gpus"),
        }
    )
    refusal: ClassVar[str] = (
        "is not for mt10, which is trained as its recipe says: paper, cpu-mt10 or cpu-mt4"
    )

    @classmethod
    def asked(
        cls,
        methods: Sequence[str],
        seeds: Sequence[int],
        out: Path,
        *,
        jobs: int,
        threads: int | None = None,
        device: str = "cpu",
        options: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> AgentComparison:
        """Return the comparison that options of the command line ask for, checked.

        Args:
            methods: Names.
            seeds: Seeds.
            out: Folder for the runs.
            jobs: Runs at a time.
            threads: Threads of a run.
            device: Where networks and replays are.
            options: ``recipe``, a name, ``"cpu-mt4"`` if missing; ``vector_steps`` instead of the
                recipe's; ``frames``, whether to draw what the agents do, true if missing.
            training: ``compile``, whether updates are compiled by ``torch.compile``.

        Raises:
            ValueError: There is no such recipe, method or option, or a value is out of range.

        Example:
            >>> AgentComparison.asked(["ls"], [0], Path("runs"), jobs=1).methods
            ('mtl-sac',)
        """
        given = dict(options or {})
        recipe = recipe_named(str(given.pop("recipe", "cpu-mt4")))
        steps = given.pop("vector_steps", recipe.vector_steps)
        frames = given.pop("frames", True)
        if given:
            raise ValueError(
                f"mt10 has no option {', '.join(map(repr, given))}; it takes: recipe, "
                "vector_steps, frames"
            )
        if type(steps) is not int:
            raise ValueError(f"vector_steps must be a whole number, found {steps!r}")
        if type(frames) is not bool:
            raise ValueError(f"frames must be true or false, found {frames!r}")
        if steps != recipe.vector_steps:
            recipe = replace(
                recipe,
                vector_steps=steps,
                reduced=recipe.reduced or steps < recipe.vector_steps,
                description=f"{recipe.description} (changed: vector steps to {steps})",
            )
        recipe = replace(recipe, compile=bool((training or {}).get("compile", recipe.compile)))
        recipe.check()
        names = tuple(dict.fromkeys(variant_named(name).name for name in methods))
        return cls(recipe, names, tuple(seeds), Path(out), jobs, device, frames, threads)

    def train(
        self, *, overwrite: bool, reporter: Reporter, engine: Engine | None = None
    ) -> Outcome[AgentJob]:
        """Train what is not complete. See :func:`ntkmtl.bench.reinforce.compare`."""
        return compare(
            self.recipe,
            self.methods,
            self.seeds,
            self.out,
            jobs=self.jobs,
            threads=self.threads,
            device=self.device,
            overwrite=overwrite,
            reporter=reporter,
            engine=engine,
        )

    def show(self) -> Shown:
        """Draw curves and frames, and return the results.

        Raises:
            ValueError: No run is complete, or a file is damaged.
        """
        found = summarize(self.out)
        figure = self.out / CURVES
        save_curves(found, figure)
        strips, notes = self._draw_frames(found) if self.frames else ([], [])
        if found[0].reduced:
            notes.append("Reduced recipe, smaller than in the literature.")
        numbers = {
            "figure": str(figure),
            "frames": [str(path) for path in strips],
            "rows": [_numbers(entry) for entry in found],
        }
        return Shown(
            as_markdown(found),
            numbers,
            (*notes, NOT_COMPARABLE, f"Curves: {figure}"),
            reportable=any(entry.variant != SINGLE_TASK for entry in found),
        )

    def _draw_frames(self, found: Sequence[Success]) -> tuple[list[Path], list[str]]:
        """Film the agents of each method's first seed, unless that was done before.

        Returns:
            The pictures, and why some are missing.
        """
        runs = load_runs(self.out / folder_name(PROBLEM))[0]
        drawn: list[Path] = []
        missing: list[str] = []
        for entry in found:
            seed = entry.seeds[0]
            wanted = (entry.variant, seed)
            own = [run for run in runs if (run.config.method, run.config.seed) == wanted]
            path = self.out / FRAMES / f"{folder_name(entry.variant)}.png"
            try:
                newest = max((run.path / AGENT).stat().st_mtime for run in own)
                if not path.exists() or path.stat().st_mtime < newest:
                    films = [film_run(run) for run in own]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_strip(films, path, f"{entry.variant}, seed {seed}, goal 0")
            except DrawingError as error:
                return drawn, [*missing, f"No frames: {error}"]
            except (CheckpointError, OSError) as error:
                missing.append(f"No frames of {entry.variant}: {error}")
                continue
            drawn.append(path)
        return drawn, missing


def _numbers(entry: Success) -> dict[str, Any]:
    """Return the success rates of a method as JSON values."""
    return {
        "row": entry.variant,
        "seeds": list(entry.seeds),
        "maximum_over_time": entry.best,
        "maximum_over_time_stderr": entry.best_stderr,
        "last_third": float(entry.late.mean()),
        "last_third_stderr": entry.late_stderr,
        "final": entry.final,
        "interval": entry.interval(),
        "interquartile_mean": entry.final_interquartile_mean,
        "interquartile_interval": entry.interquartile_interval(),
        "per_task": dict(zip(entry.tasks, entry.per_task, strict=True)),
        "reduced": entry.reduced,
    }
