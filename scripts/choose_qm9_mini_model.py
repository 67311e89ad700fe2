"""Compare the network of ``qm9-mini`` with the two it was chosen over.

Trains, on one thread and with plain summed losses, the message-passing network that the problem
ships and a multi-layer perceptron on invariant features of whole molecules, and fits least squares
on the numbers of atoms of each element. Prints a Markdown table of training times and test errors.

Example:
    python scripts/choose_qm9_mini_model.py --seeds 2
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkmtl.bench.problems.base import MultiTaskModel, batches
from ntkmtl.bench.problems.qm9_mini import QM9Mini, invariants, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ntkmtl.bench.problems.qm9_mini import MiniMolecules


class Features(NamedTuple):
    """b molecules as the perceptron takes them."""

    features: Tensor
    targets: Tensor


class Perceptron(MultiTaskModel):
    """Two hidden layers on features of whole molecules."""

    def __init__(self, features: int, heads: int, width: int = 256) -> None:
        super().__init__()
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(heads))

    def represent(self, batch: Features) -> Tensor:
        """Return z of shape (b, width)."""
        return functional.silu(self.second(functional.silu(self.first(batch.features))))

    def predict(self, features: Sequence[Tensor] | Tensor) -> list[Tensor]:
        """Return k outputs of shape (b, 1)."""
        views = [features] * len(self.heads) if isinstance(features, Tensor) else features
        return [head(view) for head, view in zip(self.heads, views, strict=True)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the trunk."""
        yield from self.first.parameters()
        yield from self.second.parameters()


def whole_features(molecules: MiniMolecules) -> NDArray[np.float64]:
    """Return invariant features of whole molecules, (m, F).

    Histograms of distances per pair of elements and of angles per triple, counts of kinds of atoms,
    composition and extent, eigenvalues of the Coulomb matrix by absolute value, and scalar products
    of the elements' dipole vectors.
    """
    local = invariants(molecules)
    count, largest = len(molecules), int(molecules.atoms.max())
    places = np.full((count, largest, 3), np.nan)
    charges = np.zeros((count, largest))
    row = molecules.molecule
    slot = np.arange(len(row)) - molecules.start[row]
    places[row, slot] = molecules.positions
    charges[row, slot] = molecules.numbers
    distance = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1)
    distance[:, range(largest), range(largest)] = np.inf
    coulomb = np.nan_to_num(charges[:, :, None] * charges[:, None] / distance)
    coulomb[:, range(largest), range(largest)] = 0.5 * charges**2.4
    spectrum = -np.sort(-np.abs(np.linalg.eigvalsh(coulomb)), axis=1)

    center = np.nansum(charges[..., None] * places, axis=1) / charges.sum(1, keepdims=True)
    centered = np.nan_to_num(places - center[:, None])
    dipoles = np.stack(
        [((charges == number)[..., None] * centered).sum(1) for number in (1, 6, 7, 8, 9)], axis=1
    )
    products = dipoles @ dipoles.transpose(0, 2, 1)
    i, j = np.triu_indices(5)
    return np.concatenate(
        [local.atoms.sum(1, dtype=np.float64), local.whole, spectrum, products[:, i, j]], axis=1
    )


class PerceptronQM9(QM9Mini):
    """The same molecules, targets and losses, with the perceptron as the network."""

    def __init__(self) -> None:
        super().__init__()
        values = whole_features(read()[0])
        training = values[: self.size("train")]
        values = values[:, (training != training[0]).sum(0) > 10]
        training = values[: self.size("train")]
        scaled = np.clip((values - training.mean(0)) / training.std(0), -8, 8)
        self._features = torch.from_numpy(scaled).float()

    def _take(self, rows: Tensor) -> Features:  # type: ignore[override]
        return Features(self._features[rows], super()._take(rows).targets)

    def model(self, tasks: Sequence[str] | None = None) -> MultiTaskModel:
        """Build a freshly initialized perceptron."""
        return Perceptron(self._features.shape[1], len(tasks or self.tasks))


def train(
    problem: QM9Mini,
    tasks: Sequence[str] | None,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> tuple[float, Tensor]:
    """Train on the sum of the losses; return seconds and errors on the test molecules."""
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    model = problem.model(tasks)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    size, batch_size = problem.size("train"), problem.recipe.batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * (size // batch_size), pct_start=0.2
    )
    start = time.perf_counter()
    for _ in range(epochs):
        for indices in batches(size, batch_size, order):
            batch = problem.batch("train", indices)
            outputs = model.predict(model.represent(batch))
            losses = problem.losses(outputs, batch, tasks).values()
            total = torch.stack([loss for loss in losses if loss is not None]).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start, problem.evaluate(model, "test", tasks)


def composition_errors(problem: QM9Mini) -> Tensor:
    """Return the test errors of least squares on the numbers of atoms of each element."""
    molecules, _ = read()
    properties = molecules.properties()
    inputs = np.concatenate([molecules.composition(), np.ones((len(molecules), 1))], axis=1)
    first, last = 0, problem.size("train")
    weights = np.linalg.lstsq(inputs[first:last], properties[first:last], rcond=None)[0]
    test = slice(len(molecules) - problem.size("test"), None)
    units = np.array([1e3 if metric.unit == "meV" else 1.0 for metric in problem.metrics])
    errors = np.abs(inputs[test] @ weights - properties[test]).mean(0) * units
    return torch.from_numpy(errors)


def row(name: str, seconds: float | None, errors: Tensor) -> str:
    digits = [3 if error < 1 else 2 if error < 10 else 1 for error in errors.tolist()]
    cells = [f"{error:.{n}f}" for error, n in zip(errors.tolist(), digits, strict=True)]
    return f"| {name} | {'' if seconds is None else f'{seconds:.1f}'} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--stl", action="store_true", help="also each task by itself")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network, perceptron = QM9Mini(), PerceptronQM9()
    epochs, rate = network.recipe.epochs, network.recipe.learning_rate
    heads = [f"{metric.label} ({metric.unit})" for metric in network.metrics]
    print(f"| model | s | {' | '.join(heads)} |")
    print("| --- " * (len(heads) + 2) + "|")
    print(row("least squares on composition", None, composition_errors(network)), flush=True)
    candidates: list[tuple[str, QM9Mini, int, float, float]] = [
        (f"perceptron, {2 * epochs} epochs", perceptron, 2 * epochs, 1e-3, 0.0),
        (f"perceptron, {2 * epochs} epochs, decay 0.001", perceptron, 2 * epochs, 1e-3, 1e-3),
        (f"message passing, {epochs} epochs", network, epochs, rate, 0.0),
    ]
    for name, problem, length, learning_rate, decay in candidates:
        runs = [
            train(problem, None, length, learning_rate, decay, seed)
            for seed in range(options.seeds)
        ]
        seconds = sum(time for time, _ in runs) / len(runs)
        print(row(name, seconds, torch.stack([errors for _, errors in runs]).mean(0)), flush=True)
    if options.stl:
        total, singles = 0.0, []
        for task in network.tasks:
            runs = [train(network, [task], epochs, rate, 0.0, s) for s in range(options.seeds)]
            total += sum(time for time, _ in runs) / len(runs)
            singles.append(torch.stack([errors for _, errors in runs]).mean(0))
        print(row("message passing, each task alone", total, torch.cat(singles)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
