"""What was run, as JSON values and as the sentences under a table."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ntkmtl.bench import problems
from ntkmtl.bench.jobs.reporters import duration
from ntkmtl.bench.report._times import LEAST_CPU_SHARE, is_busy
from ntkmtl.bench.report._words import count, listing, plain_label, plain_method

if TYPE_CHECKING:
    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.report._table import MethodRow
    from ntkmtl.bench.runs import Run


def facts_of(runs: ProblemRuns) -> dict[str, Any]:
    multi = [run for group in runs.multi.values() for run in group.values()]
    done = runs.done
    config = done[0].config
    return {
        "seeds": sorted({run.config.seed for run in multi}),
        "methods": len(runs.multi),
        "recipe": dict(config.recipe),
        "reduced": any(run.config.recipe["reduced"] for run in multi),
        "sizes": {split: config.sizes[split] for split in ("train", "val", "test")},
        "tasks": list(config.tasks),
        "parameters": config.parameters,
        "problem_options": dict(config.problem_options),
        **({"data_file": runs.data_file} if runs.data_file else {}),
        "runs": len(done),
        "stl_runs": sum(map(len, runs.single.values())),
        "stl_same_budget": all(
            _budget(run) == _budget(done[0])
            for group in runs.single.values()
            for run in group.values()
        ),
        "busy_runs": sum(map(is_busy, done)),
        "wall_seconds": math.fsum(run.result.wall_seconds for run in done),
        "hardware": _most_common(run.config.hardware for run in done),
        "versions": _most_common(run.config.versions for run in done),
        "finished": max(run.result.finished for run in done),
    }


def _budget(run: Run) -> tuple[Any, ...]:
    recipe = run.config.recipe
    return recipe["epochs"], recipe["batch_size"], recipe["learning_rate"], run.config.sizes


def _most_common(values: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    counted = Counter(json.dumps(value, sort_keys=True) for value in values)
    result: dict[str, Any] = json.loads(counted.most_common(1)[0][0])
    return result


def _sizes_text(problem: str, sizes: Mapping[str, int]) -> str:
    entry = problems.spec(problem)
    if entry is None or not entry.units:
        return ", ".join(f"{size:,} {split}" for split, size in sizes.items()) + " samples"
    return ", ".join(f"{sizes[split]:,} {unit}" for split, unit in entry.units.items())


def notes_of(
    problem: str, facts: dict[str, Any], rows: Sequence[MethodRow], delta: bool
) -> list[str]:
    """Return what was run, and what the columns mean, as sentences."""
    seeds, recipe = facts["seeds"], facts["recipe"]
    spread = "Mean ± standard error over" if len(seeds) > 1 else "Numbers of"
    entry = problems.spec(problem)
    judged = "on the test split" if entry is None or entry.supervised else "in evaluations"
    notes = [
        f"{spread} {count(len(seeds), 'seed')} ({listing([str(seed) for seed in seeds], 10)}), "
        f"{judged} {_when(recipe)}"
    ]
    if facts.get("data_file"):
        sha256 = facts["problem_options"].get("data_sha256", "")
        notes.append(f"Data: {facts['data_file']} (SHA-256 {sha256[:12]}).")
    if delta:
        notes.append("Δm: mean relative change of the metrics against STL, in percent.")
    if facts["stl_runs"]:
        budget = "the same budget" if facts["stl_same_budget"] else "another budget (see above)"
        notes.append(
            f"STL: trained here with {budget}, one network per task; its time is the sum over "
            "the tasks."
        )
    methods = count(facts["methods"], "multi-task method")
    notes.append(f"MR: mean rank over the metrics among {methods}, STL left out.")
    notes += _time_notes(problem, facts, rows)
    notes += [_tuning_note(row, recipe["epochs"]) for row in rows if row.tuning is not None]
    sizes = _sizes_text(problem, facts["sizes"])
    kind = "Reduced recipe, smaller than in the literature" if facts["reduced"] else "Recipe"
    description = recipe["description"].strip()
    notes.append(
        f"{kind}: {count(recipe['epochs'], 'epoch')}, batch size {recipe['batch_size']:,}, "
        f"learning rate {recipe['learning_rate']:g}, {sizes}, "
        f"{count(facts['parameters'], 'parameter')}.{' ' if description else ''}{description}"
    )
    hardware = facts["hardware"]
    where = [str(hardware[key]) for key in ("device", "processor") if hardware.get(key)]
    for key, what in (("cores", "core"), ("threads", "thread")):
        if isinstance(hardware.get(key), int):
            where.append(count(hardware[key], what) + (" per run" if key == "threads" else ""))
    notes.append(
        f"Wall time {duration(facts['wall_seconds'])}, summed over {count(facts['runs'], 'run')}"
        f"{', on ' if where else ''}{', '.join(where)}."
    )
    if facts["versions"]:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        notes.append(f"Versions: {versions}.")
    return notes


def _time_notes(problem: str, facts: Mapping[str, Any], rows: Sequence[MethodRow]) -> Iterator[str]:
    plain = plain_label(problem)
    reference = next((row for row in rows if row.method == plain_method(problem)), None)
    if reference is None:
        yield f"Time: not known relative to {plain}, as {plain} is not among the runs."
    elif reference.seconds_per_epoch is None:
        yield f"Time: not known relative to {plain}, as the machine was busy meanwhile."
    else:
        yield (
            f"Time: training per epoch, median over epochs, relative to {plain} "
            f"({reference.seconds_per_epoch:.3g} s)."
        )
    if busy := facts["busy_runs"]:
        left_out = "all runs" if busy == facts["runs"] else f"{busy:,} of {facts['runs']:,} runs"
        yield (
            f"Times of {left_out} are left out, as the machine was busy: they had a processor core "
            f"for less than {100 * LEAST_CPU_SHARE:g} % of their training time."
        )


def custom_notes(multi: Mapping[str, Sequence[Run]], labels: Mapping[str, str]) -> Iterator[str]:
    """Yield the sources of methods from outside this package."""
    for method, group in multi.items():
        if source := group[0].config.method_source:
            yield f"{labels[method]}: {method}, a class outside ntkmtl, its source {source}."


def _tuning_note(row: MethodRow, epochs: int) -> str:
    tuning = row.tuning
    assert tuning is not None
    length = count(tuning.epochs, "epoch")
    if tuning.epochs != epochs:
        length += f" (the runs have {epochs})"
    chosen = "Optuna's TPE" if tuning.sampler == "tpe" else tuning.sampler
    start = "with diverged" if tuning.start_value is None else f"with: {tuning.start_value:.2f} %"
    diverged = f", of which {tuning.diverged} diverged" if tuning.diverged else ""
    split = _SPLITS.get(tuning.split, tuning.split)
    return (
        f"{row.short or row.method} is tuned: the best of {count(tuning.trials, 'trial')}"
        f"{diverged}, by Δm on the {split} split: {tuning.value:.2f} % (the settings that the "
        f"search began {start}). Settings were chosen by {chosen}; trials have seed {tuning.seed} "
        f"and {length}, and took {duration(tuning.wall_seconds)} in all, which the times here "
        "leave out. A method of which this is not said is not tuned."
    )


_SPLITS = {"val": "validation", "train": "training"}


def _when(recipe: Mapping[str, Any]) -> str:
    if recipe.get("chosen_epoch", "last") == "validation":
        return "after the epoch with the least loss on the validation split, chosen run by run."
    averaged = min(recipe.get("tested_epochs", 1), recipe["epochs"])
    last = "after the last epoch" if averaged == 1 else f"as means over the last {averaged} epochs"
    return f"{last}; no epoch is selected."
