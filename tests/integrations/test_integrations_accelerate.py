"""``ntkmtl.integrations.accelerate`` against plain training with Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker, on_main_process
from torch.utils.data import DataLoader, TensorDataset

import framework_tasks as tasks
from ntkmtl import Balancer
from ntkmtl.integrations.accelerate import BalancedAccelerator


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Keeping(GeneralTracker):
    """Keeps what it is given."""

    name = "keeping"
    requires_logging_directory = False
    tracker = None

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[int, dict[str, float]]] = []

    @on_main_process
    def store_init_configuration(self, values: Any) -> None:
        pass

    @on_main_process
    def log(self, values: Any, step: Any = None, **kwargs: Any) -> None:
        self.kept.append((step, values))


def train(
    method: str | None, epochs: int = 2, batch: int = 8, folder: Path | None = None, **settings: Any
) -> Any:
    """Train, plainly for no method; return the accelerator, the network and its numbers."""
    forget()
    settings = {"cpu": True, **settings}
    if method is None:
        accelerator: Any = Accelerator(**settings)
        learned: list[Any] = []
    else:
        balancer = Balancer(method, tasks=list(tasks.TASKS))
        accelerator = BalancedAccelerator(balancer, **settings)
        learned = list(balancer.parameters())
    if accelerator.log_with:
        accelerator.init_trackers("test")
    net = tasks.seeded(tasks.Net)
    optimizer = torch.optim.Adam([*net.parameters(), *learned], lr=1e-2)
    loader = DataLoader(TensorDataset(*tasks.data()), batch)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    if folder is not None:
        accelerator.load_state(folder)
    for _ in range(epochs):
        for x, *labels in loader:
            with accelerator.accumulate(net):

                def losses(x: Any = x, labels: Any = labels) -> Any:
                    return tasks.mean_squares(net(x), labels)

                found = losses()
                accelerator.backward(sum(found.values()) if method is None else found)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if method is not None:
                    accelerator.after_step(losses)
        if method is not None:
            accelerator.balancer.end_epoch()
    numbers = [p.detach().clone() for p in accelerator.unwrap_model(net).parameters()]
    return accelerator, net, numbers


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}],
    ids=["plain", "accumulation", "bf16"],
)
def test_ls_is_plain_training(settings: dict[str, Any]) -> None:
    ours, plain = (train(method, **settings)[2] for method in ("ls", None))
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_the_gradient_scaler_is_used() -> None:
    accelerator = BalancedAccelerator(Balancer("ls"), cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    net = tasks.seeded(tasks.Net)
    x, *labels = tasks.data()
    sum(tasks.mean_squares(net(x), labels).values()).backward()  # type: ignore[union-attr]
    plain = [8 * p.grad for p in net.parameters()]  # type: ignore[operator]
    net.zero_grad()
    accelerator.backward(tasks.mean_squares(net(x), labels))
    torch.testing.assert_close([p.grad for p in net.parameters()], plain)


def test_what_is_logged() -> None:
    tracker = Keeping()
    train("ntkmtl", epochs=1, gradient_accumulation_steps=2, log_with=tracker)
    assert [step for step, _ in tracker.kept] == [1, 2]
    kinds = ("loss", "weight", "eigenvalue")
    assert set(tracker.kept[0][1]) == {f"{k}/{task}" for k in kinds for task in tasks.TASKS}
    assert all(type(value) is float for value in tracker.kept[0][1].values())


@pytest.mark.parametrize("method", ["famo", "uw", "dwa"])
def test_methods_that_need_more_than_backward(method: str) -> None:
    accelerator, net, _ = train(method, epochs=3)
    x, *labels = tasks.data()
    learned = accelerator.balancer.backward(tasks.mean_squares(net(x), labels))
    assert len(set(learned.weights.tolist())) == 2  # equal where nothing was learned


def test_after_step_takes_losses_as_well() -> None:
    net = tasks.seeded(tasks.Net)
    x, *labels = tasks.data()
    weights = []
    for ready in (True, False):
        balanced = BalancedAccelerator(Balancer("famo", tasks=list(tasks.TASKS)), cpu=True)
        for _ in range(2):
            out = balanced.backward(tasks.mean_squares(net(x), labels))
            after = {name: 0.5 * v for name, v in tasks.mean_squares(net(x), labels).items()}
            after[tasks.TASKS[0]] = after[tasks.TASKS[0]] * 0.1
            balanced.after_step(after if ready else lambda after=after: after)
        weights.append(out.weights)
    assert torch.equal(*weights)
    assert float(weights[0].std()) > 0


@pytest.mark.parametrize("method", ["ntkmtl-auto", "famo"])
def test_resume(method: str, tmp_path: Path) -> None:
    whole = train(method, epochs=4)[2]
    train(method, epochs=2)[0].save_state(tmp_path)
    accelerator, _, resumed = train(method, epochs=2, folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert accelerator._progress.steps == 16


def test_hold_for_an_optimizer_with_a_closure() -> None:
    accelerator = BalancedAccelerator(Balancer("si"), cpu=True)
    net = tasks.seeded(tasks.Net)
    net, optimizer = accelerator.prepare(net, torch.optim.LBFGS(net.parameters(), lr=0.1))
    x, *labels = tasks.data()
    seen = []

    def closure() -> Any:
        optimizer.zero_grad()
        seen.append(accelerator.backward(tasks.mean_squares(net(x), labels)))
        return seen[-1].total

    with accelerator.balancer.hold():
        optimizer.step(closure)
    assert len(seen) > 1
    assert len({tuple(result.weights.tolist()) for result in seen}) == 1


def test_a_sum_is_refused() -> None:
    with pytest.raises(TypeError, match="before they are added up"):
        BalancedAccelerator(Balancer(), cpu=True).backward(torch.ones((), requires_grad=True))
    with pytest.raises(TypeError, match=r"balancer must be an ntkmtl\.Balancer"):
        BalancedAccelerator("ntkmtl", cpu=True)  # type: ignore[arg-type]


def test_a_factor_besides_the_accumulation_is_refused() -> None:
    accelerator = BalancedAccelerator(Balancer("ls"), cpu=True, gradient_accumulation_steps=2)
    x, *labels = tasks.data()
    with pytest.raises(ValueError, match="come from the accelerator: scale"):
        accelerator.backward(tasks.mean_squares(tasks.Net()(x), labels), scale=1.0)


def train_in_two(rank: int, folder: Path, method: str) -> None:
    accelerator, _, numbers = train(method, batch=4)
    assert accelerator.num_processes == 2
    torch.save(numbers, folder / f"{rank}.pt")


@pytest.mark.integration
@pytest.mark.parametrize("method", ["ls", "ntkmtl-auto"])
def test_two_processes(method: str, tmp_path: Path) -> None:
    tasks.launch(train_in_two, tmp_path, method)
    first, second = tasks.both(tmp_path)
    torch.testing.assert_close(first, second)
    if method == "ls":
        plain = train(None)[2]
        torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-6)
