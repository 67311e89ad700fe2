"""Reading the runs of a comparison's folder, problem by problem."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ntkmtl.bench.runs import (
    REQUEST,
    IncompleteRun,
    Run,
    RunFileError,
    load_runs,
    read_json,
)


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
