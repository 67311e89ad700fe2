"""Methods that are told after each epoch how each task performs against its single-task network."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_problem import Toy

from ntkmtl.bench.problems.base import Metric, MultiTaskModel, Split
from ntkmtl.bench.runs import RunMetric
from ntkmtl.bench.training import (
    Comparison,
    Run,
    RunInterrupted,
    RunSpec,
    compare,
    load_run,
    load_runs,
    train,
    train_spec,
)
from ntkmtl.bench.training.baselines import (
    check_baseline,
    read_baseline,
    task_scores,
)
from ntkmtl.bench.training.learner import validation_split
from ntkmtl.weighting._ls import LinearScalarization
from ntkmtl.weighting._pivrg import PIVRG

TOY = "toy_problem:Toy"
BASELINE = (0.5, 4.0, 0.25)


class NoValidation(Toy):
    """Has no validation split, and would say so if asked for it."""

    def size(self, split: Split) -> int:
        return 0 if split == "val" else super().size(split)

    def evaluate(
        self, model: MultiTaskModel, split: Split, tasks: Sequence[str] | None = None
    ) -> torch.Tensor:
        assert split != "val"
        return super().evaluate(model, split, tasks)


def ask(out: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "problem": TOY,
        "methods": ["pivrg"],
        "seeds": [0],
        "out": out,
        "epochs": 2,
    }
    return Comparison(**{**values, **changes})


def same(one: Run, other: Run) -> bool:
    return (
        one.result.test == other.result.test
        and [epoch.val for epoch in one.history] == [epoch.val for epoch in other.history]
        and one.steps.weights.tolist() == other.steps.weights.tolist()
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """What a method was told, and where each epoch ended: a list that is empty."""
    found: list[list[float]] = []
    observe, end_epoch = PIVRG.observe, PIVRG.end_epoch

    def note(self: PIVRG, scores: torch.Tensor) -> None:
        found.append(scores.tolist())
        observe(self, scores)

    def end(self: PIVRG) -> None:
        found.append([])
        end_epoch(self)

    monkeypatch.setattr(PIVRG, "observe", note)
    monkeypatch.setattr(PIVRG, "end_epoch", end)
    return found


def test_scores_by_hand() -> None:
    metrics = [
        RunMetric("error", "depth"),
        RunMetric("accuracy", "seg", higher_is_better=True),
        RunMetric("rms", "depth"),
    ]
    # depth: +50 % and -10 %; seg: 10 of 50 better, and higher is better.
    found = task_scores([0.3, 60.0, 0.9], [0.2, 50.0, 1.0], metrics, ["seg", "none", "depth"])
    assert found.dtype == torch.float64
    assert found[0].item() == pytest.approx(-20.0)
    assert math.isnan(found[1].item())
    assert found[2].item() == pytest.approx(20.0)


def test_after_every_epoch_from_the_validation_split(
    tmp_path: Path, told: list[list[float]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(Toy(), "pivrg", 0, tmp_path, baseline=BASELINE, threads=1)
    expected: list[list[float]] = []
    for epoch in run.history:
        a, b, corr = epoch.val
        scores = [100 * (a - 0.5) / 0.5, 100 * (b - 4.0) / 4.0, -100 * (corr - 0.25) / 0.25]
        expected += [[pytest.approx(score, rel=1e-12) for score in scores], []]
    assert told == expected
    assert run.config.baseline == BASELINE
    assert run.result.val != run.result.test


def test_scores_change_the_weights_from_the_second_epoch_on(tmp_path: Path) -> None:
    one = train(Toy(), "pivrg", 0, tmp_path / "1", baseline=BASELINE, threads=1)
    two = train(Toy(), "pivrg", 0, tmp_path / "2", baseline=(5.0, 0.5, 0.25), threads=1)
    assert one.steps.weights[:6].tolist() == two.steps.weights[:6].tolist()
    assert one.steps.weights[6:].tolist() != two.steps.weights[6:].tolist()


def test_the_class_says_that_scores_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    monkeypatch.setattr(LinearScalarization, "needs_scores", True)
    monkeypatch.setattr(
        LinearScalarization, "observe", lambda self, scores: found.append(len(scores))
    )
    train(Toy(), "ls", 0, tmp_path, baseline=BASELINE, threads=1)
    assert found == [3] * 4


def test_others_are_told_nothing_and_refuse_scores(tmp_path: Path) -> None:
    run = train(Toy(), "ls", 0, tmp_path, baseline=BASELINE, threads=1)
    assert run.config.baseline is None
    assert "baseline" not in run.config.to_json()
    with pytest.raises(TypeError, match="LinearScalarization takes no scores"):
        LinearScalarization().observe([1.0])


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (None, "give baseline=.*ntkmtl compare or ntkmtl run"),
        ((1.0, 2.0), "each of 3 metrics. Found 2"),
        ((1.0, 2.0, 0.0), "has 0.0 in corr"),
        ((1.0, 2.0, -0.5), "has -0.5 in corr"),
        ((1.0, math.nan, 1.0), "has nan in b"),
    ],
)
def test_baselines_that_are_none(
    tmp_path: Path, baseline: tuple[float, ...] | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train(Toy(), "pivrg", 0, tmp_path / "run", baseline=baseline, threads=1)
    assert not (tmp_path / "run").exists()


def reaches(steps: Any, last: int) -> bool:
    return next(steps) == last


def test_a_stopped_run_keeps_its_scores_and_its_baseline(tmp_path: Path) -> None:
    """Stopped within the first epoch, after the second, and within the third."""
    arguments: dict[str, Any] = {"threads": 1, "baseline": BASELINE}
    whole = train(Toy(), "pivrg", 3, tmp_path / "whole", **arguments)
    for done, last in ((0, 3), (3, 12), (12, 16)):
        stop = functools.partial(reaches, iter(range(done + 1, last + 1)), last)
        with pytest.raises(RunInterrupted):
            train(Toy(), "pivrg", 3, tmp_path / "parts", should_stop=stop, **arguments)
        # What baselines that were trained anew came to does not matter to a run under way.
        arguments["baseline"] = (9.0, 9.0, 9.0)
    parts = train(Toy(), "pivrg", 3, tmp_path / "parts", **arguments)
    assert same(whole, parts)
    assert parts.config == whole.config
    # A complete run is what it is, whatever the baseline.
    assert train(Toy(), "pivrg", 3, tmp_path / "parts", threads=1).result == parts.result


def test_a_comparison_trains_baselines_first(tmp_path: Path, told: list[list[float]]) -> None:
    sweep = compare(ask(tmp_path, methods=["pivrg", "ls"], seeds=[0, 1]))
    assert (sweep.trained, sweep.failures) == (10, ())
    for seed in (0, 1):
        run = load_run(tmp_path / f"toy/pivrg/seed-{seed}")
        assert run.config.baseline == tuple(
            load_run(tmp_path / f"toy/stl/seed-{seed}/{task}").result.val[0] for task in "abc"
        )
    assert [len(scores) for scores in told] == [3, 0] * 4


def test_baselines_that_a_method_needs_are_trained_though_not_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    compare(ask(out, epochs=None, single_task_baselines=False, threads=1))
    found = [run.path.relative_to(out).as_posix() for run in load_runs(out)[0]]
    assert sorted(found) == ["toy/pivrg/seed-0", *(f"toy/stl/seed-0/{task}" for task in "abc")]
    run = load_run(out / "toy/pivrg/seed-0")
    single = [load_run(out / "toy/stl/seed-0" / task).result.val[0] for task in "abc"]
    alone = train(Toy(), "pivrg", 0, tmp_path / "alone", baseline=single, threads=1)
    assert same(run, alone)


def test_without_its_baseline_a_run_fails_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(problem: Toy, spec: RunSpec, *rest: Any, **more: Any) -> Run:
        if spec.single_task == "b":
            raise RuntimeError("out of memory")
        return train_spec(problem, spec, *rest, **more)

    with monkeypatch.context() as broken:
        broken.setattr("ntkmtl.bench.training.trainer.train_spec", fail)
        sweep = compare(ask(tmp_path, methods=["pivrg", "ls"]))
    assert [(f.label, f.error) for f in sweep.failures] == [
        ("stl b seed 0", "RuntimeError"),
        ("pivrg seed 0", "DependencyError"),
    ]
    assert sweep.failures[1].message == "needs stl b seed 0, which failed"
    assert (sweep.trained, sweep.unfinished) == (3, 0)
    again = compare(ask(tmp_path, methods=["pivrg", "ls"]))
    assert (again.trained, again.complete, again.failures) == (2, 3, ())


def test_a_problem_without_validation_split_is_watched_on_its_training_split(
    tmp_path: Path, told: list[list[float]]
) -> None:
    problem = NoValidation()
    assert validation_split(problem) == "train"
    assert validation_split(Toy()) == "val"
    run = train(problem, "pivrg", 0, tmp_path, baseline=BASELINE, threads=1)
    assert run.config.sizes["val"] == 0
    model = problem.model()
    assert len(problem.evaluate(model, "train")) == 3
    last = [100 * (v - b) / b for v, b in zip(run.result.val, BASELINE, strict=True)]
    assert told[-2] == [pytest.approx(x) for x in (last[0], last[1], -last[2])]
    # The training split's numbers, by way of a run whose validation split is the training split.
    twin = Toy()
    twin.data["val"] = twin.data["train"]
    other = train(twin, "pivrg", 0, tmp_path / "twin", baseline=BASELINE, threads=1)
    assert other.result.val == run.result.val


def test_read_baseline_wants_every_metric(tmp_path: Path) -> None:
    compare(ask(tmp_path, methods=["stl"]))
    problem = Toy()
    folder = tmp_path / "toy/stl/seed-0"
    found = read_baseline(problem, tmp_path, 0)
    assert found == tuple(load_run(folder / task).result.val[0] for task in "abc")
    (folder / "c").rename(folder / "moved")
    with pytest.raises(ValueError, match=r"c/config\.json: cannot be read"):
        read_baseline(problem, tmp_path, 0)
    problem.metrics = (Metric("z", "a"),)
    with pytest.raises(ValueError, match="does not hold the metric 'z'"):
        read_baseline(problem, tmp_path, 0)
    check_baseline([1e-9], [Metric("z", "a")])
