"""What the equations share: points, network, losses, errors."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems._supervised import moved, paired, positions
from ntkmtl.bench.problems.base import Metric, Problem, Recipe, Split, WholeModel


class Field(nn.Module):
    """A network of tanh layers from points to values of the solution.

    Args:
        low: Lower ends of the domain, one per coordinate; coordinates are brought to [-1, 1].
        high: Upper ends.
        outputs: Numbers at a point.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        features: What is made of the coordinates in [-1, 1] before the first layer; nothing if
            None.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        outputs: int,
        width: int,
        depth: int,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32), persistent=False)
        self.features = features
        inputs = (
            torch.zeros(1, len(low)) if features is None else features(torch.zeros(1, len(low)))
        )
        sizes = [inputs.shape[1], *[width] * depth]
        layers: list[nn.Module] = []
        for first, second in itertools.pairwise(sizes):
            layers += [nn.Linear(first, second), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, points: Tensor) -> Tensor:
        """Return values of shape (b, outputs) at points of shape (b, d)."""
        x = 2 * (points - self.low) / (self.high - self.low) - 1
        values: Tensor = self.layers(x if self.features is None else self.features(x))
        return values


def gradient(values: Tensor, points: Tensor) -> Tensor:
    """Return the derivatives of values of shape (b,) by their points, shape (b, d).

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 1.0]], requires_grad=True)
        >>> slope = gradient(x[:, 0].square() * x[:, 1], x)
        >>> slope.tolist(), gradient(slope[:, 0], x).tolist()
        ([[6.0, 9.0]], [[2.0, 6.0]])
    """
    (found,) = torch.autograd.grad(values.sum(), points, create_graph=True)
    return found


def sloped(field: nn.Module, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return points (b, d) that can be differentiated by, u there (b,), and its slope (b, d)."""
    inside = points.detach().requires_grad_()
    u = field(inside)[:, 0]
    return inside, u, gradient(u, inside)


POINTS: dict[Split, int] = {"train": 16384, "val": 1024, "test": 4096}
SEEDS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}

Batch = tuple[Tensor, ...]
"""Points of each condition, shape (b, d)."""


@dataclass(frozen=True)
class Equation:
    """An equation with its conditions.

    Attributes:
        low: Lower ends of the domain.
        high: Upper ends.
        conditions: Names of the conditions, which are the tasks; an equation first.
        outputs: Numbers that the network has at a point.
        compared: How many of them, the first ones, are compared with the solution.
        width: Width of the network's hidden layers.
        depth: Their number.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    conditions: tuple[str, ...]
    outputs: int = 1
    compared: int = 1
    width: int = 64
    depth: int = 4


class Solver(WholeModel):
    """A :class:`Field`, whose outputs are the residuals of an equation's conditions."""

    def __init__(self, problem: PINN, columns: Sequence[int]) -> None:
        super().__init__()
        about = problem.equation
        self.field = Field(
            about.low, about.high, about.outputs, about.width, about.depth, problem.features
        )
        # In a tuple, so that the problem does not become a part of the network.
        self._problem = (problem,)
        self.columns = tuple(columns)

    def predict(self, features: Any) -> list[Tensor]:
        """Return the residuals of each condition at the points of a batch."""
        (problem,) = self._problem
        with torch.enable_grad():
            found = problem.residuals(self.field, features, self.columns)
        return [found[column] for column in self.columns]


class PINN(Problem):
    """A physics-informed network: its tasks are the conditions of one equation.

    Points are drawn once, by a scrambled Sobol sequence: 16,384 of each condition to train on,
    others to judge. A sample is one point of each condition. Losses are mean squared residuals.

    The first metric is the relative L2 error of the solution, in percent. It depends on all
    conditions, and has the residual as its task because every metric needs one. The others are root
    mean squares of each condition's residual at points that were not trained on. There are no
    single-task baselines: one condition alone does not determine a solution.
    """

    equation: ClassVar[Equation]
    has_baselines: ClassVar[bool] = False
    recipe: Recipe = Recipe(
        epochs=50,
        batch_size=256,
        learning_rate=2e-3,
        minibatches=1,
        reduced=True,
        description="3,200 steps of Adam, where the literature takes 10,000 to 100,000, and L-BFGS",
    )

    def __init__(self) -> None:
        self.tasks: tuple[str, ...] = self.equation.conditions
        self.metrics: tuple[Metric, ...] = (
            Metric("l2", task=self.tasks[0], unit="%", label="rel. L2"),
            *(Metric(f"{task} rms", task=task) for task in self.tasks),
        )
        self._splits = {split: self._points(split) for split in POINTS}
        self._compared: dict[Split, tuple[Tensor, Tensor]] = {}

    # ------------------------------------------------------------------ of each equation

    @abstractmethod
    def residuals(self, field: nn.Module, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return the residuals of the conditions at these positions, one or more per point."""

    @abstractmethod
    def solution(self, points: Tensor) -> Tensor:
        """Return the solution, float64 of shape (n, compared), at points of shape (n, d)."""

    features: Any = None
    """What is made of coordinates before the first layer; see :class:`Field`."""

    # ------------------------------------------------------------------ the protocol

    @property
    def options(self) -> dict[str, Any]:
        """Points and network."""
        return {
            "points": {split: [POINTS[split], SEEDS[split]] for split in POINTS},
            "width": self.equation.width,
            "depth": self.equation.depth,
            "loss": "mse",
        }

    def size(self, split: Split) -> int:
        """Return the number of points of each condition."""
        return POINTS[split]

    def batch(self, split: Split, indices: Tensor) -> Batch:
        """Return points of each condition."""
        return tuple(points.index_select(0, indices) for points in self._splits[split])

    def model(self, tasks: Sequence[str] | None = None) -> Solver:
        """Build a freshly initialized network."""
        return Solver(self, positions(self.tasks, tasks))

    def losses(
        self, outputs: Sequence[Tensor], batch: Batch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor | None]:
        """Return the mean squared residual of each condition."""
        found = self.task_residuals(outputs, batch, tasks)
        return {name: residual.square().mean() for name, residual in found.items()}

    def task_residuals(
        self, outputs: Sequence[Tensor], batch: Batch, tasks: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the residuals of each condition."""
        return {self.tasks[place]: output for place, output in paired(self.tasks, outputs, tasks)}

    def evaluate(self, model: Any, split: Split, tasks: Sequence[str] | None = None) -> Tensor:
        """Return the relative L2 error in percent, and the root mean squares of residuals."""
        outputs = model.predict(model.represent(self._splits[split]))
        rms = {
            place: float(output.detach().double().square().mean().sqrt())
            for place, output in paired(self.tasks, outputs, tasks)
        }
        found = [rms[place] for place in sorted(rms)]
        if 0 in rms:
            found.insert(0, self._error(model, split))
        return torch.tensor(found, dtype=torch.float64)

    def describe(self) -> str:
        """Return one paragraph on equation, network and points."""
        parameters = sum(p.numel() for p in self.model().parameters())
        about = self.equation
        return (
            f"{self.summary}. A network of {about.depth} tanh layers of {about.width} "
            f"({parameters:,} parameters) is trained on {POINTS['train']:,} points of each of its "
            f"conditions: {', '.join(self.tasks)}. rel. L2 is the error of the solution at other "
            "points, relative to the solution; rms are root mean squares of what each condition "
            "leaves."
        )

    def _error(self, model: Any, split: Split) -> float:
        if split not in self._compared:
            inside = self._splits[split][0]
            self._compared[split] = inside.detach(), self.solution(inside.detach().double())
        points, expected = self._compared[split]
        model = getattr(model, "model", model)  # on another device: Evaluated
        with torch.no_grad():
            found = model.field(moved(points, model)).cpu().double()[:, : self.equation.compared]
        return 100 * float((found - expected).norm() / expected.norm())

    def _points(self, split: Split) -> Batch:
        about = self.equation
        found = []
        for number, condition in enumerate(self.tasks):
            engine = torch.quasirandom.SobolEngine(
                len(about.low), scramble=True, seed=100 * SEEDS[split] + number
            )
            unit = engine.draw(POINTS[split], dtype=torch.float64)
            found.append(self.place(condition, unit).float())
        return tuple(found)

    # ------------------------------------------------------------------ where conditions hold

    def place(self, condition: str, unit: Tensor) -> Tensor:
        """Return points of a condition from points of the unit cube, shape (n, d), float64."""
        if condition == "boundary":
            return self.boundary(unit)
        points = self.inside(unit)
        if condition in ("initial", "velocity"):
            points[:, 0] = 0.0
        return points

    def inside(self, unit: Tensor) -> Tensor:
        """Return points anywhere in the domain."""
        low = torch.tensor(self.equation.low, dtype=torch.float64)
        return low + unit * (torch.tensor(self.equation.high, dtype=torch.float64) - low)

    def boundary(self, unit: Tensor) -> Tensor:
        """Return points on the sides of a plane domain, equally many on each."""
        points = self.inside(unit)
        side = torch.arange(len(unit)) % 4
        for number in range(4):
            coordinate, end = divmod(number, 2)
            value = (self.equation.low, self.equation.high)[end][coordinate]
            points[side == number, coordinate] = value
        return points

    def ends(self, unit: Tensor) -> Tensor:
        """Return points at any time t, their x at the nearer end of the domain."""
        nearer = unit.clone()
        nearer[:, 1] = nearer[:, 1].round()
        return self.inside(nearer)
