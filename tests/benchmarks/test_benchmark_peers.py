"""The harness in small: real processes, real steps, the JSON file and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peers
import pytest
import step_cost
import torch
from sidebyside.contenders import PLAIN, Case, Contender, contenders, make_step
from sidebyside.tables import BEGIN, END
from sidebyside.turns import Entrant, take_turns

TINY = ["--scale", "0.1", "--batch", "4", "--rounds", "2", "--turn", "0", "--threads", "1"]

SECONDS = {"median": float, "lower": float, "upper": float}
ROW: dict[str, Any] = {
    "label": str,
    "group": str,
    "method": str,
    "minibatches": int,
    "error": str,
    "seconds": SECONDS,
    "extra": float,
    "ratio": SECONDS,
    "paired": list,
    "turns": int,
    "steps": int,
    "start_bytes": int,
    "peak_bytes": int,
    "memory_ratio": float,
    "growth_ratio": float,
}
CASE: dict[str, Any] = {
    "network": str,
    "title": str,
    "size": str,
    "tasks": int,
    "batch": int,
    "load": float,
    "rows": list,
}


def _fits(value: Any, schema: Any) -> bool:
    if isinstance(schema, dict):
        return set(value) == set(schema) and all(_fits(value[k], schema[k]) for k in schema)
    return isinstance(value, schema)


def test_numbers_page_and_pictures(tmp_path: Path) -> None:
    folder, page = tmp_path / "performance", tmp_path / "performance.md"
    page.write_text(f"# Cost\n\n{BEGIN}\n{END}\n\nEnd.\n")
    select = ["--networks", "qm9", "--tasks", "2", "--minibatches", "1", "2"]
    select += ["--only", "ntkmtl-sr n=", "mtl_backward", "--write", str(folder)]
    peers.main([*TINY, *select])
    report = json.loads((folder / "measured.json").read_text())
    assert set(report) == {"schema", "command", "facts", "settings", "cases"}
    assert str(tmp_path.parent) not in report["command"]
    (case,) = report["cases"]
    assert _fits(case, CASE)
    for row in case["rows"]:
        assert _fits(row, ROW), row
        assert row["turns"] >= 2
        assert row["ratio"]["lower"] <= row["ratio"]["median"] <= row["ratio"]["upper"]
    assert case["rows"][0]["group"] == "plain"
    assert case["rows"][0]["ratio"]["median"] == 1.0
    text = page.read_text()
    assert text.startswith("# Cost\n")
    assert text.endswith(f"{END}\n\nEnd.\n")
    assert "### QM9 message passing, 2 tasks" in text
    assert (folder / "minibatches.png").read_bytes().startswith(b"\x89PNG")
    # A second run with the same settings has nothing left to measure.
    before = (folder / "measured.json").stat().st_mtime_ns
    peers.main([*TINY, *select])
    assert json.loads((folder / "measured.json").read_text())["cases"] == report["cases"]
    assert (folder / "measured.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("network", ["celeba", "qm9", "mtan", "transformer"])
def test_every_contender_of_ours_makes_a_step(network: str) -> None:
    case = Case(network, 2, 4, scale=0.1)
    for entry in [PLAIN, *contenders(case, (1, 4))]:
        if entry.group in ("plain", "ntkmtl") or entry.run == "calls":
            make_step(entry, case)()


def test_the_calls_of_the_published_code_weigh_as_its_preset() -> None:
    """One gradient per task and mini-batch, and all of them at once, give the same update."""
    case = Case("transformer", 3, 8, scale=0.1)
    grads = []
    for entry in (
        Contender("a", "published", "calls", minibatches=4),
        Contender(
            "b",
            "ntkmtl",
            "balancer",
            "ntkmtl-sr",
            options=(("minibatches", 4), ("preset", "published")),
        ),
    ):
        seen: list[torch.Tensor] = []
        real = torch.optim.Adam.step

        def step(self: Any, *a: Any, seen: list[torch.Tensor] = seen, **b: Any) -> None:
            seen += [
                p.grad.clone() for g in self.param_groups for p in g["params"] if p.grad is not None
            ]

        try:
            torch.optim.Adam.step = step  # type: ignore[method-assign, assignment]
            make_step(entry, case)()
        finally:
            torch.optim.Adam.step = real  # type: ignore[method-assign]
        grads.append(seen)
    assert len(grads[0]) == len(grads[1])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def _fails(*_: Any) -> Any:
    raise ValueError("cannot do this")


def test_a_contender_that_fails_says_why_and_stops_nobody() -> None:
    case = Case("transformer", 2, 4, scale=0.1)
    base, broken = Entrant(make_step, (PLAIN, case)), Entrant(_fails, ())
    other = Entrant(make_step, (Contender("ls", "ntkmtl", "balancer", "ls"), case))
    take_turns(base, [broken, other], rounds=2, threads=1, turn_seconds=0.0)
    assert broken.error == "ValueError: cannot do this"
    assert len(other.turns) == 2
    assert other.peak_bytes > other.start_bytes > 0
    places = [place for entrant in (base, other) for place, _ in entrant.turns]
    assert sorted(places) == list(range(len(places)))


def test_plain_training_that_fails_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="plain training failed: ValueError: cannot"):
        take_turns(Entrant(_fails, ()), [], rounds=1, threads=1)


def test_step_cost_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tasks", "2", "--batch", "4", "--size", "8", "--rounds", "2", "--steps", "1"]
    step_cost.main([*arguments, "--threads", "1", "--only", "ntkmtl-sr n=4"])
    printed = capsys.readouterr().out
    assert "ntkmtl-sr n=4, hooked" in printed
    assert "x ls" in printed
