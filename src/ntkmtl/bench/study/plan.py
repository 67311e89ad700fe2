"""What a study is asked for: a TOML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ntkmtl.bench.runs import SINGLE_TASK, convert, read_json
from ntkmtl.bench.search.tuning import TUNING_SEED
from ntkmtl.bench.training import Comparison, SweepError, method_names
from ntkmtl.files import read_bytes

__all__ = ["PLAN", "REFERENCE", "ProblemPlan", "StudyPlan", "read_plan", "stored_plan"]

PLAN = "plan.json"
"""The file in a study's folder that says what was asked for last."""

REFERENCE = "ls"
"""The plain sum of the losses, which every method is compared with."""

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seed = Annotated[int, msgspec.Meta(ge=0)]
_Rate = Annotated[float, msgspec.Meta(gt=0)]


class ProblemPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One problem of a study, a table ``[[problem]]`` of the file.

    Attributes:
        name: Its name in this study.
        problem: A registered problem, ``module:Class`` or ``file.py:Class``; ``name`` if empty.
        options: Options of the problem.
        source: Where its data come from, ``name`` if empty. The bootstrap draws sources.
        methods: Instead of the study's.
        trials: Instead of the study's.
        seeds: Instead of the study's.
        trial_epochs: Instead of the study's.
        epochs: Instead of the recipe's.
        batch_size: Instead of the recipe's.
        learning_rate: Instead of the recipe's, where the search begins.
    """

    name: str
    problem: str = ""
    options: dict[str, Any] = {}
    source: str = ""
    methods: list[str] | None = None
    trials: _Count | None = None
    seeds: _Count | None = None
    trial_epochs: _Count | None = None
    epochs: _Count | None = None
    batch_size: _Count | None = None
    learning_rate: _Rate | None = None


class StudyPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A study.

    Attributes:
        title: What it is about.
        methods: Methods to compare, ``all`` for every one; ``ls`` is always among them.
        trials: Trials of each method, and of each single-task network.
        seeds: Final runs of each method use seeds 0 to this less one.
        problem: The problems.
        trial_epochs: Epochs of a trial, those of the final runs if not given.
        trial_seed: Seed of all trials, none of the final ones.
        published_only: Methods that are too slow to be tuned.
        method_options: Options of methods that are not searched.
        diagram: Methods of the critical-difference diagram, named before results are known.
    """

    methods: list[str]
    trials: _Count
    seeds: _Count
    problem: list[ProblemPlan]
    title: str = ""
    trial_epochs: _Count | None = None
    trial_seed: _Seed = TUNING_SEED
    published_only: list[str] = []
    method_options: dict[str, dict[str, Any]] = {}
    diagram: list[str] = []

    def methods_of(self, problem: ProblemPlan) -> list[str]:
        """Return the methods that a problem is trained with, the plain sum first.

        Args:
            problem: The problem; where it has no methods of its own, the study's are taken.

        Raises:
            SweepError: A method is unknown.

        Example:
            >>> problem = ProblemPlan(name="qm9-mini")
            >>> plan = StudyPlan(methods=["si", "ls"], trials=4, seeds=3, problem=[problem])
            >>> plan.methods_of(problem)
            ['ls', 'si']
        """
        asked = self.methods if problem.methods is None else problem.methods
        return method_names([REFERENCE, *asked])

    def trials_of(self, problem: ProblemPlan, method: str) -> int:
        """Return the number of trials of a method, 0 if ``published_only`` names it.

        Args:
            problem: The problem; where it has no number of its own, the study's is taken.
            method: Name of the method, or of the single-task networks.
        """
        return 0 if method in self.published_only else problem.trials or self.trials

    def seeds_of(self, problem: ProblemPlan) -> list[int]:
        """Return the seeds of final runs.

        Args:
            problem: The problem; where it has no number of its own, the study's is taken.
        """
        return list(range(problem.seeds or self.seeds))

    def comparison(
        self, problem: ProblemPlan, methods: list[str], out: Path, **more: Any
    ) -> Comparison:
        """Return the comparison that trains final runs of a problem with some methods.

        Args:
            problem: The problem.
            methods: The methods.
            out: Folder for the runs.
            **more: Further arguments of the comparison, instead of the plan's.
        """
        options = {m: self.method_options[m] for m in methods if m in self.method_options}
        values: dict[str, Any] = {
            "problem": problem.problem or problem.name,
            "methods": methods,
            "seeds": self.seeds_of(problem),
            "out": out,
            "problem_options": problem.options,
            "method_options": options,
            "epochs": problem.epochs,
            "batch_size": problem.batch_size,
            "learning_rate": problem.learning_rate,
            "single_task_baselines": False,
        }
        return Comparison(**{**values, **more})


def read_plan(path: str | os.PathLike[str]) -> StudyPlan:
    """Read a study's file, and refuse what cannot be done before anything is trained.

    Args:
        path: A TOML file.

    Raises:
        SweepError: It cannot be read, is not TOML, has a wrong or unknown key, or names an unknown
            method.
    """
    try:
        plan = msgspec.toml.decode(read_bytes(path), type=StudyPlan)
    except OSError as error:
        raise SweepError(f"{path} cannot be read ({error.strerror or error})") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SweepError(f"{path}: {error}") from error
    try:
        _check(plan)
    except ValueError as error:
        raise SweepError(f"{path}: {error}") from error
    return plan


def stored_plan(out: Path) -> StudyPlan:
    """Return what was asked for last in a study's folder.

    Raises:
        RunFileError: There is none, or it is damaged.
    """
    return convert(out / PLAN, read_json(out / PLAN), StudyPlan)


def _check(plan: StudyPlan) -> None:
    """Refuse a plan that contradicts itself."""
    if not plan.problem:
        raise ValueError("at least one [[problem]] is needed, found none")
    names = [problem.name for problem in plan.problem]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two problems are named {twice!r}; give each a name of its own")
    for name in names:
        if name != Path(name).name or name in ("", ".", ".."):
            raise ValueError(f"the name {name!r} of a problem cannot be that of a folder")
    known = {method for problem in plan.problem for method in plan.methods_of(problem)}
    if SINGLE_TASK in known:
        raise ValueError(f"{SINGLE_TASK} is trained in any case; leave it out of methods")
    lists = {
        "published_only": plan.published_only,
        "method_options": plan.method_options,
        "diagram": plan.diagram,
    }
    for key, methods in lists.items():
        for method in methods:
            if method not in known:
                raise ValueError(f"{key} names {method!r}, which no problem is trained with")
    if REFERENCE in plan.published_only:
        raise ValueError(f"{REFERENCE} is what the others are compared with: tune it as well")
    for problem in plan.problem:
        if plan.trial_seed in plan.seeds_of(problem):
            raise ValueError(
                f"seed {plan.trial_seed} is the trials' and one of {problem.name}'s final runs; "
                "give another trial_seed"
            )
