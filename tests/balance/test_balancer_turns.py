"""The Balancer: tasks that take turns."""

from __future__ import annotations

from torch import Tensor

from balance.small_network import inputs, losses_of, network
from ntkmtl import Balancer


def test_weights_of_tasks_that_take_turns_are_all_recomputed() -> None:
    trunk, heads = network(2)
    balancer = Balancer("ntkmtl-sr", minibatches=2, ema=0.5, every=2, tasks=2)
    made: dict[int, list[bool]] = {0: [], 1: []}
    for step in range(12):
        z = trunk(inputs(seed=step))
        task = step % 2
        own: list[Tensor | None] = [None, None]
        own[task] = (1 + step) * losses_of(heads, z)[task]
        expected = balancer.reuses([task])
        found = balancer.backward(own, features=z).eigenvalues is None
        assert found == expected
        made[task].append(not found)
    # Each task has a step in every second one, so each of its steps is two after its last kernel.
    assert made == {0: [True] * 6, 1: [True] * 6}


def test_every_counts_from_the_last_kernel_of_a_task() -> None:
    trunk, heads = network(2)
    balancer = Balancer("ntkmtl-sr", minibatches=2, every=3, tasks=2)
    found = []
    for step in range(8):
        z = trunk(inputs(seed=step))
        own: list[Tensor | None] = [*losses_of(heads, z)]
        if step == 0:
            own[1] = None
        found.append(balancer.backward(own, features=z).eigenvalues is not None)
        if step == 4:
            state = balancer.state_dict()
            balancer = Balancer("ntkmtl-sr", minibatches=2, every=3, tasks=2)
            balancer.load_state_dict(state)
    # Task 1 was absent at first, so the kernel is made in step 1, and from then in every third.
    assert found == [True, True, False, False, True, False, False, True]
