import family
import pytest

from ntkmtl import Balancer


@pytest.mark.parametrize("variant", family.VARIANTS, ids=lambda variant: variant.label)
def test_every_variant_is_one_that_a_balancer_takes(variant):
    balancer = Balancer(variant.method, **variant.options)
    for option, value in variant.options.items():
        if hasattr(balancer.options, option):
            assert getattr(balancer.options, option) == value


def test_variants_differ():
    made = [(v.method, tuple(sorted(v.options.items()))) for v in family.VARIANTS]
    assert len(set(made)) == len(made)
    assert len({variant.label for variant in family.VARIANTS}) == len(made)


def known():
    rows = {family.key("enb", f"stl: {task}", 1.0, 1000): {"val": [2.0]} for task in "ab"}
    for seed, value in ((1000, 1.0), (1001, 1.5)):
        rows[family.key("enb", "start", 4.0, seed)] = {"val": [value, 2.0], "step_seconds": 3.0}
        rows[family.key("enb", "plain sum", 4.0, seed)] = {"val": [2.0, 2.0], "step_seconds": 2.0}
    rows[family.key("enb", "si", 4.0, 1000)] = {"error": "a loss became NaN"}
    about = {"tasks": ["a", "b"], "higher": [False, False], "learning_rate": 0.002}
    facts = {"date": "2026-01-01", "torch": "2"}
    return {"facts": facts, "problems": {"enb": about}, "runs": rows}


def test_table_says_scores_cost_and_what_diverged():
    # Half and three quarters of the baseline in one metric of two: -25 and -12.5 percent.
    assert family.scores(known(), "enb", "start", 4.0) == pytest.approx([-25.0, -12.5])
    lines = list(family.tables(known()))
    assert "| start | start |  |  | -18.8 ± 6.2 | 1.50 |" in lines
    assert "| reference | si |  |  | diverged |  |" in lines


def test_numbers_of_other_options_are_refused(tmp_path):
    path = tmp_path / "numbers.json"
    family.write_json(
        path,
        {
            "facts": {},
            "problems": {},
            "runs": {"enb/start/x1/1000": {"asked": {"method": "ls", "options": {}}}},
        },
    )
    runs = family.Runs("enb", family.problems.create("qm9-mini"), tmp_path / "runs", path)
    start = next(variant for variant in family.VARIANTS if variant.label == "start")
    with pytest.raises(ValueError, match="remove its entry and its folder"):
        runs.one(start, 1.0, 1000)
