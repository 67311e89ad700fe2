"""The methods of one problem: scales for fixed weights, search, final runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkmtl.bench.jobs.engine import Failure
from ntkmtl.bench.runs import TRIAL, convert, load_run, read_json, run_folder
from ntkmtl.bench.search.records import TUNING, Trial, Tuning
from ntkmtl.bench.search.tuning import Search, search_settings
from ntkmtl.bench.study.part import StudyPart
from ntkmtl.bench.study.results import MethodResult, Setting, TriedSettings
from ntkmtl.bench.training import Sweep, SweepError

__all__ = ["Methods"]


class Methods:
    """Some methods of a problem, trained side by side."""

    def __init__(self, part: StudyPart, names: Sequence[str]) -> None:
        self.part, self.names = part, list(names)
        self.plan, self.asked = part.plan, part.asked

    def run(self) -> None:
        """Search, train, and write a result for each.

        Raises:
            RunInterrupted: It was stopped.
        """
        searched = [name for name in self.names if self.plan.trials_of(self.asked, name)]
        found = self._search(searched) if searched else {}
        names = [name for name in self.names if name in found or name not in searched]
        if not names:
            return
        published = self.part.train(self.part.comparison(names, "published"))
        changed = {name: t for name, t in found.items() if t.number > 0}
        tuned = None
        if changed:
            tuned = self.part.train(
                self.part.comparison(
                    list(changed),
                    "tuned",
                    method_options={n: dict(t.method_options) for n, t in changed.items()},
                    method_recipes={n: dict(t.recipe) for n, t in changed.items()},
                )
            )
        for name in names:
            self.part.write(self._result(name, found.get(name), published, tuned))

    def _search(self, names: Sequence[str]) -> dict[str, Tuning]:
        """Return the settings found, without methods whose search failed."""
        scales = self.scales() if "fixed" in names else None
        sweep, found = search_settings(
            Search(
                self.part.comparison(names, "search"),
                self.plan.trials_of(self.asked, names[0]),
                self.plan.trial_seed,
                self.part.trial_epochs,
                length=True,
                scales=scales,
            ),
            cache=self.part.cache,
            reporter=self.part.trainer.reporter,
            engine=self.part.trainer.engine,
        )
        self.part.check_stop(sweep)
        if sweep.failures and len(names) > 1:
            # One by one, so that a method that cannot be trained does not stop the others.
            return {key: t for name in names for key, t in self._search([name]).items()}
        self.part.outcome.failures += sweep.failures
        if not sweep.failures:
            self.part.outcome.failures += [
                self._diverged(name) for name in names if name not in found
            ]
        return found

    def _tuning(self, name: str) -> Path:
        place = self.part.place / "search"
        return run_folder(place, self.part.problem.name, name, 0).parent / TUNING

    def _diverged(self, name: str) -> Failure:
        return Failure(
            label=f"{self.asked.name} {name}",
            folder=self._tuning(name),
            error="SweepError",
            message=f"all trials of {name} diverged; give {self.asked.name} a lower learning_rate",
        )

    def scales(self) -> dict[str, float]:
        """Return the length of each task's gradient over one epoch with ``ntkmtl``.

        Raises:
            RunInterrupted: It was stopped.
            SweepError: A task has no gradient.
        """
        seed = self.plan.trial_seed
        self.part.train(self.part.comparison(["ntkmtl"], "kernels", seeds=[seed], epochs=1))
        run = load_run(
            run_folder(self.part.place / "kernels", self.part.problem.name, "ntkmtl", seed)
        )
        eigenvalues = run.steps.eigenvalues
        assert eigenvalues is not None, "ntkmtl reads them"
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(eigenvalues.astype(np.float64))
        found = {}
        for task, column in zip(self.part.problem.tasks, logs.T, strict=True):
            seen = column[np.isfinite(column)]
            if not len(seen):
                raise SweepError(
                    f"{self.asked.name}: task {task} had no gradient in the first epoch, so the "
                    "weights of fixed cannot be searched; leave fixed out"
                )
            # The eigenvalue of one mini-batch is the squared length of the gradient.
            found[task] = math.exp(float(seen.mean()) / 2)
        return found

    def _result(
        self, name: str, tuning: Tuning | None, published: Sweep, tuned: Sweep | None
    ) -> MethodResult | None:
        """Return the result of a method, None if one of its runs failed."""
        given = self.plan.method_options.get(name, {})
        as_published = best = self._setting(name, "published", published, given, {})
        # If the best trial is the first, its final runs are those with the published settings.
        if tuned is not None and tuning is not None and tuning.number > 0:
            best = self._setting(name, "tuned", tuned, tuning.method_options, tuning.recipe)
        if as_published is None or best is None:
            return None
        found = None if tuning is None else best
        return self.part.made(name, self._trials(name), as_published, found)

    def _setting(
        self,
        name: str,
        part: str,
        sweep: Sweep,
        options: Mapping[str, Any],
        recipe: Mapping[str, Any],
    ) -> Setting | None:
        """Return the final runs of a part, None if one of them failed."""
        seeds = self.plan.seeds_of(self.asked)
        found = [self.part.final(part, name, seed, sweep) for seed in seeds]
        runs = [run for run in found if run is not None]
        if len(runs) < len(seeds):
            return None
        return Setting(method_options=dict(options), recipe=dict(recipe), runs=runs)

    def _trials(self, name: str) -> list[TriedSettings]:
        found = []
        for path in sorted(self._tuning(name).glob(f"trial-*/{TRIAL}")):
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
