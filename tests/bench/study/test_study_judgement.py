"""The statistics of a study, against slow or other people's versions of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

from ntkmtl.bench.runs import RunMetric
from ntkmtl.bench.study.inference import bootstrap, paired_p_values, rank_test
from ntkmtl.bench.study.judgement import judge
from ntkmtl.bench.study.page import write_page
from ntkmtl.bench.study.results import FinalRun, MethodResult, Setting, TriedSettings

SEEDS = 6


def result(problem: str, method: str, tests: list[list[float]], source: str = "") -> MethodResult:
    runs = [
        FinalRun(seed=s, test=test, train_seconds=2.0 if method == "slow" else 1.0, steps=10)
        for s, test in enumerate(tests)
    ]
    rate = {"a": 0.1, "b": 0.1} if method == "stl" else 0.1
    setting = Setting(method_options={}, recipe={"learning_rate": rate}, runs=runs)
    trials = [
        TriedSettings(parameters={"learning_rate": 0.1}, value=1.0, val=val, seconds=3.0, task=task)
        for task, val in ([("a", [2.0]), ("b", [4.0])] if method == "stl" else [("", [1.0, 5.0])])
    ]
    return MethodResult(
        request={
            "problem": problem,
            "source": source or problem,
            "method": method,
            "tasks": ["a", "b"],
            "recipe": {"learning_rate": 0.1},
        },
        metrics=[RunMetric("a", "a"), RunMetric("b", "b")],
        trials=trials,
        published=None if method == "stl" else setting,
        tuned=setting,
        hardware={},
        versions={},
    )


def problem_with(name: str, shifts: dict[str, float], source: str = "") -> list[MethodResult]:
    """Single-task networks at 1; methods at 1 + shift with noise that all of them share."""
    noise = np.random.default_rng(len(name)).normal(0, 0.02, SEEDS)
    own = np.random.default_rng(7).normal(0, 0.001, (len(shifts), SEEDS))
    found = [result(name, "stl", [[1.0, 1.0]] * SEEDS, source)]
    for place, (method, shift) in enumerate(shifts.items()):
        tests = [[1 + shift + n, 1 + shift + n] for n in noise + own[place]]
        found.append(result(name, method, tests, source))
    return found


def test_a_step_is_timed_without_what_it_waited_for_a_core():
    def of(share: float | None) -> float | None:
        run = FinalRun(seed=0, test=[1.0], train_seconds=3.0, steps=10, cpu_share=share)
        return run.step_seconds

    assert of(None) == pytest.approx(0.3)  # not measured
    assert of(1.0) == pytest.approx(0.3)
    assert of(0.5) == pytest.approx(0.15)
    assert FinalRun(seed=0, test=[], train_seconds=0.0, steps=0).step_seconds is None


SHIFTS = {"ls": 0.2, "good": 0.1, "same": 0.2, "slow": 0.3}


def test_a_difference_is_found_and_an_equal_is_not_called_better() -> None:
    results = [r for name in ("p", "qq", "rrr") for r in problem_with(name, SHIFTS)]
    found = judge(results)
    overall = {entry.method: entry for entry in found.overall}
    assert overall["good"].difference.mean == pytest.approx(-10, abs=0.2)
    assert overall["good"].difference.high < 0
    assert not overall["same"].difference.excludes_zero
    assert overall["slow"].difference.low > 0
    assert overall["slow"].step_ratio == pytest.approx(2)
    words = "\n".join(found.words)
    mean = overall["good"].difference.mean
    assert f"Better than the plain sum here: good ({mean:+.1f} points" in words
    assert "Cannot be distinguished from the plain sum here: same (" in words
    assert "Worse than the plain sum here: slow (+" in words
    assert "a step takes 2.00 times as long" in words
    assert "intervals are too narrow" not in words
    assert "With 3 sources of data this says little" in words
    assert found.ranking.ranks[found.ranking.methods.index("good")] == 1.0


def test_delta_m_is_against_the_mean_of_the_single_task_networks() -> None:
    results = problem_with("p", {"ls": 0.2})
    results[0] = result("p", "stl", [[0.5, 2.0], [1.5, 2.0]])
    # Means 1 and 2: a run of (1.2, 1.8) is 20 % worse in one metric, 10 % better in the other.
    results[1] = result("p", "ls", [[1.2, 1.8]])
    assert judge(results).problems[0].of("ls").tuned == [pytest.approx(5.0)]
    # The trial's (1, 5) against (2, 4) of the single-task networks' trials.
    assert judge(results).problems[0].of("ls").tried == [[pytest.approx(-50), pytest.approx(25)]]
    assert judge(results).problems[0].of("ls").tasks == [pytest.approx(20), pytest.approx(-10)]


def test_the_bootstrap_is_that_of_a_loop() -> None:
    generator = np.random.default_rng(1)
    sources = [
        [list(generator.normal(1, 1, 5)), list(generator.normal(1, 1, 3))],
        [list(generator.normal(3, 1, 4))],
        [list(generator.normal(2, 2, 5))],
    ]
    draws = []
    for _ in range(4000):
        means = []
        for place in generator.integers(3, size=3):
            seeds = [np.mean(generator.choice(own, len(own))) for own in sources[place]]
            means.append(np.mean(seeds))
        draws.append(np.mean(means))
    found = bootstrap(sources)
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.1)
    mean = np.mean([np.mean([np.mean(seeds) for seeds in problems]) for problems in sources])
    assert found.mean == pytest.approx(mean)


def test_problems_of_one_source_count_as_one() -> None:
    shifts, other = {"ls": 0.2, "x": 0.1}, {"ls": 0.2, "x": 0.4}
    apart = judge(
        [*problem_with("p", shifts), *problem_with("q", shifts), *problem_with("r", other)]
    )
    joined = judge(
        [
            *problem_with("p", shifts, "one"),
            *problem_with("q", shifts, "one"),
            *problem_with("r", other),
        ]
    )

    def mean(found: object) -> float:
        return next(o.difference.mean for o in found.overall if o.method == "x")  # type: ignore[attr-defined]

    # Differences of -10, -10 and 20 points: the mean of three, or of -10 and 20.
    assert mean(apart) == pytest.approx(0, abs=0.3)
    assert mean(joined) == pytest.approx(5, abs=0.3)


def test_p_values_are_those_of_statsmodels() -> None:
    generator = np.random.default_rng(3)
    base = list(generator.normal(0, 1, 6))
    values = {"ls": base}
    for place in range(5):
        values[f"m{place}"] = [b + 0.4 * place + generator.normal(0, 0.5) for b in base]
    found = paired_p_values(values, "ls")
    raw = [float(ttest_rel(values[name], base).pvalue) for name in found]
    assert list(found.values()) == pytest.approx(list(multipletests(raw, method="holm")[1]))
    assert paired_p_values({"ls": base, "copy": base, "bad": [None] * 6}, "ls") == {}


def test_ranks_need_three_problems_and_methods() -> None:
    results = [r for name in ("p", "qq") for r in problem_with(name, SHIFTS)]
    assert judge(results).ranking is None
    results += problem_with("rrr", SHIFTS)
    assert judge(results, ["ls", "good"]).ranking is None
    assert judge(results, ["ls", "good", "slow"]).ranking.methods == ["ls", "good", "slow"]
    found = rank_test(["a", "b", "c"], [[1, 2, 3]] * 8)
    assert found.ranks == [1, 2, 3]
    # Friedman's statistic: 12 / (8 * 3 * 4) * (8^2 + 16^2 + 24^2) - 3 * 8 * 4 = 16; exp(-16 / 2).
    assert found.p_value == pytest.approx(np.exp(-8))


def test_the_page_shows_diagram_costs_and_trade_offs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    out = tmp_path_factory.mktemp("page") / "study.html"
    results = [r for name in ("p", "qq", "rrr") for r in problem_with(name, SHIFTS)]
    write_page(judge(results), out)
    text = out.read_text()
    assert text.count("<svg") == 2 + 2 * 3
    for heading in ("Ranks over problems", "Quality against cost", "One task against the other"):
        assert heading in text
    assert "<script" not in text


def test_without_single_task_networks_there_is_nothing_to_judge() -> None:
    with pytest.raises(ValueError, match="no problem has results of both stl and ls"):
        judge(problem_with("p", SHIFTS)[1:])
