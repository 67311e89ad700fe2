"""The command ``ntkmtl reinforce``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ntkmtl.bench.cli.console import FAILED, INTERRUPTED, print_json, refusing, say
from ntkmtl.bench.cli.options import (
    EngineOptions,
    Json,
    Out,
    Overwrite,
    SeedList,
    Seeds,
    grouped,
    names_in,
    refuse_others,
    seeds_of,
)
from ntkmtl.bench.cli.sweeps import say_failures

if TYPE_CHECKING:
    from ntkmtl.bench.reinforce import Success
    from ntkmtl.bench.training.engines import Engine

__all__ = ["draw_frames", "reinforce", "train_only", "train_rows"]


@grouped
def reinforce(
    *,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="paper, cpu-mt10 or cpu-mt4.")
    ] = "cpu-mt4",
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Rows of Table 4 (mtl-sac, mh-sac, ...) or other methods, with commas between.",
        ),
    ] = "mtl-sac,ntkmtl",
    seeds: Seeds = 1,
    seed_list: SeedList = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Runs at a time.",
            show_default="1; with --engine ray as many as there is room for",
        ),
    ] = None,
    out: Out = Path("runs-mt10"),
    vector_steps: Annotated[
        int | None,
        typer.Option("--vector-steps", min=1, help="Instead of the recipe's; fewer is reduced."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...")] = "cpu",
    compile: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Compile updates by torch.compile. Slower on a CPU; meant for a GPU.",
        ),
    ] = False,
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Or only show what is finished.")
    ] = True,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames/--no-frames", help="Draw what the trained agents do, where that can be done."
        ),
    ] = True,
    engines: EngineOptions,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train agents on Meta-World's MT10 and print their success rates.

    Called again, it goes on where it stopped, and trains nothing twice.
    """
    with refusing():
        chosen = engines.made(jobs)
    train_rows(
        recipe,
        names_in(methods),
        seeds_of(seeds, seed_list),
        out,
        jobs=jobs or 1,
        vector_steps=vector_steps,
        device=device,
        compile=compile,
        train=train,
        frames=frames,
        engine=chosen,
        overwrite=overwrite,
        as_json=as_json,
    )


_COMPARED = frozenset(
    {
        *("problem", "methods", "seeds", "seed_list", "jobs", "out"),
        *("recipe", "device", "overwrite", "as_json"),
        *("engine", "ray_address", "ray_cpus", "ray_gpus"),
    }
)
"""What `ntkmtl compare` takes for mt10 too."""


def compare_mt10(
    context: typer.Context,
    recipe: str | None,
    methods: Sequence[str],
    seeds: Sequence[int],
    jobs: int | None,
    out: Path,
    device: str,
    engine: Engine | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Do what ``ntkmtl compare mt10`` asks for; single-task agents are the method stl."""
    from ntkmtl.bench.compute.environment import cores

    refuse_others(
        context,
        _COMPARED,
        "is not for mt10, which is trained as its recipe says: paper, cpu-mt10 or cpu-mt4",
    )
    train_rows(
        recipe or "cpu-mt4",
        methods,
        seeds,
        out,
        jobs=jobs or cores(),
        device=device,
        engine=engine,
        overwrite=overwrite,
        as_json=as_json,
    )


def train_rows(
    recipe: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    jobs: int,
    vector_steps: int | None = None,
    device: str = "cpu",
    compile: bool = False,
    train: bool = True,
    frames: bool = True,
    engine: Engine | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Train rows of Table 4, print their success rates, and write figure and report.

    This is what ``ntkmtl reinforce`` and ``ntkmtl compare mt10`` both do.
    """
    failures = train_only(
        recipe,
        methods,
        seeds,
        out,
        jobs=jobs,
        vector_steps=vector_steps,
        device=device,
        compile=compile,
        train=train,
        engine=engine,
        overwrite=overwrite,
    )
    with refusing(ValueError):
        from ntkmtl.bench import reinforce as rl
        from ntkmtl.bench import report
        from ntkmtl.bench.reinforce.results import CURVES, NOT_COMPARABLE, as_markdown

        found = rl.summarise(out)
        figure = out / CURVES
        rl.save_curves(found, figure)
        strips = draw_frames(out, found) if frames else []
        page = None
        if any(entry.row != "stl" for entry in found):
            page = report.write_html(out, out / "report.html")
    if as_json:
        print_json(
            {
                "figure": str(figure),
                "report": None if page is None else str(page),
                "frames": [str(path) for path in strips],
                "rows": [
                    {
                        "row": entry.row,
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
                    for entry in found
                ],
            }
        )
    else:
        print(as_markdown(found), end="")
        if found[0].reduced:
            say("Reduced recipe, smaller than in the literature.")
        say(NOT_COMPARABLE)
        say(f"Curves: {figure}")
        if page is not None:
            say(f"Report: {page}")
    if failures:
        raise typer.Exit(FAILED)


def train_only(
    recipe: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    *,
    jobs: int,
    vector_steps: int | None = None,
    device: str = "cpu",
    compile: bool = False,
    train: bool = True,
    engine: Engine | None = None,
    overwrite: bool = False,
) -> bool:
    """Train; return whether runs failed. End the command where all did or it was stopped."""
    from rich.console import Console

    with refusing(ValueError):
        from ntkmtl.bench import reinforce as rl
        from ntkmtl.bench.training.reporters import reporter_for

        chosen = rl.recipe_named(recipe)
        if vector_steps is not None and vector_steps != chosen.vector_steps:
            chosen = replace(
                chosen,
                vector_steps=vector_steps,
                reduced=chosen.reduced or vector_steps < chosen.vector_steps,
                description=f"{chosen.description} (changed: vector steps to {vector_steps})",
            )
        if not train:
            return False
        chosen = replace(chosen, compile=compile)
        outcome = rl.compare(
            chosen,
            methods,
            seeds,
            out,
            jobs=jobs,
            device=device,
            overwrite=overwrite,
            reporter=reporter_for(Console(stderr=True)),
            engine=engine,
        )
    say_failures(outcome.failures)
    if outcome.interrupted:
        say("Stopped. The same command goes on from there.")
        raise typer.Exit(INTERRUPTED)
    if outcome.failures and not outcome.finished:
        raise typer.Exit(FAILED)
    return bool(outcome.failures)


def draw_frames(out: Path, found: Sequence[Success]) -> list[Path]:
    """Film the agents of each row's first seed, unless that has been done; say why where not."""
    from ntkmtl.bench import reinforce as rl
    from ntkmtl.bench.reinforce.results import FRAMES
    from ntkmtl.bench.reinforce.training import PROBLEM
    from ntkmtl.bench.runs import AGENT, folder_name, load_runs
    from ntkmtl.bench.runs.checkpoints import CheckpointError

    runs = load_runs(out / folder_name(PROBLEM))[0]
    drawn: list[Path] = []
    for entry in found:
        seed = entry.seeds[0]
        own = [run for run in runs if (run.config.method, run.config.seed) == (entry.row, seed)]
        path = out / FRAMES / f"{entry.row}.png"
        try:
            newest = max((run.path / AGENT).stat().st_mtime for run in own)
            if not path.exists() or path.stat().st_mtime < newest:
                films = [rl.film_run(run) for run in own]
                path.parent.mkdir(parents=True, exist_ok=True)
                rl.save_strip(films, path, f"{entry.row}, seed {seed}, goal 0")
        except rl.DrawingError as error:
            say(f"No frames: {error}")
            return drawn
        except (CheckpointError, OSError) as error:
            say(f"No frames of {entry.row}: {error}")
            continue
        drawn.append(path)
    return drawn
