"""Runs one training and records what every estimator of the kernel is made of.

Exact blocks, the free ones and slopes along random directions are recorded along one trajectory, so
that all estimators see the same networks and batches; what each makes of them is arithmetic
afterwards (``estimators_study``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from estimators_workloads import Training
from torch import Tensor, nn

from ntkmtl import Balancer, branch
from ntkmtl.graph import Features, TaskGradients
from ntkmtl.kernel import ExtendedNTK, Probe, RememberInputs
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._pooling import POOLINGS, kernel_from_rows
from ntkmtl.kernel._sources import exact_kernel, representation_kernel, rows_through_features
from ntkmtl.weighting._ntkmtl import eigenvalue_weights

__all__ = ["REFRESH", "STRIDE", "prices", "record"]

REFRESH = 10
"""Weights are renewed in every tenth step, and several directions probed, besides every seventh."""

STRIDE = 7
"""Errors are read in every seventh step, so that estimates held for ten steps are seen at any age.
"""

DIRECTIONS = 8


class _Tap:
    """Remembers input and output of linear layers."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        for place, layer in enumerate(layers):
            layer.register_forward_hook(self._hook(place))
        self.biased = [layer.bias is not None for layer in layers]

    def _hook(self, place: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled():
                self.seen[place] = (args[0].detach(), output)

        return hook

    def outputs(self, count: int) -> list[Tensor]:
        return [self.seen[i][1] for i in range(count)]

    def kernel(self, rows: list[list[Tensor]], partition: Partition) -> Tensor:
        """Sum of the layers' own exact kernels, (k, n, n)."""
        total: Tensor | None = None
        for i, gradients in enumerate(rows):
            a = self.seen[i][0].double()
            theta = a @ a.T + float(self.biased[i])
            part = kernel_from_rows(gradients, partition, "kernel", theta=theta, full=False).blocks
            total = part if total is None else total + part
        assert total is not None
        return total


class _Step:
    """One forward pass, and the sources of the kernel on it."""

    def __init__(self, training: Training, trunk: RememberInputs, tap: _Tap, batch: Any) -> None:
        self.training = training
        self.tap = tap
        self.z: Any = trunk(training.inputs(batch))
        self.losses = training.losses(training.model.predict(self.z), batch)
        self.k = len(self.losses)
        self.features = Features.of(self.z, [str(i) for i in range(self.k)])
        self.call = trunk.call(self.features)
        self.partition = Partition.of(self.features.batch, training.minibatches)

    def differentiate(self, layers: int = 0) -> tuple[TaskGradients, list[list[Tensor]]]:
        """Gradients of each task with respect to the features, and the outputs of some layers."""
        below = self.tap.outputs(layers)
        by_feature: list[Tensor] = []
        by_layer: list[list[Tensor]] = [[] for _ in below]
        for i, loss in enumerate(self.losses):
            z = self.z[i] if isinstance(self.z, list) else self.z
            first, *rest = torch.autograd.grad(loss, (z, *below), retain_graph=True)
            by_feature.append(first)
            for own, gradient in zip(by_layer, rest, strict=True):
                own.append(gradient)
        return TaskGradients([by_feature]), by_layer

    def free(self, gradients: TaskGradients, pooling: Any) -> Tensor:
        return representation_kernel(
            gradients, self.features, self.partition, pooling, full=False
        ).blocks

    def exact(self, gradients: TaskGradients) -> Tensor:
        rows = rows_through_features(
            gradients, self.features, self.training.shared, self.partition, release=False
        )
        kernel, _ = exact_kernel(rows, self.k, self.partition.shares, full=False, keep=False)
        return kernel.blocks

    def plain(self, weights: Tensor) -> None:
        total: Any = sum(w * loss for w, loss in zip(weights.tolist(), self.losses, strict=True))
        total.backward()


def record(training: Training, progress: Callable[[float], None]) -> dict[str, Any]:
    """Train with exact weights, renewed every tenth step, and record.

    Returns:
        ``exact``: (T, k, n, n); ``free``: the same by name; ``slopes``: (T, 8, k, n), NaN beyond
        the first direction in steps that are neither a seventh nor a tenth; ``mode``: how slopes
        were computed.
    """
    trunk = RememberInputs(training.model, "represent")
    tap = _Tap(training.layers)
    optimizer = torch.optim.Adam(training.model.parameters(), lr=training.learning_rate)
    probe = Probe(trunk, parameters=training.shared)
    weights: Tensor | None = None
    kept: dict[str, list[Tensor]] = {"exact": [], "slopes": [], "losses": []}
    free: dict[str, list[Tensor]] = {}
    layers = len(training.layers)
    for t in range(training.steps):
        optimizer.zero_grad()
        step = _Step(training, trunk, tap, next(training.batches))
        gradients, by_layer = step.differentiate(layers)
        parts: dict[str, Tensor] = {name: step.free(gradients, name) for name in POOLINGS}
        for name, count in zip(layer_names(layers), (1, layers), strict=False):
            parts[name] = tap.kernel(by_layer[:count], step.partition)
        for name, blocks in parts.items():
            free.setdefault(name, []).append(blocks)
        full = t % REFRESH == 0 or t % STRIDE == 0
        slopes = probe.slopes(
            step.features, gradients, step.partition, probes=DIRECTIONS if full else 1
        )
        missing = slopes.new_full((DIRECTIONS - len(slopes), *slopes.shape[1:]), torch.nan)
        kept["slopes"].append(torch.cat([slopes, missing]))
        exact = step.exact(gradients)
        kept["exact"].append(exact)
        if t % REFRESH == 0:
            weights = eigenvalue_weights(ExtendedNTK(blocks=exact).max_eigenvalues())
        kept["losses"].append(torch.stack([loss.detach() for loss in step.losses]))
        assert weights is not None
        step.plain(weights)
        optimizer.step()
        progress((t + 1) / training.steps)
    return {
        "title": training.title,
        "exact": torch.stack(kept["exact"]),
        "slopes": torch.stack(kept["slopes"]),
        "losses": torch.stack(kept["losses"]),
        "free": {name: torch.stack(blocks) for name, blocks in free.items()},
        "mode": probe.mode,
    }


def prices(training: Training) -> dict[str, float]:
    """Time the parts in turns and return medians of seconds of processor time.

    ``plain`` is a whole step of plain training and a pooling a whole step of the Balancer; the
    others are what they add to one: ``probe`` for a direction, ``exact``, and the kernels of
    layers beyond ``kernel``. Processor time, with one thread, is what other jobs on the machine
    disturb least.
    """
    trunk = RememberInputs(training.model, "represent")
    tap = _Tap(training.layers)
    probe = Probe(trunk, parameters=training.shared)
    optimizer = torch.optim.Adam(training.model.parameters(), lr=training.learning_rate)
    batch = next(training.batches)
    k = len(training.model.heads)
    balancers = {
        pooling: Balancer("ntkmtl-sr", pooling=pooling, minibatches=training.minibatches, tasks=k)
        for pooling in POOLINGS
    }

    def whole(balancer: Balancer | None) -> None:
        optimizer.zero_grad()
        z: Any = training.model.represent(training.inputs(batch))
        views = z if isinstance(z, list) or balancer is None else branch(z, k)
        losses = training.losses(training.model.predict(views), batch)
        if balancer is None:
            torch.stack(losses).sum().backward()
        else:
            balancer.backward(losses, features=views)
        optimizer.step()

    counts = {name: i + 1 for i, name in enumerate(layer_names(len(training.layers)))}
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> None:
        start = time.process_time()
        run()
        times.setdefault(name, []).append(time.process_time() - start)

    for turn in range(16):
        timed("plain", partial(whole, None))
        for pooling, balancer in balancers.items():
            timed(pooling, partial(whole, balancer))
        step = _Step(training, trunk, tap, batch)
        gradients, _ = step.differentiate()
        timed("probe", partial(probe.slopes, step.features, gradients, step.partition, probes=1))
        timed("by heads", partial(_layers, step, 0))
        for name, count in counts.items():
            timed(name, partial(_layers, step, count))
        if turn < 4:
            timed("exact", partial(step.exact, gradients))
    # The first turn warms the caches.
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    by_heads = seconds.pop("by heads")
    for name in counts:
        seconds[name] += seconds["kernel"] - by_heads
    return seconds


def _layers(step: _Step, count: int) -> None:
    gradients, by_layer = step.differentiate(count)
    if count:
        step.tap.kernel(by_layer, step.partition)
    else:
        step.free(gradients, "kernel")


def layer_names(layers: int) -> list[str]:
    """Return the names of the kernels of the last layers, of one and of all."""
    return ["last layer", *([f"{layers} layers"] if layers > 1 else [])] if layers else []
