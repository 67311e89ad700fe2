"""``ntkmtl weigh``: constant loss weights from the first percent of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ntkmtl.bench.cli.console import print_json, refuse, refusing, say
from ntkmtl.bench.cli.options import (
    DataOptions,
    Json,
    ProblemName,
    RecipeOptions,
    Seed,
    Threads,
    find_modules_here,
    grouped,
    option,
)
from ntkmtl.errors import MissingExtraError, NonFiniteError
from ntkmtl.loading import place_of


@dataclass(frozen=True)
class WeighOptions:
    """How weights are measured and written."""

    percent: float = option("How much of the run is watched; 50 steps at least.", default=2.0)
    method: str = option(
        "What balances: a name that `ntkmtl methods` lists, or your own as module.path:ClassName "
        "or path/file.py:ClassName.",
        default="ntkmtl",
    )
    priority: list[str] | None = option(
        "How much a task matters; may be repeated.", metavar="TASK=P"
    )
    form: str = option(
        "The line to write: python, yaml, keras, lightning, mace, nequip, chemprop, "
        "ultralytics or key=value.",
        "--format",
        default="python",
        metavar="NAME",
    )


@grouped
def weigh(
    problem: ProblemName,
    *,
    asked: WeighOptions,
    seed: Seed = 0,
    threads: Threads = None,
    changed: RecipeOptions,
    made_with: DataOptions,
    as_json: Json = False,
) -> None:
    """Measure constant loss weights on the first percent of a run; print them with intervals.

    For tools that have a field for loss weights and no place for a method. Nothing is written.
    """
    from ntkmtl.watch import FORMATS

    if asked.form not in FORMATS:
        refuse(f"--format must be one of {', '.join(FORMATS)}, found {asked.form}")
    if changed.minibatches is not None:
        refuse("--minibatches is for methods in training; weights are measured on whole batches")
    find_modules_here(problem, asked.method)
    with refusing(ValueError, NonFiniteError):
        from ntkmtl.bench.training import changed_recipe, find_problem, method_names
        from ntkmtl.bench.training.trainer import weigh_problem

        method_names([asked.method])  # unknown ones are refused before data are read
        found = find_problem(problem, made_with.options(), try_out=True)
        FORMATS[asked.form](dict.fromkeys(found.tasks, 1.0))  # refuses names that it has none for
        recipe = changed_recipe(found.recipe, **changed.changes())
        priorities = _priorities(asked.priority or [])
        with _told(problem, asked.method):
            constants = weigh_problem(
                found,
                percent=asked.percent,
                method=asked.method,
                seed=seed,
                recipe=replace(recipe, accumulate=1),
                priorities=priorities,
                threads=threads,
            )
        line = constants.as_text(asked.form)
    if as_json:
        print_json({"problem": found.name, **constants.to_json(), "text": line})
        return
    print(line)
    say(str(constants))


@contextlib.contextmanager
def _told(problem: str, method: str) -> Iterator[None]:
    """Tell an error of the code of a custom problem or method in words."""
    try:
        yield
    except (Exception, SystemExit) as error:
        own = [name for name in (method, problem) if ":" in name]
        place = place_of(error)
        ours = isinstance(error, ValueError | NonFiniteError | MissingExtraError | OSError)
        if not own or (ours and not place):
            raise
        refuse(f"{' or '.join(own)}: {type(error).__name__}{place}: {error}")


def _priorities(given: list[str]) -> dict[str, float] | None:
    """Read TASK=P pairs."""
    found: dict[str, float] = {}
    for pair in given:
        name, _, value = pair.rpartition("=")
        if name in found:
            raise ValueError(f"--priority is given twice for {name}")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"--priority must be TASK=P with a number P, found {pair}")
    return found or None
