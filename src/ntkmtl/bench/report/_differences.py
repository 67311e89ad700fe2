"""Settings in which the runs of a comparison differ."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkmtl.bench.report._runs import ProblemRuns
    from ntkmtl.bench.runs import Run, RunConfig


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in all runs.

    Attributes:
        name: What is set, as ``recipe: epochs``.
        values: Its values, the most common first, each with the runs that have it; None where a
            run does not have the setting.
    """

    name: str
    values: tuple[tuple[Any, tuple[str, ...]], ...]


def differing_settings(runs: ProblemRuns) -> list[Difference]:
    """Return the settings that are not the same in all runs.

    What tells runs apart by design is left out: method, seed, and the task of a single-task
    network. The options of a method are compared between its own runs only.
    """
    entries = [(run, dict(_settings(run.config))) for run in runs.done]
    totals = Counter(run.config.method for run, _ in entries)
    found = []
    for key in dict.fromkeys(key for _, settings in entries for key in settings):
        owner, name = key
        groups: dict[str, tuple[Any, list[Run]]] = {}
        for run, settings in entries:
            if owner in ("", run.config.method):
                value = settings.get(key)
                shared = groups.setdefault(json.dumps(value, sort_keys=True), (value, []))
                shared[1].append(run)
        if len(groups) > 1:
            ordered = sorted(groups.values(), key=lambda group: -len(group[1]))
            values = tuple((value, _named(group, totals)) for value, group in ordered)
            found.append(Difference(name, values))
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


def _named(group: Sequence[Run], totals: Mapping[str, int]) -> tuple[str, ...]:
    """Return names of runs: of a method whose runs are all there, of runs one by one else."""
    by_method: dict[str, list[Run]] = defaultdict(list)
    for run in group:
        by_method[run.config.method].append(run)
    names: list[str] = []
    for method, members in by_method.items():
        if len(members) == totals[method]:
            names.append(method)
        else:
            names += map(_name, members)
    return tuple(names)


def _name(run: Run) -> str:
    config = run.config
    task = "" if config.single_task is None else f" {config.single_task}"
    return f"{config.method}{task} seed {config.seed}"
