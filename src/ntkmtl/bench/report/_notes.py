"""What is said of the runs of a problem: the sentences around a table, and settings that differ."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ntkmtl.bench.jobs.reporters import duration
from ntkmtl.bench.report._runs import LEAST_CPU_SHARE, ProblemRuns
from ntkmtl.bench.report._table import MethodRow, ResultTable, SeedMean
from ntkmtl.bench.report._words import count, entry_of, listing, plain_label, units_text
from ntkmtl.bench.runs import Run, RunConfig
from ntkmtl.bench.search.records import read_tuning, tuning_of

_SPLITS = {"val": "validation", "train": "training"}


def notes_of(runs: ProblemRuns, table: ResultTable) -> Iterator[str]:
    """Yield what was run, and what the columns and rows mean, as sentences."""
    problem, facts, rows = table.problem, table.facts, table.rows
    seeds, recipe, hardware = facts["seeds"], facts["recipe"], facts["hardware"]
    spread = "Mean ± standard error over" if len(seeds) > 1 else "Numbers of"
    judged = "on the test split" if entry_of(problem).supervised else "in evaluations"
    yield (
        f"{spread} {count(len(seeds), 'seed')} ({listing([str(seed) for seed in seeds], 10)}), "
        f"{judged} {_when(recipe)}"
    )
    if facts.get("data_file"):
        sha256 = facts["problem_options"].get("data_sha256", "")
        yield f"Data: {facts['data_file']} (SHA-256 {sha256[:12]})."
    if any(row.delta_m is not None for row in rows):
        yield "Δm: mean relative change of the metrics against STL, in percent."
    if facts["stl_runs"]:
        budget = "the same budget" if facts["stl_same_budget"] else "another budget (see above)"
        yield (
            f"STL: trained here with {budget}, one network per task; its time is the sum over "
            "the tasks."
        )
    methods = count(facts["methods"], "multi-task method")
    yield f"MR: mean rank over the metrics among {methods}, STL left out."
    yield from _time_notes(problem, facts, rows)
    yield from (_tuning_note(row, recipe["epochs"]) for row in rows if row.tuning is not None)
    sizes = units_text(problem, facts["sizes"]) or (
        ", ".join(f"{size:,} {split}" for split, size in facts["sizes"].items()) + " samples"
    )
    kind = "Reduced recipe, smaller than in the literature" if facts["reduced"] else "Recipe"
    description = recipe["description"].strip()
    yield (
        f"{kind}: {count(recipe['epochs'], 'epoch')}, batch size {recipe['batch_size']:,}, "
        f"learning rate {recipe['learning_rate']:g}, {sizes}, "
        f"{count(facts['parameters'], 'parameter')}.{' ' if description else ''}{description}"
    )
    where = [str(hardware[key]) for key in ("device", "processor") if hardware.get(key)]
    for key, what in (("cores", "core"), ("threads", "thread")):
        if isinstance(hardware.get(key), int):
            where.append(count(hardware[key], what) + (" per run" if key == "threads" else ""))
    yield (
        f"Wall time {duration(facts['wall_seconds'])}, summed over {count(facts['runs'], 'run')}"
        f"{', on ' if where else ''}{', '.join(where)}."
    )
    if facts["versions"]:
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        yield f"Versions: {versions}."
    for method in runs.methods:
        if source := next(iter(runs.multi[method].values())).config.method_source:
            label = table.row(method).short
            yield f"{label}: {method}, a class outside ntkmtl, its source {source}."
    if "data_sha256" in facts["problem_options"] and (sharing := sharing_note(table)):
        yield sharing
    yield from (f"{row.method}: {row.reference}." for row in table.references)


def _when(recipe: Mapping[str, Any]) -> str:
    if recipe.get("chosen_epoch", "last") == "validation":
        return "after the epoch with the least loss on the validation split, chosen run by run."
    averaged = min(recipe.get("tested_epochs", 1), recipe["epochs"])
    last = "after the last epoch" if averaged == 1 else f"as means over the last {averaged} epochs"
    return f"{last}; no epoch is selected."


def _time_notes(problem: str, facts: Mapping[str, Any], rows: Sequence[MethodRow]) -> Iterator[str]:
    plain = plain_label(problem)
    reference = next((row for row in rows if row.method == entry_of(problem).plain), None)
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


def sharing_note(table: ResultTable) -> str:
    """Return in which metrics the method of lowest mean rank beats the single-task networks.

    A difference counts where it is more than two standard errors of itself. Without rows of
    single-task networks the sentence is ``""``.
    """
    alone = next((row for row in table.rows if row.is_baseline), None)
    ranked = [row for row in table.rows if row.mean_rank is not None]
    if alone is None or not ranked:
        return ""
    best = min(ranked, key=lambda row: row.mean_rank or math.inf)
    found: dict[str, list[str]] = {"helped": [], "hurt": [], "made no clear difference in": []}
    for column, shared, single in zip(table.columns, best.estimates, alone.estimates, strict=True):
        if shared is None or single is None:
            continue
        said = f"{column.label} ({_mean_text(shared)}, alone {_mean_text(single)})"
        found[_verdict(shared, single, column.higher_is_better)].append(said)
    parts = [f"{what} {listing(names, 20)}" for what, names in found.items() if names]
    if not parts:
        return ""
    seeds = "" if len(best.seeds) > 1 else " One seed says little: differences are not judged."
    return f"Sharing with {best.label}, the lowest MR: {'; '.join(parts)}.{seeds}"


def _verdict(shared: SeedMean, single: SeedMean, higher_is_better: bool) -> str:
    if shared.stderr is None or single.stderr is None:
        return "made no clear difference in"
    gain = (shared.mean - single.mean) * (1 if higher_is_better else -1)
    error = math.hypot(shared.stderr, single.stderr)
    if abs(gain) <= 2 * error:
        return "made no clear difference in"
    return "helped" if gain > 0 else "hurt"


def _mean_text(value: SeedMean) -> str:
    return f"{value.mean:.3g}" + ("" if value.stderr is None else f" ± {value.stderr:.2g}")


# ------------------------------------------------------------------------------------------------
# What makes numbers less comparable, and where runs differ


def warnings_of(runs: ProblemRuns, why_no_delta: str) -> Iterator[str]:
    """Yield what makes the numbers less comparable than they look, as sentences."""
    done = runs.done
    if runs.open:
        root = done[0].path.parents[1]
        names = [f"{place.path.relative_to(root)} ({place.reason})" for place in runs.open]
        verb = "run is not complete and is" if len(names) == 1 else "runs are not complete and are"
        yield f"{len(names)} {verb} left out: {listing(names)}."
    if why_no_delta:
        yield why_no_delta
    yield from _early_epochs(done)
    groups = {**{f"stl {task}": group for task, group in runs.single.items()}, **runs.multi}
    yield from _differences("seeds", {name: [list(group)] for name, group in groups.items()})
    for section in ("recipe", "problem_options", "sizes"):
        for key in dict.fromkeys(key for run in done for key in getattr(run.config, section)):
            if key != "description":
                name = key if section != "sizes" else f"size of {key}"
                yield from _differences(name, _by_method(done, section, key))
    for method, group in runs.multi.items():
        members = list(group.values())
        if read_tuning(members[0].path.parent) is not None and tuning_of(members) is None:
            yield f"{method} was tuned, and not all of its runs have the settings found."
        by_seed = {f"seed {s}": [dict(r.config.method_options)] for s, r in group.items()}
        yield from _differences(f"options of {method}", by_seed)
    for name, group in groups.items():
        steps = sum(run.result.steps for run in group.values())
        if missed := sum(run.result.skipped_steps or 0 for run in group.values()):
            yield (
                f"{name} left out {missed:,} of {steps:,} steps, as a loss or a gradient was not "
                "finite."
            )
    for section in ("hardware", "versions"):
        yield from _differences(section, _by_method(done, section))


def _early_epochs(done: Sequence[Run]) -> Iterator[str]:
    """Yield a sentence where test metrics are means over epochs of networks hardly trained."""
    recipes = {
        (run.config.recipe.get("tested_epochs", 1), run.config.recipe["epochs"]) for run in done
    }
    for tested, epochs in sorted(recipes):
        if tested > 1 and 2 * tested > epochs:
            yield (
                f"Test metrics are means over the last {min(tested, epochs)} of {epochs} epochs. "
                "Networks of the first epochs, which are hardly trained, are averaged in: train "
                "longer, or take another protocol."
            )


def _by_method(runs: Sequence[Run], section: str, key: str | None = None) -> dict[str, list[Any]]:
    """Return the different values that each method's runs have in their configuration."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for run in runs:
        value = dict(getattr(run.config, section))
        item = value if key is None else value.get(key)
        found[run.config.method].setdefault(_key(item), item)
    return {method: list(items.values()) for method, items in found.items()}


def _key(item: Any) -> str:
    """Return a key that equal JSON values share; the many plain values do without JSON."""
    return repr(item) if type(item) in (int, str, bool) else json.dumps(item, sort_keys=True)


def _differences(what: str, values: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield a sentence on who has which value, none where all have one and the same."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, items in values.items():
        groups[" or ".join(map(_shown, items))].append(name)
    if len(groups) > 1 or any(len(items) > 1 for items in values.values()):
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        parts = [f"{value} in {listing(names)}" for value, names in ordered]
        yield f"Runs differ in {what}: {'; '.join(parts)}."


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def differing_settings(runs: ProblemRuns) -> dict[str, list[tuple[Any, list[str]]]]:
    """Return the settings that are not the same in all runs.

    What tells runs apart by design is left out: method, seed, and the task of a single-task
    network. The options of a method are compared between its own runs only.

    Returns:
        By what is set, as ``recipe: epochs``: its values, the most common first, each with the
        runs that have it; None where a run does not have the setting.
    """
    entries = [(run, dict(_settings(run.config))) for run in runs.done]
    totals = Counter(run.config.method for run, _ in entries)
    found = {}
    for owner, name in dict.fromkeys(key for _, settings in entries for key in settings):
        groups: dict[str, tuple[Any, list[Run]]] = {}
        for run, settings in entries:
            if owner in ("", run.config.method):
                value = settings.get((owner, name))
                groups.setdefault(_key(value), (value, []))[1].append(run)
        if len(groups) > 1:
            ordered = sorted(groups.values(), key=lambda group: -len(group[1]))
            found[name] = [(value, _named(group, totals)) for value, group in ordered]
    return found


def _settings(config: RunConfig) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield the settings of a run by their owner, a method or none, and name."""
    sections = {
        "recipe": config.recipe,
        "problem": config.problem_options,
        "samples": config.sizes,
        "hardware": config.hardware,
        "version": config.versions,
    }
    for section, values in sections.items():
        for key, value in values.items():
            if (section, key) != ("recipe", "description"):
                yield ("", f"{section}: {key}"), value
    for key, value in config.method_options.items():
        yield (config.method, f"option of {config.method}: {key}"), value


def _named(group: Sequence[Run], totals: Mapping[str, int]) -> list[str]:
    """Return names of runs: of a method whose runs are all there, of runs one by one else."""
    by_method: dict[str, list[str]] = defaultdict(list)
    for run in group:
        config = run.config
        task = "" if config.single_task is None else f" {config.single_task}"
        by_method[config.method].append(f"{config.method}{task} seed {config.seed}")
    return [
        name
        for method, names in by_method.items()
        for name in ([method] if len(names) == totals[method] else names)
    ]
