import paper_claims
import pytest

from ntkmtl.bench.study.judgement import MethodOnProblem, ProblemJudgement


def row(method, published, tasks=(), step_ratio=1.0):
    return MethodOnProblem(
        method=method,
        published=published,
        tuned=published,
        p_value=None,
        step_ratio=step_ratio,
        tuning_seconds=0.0,
        learning_rate=None,
        trials=[],
        tasks=list(tasks),
        tried=[],
    )


def problem(*methods):
    return ProblemJudgement(
        problem="toy",
        source="toy",
        metrics=["a", "b"],
        tasks=["a", "b"],
        single_task_rates={},
        methods=list(methods),
    )


def test_interval_is_that_of_the_paired_differences():
    # -1, -2, -1: mean -4/3, standard deviation 1/sqrt(3), so a standard error of 1/3; t is 4.30265.
    found = paper_claims.difference([1.0, 2.0, 3.0], [2.0, 4.0, 4.0])
    assert found.mean == pytest.approx(-4 / 3)
    assert (found.low, found.high) == pytest.approx(
        (-4 / 3 - 4.30265 / 3, -4 / 3 + 4.30265 / 3), 1e-4
    )
    assert found.verdict == paper_claims.UNKNOWN


def test_diverged_seeds_are_left_out_of_a_pair():
    assert paper_claims.difference([1.0, None], [2.0, 3.0]) is None
    found = paper_claims.difference([1.0, None, 2.0], [2.0, 3.0, 3.0])
    assert (found.mean, found.low, found.high) == (-1.0, -1.0, -1.0)


def test_best_of_all_is_refuted_by_one_better_method():
    toy = problem(
        row("ntkmtl", [0.0, 0.1, 0.2]), row("ls", [9.0, 9.2, 9.1]), row("si", [-5.0, -5.1, -5.3])
    )
    against_ls = paper_claims.lower("", toy, "ntkmtl", ["ls"], "published")
    against_all = paper_claims.lower("", toy, "ntkmtl", ["ls", "si"], "published")
    assert against_ls[-1] == paper_claims.HOLDS
    assert against_all[-1] == paper_claims.FAILS
    assert "less si" in against_all[2]
    assert paper_claims.lower("", toy, "ntkmtl", ["uw"], "tuned")[-1] == paper_claims.UNKNOWN


def test_alone_means_that_no_other_method_of_the_field_beats_single_task_networks():
    alone = problem(row("ntkmtl", [0.0], [-1, -2]), row("si", [0.0], [-1, 2]))
    shared = problem(row("ntkmtl", [0.0], [-1, -2]), row("si", [0.0], [-1, -2]))
    assert paper_claims.beats_single_task(alone)[-1] == paper_claims.HOLDS
    assert paper_claims.beats_single_task(shared)[-1] == paper_claims.FAILS
