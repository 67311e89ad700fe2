"""The runs of a comparison's folder, problem by problem, and where they differ."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkmtl.bench.report._words import listing
from ntkmtl.bench.runs import (
    REQUEST,
    IncompleteRun,
    Run,
    RunConfig,
    RunFileError,
    load_runs,
    read_json,
)
from ntkmtl.bench.search.records import read_tuning, tuning_of


@dataclass(frozen=True)
class ProblemRuns:
    """The runs of one problem.

    Attributes:
        problem: Its name.
        multi: Complete runs by method and seed, seeds rising.
        single: Complete runs of the single-task baselines by task and seed, seeds rising.
        open: Runs without a result.
        asked: Methods in the order to show them.
        data_file: Name of the file that the data are from, where that is known.
    """

    problem: str
    multi: dict[str, dict[int, Run]]
    single: dict[str, dict[int, Run]]
    open: list[IncompleteRun]
    asked: tuple[str, ...]
    data_file: str = ""

    @property
    def methods(self) -> list[str]:
        """The multi-task methods in the order to show them."""
        order = [method for method in dict.fromkeys(self.asked) if method in self.multi]
        return order + sorted(set(self.multi) - set(order))

    @property
    def done(self) -> list[Run]:
        """All complete runs, the baselines last."""
        groups = [*(self.multi[method] for method in self.methods), *self.single.values()]
        return [run for group in groups for run in group.values()]


def load(runs_dir: str | os.PathLike[str]) -> dict[str, ProblemRuns]:
    """Read the runs of each problem that has at least one complete multi-task run.

    Args:
        runs_dir: The folder given to ``ntkmtl compare --out``.

    Returns:
        The runs by name of the problem, in alphabetical order.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: No multi-task run is complete, a file cannot be read, or two runs are the same.
    """
    complete, incomplete = load_runs(runs_dir)
    found: dict[str, ProblemRuns] = {}
    names = _names(complete)
    for run in complete:
        config, name = run.config, names[_data_key(run)]
        if name not in found:
            found[name] = ProblemRuns(name, {}, {}, [], _asked(_folder(run)), _data_file(run))
        runs, task = found[name], config.single_task
        groups, group = (runs.multi, config.method) if task is None else (runs.single, task)
        kin = groups.setdefault(group, {})
        if config.seed in kin:
            raise ValueError(
                f"{kin[config.seed].path} and {run.path} are both runs of {config.method!r} with "
                f"seed {config.seed}; move one of them to another folder"
            )
        kin[config.seed] = run
    found = {problem: runs for problem, runs in sorted(found.items()) if runs.multi}
    if not found:
        raise ValueError(
            f"no finished multi-task run in {os.fspath(runs_dir)} (found {len(complete)} finished "
            f"single-task runs and {len(incomplete)} unfinished runs). Name the folder that "
            "`ntkmtl compare --out` wrote, or let the comparison finish"
        )
    for runs in found.values():
        for by_seed in (runs.multi, runs.single):
            by_seed.update({name: dict(sorted(group.items())) for name, group in by_seed.items()})
        # An unfinished run is assigned by its folder: its files may be incomplete.
        root = runs.done[0].path.parents[1]
        runs.open.extend(place for place in incomplete if root in place.path.parents)
    return found


def _data_key(run: Run) -> tuple[str, str]:
    """Return what runs of one table share: the problem, and the user's data if it has any."""
    options = run.config.problem_options
    data = {key: options.get(key) for key in ("data_sha256", "targets", "split")}
    return run.config.problem, json.dumps(data if data["data_sha256"] else {}, sort_keys=True)


def _names(complete: Sequence[Run]) -> dict[tuple[str, str], str]:
    """Return each table's name: its problem's, with its file or folder where several share it."""
    first: dict[tuple[str, str], Run] = {}
    for run in complete:
        first.setdefault(_data_key(run), run)
    found = {}
    for key, run in first.items():
        rivals = [each for other, each in first.items() if other[0] == key[0]]
        files = [_data_file(each) for each in rivals]
        if len(rivals) == 1:
            found[key] = key[0]
        elif _data_file(run) and files.count(_data_file(run)) == 1:
            found[key] = f"{key[0]} ({_data_file(run)})"
        else:
            found[key] = f"{key[0]} ({_folder(run).name or rivals.index(run)})"
    if len(set(found.values())) < len(found):
        # Folders of the same name are numbered.
        found = {key: f"{name} {i}" for i, (key, name) in enumerate(found.items(), start=1)}
    return found


def _folder(run: Run) -> Path:
    """Return the folder of the comparison that a run is of."""
    return run.path.parents[2 if run.config.single_task is None else 3]


def _data_file(run: Run) -> str:
    """Return the name of the user's file that a run's data are from, ``""`` for none."""
    csv = (run.config.created_with or {}).get("csv")
    return Path(csv).name if isinstance(csv, str) else ""


def _asked(root: Path) -> tuple[str, ...]:
    path = root / REQUEST
    if not path.exists():
        return ()
    methods = read_json(path).get("methods")
    if not isinstance(methods, list):
        raise RunFileError(path, f"key 'methods' must be a list, found {methods!r:.60}")
    return tuple(method for method in methods if isinstance(method, str))


# ------------------------------------------------------------------------------------------------
# What makes numbers less comparable, and settings that differ


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
