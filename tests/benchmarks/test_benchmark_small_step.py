"""The profile of a small step adds up, and puts everything back."""

from __future__ import annotations

import pytest
import small_step
import torch


def test_two_tables(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    before = [getattr(place, function) for _, place, function in small_step.PARTS]
    try:
        small_step.main(["--tasks", "2", "5", "--turns", "20"])
    finally:
        torch.set_num_threads(threads)
    after = [getattr(place, function) for _, place, function in small_step.PARTS]
    assert before == after
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["2", "5"]
    assert len(lines) == 4 + 1 + 2 + len(small_step.PARTS)
    parts = small_step.profile(3, 40)
    whole = parts.pop("all of backward()")
    assert all(value > 0 for value in parts.values())
    assert sum(parts.values()) < 1.5 * whole


def test_another_network() -> None:
    parts = small_step.profile(2, 2, "transformer")
    assert set(parts) == {name for name, _, _ in small_step.PARTS}
    assert min(parts.values()) > 0
