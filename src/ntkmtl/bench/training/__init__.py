"""Training: one trainer for all supervised problems, and sweeps over methods.

* :func:`train` trains one network with one method and one seed, and leaves a run folder.
* :func:`compare` trains every (method, seed) of a comparison, on this machine or another engine.
* :func:`load_run` and :func:`load_runs` read runs back; they need no torch.

The names are loaded on first use, so that reading runs does not import torch.

Example:
    >>> from ntkmtl.bench import training
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import pandas as pd
    >>> folder = Path(mkdtemp())
    >>> table = pd.DataFrame({"age": range(60), "rooms": [i % 7 for i in range(60)]})
    >>> table["price"], table["rent"] = 3 * table["rooms"] - table["age"] / 9, 2.0 * table["rooms"]
    >>> table.to_csv(folder / "houses.csv", index=False)
    >>> comparison = training.Comparison(
    ...     problem="table",
    ...     problem_options={"csv": str(folder / "houses.csv"), "targets": "price,rent"},
    ...     methods=("ls", "si"),
    ...     seeds=(0,),
    ...     epochs=1,
    ...     single_task_baselines=False,
    ...     jobs=1,
    ...     out=folder / "runs",
    ... )
    >>> len(training.plan(comparison).jobs)
    2
    >>> training.compare(comparison).failures
    ()
    >>> runs, unfinished = training.load_runs(folder / "runs")
    >>> [run.config.method for run in runs], unfinished
    (['ls', 'si'], [])

    One run at a time, the same numbers:

    >>> problem = training.find_problem("table", comparison.problem_options)
    >>> recipe = training.changed_recipe(problem.recipe, epochs=1)
    >>> spec = training.RunSpec(method="ls", seed=0, recipe=recipe, threads=1)
    >>> run = training.train_spec(problem, spec, folder / "one")
    >>> training.load_run(folder / "one").result.test == run.result.test
    True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.loading import on_first_use

if TYPE_CHECKING:
    from ntkmtl.bench.jobs.engine import Failure
    from ntkmtl.bench.problems import ProblemNotFoundError, find_problem
    from ntkmtl.bench.runs import (
        Epoch,
        IncompleteRun,
        Run,
        RunBusyError,
        RunConfig,
        RunConflictError,
        RunFileError,
        RunFolderLostError,
        RunInterrupted,
        RunResult,
        Steps,
        load_run,
        load_runs,
    )
    from ntkmtl.bench.training.comparison import (
        Comparison,
        SweepError,
        changed_recipe,
        method_names,
    )
    from ntkmtl.bench.training.planning import Plan, plan
    from ntkmtl.bench.training.spec import RunSpec
    from ntkmtl.bench.training.sweep import Sweep, compare
    from ntkmtl.bench.training.trainer import train, train_spec

__all__ = [
    "Comparison",
    "Epoch",
    "Failure",
    "IncompleteRun",
    "Plan",
    "ProblemNotFoundError",
    "Run",
    "RunBusyError",
    "RunConfig",
    "RunConflictError",
    "RunFileError",
    "RunFolderLostError",
    "RunInterrupted",
    "RunResult",
    "RunSpec",
    "Steps",
    "Sweep",
    "SweepError",
    "changed_recipe",
    "compare",
    "find_problem",
    "load_run",
    "load_runs",
    "method_names",
    "plan",
    "train",
    "train_spec",
]

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "..jobs.engine": ("Failure",),
        "..problems": ("ProblemNotFoundError", "find_problem"),
        "..runs": (
            "Epoch",
            "IncompleteRun",
            "Run",
            "RunBusyError",
            "RunConfig",
            "RunConflictError",
            "RunFileError",
            "RunFolderLostError",
            "RunInterrupted",
            "RunResult",
            "Steps",
            "load_run",
            "load_runs",
        ),
        ".comparison": ("Comparison", "SweepError", "changed_recipe", "method_names"),
        ".planning": ("Plan", "plan"),
        ".spec": ("RunSpec",),
        ".sweep": ("Sweep", "compare"),
        ".trainer": ("train", "train_spec"),
    },
)
