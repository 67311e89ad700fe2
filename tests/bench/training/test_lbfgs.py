"""Steps of L-BFGS after the epochs of Adam."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_problem import Toy

from ntkmtl.bench.problems.base import Recipe
from ntkmtl.bench.training import RunInterrupted, RunSpec, load_run, train, train_spec
from ntkmtl.bench.training.learner import Learner
from ntkmtl.bench.training.loop import TrainingLoop
from ntkmtl.bench.training.spec import run_identity
from ntkmtl.errors import NonFiniteError

RECIPE = replace(Toy.recipe, lbfgs_steps=3)


def loop_of(problem: Toy, method: str, recipe: Recipe = RECIPE) -> TrainingLoop:
    spec = RunSpec(method=method, seed=0, recipe=recipe)
    return TrainingLoop(Learner(problem, spec, run_identity(problem, method, 0, recipe=recipe)), 1)


@pytest.mark.parametrize("method", ["ls", "famo", "uw", "ntkmtl", "ntkmtl-auto", "fairgrad"])
def test_a_run_stopped_in_any_step_of_either_phase_resumes_bit_equal(method: str, tmp_path: Path):
    whole = train(Toy(), method, 0, tmp_path / "whole", threads=1, recipe=RECIPE)
    epochs, steps = RECIPE.epochs, whole.result.steps
    assert len(whole.history) == epochs + 3
    assert steps == epochs * (96 // 16) + 3
    # In the middle of Adam's epochs, at their end, and after the first step of L-BFGS.
    for stop in (7, steps - 3, steps - 2):
        folder = tmp_path / f"stopped-{stop}"
        calls = iter(range(1, 1000))
        with pytest.raises(RunInterrupted):
            train(
                Toy(),
                method,
                0,
                folder,
                threads=1,
                recipe=RECIPE,
                should_stop=lambda c=calls, s=stop: next(c) == s,
            )
        again = train(Toy(), method, 0, folder, threads=1, recipe=RECIPE)
        assert again.result.test == whole.result.test
        assert again.result.model == whole.result.model
        assert [e.train_losses for e in again.history] == [e.train_losses for e in whole.history]


def test_the_epochs_before_are_those_of_a_run_without(tmp_path: Path):
    plain = train(Toy(), "ls", 0, tmp_path / "plain", threads=1, recipe=Toy.recipe)
    longer = train(Toy(), "ls", 0, tmp_path / "longer", threads=1, recipe=RECIPE)
    for one, other in zip(plain.history, longer.history[: len(plain.history)], strict=True):
        assert (one.train_losses, one.val) == (other.train_losses, other.val)
    assert longer.result.test != plain.result.test


def test_a_step_lowers_the_weighted_sum_over_all_samples_with_the_weights_it_began_with():
    loop = loop_of(Toy(), "ntkmtl")
    learner = loop.learner
    for number in range(learner.adam_steps, learner.total_steps):
        random = torch.get_rng_state()  # of dropout
        (part,) = loop.stepper.take(torch.arange(96), number)
        torch.set_rng_state(random)
        after = learner.losses(learner.forward(part.batch), part.batch)
        weights = part.balanced.weights.tolist()
        before = sum(weights[i] * loss.item() for i, loss in part.losses.items())
        now = [after[learner.tasks[i]] for i in part.losses]
        assert sum(weights[i] * x.item() for i, x in zip(part.losses, now, strict=True)) < before
        assert part.balanced.total.item() == pytest.approx(before, rel=1e-6)


def test_a_step_is_torchs_lbfgs_on_the_weighted_sum():
    loop, other = loop_of(Toy(), "fixed", RECIPE), loop_of(Toy(), "fixed", RECIPE)
    number, rows = loop.learner.adam_steps, torch.arange(96)
    random = torch.get_rng_state()
    loop.stepper.take(rows, number)
    model, batch = other.learner.model, other.learner.problem.batch("train", rows)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=20,
        history_size=20,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        torch.set_rng_state(random)
        optimizer.zero_grad()
        losses = other.learner.losses(other.learner.forward(batch), batch).values()
        total = sum(loss for loss in losses if loss is not None)
        total.backward()
        return total

    optimizer.step(closure)
    for one, two in zip(loop.learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_leaves_the_network_as_it_was():
    class Poisoned(Toy):
        def losses(self, outputs, batch, tasks=None):
            found = super().losses(outputs, batch, tasks)
            self.evaluations = getattr(self, "evaluations", 0) + 1
            return {**found, "a": found["a"] * float("nan")} if self.evaluations == 3 else found

    loop = loop_of(Poisoned(), "ls")
    before = [p.detach().clone() for p in loop.learner.model.parameters()]
    with pytest.raises(NonFiniteError, match=r"loss of task a is nan at step 24 \(epoch 4"):
        loop.stepper.take(torch.arange(96), loop.learner.adam_steps)
    for one, two in zip(before, loop.learner.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lbfgs_steps": -1}, "lbfgs_steps must be a whole number of at least 0. Found -1"),
        ({"lbfgs_steps": 1.5}, "Found 1.5"),
        ({"clip": 1.0}, "clip must be 0.0. Found 1.0"),
        ({"accumulate": 2}, "accumulate must be 1. Found 2"),
        ({"precision": "bf16"}, "precision must be fp32. Found bf16"),
        ({"weight_decay": 0.1}, "weight_decay must be 0.0. Found 0.1"),
    ],
)
def test_settings_that_it_cannot_keep_are_refused(changes: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        train(Toy(), "ls", 0, tmp_path / "run", threads=1, recipe=replace(RECIPE, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["graddrop", "moco", "consmtl"])
def test_methods_without_a_weighted_loss_are_refused(method: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{method} does more than weigh whole gradients"):
        train(Toy(), method, 0, tmp_path / "run", threads=1, recipe=RECIPE)


def test_the_folder_says_how_it_was_trained(tmp_path: Path):
    spec = RunSpec(method="ls", seed=0, recipe=RECIPE)
    train_spec(Toy(), spec, tmp_path / "run")
    assert load_run(tmp_path / "run").config.recipe["lbfgs_steps"] == 3
