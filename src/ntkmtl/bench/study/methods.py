"""The methods of one problem: scales for fixed weights, search, final runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkmtl.bench.jobs.engine import Failure
from ntkmtl.bench.runs import TRIAL, convert, load_run, read_json
from ntkmtl.bench.search.records import TUNING, Trial, Tuning
from ntkmtl.bench.search.tuning import Search, search_settings
from ntkmtl.bench.study.part import StudyPart
from ntkmtl.bench.study.results import Setting, TriedSettings
from ntkmtl.bench.training import SweepError

__all__ = ["train_methods"]


def train_methods(part: StudyPart, names: Sequence[str]) -> None:
    """Search and train some methods of a problem side by side, and write a result for each.

    Raises:
        RunInterrupted: It was stopped.
        SweepError: A task has no gradient, which the weights of ``fixed`` are searched from.
    """
    searched = [name for name in names if part.trials_of(name)]
    found = _search(part, searched) if searched else {}
    names = [name for name in names if name in found or name not in searched]
    if not names:
        return
    part.train(names, "published")
    changed = {name: tuning for name, tuning in found.items() if tuning.number > 0}
    if changed:
        part.train(
            list(changed),
            "tuned",
            method_options={name: dict(tuning.method_options) for name, tuning in changed.items()},
            method_recipes={name: dict(tuning.recipe) for name, tuning in changed.items()},
        )
    for name in names:
        _write(part, name, found.get(name))


def _search(part: StudyPart, names: Sequence[str]) -> dict[str, Tuning]:
    """Return the settings found, without methods whose search failed."""
    search = Search(
        part.comparison(names, "search"),
        part.trials_of(names[0]),
        part.plan.trial_seed,
        part.trial_epochs,
        length=True,
        scales=_scales(part) if "fixed" in names else None,
    )
    sweep, found = search_settings(
        search, cache=part.cache, reporter=part.trainer.reporter, engine=part.trainer.engine
    )
    part.check_stop(sweep)
    if sweep.failures and len(names) > 1:
        # One by one, so that a method that cannot be trained does not stop the others.
        return {key: tuning for name in names for key, tuning in _search(part, [name]).items()}
    part.outcome.failures += sweep.failures or [
        Failure(
            label=f"{part.asked.name} {name}",
            folder=_tuning_folder(part, name),
            error="SweepError",
            message=f"all trials of {name} diverged; give {part.asked.name} a lower learning_rate",
        )
        for name in names
        if name not in found
    ]
    return found


def _tuning_folder(part: StudyPart, name: str) -> Path:
    return part.folder("search", name, 0).parent / TUNING


def _scales(part: StudyPart) -> dict[str, float]:
    """Return the length of each task's gradient over one epoch with ``ntkmtl``."""
    seed = part.plan.trial_seed
    part.train(["ntkmtl"], "kernels", seeds=[seed], epochs=1)
    eigenvalues = load_run(part.folder("kernels", "ntkmtl", seed)).steps.eigenvalues
    assert eigenvalues is not None, "ntkmtl reads them"
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(eigenvalues.astype(np.float64))
    found = {}
    for task, column in zip(part.problem.tasks, logs.T, strict=True):
        seen = column[np.isfinite(column)]
        if not len(seen):
            raise SweepError(
                f"{part.asked.name}: task {task} had no gradient in the first epoch, so the "
                "weights of fixed cannot be searched; leave fixed out"
            )
        # The eigenvalue of one mini-batch is the squared length of the gradient.
        found[task] = math.exp(float(seen.mean()) / 2)
    return found


def _write(part: StudyPart, name: str, tuning: Tuning | None) -> None:
    """Write the result of a method, unless one of its runs failed."""
    given = part.plan.method_options.get(name, {})
    published = best = _setting(part, name, "published", given, {})
    # If the best trial is the first, its final runs are those with the published settings.
    if tuning is not None and tuning.number > 0:
        best = _setting(part, name, "tuned", tuning.method_options, tuning.recipe)
    if published is not None and best is not None:
        part.write(name, _trials(part, name), published, None if tuning is None else best)


def _setting(
    part: StudyPart, name: str, folder: str, options: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Setting | None:
    """Return the final runs with one setting, None if one of them failed."""
    found = [part.final(folder, name, seed) for seed in part.seeds]
    runs = [run for run in found if run is not None]
    if len(runs) < len(found):
        return None
    return Setting(method_options=dict(options), recipe=dict(recipe), runs=runs)


def _trials(part: StudyPart, name: str) -> list[TriedSettings]:
    found = []
    for path in sorted(_tuning_folder(part, name).glob(f"trial-*/{TRIAL}")):
        trial = convert(path, read_json(path), Trial)
        val = [] if trial.value is None else list(load_run(path.parent).result.val)
        found.append(
            TriedSettings(
                parameters=dict(trial.parameters),
                value=trial.value,
                val=val,
                seconds=trial.wall_seconds,
            )
        )
    return found
