"""The contenders of a small step do the same, its profile adds up and puts everything back."""

from __future__ import annotations

import pytest
import small_step
import torch
from sidebyside.minimal import minimal_sr_step


def _functions() -> list[object]:
    parts = [part for parts in small_step.PARTS.values() for part in parts]
    return [getattr(place, function) for _, place, function in parts]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    before = _functions()
    try:
        small_step.main(["--tasks", "2", "5", "--turns", "20"])
    finally:
        torch.set_num_threads(threads)
    assert before == _functions()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["2", "5"]
    assert len(lines) == 4 + sum(1 + 2 + len(parts) for parts in small_step.PARTS.values())


@pytest.mark.parametrize("contender", small_step.PARTS)
def test_profile_adds_up(contender: str) -> None:
    parts = small_step.profile(3, 40, contender=contender)
    whole = parts.pop("all of backward()")
    assert all(value > 0 for value in parts.values())
    assert sum(parts.values()) < 1.5 * whole


def test_another_network() -> None:
    parts = small_step.profile(2, 2, "transformer")
    assert set(parts) == {name for name, _, _ in small_step.PARTS[small_step.FOUND]}
    assert min(parts.values()) > 0


@pytest.mark.parametrize("network", ["linear", "qm9"])
def test_by_hand_fills_the_same_gradients(network: str) -> None:
    steps = small_step.Steps(3, network)
    found = {}
    for name in (small_step.HAND, small_step.FOUND, small_step.NAMED):
        steps.run(name)
        found[name] = [p.grad.clone() for p in steps.network.parameters if p.grad is not None]
    for other in (small_step.FOUND, small_step.NAMED):
        torch.testing.assert_close(found[other], found[small_step.HAND], rtol=1e-4, atol=1e-6)


def test_by_hand_weighs_by_the_largest_block() -> None:
    steps = small_step.Steps(2)
    z = steps.network.represent()
    gradients = [
        torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in steps.network.losses(z)
    ]
    largest = torch.tensor(
        [max(float((4 * part).square().sum()) for part in g.chunk(4)) for g in gradients]
    )
    weights = minimal_sr_step(steps.network, 4)
    torch.testing.assert_close(weights, (largest.mean() / largest).sqrt())
