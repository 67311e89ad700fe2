"""The command ``ntkmtl reinforce``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ntkmtl._commands import (
    FAILED,
    INTERRUPTED,
    Json,
    Overwrite,
    _names,
    _numbers,
    _print_json,
    _refusing,
    _say,
    app,
)

__all__ = ["reinforce"]


@app.command()
def reinforce(
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
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Use seeds 0 to N - 1.")] = 1,
    seed_list: Annotated[
        str | None, typer.Option("--seed-list", help="Seeds with commas between them.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time.")] = 1,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for the runs.", file_okay=False)
    ] = Path("runs-mt10"),
    vector_steps: Annotated[
        int | None,
        typer.Option("--vector-steps", min=1, help="Instead of the recipe's; fewer is reduced."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...")] = "cpu",
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Or only show what is finished.")
    ] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train agents on Meta-World's MT10 and print their success rates.

    Called again, it goes on where it stopped, and trains nothing twice.
    """
    failures = []
    with _refusing(ValueError):
        from ntkmtl import reinforce as rl
        from ntkmtl.reinforce.results import as_markdown
        from ntkmtl.training.trainer import RunInterrupted

        chosen = rl.recipe_named(recipe)
        if vector_steps is not None and vector_steps != chosen.vector_steps:
            chosen = replace(
                chosen,
                vector_steps=vector_steps,
                reduced=chosen.reduced or vector_steps < chosen.vector_steps,
                description=f"{chosen.description} (changed: vector steps to {vector_steps})",
            )
        asked = list(range(seeds)) if seed_list is None else _numbers(seed_list)
        if train:
            try:
                failures = rl.compare(
                    chosen,
                    _names(methods),
                    asked,
                    out,
                    jobs=jobs,
                    device=device,
                    overwrite=overwrite,
                    say=_say,
                )
            except RunInterrupted as stopped:
                _say(f"Stopped: {stopped}. The same command goes on from there.")
                raise typer.Exit(INTERRUPTED) from None
        for job, why in failures:
            _say(f"Failed: {job.label}: {why}")
        if failures and len(failures) == len(asked) * len(_names(methods)):
            raise typer.Exit(FAILED)
        found = rl.summarise(out)
        figure = out / "success.png"
        rl.save_curves(found, figure)
    if as_json:
        _print_json(
            {
                "figure": str(figure),
                "rows": [
                    {
                        "row": entry.row,
                        "seeds": list(entry.seeds),
                        "final": entry.final,
                        "interval": entry.interval(),
                        "interquartile_mean": entry.final_interquartile_mean,
                        "maximum_over_time": entry.best,
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
            _say("Reduced recipe, smaller than in the literature.")
        _say(
            "Success in percent on V3 tasks with V2 rewards: not comparable with Table 4, which "
            "is of V1 tasks."
        )
        _say(f"Curves: {figure}")
    if failures:
        raise typer.Exit(FAILED)
