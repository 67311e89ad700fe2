"""A comparison of agents: what ``ntkmtl compare mt10`` asks for, its training and its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ntkmtl.bench.jobs.engine import Engine, Outcome
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
from ntkmtl.bench.reinforce.sweep import AgentJob, compare
from ntkmtl.bench.reinforce.training import PROBLEM
from ntkmtl.bench.runs import AGENT, SINGLE_TASK, folder_name, load_runs
from ntkmtl.bench.runs.folder import CheckpointError

__all__ = ["AgentComparison", "Shown"]


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
