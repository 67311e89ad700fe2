"""Reading the runs of a comparison's folder, problem by problem."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ntkmtl.bench.runs import IncompleteRun, Run, RunFileError, load_runs, read_json

__all__ = ["ProblemRuns", "load"]


@dataclass(frozen=True)
class ProblemRuns:
    """The runs of one problem.

    Attributes:
        problem: Its name.
        multi: Complete runs by method and seed.
        single: Complete runs of the single-task baselines by task and seed.
        open: ProblemRuns without a result.
        asked: Methods in the order to show them.
    """

    problem: str
    multi: dict[str, dict[int, Run]]
    single: dict[str, dict[int, Run]]
    open: list[IncompleteRun]
    asked: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """The multi-task methods in the order to show them."""
        order = [method for method in dict.fromkeys(self.asked) if method in self.multi]
        return order + sorted(set(self.multi) - set(order))

    @property
    def done(self) -> list[Run]:
        """All complete runs, the baselines last."""
        groups = [*(self.multi[method] for method in self.methods), *self.single.values()]
        return [run for group in groups for _, run in sorted(group.items())]


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
    asked = _asked(Path(runs_dir))
    found: dict[str, ProblemRuns] = {}
    for run in complete:
        config = run.config
        if config.problem not in found:
            found[config.problem] = ProblemRuns(config.problem, {}, {}, [], asked)
        runs = found[config.problem]
        task = config.single_task
        kin = (
            runs.multi.setdefault(config.method, {})
            if task is None
            else runs.single.setdefault(task, {})
        )
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
    for place in incomplete:
        # What an unfinished run belongs to is told by its folder: its files may not be whole.
        for runs in found.values():
            root = runs.done[0].path.parents[1]
            if root in place.path.parents:
                runs.open.append(place)
    return found


def _asked(root: Path) -> tuple[str, ...]:
    path = root / "compare.json"
    if not path.exists():
        return ()
    methods = read_json(path).get("methods")
    if not isinstance(methods, list):
        raise RunFileError(path, f"key 'methods' must be a list, found {methods!r:.60}")
    return tuple(method for method in methods if isinstance(method, str))
