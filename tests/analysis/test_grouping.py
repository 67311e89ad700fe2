"""Groups of tasks: on given matrices, and on tasks built to agree or to conflict."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.analysis import Recorder, group_tasks


def blocks(*groups: tuple[int, ...], inside: float = 0.6, across: float = -0.2) -> Tensor:
    k = sum(map(len, groups))
    found = torch.full((k, k), across, dtype=torch.float64)
    for group in groups:
        for i, j in itertools.product(group, group):
            found[i, j] = 1.0 if i == j else inside
    return found


@pytest.mark.parametrize("planted", [((0, 2, 4), (1, 3)), ((0,), (1, 2)), ((0, 1, 2, 3),)])
def test_blocks_are_found_without_their_number(planted: tuple[tuple[int, ...], ...]) -> None:
    found = group_tasks(blocks(*planted))
    assert found.groups == planted
    for group, within in zip(planted, found.within, strict=True):
        assert math.isnan(within) if len(group) == 1 else within == pytest.approx(0.6)
    assert math.isnan(found.between) if len(planted) == 1 else found.between == pytest.approx(-0.2)
    # Members of a group stand side by side.
    places = [found.order.index(task) for group in planted for task in group]
    for group in planted:
        at = sorted(found.order.index(task) for task in group)
        assert at == list(range(at[0], at[0] + len(group)))
    assert sorted(places) == list(range(len(places)))


def test_the_rule_is_the_mean_affinity_between_groups() -> None:
    # 0 and 1 join at 0.5; task 2 has (0.3 - 0.2) / 2 = 0.05 with them.
    affinity = torch.tensor([[1.0, 0.5, 0.3], [0.5, 1.0, -0.2], [0.3, -0.2, 1.0]])
    assert group_tasks(affinity).groups == ((0, 1, 2),)
    assert group_tasks(affinity, threshold=0.04).groups == ((0, 1, 2),)
    assert group_tasks(affinity, threshold=0.06).groups == ((0, 1), (2,))
    assert group_tasks(affinity, threshold=0.6).groups == ((0,), (1,), (2,))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_given_number_of_groups_also_with_ties(count: int) -> None:
    assert len(group_tasks(torch.eye(4), count).groups) == count
    assert len(group_tasks(blocks((0, 1), (2, 3)), count).groups) == count


def test_permuting_tasks_permutes_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 4, dtype=torch.float64, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True)
    order = torch.randperm(7, generator=generator)
    plain = {frozenset(group) for group in group_tasks(rows @ rows.T).groups}
    moved = group_tasks(rows[order] @ rows[order].T).groups
    assert {frozenset(order[list(group)].tolist()) for group in moved} == plain
    assert len(plain) > 1


@pytest.mark.parametrize(
    ("affinity", "groups", "said"),
    [
        (torch.ones(2, 3), None, "shape"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), None, "tasks 0 and 1 is NaN"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), None, r"\[-1, 1\]"),
        (torch.tensor([[1.0, 0.5], [0.1, 1.0]]), None, "symmetric"),
        (torch.eye(2), 3, "groups must be in 1..2"),
        (torch.eye(2), 0, "groups must be in 1..2"),
    ],
)
def test_what_cannot_be_grouped_is_refused(affinity: Tensor, groups: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        group_tasks(affinity, groups)


def test_one_task_and_names() -> None:
    found = group_tasks(torch.ones(1, 1))
    assert found.groups == ((0,),)
    with pytest.raises(ValueError, match="1 tasks were grouped, found 2 names"):
        found.names(["a", "b"])


@pytest.mark.integration
def test_a_missing_scipy_is_reported_with_the_install_command() -> None:
    code = (
        "import sys; sys.modules['scipy.cluster'] = None\n"
        "import torch; from ntkmtl.analysis import group_tasks; group_tasks(torch.eye(2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'ntkmtl[bench]'" in done.stderr


@pytest.mark.parametrize("source", ["exact", "representation"])
def test_tasks_built_to_agree_are_grouped_through_the_real_kernel(source: str) -> None:
    """A linear trunk, one shared read-out and one small own one per task: tasks 0, 2, 4 have the
    same target up to noise, tasks 1, 3 its negative. The signs are known only to the data."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    trunk = torch.nn.Linear(6, 8, bias=False).double()
    with torch.no_grad():
        trunk.weight.copy_(torch.randn(8, 6, dtype=torch.float64, generator=generator) / 3)
    read = torch.randn(8, dtype=torch.float64, generator=generator)
    truth = torch.randn(6, dtype=torch.float64, generator=generator)
    recorder = Recorder(every=2, source=source, minibatches=4)
    balancer = Balancer("ls", tasks=5, record=recorder)
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.002)
    for _ in range(20):
        x = torch.randn(32, 6, dtype=torch.float64, generator=generator)
        noise = 0.3 * torch.randn(5, 32, dtype=torch.float64, generator=generator)
        z = trunk(x)
        losses = [
            (z @ read - (s * 5 * (x @ truth) + e)).square().mean()
            for s, e in zip(sign, noise, strict=True)
        ]
        optimizer.zero_grad()
        balancer.backward(losses, features=z)
        optimizer.step()
    affinity = recorder.mean_affinity()
    found = group_tasks(affinity)
    assert found.groups == ((0, 2, 4), (1, 3))
    assert min(found.within) > 0.5
    assert found.between < -0.5
