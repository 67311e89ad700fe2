"""What makes the numbers of a table less comparable than they look."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.report._words import listing
from ntkmtl.bench.search.records import read_tuning, tuning_of

if TYPE_CHECKING:
    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.runs import Run


def warnings_of(runs: ProblemRuns, why_no_delta: str) -> list[str]:
    """Return what makes the numbers less comparable than they look."""
    done = runs.done
    found = []
    if runs.open:
        root = done[0].path.parents[1]
        names = [f"{place.path.relative_to(root)} ({place.reason})" for place in runs.open]
        verb = "run is not complete and is" if len(names) == 1 else "runs are not complete and are"
        found.append(f"{len(names)} {verb} left out: {listing(names)}.")
    if why_no_delta:
        found.append(why_no_delta)
    found += _early_epochs(done)
    groups = {**{f"stl {task}": group for task, group in runs.single.items()}, **runs.multi}
    found += _differences("seeds", {name: [sorted(group)] for name, group in groups.items()})
    for section in ("recipe", "problem_options", "sizes"):
        keys = dict.fromkeys(key for run in done for key in getattr(run.config, section))
        for key in keys:
            if key != "description":
                name = key if section != "sizes" else f"size of {key}"
                found += _differences(name, _by_method(done, section, key))
    for method, group in runs.multi.items():
        members = list(group.values())
        if read_tuning(members[0].path.parent) is not None and tuning_of(members) is None:
            found.append(f"{method} was tuned, and not all of its runs have the settings found.")
        by_seed = {f"seed {s}": [dict(r.config.method_options)] for s, r in sorted(group.items())}
        found += _differences(f"options of {method}", by_seed)
    found += filter(None, (_left_out(name, group) for name, group in groups.items()))
    for section in ("hardware", "versions"):
        found += _differences(section, _by_method(done, section))
    return found


def _left_out(name: str, group: Mapping[int, Run]) -> str:
    """Return a sentence on the steps that runs did not take, nothing for none."""
    results = [run.result for run in group.values()]
    missed = sum(r.skipped_steps or 0 for r in results)
    steps = sum(r.steps for r in results)
    if not missed:
        return ""
    return f"{name} left out {missed:,} of {steps:,} steps, as a loss or a gradient was not finite."


def _early_epochs(done: Sequence[Run]) -> list[str]:
    """Return a sentence where test metrics are means over epochs of networks hardly trained."""
    recipes = {
        (run.config.recipe.get("tested_epochs", 1), run.config.recipe["epochs"]) for run in done
    }
    few = [
        (tested, epochs) for tested, epochs in sorted(recipes) if tested > 1 and 2 * tested > epochs
    ]
    return [
        f"Test metrics are means over the last {min(tested, epochs)} of {epochs} epochs. Networks "
        "of the first epochs, which are hardly trained, are averaged in: train longer, or take "
        "another protocol."
        for tested, epochs in few
    ]


def _by_method(runs: Iterable[Run], section: str, key: str | None = None) -> dict[str, list[Any]]:
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


def _differences(what: str, values: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a sentence on who has which value, nothing where all have one and the same."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, items in values.items():
        groups[" or ".join(map(_shown, items))].append(name)
    if len(groups) < 2 and not any(len(items) > 1 for items in values.values()):
        return []
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    parts = [f"{value} in {listing(names)}" for value, names in ordered]
    return [f"Runs differ in {what}: {'; '.join(parts)}."]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)
