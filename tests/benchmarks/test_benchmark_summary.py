"""Ratios, intervals and the page, from given numbers."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from sidebyside.contenders import Case, contenders
from sidebyside.summary import median_interval, ratios, spread, summarize
from sidebyside.tables import BEGIN, END, fill_page, is_sr, markdown, pooled, verdict


def test_each_turn_is_compared_with_the_base_just_before_and_after() -> None:
    # The machine slows down to a third halfway: seconds triple, ratios must not.
    base = [(0, 1.0), (3, 1.0), (4, 3.0), (7, 3.0)]
    turns = [(1, 1.1), (2, 1.1), (5, 3.3), (6, 3.3)]
    assert ratios(turns, base) == pytest.approx([1.1] * 4)


def test_at_a_change_of_speed_the_base_is_the_mean_of_both_sides() -> None:
    assert ratios([(1, 4.0)], [(0, 1.0), (2, 3.0)]) == [2.0]


def test_a_turn_at_an_end_has_one_neighbor() -> None:
    assert ratios([(0, 4.0), (9, 4.0)], [(1, 2.0), (5, 1.0)]) == [2.0, 4.0]


def test_no_base_is_an_error() -> None:
    with pytest.raises(ValueError, match="plain training took no turn"):
        ratios([(0, 1.0)], [])


def test_summary_of_given_turns() -> None:
    base = [(0, 1.0), (2, 1.0), (4, 2.0), (6, 2.0), (8, 1.0)]
    turns = [(1, 1.5), (3, 1.5), (5, 3.0), (7, 3.0)]
    found = summarize(turns, base)
    assert found["ratio"] == {"median": 1.5, "lower": 1.0, "upper": 2.0}
    assert found["seconds"]["median"] == 2.25
    assert found["extra"] == pytest.approx(0.75)  # median of 0.5, 0, 1, 1.5
    assert found["turns"] == 4


@pytest.mark.parametrize(("count", "rank"), [(5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (15, 3)])
def test_intervals_of_the_median_are_the_usual_order_statistics(count: int, rank: int) -> None:
    values = [float(i) for i in range(count)]
    assert median_interval(values[::-1]) == (rank, count - 1 - rank)


def test_spread_of_one_value() -> None:
    assert spread([2.0]) == {"median": 2.0, "lower": 2.0, "upper": 2.0}


def _row(label: str, group: str, ratio: float, extra: float, n: int = 0) -> dict[str, Any]:
    number = {"median": ratio, "lower": ratio, "upper": ratio}
    return {
        "label": label,
        "group": group,
        "method": "",
        "minibatches": n,
        "error": "",
        "seconds": {"median": 0.1, "lower": 0.1, "upper": 0.1},
        "extra": extra,
        "ratio": number,
        "paired": [ratio] * 3,
        "turns": 3,
        "steps": 3,
        "start_bytes": 1 << 20,
        "peak_bytes": 3 << 20,
        "memory_ratio": 1.0,
        "growth_ratio": 1.0,
    }


REPORT: dict[str, Any] = {
    "schema": 1,
    "command": "python benchmarks/peers.py",
    "facts": {"device": "a machine", "threads": 2},
    "settings": {},
    "cases": [
        {
            "network": "celeba",
            "title": "CelebA network",
            "size": "nine layers",
            "tasks": 40,
            "batch": 32,
            "load": 0.1,
            "rows": [
                _row("plain sum(losses).backward()", "plain", 1.0, 0.0),
                _row("ntkmtl-sr n=4", "ntkmtl", 1.02, 0.002, n=4),
                _row("ntkmtl-sr n=4, hooked", "ntkmtl", 1.2, 0.02, n=4),
                {
                    "label": "TorchJD X",
                    "group": "torchjd",
                    "method": "X",
                    "minibatches": 0,
                    "error": "ValueError: no",
                },
            ],
        }
    ],
}


def test_the_page_holds_every_number_and_every_reason() -> None:
    text = markdown(REPORT, {"performance/a.png": "A caption."})
    assert "| ntkmtl-sr n=4 | 100 (100 to 100) | 1.020 (1.020 to 1.020) | 50 | 3 |" in text
    assert "- TorchJD X: ValueError: no" in text
    assert "![A caption.](performance/a.png)" in text
    assert "| 1.020 (1.020 to 1.020) |  | 1.00 to 1.00 | kept |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"\|", line)) for line in tables}
    assert widths == {9}  # each row of both tables as wide as its head


def test_the_target_depends_on_how_long_a_step_takes() -> None:
    case = copy.deepcopy(REPORT["cases"][0])
    sr = case["rows"][1]
    assert is_sr(sr)
    assert not is_sr(case["rows"][2])  # hooked has a target of its own
    assert verdict(case, sr["ratio"], sr["extra"]) == "kept"
    assert verdict(case, {"median": 1.02, "lower": 0.99, "upper": 1.05}, 0.0) == (
        "kept, within noise"
    )
    assert verdict(case, {"median": 1.04, "lower": 1.0, "upper": 1.05}, 0.0) == (
        "missed, within noise"
    )
    assert verdict(case, {"median": 1.04, "lower": 1.035, "upper": 1.05}, 0.0) == "missed"
    case["rows"][0]["seconds"]["median"] = 0.001  # a small network: 30 us for each of 40 tasks
    assert verdict(case, sr["ratio"], 0.0012) == "kept"
    assert verdict(case, sr["ratio"], 0.0013) == "missed"


def test_turns_of_all_n_are_pooled() -> None:
    rows = [{"paired": [1.0, 2.0, 3.0]}, {"paired": [4.0, 5.0, 6.0, 7.0]}]
    found = pooled(rows)
    assert found == {"median": 4.0, "lower": 1.0, "upper": 7.0}
    assert pooled([]) is None


def test_a_page_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="each once"):
        fill_page("text", "new")
    page = fill_page(f"a\n{BEGIN}\nold\n{END}\nb", "new")
    assert fill_page(page, "new") == page


def test_contenders_have_names_of_their_own_and_fit_the_network() -> None:
    for network in ("celeba", "qm9", "mtan", "transformer"):
        entries = contenders(Case(network, 3, 16), published="P", libmtl="L")
        labels = [entry.label for entry in entries]
        assert len(set(labels)) == len(labels)
        assert ("imtl-g, representation" in labels) == (network != "mtan")
    few = contenders(Case("qm9", 3, batch=5))
    assert max(entry.minibatches for entry in few) == 4
