"""The replay: what is kept, what is drawn, what comes back from a state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ntkmtl.bench.reinforce import Replay


def filled(steps: int, capacity: int = 8, tasks: int = 3) -> Replay:
    """Return a replay in which everything about a transition follows from task and time."""
    replay = Replay(tasks, capacity, observation=2, action=1, seed=4)
    for t in range(steps):
        seen = torch.stack([torch.arange(tasks).float(), torch.full((tasks,), float(t))], dim=1)
        replay.add(seen, seen[:, 1:] / 10, 100 * seen[:, 0] + t, seen + 1)
    return replay


@pytest.mark.parametrize("kind", ["stratified", "uniform"])
@pytest.mark.parametrize("steps", [5, 8, 19])
def test_rows_stay_together_and_the_oldest_go(kind: str, steps: int) -> None:
    replay = filled(steps)
    batch = getattr(replay, kind)(300)
    task, time = batch.observations.unbind(dim=1)
    assert torch.equal(batch.rewards, 100 * task + time)
    assert torch.equal(batch.actions, time[:, None] / 10)
    assert torch.equal(batch.next_observations, batch.observations + 1)
    assert set(time.tolist()) == set(range(max(0, steps - 8), steps))
    index = torch.repeat_interleave(torch.arange(3), torch.tensor(batch.sizes))
    assert torch.equal(task, index.float())
    for number, place in enumerate(batch.slices):
        assert set(task[place].tolist()) == {float(number)}


def test_stratified_batches_have_as_many_of_each_and_uniform_ones_a_fair_share() -> None:
    replay = filled(8)
    assert replay.stratified(7).sizes == (7, 7, 7)
    sizes = torch.tensor(replay.uniform(30_000).sizes).double()
    assert sizes.sum() == 30_000
    # Binomial with p = 1/3: five deviations.
    assert float((sizes - 10_000).abs().max()) < 5 * (30_000 * 2 / 9) ** 0.5
    assert len({replay.uniform(30).sizes for _ in range(20)}) > 1


@pytest.mark.parametrize("steps", [5, 19])
def test_a_saved_replay_draws_and_keeps_on(steps: int, tmp_path: Path) -> None:
    one = filled(steps)
    torch.save(one.state_dict(), tmp_path / "replay.pt")
    two = Replay(3, 8, observation=2, action=1, seed=99)
    two.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    for replay in (one, two):
        replay.add(torch.ones(3, 2), torch.ones(3, 1), torch.ones(3), torch.ones(3, 2))
    a, b = one.uniform(40), two.uniform(40)
    assert torch.equal(a.observations, b.observations)
    assert torch.equal(a.rewards, b.rewards)
    assert len(one) == len(two) == min(steps + 1, 8)


def test_invalid_arguments_are_refused() -> None:
    replay = Replay(3, 8, observation=2, action=1)
    with pytest.raises(ValueError, match="the replay is empty"):
        replay.stratified(4)
    with pytest.raises(ValueError, match=r"rewards must have shape \(3,\), found \(3, 1\)"):
        replay.add(torch.ones(3, 2), torch.ones(3, 1), torch.ones(3, 1), torch.ones(3, 2))
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        Replay(3, 0)


@pytest.mark.parametrize(("steps", "capacity"), [(9, 4), (9, 16), (8, 16), (6, 6)])
def test_a_state_of_another_capacity_is_refused(steps: int, capacity: int) -> None:
    replay = Replay(3, capacity, observation=2, action=1)
    with pytest.raises(ValueError, match=f"not of a replay of capacity {capacity}"):
        replay.load_state_dict(filled(steps).state_dict())
    assert len(replay) == 0


def test_a_refused_transition_leaves_the_oldest_one_whole() -> None:
    replay = filled(9)
    before = replay.state_dict()
    with pytest.raises(ValueError, match="actions must have shape"):
        replay.add(torch.ones(3, 2), torch.ones(3, 2), torch.ones(3), torch.ones(3, 2))
    after = replay.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "next")
