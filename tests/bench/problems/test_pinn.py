"""Physics-informed networks: solutions satisfy their equations, kernels equal a dense oracle."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer
from ntkmtl.bench import problems
from ntkmtl.bench.problems import check
from ntkmtl.bench.training import train
from ntkmtl.bench.training.comparison import changed_recipe

ANALYTIC = ("pinn-helmholtz", "pinn-wave", "pinn-navier-stokes")
ALL = ("pinn-burgers", "pinn-allen-cahn", *ANALYTIC)


class Known(nn.Module):
    """The solution in place of a network; the pressure of Kovasznay's flow belongs to it."""

    def __init__(self, problem: Any) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, points: Tensor) -> Tensor:
        values = self.problem.solution(points)
        if self.problem.name == "pinn-navier-stokes":
            decay = 20 - math.sqrt(400 + 4 * math.pi**2)
            pressure = (1 - torch.exp(2 * decay * points[:, :1])) / 2
            values = torch.cat([values, pressure], dim=1)
        return values


@pytest.mark.parametrize("name", ANALYTIC)
def test_the_solution_has_no_residual(name: str) -> None:
    problem = problems.create(name)
    batch = tuple(points.double() for points in problem.batch("test", torch.arange(50)))
    found = problem.residuals(Known(problem), batch, range(len(problem.tasks)))
    for task, residual in found.items():
        assert float(residual.detach().abs().max()) < 1e-5, problem.tasks[task]


@pytest.mark.parametrize("name", ["pinn-burgers", "pinn-allen-cahn"])
def test_the_computed_solution_satisfies_equation_and_conditions(name: str) -> None:
    problem = problems.create(name)
    at = problem.solution
    t = torch.tensor([0.15, 0.2, 0.2, 0.2, 0.25], dtype=torch.float64)
    x = torch.tensor([0.3, -0.4, 0.6, -0.7, 0.5], dtype=torch.float64)

    def moved(dt: float, dx: float) -> Tensor:
        return at(torch.stack([t + dt, x + dx], dim=1))[:, 0]

    h = 1e-3
    u = moved(0, 0)
    slope_t = (moved(h, 0) - moved(-h, 0)) / (2 * h)
    slope_x = (moved(0, h) - moved(0, -h)) / (2 * h)
    bend = (moved(0, h) - 2 * u + moved(0, -h)) / h**2
    if name == "pinn-burgers":
        residual = slope_t + u * slope_x - 0.01 / math.pi * bend
    else:
        residual = slope_t - 1e-4 * bend - 5 * (u - u**3)
    assert float(residual.abs().max()) < 1e-3 * float(slope_t.abs().max())
    start = torch.stack([torch.zeros(5, dtype=torch.float64), x], dim=1)
    expected = -torch.sin(math.pi * x) if name == "pinn-burgers" else x**2 * torch.cos(math.pi * x)
    torch.testing.assert_close(at(start)[:, 0], expected, rtol=1e-4, atol=1e-6)
    ends = [torch.stack([t, torch.full_like(t, side)], dim=1) for side in (-1.0, 1.0)]
    low, high = at(ends[0]), at(ends[1])
    torch.testing.assert_close(low, high, rtol=1e-6, atol=1e-6)
    if name == "pinn-burgers":
        assert float(low.abs().max()) < 1e-6


def test_burgers_has_the_shock_of_the_literature() -> None:
    # Basdevant et al. 1986: |u_x| at the origin is 152.00516 at its largest, at t = 0.5105.
    at = problems.create("pinn-burgers").solution
    h = 1e-5
    ends = torch.tensor([[0.5105, -h], [0.5105, h]], dtype=torch.float64)
    low, high = at(ends)[:, 0].tolist()
    assert (low - high) / (2 * h) == pytest.approx(152.00516, rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_points_lie_where_their_conditions_hold(name: str) -> None:
    problem = problems.create(name)
    low, high = (torch.tensor(ends) for ends in (problem.equation.low, problem.equation.high))
    batches = {s: problem.batch(s, torch.arange(1000)) for s in ("train", "val")}
    for task, points in zip(problem.tasks, batches["train"], strict=True):
        assert bool((points >= low).all() and (points <= high).all())
        on_side = (points == low) | (points == high)
        if task in ("initial", "velocity"):
            assert bool((points[:, 0] == 0).all())
        elif task == "boundary":
            assert bool(on_side.any(dim=1).all())
            assert bool(on_side.any(dim=0)[-1])
        else:
            # Even coverage: the mean of uniform points is the middle.
            torch.testing.assert_close(points.mean(0), (low + high) / 2, rtol=0, atol=0.02)
    assert not torch.equal(batches["train"][0], batches["val"][0])


@pytest.mark.parametrize("name", ALL)
def test_it_keeps_the_protocol(name: str) -> None:
    problem = problems.create(name)
    check(problem)
    torch.manual_seed(0)
    assert 50 < float(problem.evaluate(problem.model(), "val")[0]) < 200
    assert problem.name in problem.describe() or "network" in problem.describe()


@pytest.mark.parametrize("name", ALL)
def test_exact_eigenvalues_equal_a_dense_oracle(name: str) -> None:
    problem = problems.create(name)
    torch.manual_seed(0)
    model = problem.model().double()
    batch = tuple(points.double() for points in problem.batch("train", torch.arange(24)))
    losses = problem.losses(model.predict(batch), batch)
    out = Balancer("ntkmtl").backward(losses)
    # The oracle: one ordinary backward pass per loss of a graph of its own.
    for task, value in zip(problem.tasks, out.eigenvalues, strict=True):
        loss = problem.losses(model.predict(batch), batch)[task]
        grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        square = sum(float(g.square().sum()) for g in grads if g is not None)
        assert float(value) == pytest.approx(square, rel=1e-6)
    auto = Balancer("ntkmtl-auto").backward(problem.losses(model.predict(batch), batch))
    torch.testing.assert_close(auto.weights, out.weights, rtol=1e-6, atol=0)


def test_training_lowers_the_error(tmp_path: Any) -> None:
    problem = problems.create("pinn-burgers")
    recipe = changed_recipe(problem.recipe, epochs=2)
    run = train(problem, "ntkmtl-auto", seed=0, recipe=recipe, out_dir=tmp_path)
    torch.manual_seed(0)
    before = problem.evaluate(problem.model(), "val").tolist()
    assert run.result.val[0] < 0.9 * before[0]
    assert run.result.val[2] < 0.85 * before[2]
    with pytest.raises(ValueError, match="train without compile"):
        train(
            problem,
            "ls",
            seed=0,
            recipe=changed_recipe(recipe, training={"compile": True}),
            out_dir=tmp_path / "compiled",
        )


def test_there_are_no_baselines() -> None:
    from ntkmtl.bench.training import Comparison, SweepError
    from ntkmtl.bench.training.planning import plan

    asked = Comparison("pinn-wave", methods=["ls", "lra"], seeds=[0], out="nowhere")
    assert [job.spec.method for job in plan(asked).jobs] == ["ls", "lra"]
    for method in ("stl", "pivrg"):
        with pytest.raises(SweepError, match="cannot be trained alone"):
            plan(Comparison("pinn-wave", methods=["ls", method], seeds=[0], out="nowhere"))
