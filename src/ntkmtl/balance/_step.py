"""State of one call of ``backward``, and its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from ntkmtl._device import read
from ntkmtl.errors import NonFiniteError
from ntkmtl.graph import Scan, Start, scan, starts
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._ranks import Ranks

__all__ = ["BalanceResult", "Samples", "Step"]


@dataclass(frozen=True)
class BalanceResult:
    """Result of one call of :meth:`Balancer.backward`.

    Attributes:
        weights: Task weights, shape (k,), 0 for a task without a label in this batch. For methods
            that read losses only, the effective weights d total / d l_i.
        eigenvalues: Largest eigenvalue of each task's kernel, shape (k,), NaN for a task without a
            label; None if the method reads no eigenvalues or this step reused weights.
        kernel: The kernel of the tasks with labels, from which weights were computed; None if there
            is none.
        skipped: Whether the step was marked for a gradient scaler to be skipped.

    Example:
        >>> import torch
        >>> from ntkmtl import Balancer
        >>> x = torch.ones(2, requires_grad=True)
        >>> out = Balancer("ls").backward([x.sum(), 2 * x.sum()])
        >>> out.weights, out.total
        (tensor([1., 1.]), tensor(6.))
    """

    weights: Tensor
    eigenvalues: Tensor | None = None
    kernel: ExtendedNTK | None = None
    skipped: bool = False
    _terms: tuple[Tensor, Tensor, Tensor | None] | None = field(default=None, repr=False)

    @property
    def balanced(self) -> Tensor:
        """Float64 weights of the tasks with labels: of log losses where those were balanced."""
        return self.weights.new_zeros(0) if self._terms is None else self._terms[0]

    @property
    def total(self) -> Tensor:
        """The weighted sum of the losses plus ``extra``, shape (), without a gradient.

        Return it from a closure of L-BFGS: its gradient, times ``scale``, was added to ``.grad``.
        """
        if self._terms is None:
            return self.weights.new_zeros(())
        weights, losses, extra = self._terms
        total = (weights * losses).sum().to(self.weights)
        return total if extra is None else total + extra.to(total)


@dataclass(frozen=True)
class Samples:
    """Losses of single samples of one task.

    Attributes:
        values: Shape (B,).
        mask: True for the samples that have a label, shape (B,); None for all.
    """

    values: Tensor
    mask: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of samples B, labeled or not."""
        return len(self.values)

    def mean(self) -> Tensor | None:
        """Return the mean over the samples with a label, None if there are none.

        Raises:
            ValueError: A masked loss is NaN or infinite.
        """
        if self.mask is None:
            return self.values.mean() if self.count else None
        some, finite = torch.stack(
            [self.mask.any(), (self.mask | self.values.isfinite()).all()]
        ).tolist()
        if not finite:
            raise ValueError(
                "losses of single samples are not finite where their mask leaves them out; their "
                "gradient would be NaN all the same (0 times infinity): fill missing labels with "
                "any number, 0 say, before the loss is computed"
            )
        if not some:
            return None
        kept = torch.where(self.mask, self.values, torch.zeros_like(self.values))
        return kept.sum() / self.mask.sum()


@dataclass
class Step:
    """One call of backward.

    Attributes:
        names: Names of all tasks.
        losses: Losses of the tasks with labels in this process, times the gradient scale.
        raw: Losses of the tasks with labels in any process, float64 of shape (k,); their logarithms
            if those are balanced.
        present: Positions of the tasks with labels in any process among all tasks.
        local: Positions among ``present`` of the tasks with labels in this process.
        scale: Scale of all gradients, 1 for none.
        number: Number of the call, from 0.
        like: A tensor whose device and dtype results get.
        slope: Factors from weights of log losses to weights of losses, shape (k,); None for 1.
        ranks: All processes, None if there is only one.
        parallel: Whether the model may be wrapped in ``DistributedDataParallel``.
        extra: The loss outside the balance, times the gradient scale; None without one.
        constant: The loss outside the balance if it requires no gradient, not scaled: it only
            counts in the total.
        samples: Losses of single samples of the local tasks; None if not given for all.
        scaled: Whether a gradient scaler is used.
        alone: Positions among ``present`` of the tasks that share nothing with another task.
        late: Whether parameters have hooks that run once their ``.grad`` is filled, so that all
            gradients must be known before one is added; None if nobody looked.
        mixed: Whether they have such hooks and others, so that only one ordinary backward pass runs
            each once.
        kernel: The kernel, once computed.
        waiting: Tensors to copy to the CPU with the next transfer, each with a function that checks
            its value.
    """

    names: tuple[str, ...]
    losses: list[Tensor]
    raw: Tensor
    present: list[int]
    local: list[int]
    scale: float
    number: int
    like: Tensor
    slope: Tensor | None = None
    ranks: Ranks | None = None
    parallel: bool = False
    extra: Tensor | None = None
    constant: Tensor | None = None
    samples: list[Samples] | None = None
    scaled: bool = False
    alone: list[int] = field(default_factory=list)
    late: bool | None = None
    mixed: bool = False
    kernel: ExtendedNTK | None = None
    waiting: list[tuple[Tensor, Callable[[Tensor], None]]] = field(default_factory=list)
    index: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.index = torch.tensor(self.present)

    @property
    def total(self) -> int:
        """Number of all tasks."""
        return len(self.names)

    @property
    def roots(self) -> list[Tensor]:
        """The local losses, and the loss outside the balance."""
        return self.losses if self.extra is None else [*self.losses, self.extra]

    @cached_property
    def scan(self) -> Scan:
        """What the graph of :attr:`roots` holds."""
        return scan(self.roots)

    @property
    def local_names(self) -> list[str]:
        """Names of the tasks with labels in this process."""
        return [self.names[self.present[i]] for i in self.local]

    @property
    def masks(self) -> list[Tensor | None] | None:
        """Which samples of each local task have a label; None if all have, or nothing tells."""
        masks = [s.mask for s in self.samples or ()]
        return masks if any(mask is not None for mask in masks) else None

    @property
    def has_label(self) -> Tensor:
        """For each task of ``present`` whether this process has a label, shape (k,)."""
        mask = torch.zeros(len(self.present), dtype=torch.bool)
        mask[self.local] = True
        return mask

    def narrowed(self, positions: Sequence[int]) -> Step:
        """Return a step with only some of the tasks of ``present``, for the method to read."""
        at = torch.tensor(list(positions))
        return replace(
            self,
            raw=self.raw[at.to(self.raw.device)],
            present=[self.present[i] for i in positions],
            slope=None if self.slope is None else self.slope[at],
            alone=[],
            waiting=[],
        )

    def of_tasks(self, tasks: Tensor) -> Step:
        """Return a step with other tasks, by position among all; only its names may be used."""
        return replace(self, present=tasks.tolist(), alone=[], waiting=[])

    def begin(self) -> list[Start]:
        """Return where the backward pass of each local task starts."""
        return starts(self.losses)

    def of_local(self, values: Tensor) -> list[float]:
        """Select the numbers of the local tasks from one number per task of ``present``."""
        known: list[float] = values.tolist()
        return known if len(self.local) == len(known) else [known[i] for i in self.local]

    def bring(self, *values: Tensor) -> list[Tensor]:
        """Copy tensors to the CPU in one transfer, together with those that wait for a check.

        Raises:
            NonFiniteError: A loss, or a tensor that waited for a check, is not finite.
            ValueError: Another check failed.
        """
        waiting, self.waiting = self.waiting, []
        far = self.raw.device.type != "cpu"
        found = read(*([self.raw] if far else ()), *(tensor for tensor, _ in waiting), *values)
        if far:
            self.raw = found.pop(0)
            self.require_finite(self.raw, "loss")
        for (_, check), value in zip(waiting, found, strict=False):
            check(value)
        return found[len(waiting) :]

    def require_extra(self, value: Tensor) -> None:
        """Raise if the loss outside the balance is NaN or infinite."""
        if not bool(value.isfinite()):
            found = float(value.detach())
            raise NonFiniteError("extra", self.number, "loss", found, scaled=self.scaled)

    def require_finite(self, values: Tensor, what: str) -> None:
        """Raise if the value of a task of ``present`` is NaN or infinite."""
        (known,) = read(values)
        for position, value in enumerate(known.tolist()):
            if not math.isfinite(value):
                name = self.names[self.present[position]]
                raise NonFiniteError(name, self.number, what, value, scaled=self.scaled)

    def require_representable(self, name: str, weight: float, dtype: torch.dtype) -> None:
        """Raise if a weight overflows in a loss's dtype."""
        if not abs(weight) <= torch.finfo(dtype).max:
            self.fail("weight", weight, name=name)

    def fail(
        self,
        what: str,
        value: float,
        *,
        name: str | None = None,
        largest: Sequence[float] | None = None,
    ) -> NoReturn:
        """Raise for a task; if its name is None, for the local task with the largest weight.

        Raises:
            NonFiniteError: Always.
        """
        if name is None:
            assert largest is not None
            position = max(range(len(self.local)), key=lambda i: abs(largest[i]))
            name = self.local_names[position]
        raise NonFiniteError(name, self.number, what, value, scaled=self.scaled)

    def spread(self, values: Tensor, missing: float = 0.0) -> Tensor:
        """Return values of all tasks from values of the tasks with labels."""
        dtype = torch.promote_types(self.like.dtype, torch.float32)
        if self.like.is_complex():
            dtype = torch.float64
        if len(self.present) == self.total:
            return values.to(self.like.device, dtype)
        full = torch.full((self.total,), missing, dtype=torch.float64)
        full[self.index] = values.to("cpu", torch.float64)
        return full.to(self.like.device, dtype)

    def result(
        self,
        weights: Tensor,
        eigenvalues: Tensor | None = None,
        *,
        skipped: bool = False,
    ) -> BalanceResult:
        """Return the result for all tasks, with weights of the losses themselves."""
        return BalanceResult(
            self.spread(weights if self.slope is None else weights * self.slope),
            None if eigenvalues is None else self.spread(eigenvalues, math.nan),
            self.kernel,
            skipped,
            (weights.cpu(), self.raw.cpu(), self.unscaled_extra),
        )

    @property
    def unscaled_extra(self) -> Tensor | None:
        """The loss outside the balance, without the gradient scale; None without one."""
        return self.constant if self.extra is None else self.extra.detach() / self.scale

    def combined(
        self, combine: Callable[..., tuple[Tensor, Tensor]], matrix: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Call ``combine`` with gradients of shape (k, P), without the gradient scale.

        Returns:
            The combined gradient, shape (P,), with the gradient scale, and k weights to report.

        Raises:
            TypeError: The method returned something else than these two tensors.
            ValueError: It returned them in other shapes.
            NonFiniteError: An entry is NaN or infinite.
        """
        shown = matrix if self.scale == 1.0 else matrix / self.scale
        found = combine(shown, self.raw.clone(), self.index)
        count, entries = matrix.shape
        if not (isinstance(found, tuple) and len(found) == 2) or not all(
            isinstance(part, Tensor) for part in found
        ):
            raise TypeError(
                "combine must return the combined gradient and the weights to report, two tensors; "
                f"returned {type(found)}"
            )
        gradient, weights = (part.detach() for part in found)
        if gradient.shape != (entries,) or weights.shape != (count,):
            raise ValueError(
                f"combine must return a gradient of shape ({entries},) and weights of shape "
                f"({count},); returned {tuple(gradient.shape)} and {tuple(weights.shape)}"
            )
        gradient = gradient.to(matrix)
        (length,) = self.bring(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        if not bool(length.isfinite()) and not bool(read(gradient.isfinite().all())[0]):
            raise NonFiniteError(
                " or ".join(self.local_names),
                self.number,
                "weighted gradient",
                float(length),
                scaled=self.scaled,
            )
        return gradient if self.scale == 1.0 else gradient * self.scale, weights
