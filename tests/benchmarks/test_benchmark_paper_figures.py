from pathlib import Path
from types import SimpleNamespace

import paper_claims
import paper_figures
import pytest
import torch
from paired import FAILS, HOLDS, UNKNOWN
from sidebyside.tables import fill_page

DOCS = Path(__file__).parents[2] / "docs"


def recorded(method, seed, spread, weighted, smallest=None):
    return {
        "method": method,
        "seed": seed,
        "spread": spread,
        "weighted_spread": weighted,
        "median": {"a": 1.0, "b": 2.0, "c": 3.0},
        "smallest": smallest or {"a": 1.0, "b": 0.0, "c": 0.0},
    }


def numbers(by_n, records=None, harm=None):
    return {
        "minibatches": [
            {"n": n, "delta_m": values, "step_ms": 10.0 + n} for n, values in by_n.items()
        ],
        "plain_step_ms": 10.0,
        "plain_sum": harm or {"a": 90.0, "b": 20.0, "c": 10.0},
        "eigenvalues": records
        or [recorded(m, s, 8.0, 2.0) for m in ("ls", "ntkmtl", "ntkmtl-sr") for s in (0, 1)],
    }


def row(found, claim):
    (only,) = (each for each in found if claim in each[0])
    return only


GOOD = {
    1: [10.0, 14.0, 12.0],
    2: [5.0, 8.9, 7.1],
    4: [4.0, 8.1, 6.0],
    8: [4.1, 8.0, 6.1],
    16: [4.0, 8.0, 6.2],
}


def test_larger_n_must_beat_n_of_one_in_every_case():
    good = row(paper_figures.figure_rows(numbers(GOOD)), "improves")
    assert good[-1] == HOLDS
    assert "n = 2 -5.0 (" in good[1]
    worse = row(paper_figures.figure_rows(numbers({**GOOD, 16: [13.0, 17.1, 15.0]})), "improves")
    assert worse[-1] == FAILS
    unclear = {**GOOD, 8: [4.0, 20.0, 6.0]}
    assert row(paper_figures.figure_rows(numbers(unclear)), "improves")[-1] == UNKNOWN


def test_variances_are_compared_by_the_f_distribution():
    # Variances: 4 with 2 degrees of freedom, and 1 in four groups of 2, so 8. F at 0.975 with
    # (8, 2) is 39.373, and with (2, 8) 6.0595: of .25 it is .25 / 39.373 to .25 * 6.0595.
    by_n = {1: [10.0, 14.0, 12.0], **{n: [1.0, 3.0, 2.0] for n in (2, 4, 8, 16)}}
    found = row(paper_figures.figure_rows(numbers(by_n)), "varies less")
    assert "n = 1 2.0, n = 2 1.0" in found[1]
    assert "variance over that of n = 1 0.25 (0.01 to 1.5)" in found[1]
    assert found[-1] == UNKNOWN
    tight = {1: [10.0, 14.0, 12.0], **{n: [1.0, 1.2, 1.1] for n in (2, 4, 8, 16)}}
    assert row(paper_figures.figure_rows(numbers(tight)), "varies less")[-1] == HOLDS


def test_seeds_can_refute_that_two_are_alike_and_not_confirm_it():
    assert row(paper_figures.figure_rows(numbers(GOOD)), "alike")[-1] == UNKNOWN
    apart = {**GOOD, 8: [1.0, 5.0, 3.1]}
    assert row(paper_figures.figure_rows(numbers(apart)), "alike")[-1] == FAILS


def test_the_starved_task_has_the_smallest_eigenvalue_or_not():
    found = row(paper_figures.figure_rows(numbers(GOOD)), "starves")
    assert found[1].startswith("a, +90 % against its single-task network: smallest in 100 %")
    assert "+0.50" not in found[1]
    assert "-1.00" in found[1]  # the more a task loses, the smaller its eigenvalue
    assert found[-1] == HOLDS
    other = {"a": 10.0, "b": 90.0, "c": 20.0}
    assert row(paper_figures.figure_rows(numbers(GOOD, harm=other)), "starves")[-1] == FAILS


def test_spreads_are_compared_as_ratios_seed_by_seed():
    records = [
        recorded("ls", 0, 100.0, 100.0),
        recorded("ls", 1, 200.0, 200.0),
        *(recorded(m, 0, 400.0, 1.0) for m in ("ntkmtl", "ntkmtl-sr")),
        *(recorded(m, 1, 801.0, 2.02) for m in ("ntkmtl", "ntkmtl-sr")),
    ]
    rows = list(paper_figures.eigenvalue_rows(numbers(GOOD, records)))
    weighted = row(rows, "NTKMTL than with the plain sum, under")
    assert weighted[-1] == HOLDS
    assert "1 to 2.02, plain sum 100 to 200; ratio 0.01 (" in weighted[1]
    assert row(rows, "NTKMTL than with the plain sum, without")[-1] == FAILS
    one = [record for record in records if record["seed"] == 0]
    rows = list(paper_figures.eigenvalue_rows(numbers(GOOD, one)))
    assert {each[-1] for each in rows[1:]} == {UNKNOWN}


def test_spread_is_the_geometric_mean_over_records():
    eigenvalues = torch.tensor([[8.0, 2.0, 4.0], [3.0, 3.0, 3.0]])  # 4 and 1
    assert paper_figures._spread(eigenvalues) == pytest.approx(2.0)


def test_runs_with_another_recipe_are_refused():
    recipe = {"epochs": 25, "description": "25 epochs", "batch_size": 60}
    request = {"problem_options": {}, "recipe": recipe, "sizes": {}}
    fewer = {"epochs": 10, "description": "10 epochs", "batch_size": 60}
    config = SimpleNamespace(problem_options={}, recipe=fewer, sizes={})
    paper_figures._check(config, request, Path("run"))
    config.recipe["batch_size"] = 30
    with pytest.raises(ValueError, match="has another recipe than the study"):
        paper_figures._check(config, request, Path("run"))


def test_the_page_says_what_the_numbers_say():
    page = (DOCS / "paper-claims.md").read_text("utf-8")
    found = paper_claims.text(DOCS / "study" / "large", DOCS / "paper-claims" / "figures.json")
    assert fill_page(page, found) == page
