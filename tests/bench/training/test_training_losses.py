"""Losses, weights and metrics of a run, compared with a training loop by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_problem import TASKS, Toy
from training_accelerate_worker import DryToy

from ntkmtl import Balancer
from ntkmtl.bench.problems.base import Recipe, batches
from ntkmtl.bench.training import train
from ntkmtl.bench.training.learner import text_seed
from ntkmtl.errors import NonFiniteError
from ntkmtl.weighting import create

SEED = 3


class Sparse(DryToy):
    """The second task has labels for the samples of one in two batches only."""

    def losses(self, outputs: Any, batch: Any, tasks: Any = None) -> dict[str, Any]:
        found = super().losses(outputs, batch, tasks)
        return {**found, "b": found["b"] if float(batch[0][0, 0]) > 0 else None}


def by_hand(problem: Toy, method: str, recipe: Recipe) -> tuple[list[list[float]], list[float]]:
    """Train with a constant learning rate; return each epoch's mean losses, and test metrics."""
    torch.manual_seed(SEED)
    model = problem.model()
    balancer = Balancer(method, tasks=list(TASKS))
    optimizer = torch.optim.Adam(
        [*model.parameters(), *balancer.parameters()], lr=recipe.learning_rate
    )
    history = []
    for epoch in range(recipe.epochs):
        seen: dict[str, list[float]] = {task: [] for task in TASKS}
        generator = torch.Generator().manual_seed(text_seed(f"order {SEED} {epoch}"))
        for indices in batches(problem.size("train"), recipe.batch_size, generator):
            optimizer.zero_grad()
            batch = problem.batch("train", indices)
            z = model.represent(batch)
            losses = problem.losses(model.predict(z), batch)
            balancer.backward(losses, features=z)
            optimizer.step()
            for task, loss in losses.items():
                if loss is not None:
                    seen[task].append(loss.item())
            balancer.after_step(
                lambda b=batch: problem.losses(model.predict(model.represent(b)), b)
            )
        balancer.end_epoch()
        history.append([sum(values) / len(values) for values in seen.values()])
    return history, problem.evaluate(model, "test").tolist()


@pytest.mark.parametrize("method", ["ls", "si", "uw", "famo", "dwa", "ntkmtl-sr"])
def test_a_run_is_the_loop_by_hand(tmp_path: Path, method: str) -> None:
    recipe = replace(Toy.recipe, epochs=4, schedule="constant")
    run = train(Sparse(), method, SEED, tmp_path, recipe=recipe, threads=1)
    history, test = by_hand(Sparse(), method, recipe)
    for epoch, expected in zip(run.history, history, strict=True):
        assert list(epoch.train_losses) == pytest.approx(expected, rel=1e-5)
    assert list(run.result.test) == pytest.approx(test, rel=1e-4)
    # The comparison would notice: half of a loss is not the loss.
    assert [x / 2 for x in history[0]] != pytest.approx(list(run.history[0].train_losses), rel=0.1)


def test_losses_of_parts_of_a_step_are_those_of_the_step(tmp_path: Path) -> None:
    """Equal parts: the mean of their mean losses is the step's mean loss."""
    recipe = replace(Toy.recipe, epochs=2, schedule="constant")
    parted = replace(recipe, accumulate=4)
    run = train(DryToy(), "ls", SEED, tmp_path, recipe=parted, threads=1)
    history, _ = by_hand(DryToy(), "ls", recipe)
    for epoch, expected in zip(run.history, history, strict=True):
        assert list(epoch.train_losses) == pytest.approx(expected, rel=1e-5)


def test_a_method_is_given_all_that_it_learns_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`after_step` after each step, `end_epoch` after each epoch, its parameters in Adam."""
    calls: list[str] = []
    optimized: list[int] = []
    for name in ("after_step", "end_epoch"):
        called = getattr(Balancer, name)

        def note(
            self: Balancer, *given: Any, name: str = name, called: Any = called, **more: Any
        ) -> Any:
            calls.append(name)
            return called(self, *given, **more)

        monkeypatch.setattr(Balancer, name, note)
    adam = torch.optim.Adam.__init__

    def make(self: Any, groups: Any, **options: Any) -> None:
        optimized.extend(id(p) for group in groups for p in group["params"])
        adam(self, groups, **options)

    monkeypatch.setattr(torch.optim.Adam, "__init__", make)
    made: list[Balancer] = []
    first = Balancer.backward

    def backward(self: Balancer, *given: Any, **more: Any) -> Any:
        made.append(self)
        return first(self, *given, **more)

    monkeypatch.setattr(Balancer, "backward", backward)
    for method in ("famo", "uw", "dwa"):
        calls.clear()
        made.clear()
        optimized.clear()
        run = train(Toy(), method, 0, tmp_path / method, threads=1)
        needed = run.result.steps if create(method).needs_after_step else 0
        assert calls.count("after_step") == needed
        assert calls.count("end_epoch") == len(run.history)
        learned = {id(p) for p in made[0].weighting.parameters()}
        assert learned <= set(optimized)
        assert bool(learned) == (method == "uw")


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("method", ["moco", "db-mtl", "excess-mtl"])
def test_a_loss_or_gradient_that_is_not_finite_leaves_a_method_as_it_was(
    method: str, what: str
) -> None:
    """What the trainer relies on where it does not copy the state before every step."""
    torch.manual_seed(0)
    trunk, heads = torch.nn.Linear(4, 3), [torch.nn.Linear(3, 1) for _ in TASKS]
    balancer = Balancer(method, tasks=list(TASKS))
    x = torch.randn(6, 4)
    for _ in range(2):
        z = trunk(x)
        balancer.backward([head(z).square().mean() for head in heads], features=z)
    before = balancer.state_dict()
    z = trunk(x)
    losses = [head(z).square().mean() for head in heads]
    # A root at 0 has a value and no derivative.
    bad = losses[2] * math.nan if what == "loss" else losses[2] + (z * 0.0).sum().sqrt()
    with pytest.raises(NonFiniteError) as caught:
        balancer.backward([*losses[:2], bad], features=z)
    assert caught.value.what == what
    after = balancer.state_dict()
    assert before.keys() == after.keys()
    # The rest of the state, with the number of calls.
    assert before.pop("json") is not None
    assert all(torch.equal(value, after[key]) for key, value in before.items())
