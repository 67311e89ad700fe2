"""The formulas are what processes send, and what a simulated rank sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
import torch.distributed as dist

SMALL = ranks.Shape(tasks=3, minibatches=2, batch=8, inputs=5, hidden=7, features=8192)


def test_two_processes_send_what_the_formulas_say() -> None:
    rows = ranks.count(SMALL, 2, steps=1)
    assert [row["label"] for row in rows] == [case.label for case in ranks.CASES]
    for row in rows:
        assert row["equal"], row
    by_label = {row["label"]: row for row in rows}
    # By hand: P = 6 * 7 + 8 * 7 + 8 * 8192 = 65634 entries, 3 tasks, 2 mini-batches, in pairs.
    assert by_label["exact"]["totals"]["all_to_all"] == (3, 3 * 2 * 65634 * 4)
    assert by_label["exact"]["totals"]["all_reduce"] == (3, 3 * 4 * 4 * 8)
    assert by_label["pooled"]["totals"]["all_to_all"] == (1, 3 * 2 * 8192 * 4)
    assert by_label["exact, Gramian"]["totals"]["all_reduce"] == (1, 3 * 3 * 8)
    # Heads have 3 * 8193 parameters; a ring of two sends half of everything twice.
    assert by_label["no kernel (ls)"]["gradients"] == 4 * (65634 + 3 * 8193)
    assert by_label["exact"]["loopback"] > by_label["exact"]["sent"]


@pytest.mark.parametrize(
    "case",
    [*ranks.CASES, ranks.POOLED_GATHERED, ranks.KERNEL_GATHERED],
    ids=lambda case: case.label,
)
def test_a_simulated_rank_sends_what_the_formulas_say(case: ranks.Case) -> None:
    row = ranks.simulate(case, SMALL, 16, steps=1)
    assert row["equal"], row
    assert row["seconds"] > 0
    assert not dist.is_initialized()


def test_traffic_by_hand() -> None:
    assert ranks.traffic({"all_gather": (2, 100)}, 4) == (300, 6)
    assert ranks.traffic({"all_reduce": (1, 100)}, 4) == (150, 6)
    assert ranks.traffic({"all_to_all": (1, 100)}, 4) == (75, 3)
    assert ranks.traffic({"broadcast": (1, 100)}, 4) == (75, 2)
    row = {"sent": 1e6, "messages": 3}
    assert ranks.network_seconds(row, 1e9, 1e-5) == pytest.approx(1e-3 + 3e-5)


def test_a_wrong_count_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "ranks.md"
    page.write_text(f"before\n{ranks.BEGIN}\nold\n{ranks.END}\nafter\n")
    shapes: list[Any] = []

    def simulated(case: ranks.Case, shape: ranks.Shape, size: int, steps: int) -> dict[str, Any]:
        shapes.append(shape)
        return {
            "label": case.label,
            "ranks": size,
            "equal": case.label != "probe",
            "sent": 1e3 * size,
            "messages": size,
            "gradients": 1e6,
            "gradient_messages": 2,
            "seconds": 0.01,
        }

    monkeypatch.setattr(ranks, "simulate", simulated)
    threads = torch.get_num_threads()
    try:
        status = ranks.main(["--real", "--ranks", "2", "4", "--write", str(tmp_path / "ranks")])
    finally:
        torch.set_num_threads(threads)
    assert status == 1
    assert "probe, 2 ranks: not the formula's" in capsys.readouterr().err
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert json.loads((tmp_path / "ranks" / "measured.json").read_text())["simulated"]
    assert (tmp_path / "ranks" / "ranks.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        ranks.main(["--ranks", "1"])
