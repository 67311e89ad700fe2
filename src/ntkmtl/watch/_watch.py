"""Measuring constant weights during the first percent of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ntkmtl._warnings import warn
from ntkmtl.balance import Balancer, BalanceResult
from ntkmtl.balance._read import Losses
from ntkmtl.balance._snapshot import Snapshot
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.watch import _statistics as statistics
from ntkmtl.watch._result import ConstantWeights
from ntkmtl.weighting import create
from ntkmtl.weighting._base import Weighting

__all__ = ["LOOKS", "SHORTEST", "Watch", "weigh"]

SHORTEST = 50
"""Smallest number of steps that are watched."""
LOOKS = 100
"""Approximate largest number of measurements."""

Training = Literal["balanced", "sum"]
"""Which weights train the network while it is watched."""

_Batch = TypeVar("_Batch")


def weigh(
    total_steps: int,
    percent: float = 2.0,
    *,
    method: str = "ntkmtl",
    priorities: Mapping[str, float] | Sequence[float] | None = None,
    train: Training = "balanced",
    **options: Any,
) -> Watch:
    """Measure constant loss weights during the first percent of a training.

    For tools that accept loss weights but not a custom training loop: train the tool's model on its
    data for a few steps, with unweighted losses, and copy the weights of :meth:`Watch.result` into
    the tool's configuration.

    Args:
        total_steps: Number of batches of the whole training.
        percent: Percentage of the training to watch; at least 50 steps are watched.
        method: A method that computes a weight per loss. If it reads a kernel, the exact kernel is
            used.
        priorities: Importance p of the tasks, by name or in order: balanced weights are multiplied
            by p / mean(p).
        train: Weights that train the network meanwhile: ``"balanced"`` for the measured weights,
            ``"sum"`` for the plain sum.
        **options: Further options of :class:`ntkmtl.Balancer`, such as ``tasks``, ``shared`` and
            ``minibatches``.

    Returns:
        An object that runs the backward passes and returns the weights.

    Raises:
        ValueError: A number is out of range, or the method has no weights per loss.

    Example:
        >>> import torch, ntkmtl
        >>> _ = torch.manual_seed(0)
        >>> trunk, a, b = torch.nn.Linear(3, 8), torch.nn.Linear(8, 1), torch.nn.Linear(8, 1)
        >>> net = torch.nn.ModuleList([trunk, a, b])
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
        >>> loader = [torch.randn(16, 3) for _ in range(20)]
        >>> with ntkmtl.weigh(total_steps=2_000, percent=5) as watch:
        ...     for x in watch.steps(loader):
        ...         z = trunk(x).tanh()
        ...         optimizer.zero_grad()
        ...         losses = {"a": a(z).square().mean(), "b": 100 * (b(z) - 1).square().mean()}
        ...         _ = watch.backward(losses)
        ...         optimizer.step()
        >>> found = watch.result()
        >>> found.steps, found.weights["a"] > 10 * found.weights["b"]
        (100, True)
    """
    if isinstance(total_steps, bool) or int(total_steps) != total_steps or total_steps < 1:
        raise ValueError(f"total_steps must be a whole number of at least 1, found {total_steps}")
    if not 0 < percent <= 100:
        raise ValueError(f"percent must be above 0 and at most 100, found {percent}")
    if train not in get_args(Training):
        raise ValueError(f"train must be 'balanced' or 'sum', found {train!r}")
    steps = min(int(total_steps), max(SHORTEST, math.ceil(total_steps * percent / 100)))
    every = max(1, steps // LOOKS)
    weighting = create(method)
    if weighting.requires == "jacobian" or weighting.needs_scores:
        raise ValueError(f"{method} makes no weight per loss that could be kept; use ntkmtl")
    if train == "sum":
        if weighting.requires == "losses":
            raise ValueError(f"{method} reads no kernel that could be looked at; train='balanced'")
        balancer = Balancer("ls", record=_Looks(every, weighting), **options)
    elif weighting.requires == "losses":
        balancer = Balancer(method, **options)
    else:
        # Constant weights will apply to the heads too.
        settings = {"source": "exact", "every": every, "weight_heads": True, **options}
        balancer = Balancer(method, **settings)
    return Watch(balancer, steps, method=method, priorities=priorities)


class Watch:
    """Runs backward passes and stores the weights of each step. See :func:`weigh`.

    Args:
        balancer: The Balancer that runs the passes.
        total: Number of steps to watch.
        method: Name of the method, for reports; None for the Balancer's.
        priorities: As in :func:`weigh`.

    Attributes:
        balancer: The Balancer, for calls of ``after_step`` and ``end_epoch`` if the method needs
            them.
        total: Number of steps to watch.
        seen: Number of steps watched so far.
    """

    def __init__(
        self,
        balancer: Balancer,
        total: int,
        *,
        method: str | None = None,
        priorities: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        self.balancer = balancer
        self.total = total
        self.method = method or balancer.method
        self.priorities = priorities
        self.seen = 0
        self._steps: list[int] = []
        self._logs: list[Tensor] = []
        record = balancer.options.record
        self._looks = record if isinstance(record, _Looks) else None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and not self.done:
            warn(f"{self.seen} of {self.total} steps were watched: result() needs all of them")

    @property
    def done(self) -> bool:
        """Whether all steps were watched."""
        return self.seen >= self.total

    def steps(self, loader: Iterable[_Batch]) -> Iterator[_Batch]:
        """Yield batches until all steps were watched, repeating the loader if necessary.

        Args:
            loader: The batches, for instance a ``DataLoader``; iterated again where they end.

        Raises:
            ValueError: The loader is empty.
        """
        while self.seen < self.total:
            before = self.seen
            for batch in loader:
                yield batch
                if self.seen >= self.total:
                    return
            if self.seen == before:
                raise ValueError(
                    "a pass over the loader watched no step: it is empty, or used up, or "
                    "watch.backward is never called"
                )

    def backward(self, losses: Losses, *args: Any, **options: Any) -> BalanceResult:
        """Run the backward pass of a step, and store its weights.

        Args:
            losses: As for :meth:`ntkmtl.Balancer.backward`.
            *args: As there.
            **options: As there.

        Returns:
            What that method returns.
        """
        result = self.balancer.backward(losses, *args, **options)
        self.observe(result)
        return result

    def observe(self, result: BalanceResult) -> None:
        """Store the weights of a step, for code that calls ``balancer.backward`` itself.

        Args:
            result: What ``balancer.backward`` returned.
        """
        step, self.seen = self.seen, self.seen + 1
        if result.skipped:
            return
        if self._looks is not None:
            weights = self._looks.take()
        elif self.balancer.options.requires != "losses" and result.eigenvalues is None:
            fresh = result.kernel is not None and self.balancer.every == 1
            weights = result.weights if fresh else None
        else:
            weights = result.weights
        if weights is None or not bool((weights > 0).any()):
            return
        self._steps.append(step)
        positive = weights.detach().to("cpu", torch.float64)
        self._logs.append(torch.where(positive > 0, positive, math.nan).log())

    def result(self) -> ConstantWeights:
        """Return the constant weights with intervals and warnings.

        Raises:
            ValueError: Not all steps were watched, there are too few measurements, or a task never
                had a weight above 0.
            MissingExtraError: SciPy is not installed.
        """
        if not self.done:
            raise ValueError(f"{self.seen} of {self.total} steps were watched; go on until done")
        names = self.balancer.tasks
        if names is None or len(self._logs) < 10:
            raise ValueError(
                f"{len(self._logs)} looks are too few for an interval; watch {SHORTEST} steps or "
                "more, in which the tasks have labels and weights above 0"
            )
        logs = torch.stack(self._logs).numpy()
        seen = torch.stack(self._logs).isfinite().any(dim=0).tolist()
        never = [name for name, some in zip(names, seen, strict=True) if not some]
        if never:
            raise ValueError(f"tasks {never} had no label, or no weight above 0, in any step")
        return self._summary(names, statistics.center(logs))

    def _summary(self, names: tuple[str, ...], logs: Any) -> ConstantWeights:
        priorities = _relative(self.priorities, names)

        def named(values: Any) -> dict[str, float]:
            return dict(zip(names, map(float, values), strict=True))

        def constants(part: Any) -> dict[str, float]:
            return named(statistics.normalize(statistics.means(part, logs), priorities))

        low, high = statistics.intervals(logs, priorities)
        settled = statistics.settled(logs)
        at = statistics.switch(logs)
        phases = (logs,) if at is None else (logs[:at], logs[at:])
        found = ConstantWeights(
            weights=constants(logs),
            low=named(low),
            high=named(high),
            method=self.method,
            steps=self.seen,
            looks=len(logs),
            settled=self._steps[settled],
            drift=named(statistics.drift(logs)),
            switch=None if at is None else self._steps[at],
            phases=tuple(constants(phase) for phase in phases),
        )
        return _with_warnings(found)


class _Looks:
    """A recorder that computes weights from exact kernels while the plain sum is trained."""

    source: str | None = "exact"
    minibatches: int | None = None
    pooling: Pooling | None = None

    def __init__(self, every: int, weighting: Weighting) -> None:
        self.every = every
        self.weighting = weighting
        self.last: Tensor | None = None

    def wants(self, step: int) -> bool:
        return step % self.every == 0

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.kernel is None:
            raise ValueError(
                "there is no kernel to be had in this process: the tasks share nothing, or several "
                "processes train together; use train='balanced'"
            )
        self.weighting.prepare(len(snapshot.tasks), torch.device("cpu"))
        present = torch.tensor(snapshot.present)
        found = torch.zeros(len(snapshot.tasks), dtype=torch.float64)
        found[present] = self.weighting.weigh(snapshot.kernel, snapshot.losses, present)
        self.last = found

    def take(self) -> Tensor | None:
        last, self.last = self.last, None
        return last


def _relative(given: Mapping[str, float] | Sequence[float] | None, names: tuple[str, ...]) -> Any:
    """Return priorities scaled to mean 1, None without priorities.

    Raises:
        ValueError: They name other tasks, are of another number, or are not positive.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"priorities of unknown tasks {unknown}; the tasks are {list(names)}")
        values = [float(given.get(name, 1.0)) for name in names]
    else:
        values = [float(value) for value in given]
    if len(values) != len(names) or not all(0 < value < math.inf for value in values):
        raise ValueError(f"priorities must be {len(names)} positive numbers, found {given}")
    mean = sum(values) / len(values)
    return torch.tensor([value / mean for value in values], dtype=torch.float64).numpy()


def _with_warnings(found: ConstantWeights) -> ConstantWeights:
    """Return the weights with warnings about them."""
    warnings = []
    if found.switch is not None:
        first, second = (
            ", ".join(f"{name} {value:.3g}" for name, value in phase.items())
            for phase in found.phases
        )
        warnings.append(
            f"two phases, with the switch at step {found.switch}: {first} before, {second} after. "
            "One set of constants cannot serve both; watch longer, take the later phase, or "
            "train with adaptive weights"
        )
    if found.settled > found.steps / 2:
        warnings.append(
            f"the weights settled at step {found.settled} of {found.steps} only; watch longer"
        )
    wide = [name for name in found.weights if found.high[name] > 2 * found.low[name]]
    if wide:
        warnings.append(
            f"the interval spans more than a factor of 2 for {', '.join(wide)}; watch longer"
        )
    return replace(found, warnings=tuple(warnings))
