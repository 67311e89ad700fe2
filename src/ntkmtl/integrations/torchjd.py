"""Conversion between weightings of this package and of TorchJD.

A ``Weighting`` of TorchJD computes weights from a Gramian, like the Gramian methods of this
package. :func:`as_torchjd` converts a method of this package for TorchJD's autogram engine and
aggregators. :func:`from_torchjd` converts a TorchJD weighting for :class:`ntkmtl.Balancer`.
"""

from __future__ import annotations

import math
from typing import Any, SupportsIndex, get_args

import torch
from torch import Tensor
from torchjd import Stateful
from torchjd.aggregation import (
    ConstantWeighting,
    GramianWeightedAggregator,
    MeanWeighting,
    RandomWeighting,
    SumWeighting,
)
from torchjd.aggregation import Weighting as TorchJDWeighting
from torchjd.linalg import Matrix, PSDMatrix

from ntkmtl.errors import NonFiniteError
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting import create, spec
from ntkmtl.weighting._base import GramianWeighting, Weighting
from ntkmtl.weighting._cr_mogm import CRMOGM
from ntkmtl.weighting._gradnorm import GradNorm
from ntkmtl.weighting._imtl import IMTL
from ntkmtl.weighting._pinn_ntk import PINNNTK

__all__ = ["as_torchjd", "from_torchjd"]

# These read only the number of rows, so a Gramian works in place of the matrix of gradients.
_COUNT_ROWS = (ConstantWeighting, MeanWeighting, RandomWeighting, SumWeighting)


def as_torchjd(
    method: str | Weighting, *, minibatches: int = 1, **options: Any
) -> TorchJDWeighting[PSDMatrix]:
    r"""Convert a method of this package to a TorchJD weighting.

    The weighting takes the Gramian of the k losses' gradients, as computed by
    ``torchjd.autogram.Engine`` and ``torchjd.aggregation.GramianWeightedAggregator``, and returns k
    weights in its dtype. All methods that read nothing but a kernel can be converted, as the kernel
    of one mini-batch is the Gramian.

    With n > 1 mini-batches it takes the Gramian of all kn mini-batch losses, ordered by task
    (``losses.reshape(-1)`` of a (k, n) tensor). This is the extended NTK of Eq. 8 and 9. It returns
    kn weights, :math:`w_i / n` for each mini-batch of task i.

    Args:
        method: A name from :func:`ntkmtl.weighting.names`, or a weighting.
        minibatches: The paper's n.
        **options: Settings of a method given by name, such as ``exponent``.

    Returns:
        A TorchJD weighting. Its ``state_dict`` includes the method's state. Its attribute
        ``weighting`` is the method; call its ``end_epoch`` if it counts epochs.

    Raises:
        ValueError: The method does not read a kernel, or needs more than the kernel of each step
            (losses, their logarithms, learned parameters, an objective for heads), or it is
            NTKMTL with the kernel of the representation, where the kernel is TorchJD's.
        TypeError: ``method`` is neither a name nor a weighting, or has no such setting.

    Example:
        >>> import torch
        >>> weighting = as_torchjd("ntkmtl")
        >>> weighting(torch.tensor([[9.0, -1.0], [-1.0, 1.0]]))  # eigenvalues 9 and 1, mean 5
        tensor([0.7454, 2.2361])

        >>> from torchjd.aggregation import GramianWeightedAggregator
        >>> aggregate = GramianWeightedAggregator(weighting)
        >>> aggregate(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([2.2361, 2.2361])
    """
    if isinstance(method, str):
        weighting = create(method, **options)
    elif not isinstance(method, Weighting):
        raise TypeError(
            f"method must be a name or a weighting of ntkmtl, found {type(method)}. Names are "
            "listed by ntkmtl.weighting.names()"
        )
    elif options:
        raise TypeError(
            f"unknown options {sorted(options)}; settings of a weighting are given when it is made"
        )
    else:
        weighting = method
    return _AsTorchJD(weighting, minibatches)


def from_torchjd(weighting: TorchJDWeighting[Any] | GramianWeightedAggregator) -> GramianWeighting:
    """Convert a TorchJD weighting to a weighting of this package.

    Pass the result to :class:`ntkmtl.Balancer`, which computes the Gramian from any source. The
    weighting receives it in float64, unscaled, for the tasks with labels in this batch only.

    Args:
        weighting: A TorchJD weighting of Gramians, or an aggregator with one.

    Returns:
        A weighting that reads the Gramian.

    Raises:
        ValueError: The TorchJD weighting reads the gradients themselves, or those of two batches.
        TypeError: The argument is something else.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> from torchjd.aggregation import IMTLGWeighting
        >>> weighting = from_torchjd(IMTLGWeighting())
        >>> weighting(ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1)))
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    return TorchJD(weighting)


class _AsTorchJD(TorchJDWeighting[PSDMatrix]):
    """See :func:`as_torchjd`."""

    def __init__(self, weighting: Weighting, minibatches: int) -> None:
        super().__init__()
        label = weighting.name or type(weighting).__name__
        whole = isinstance(minibatches, SupportsIndex) and not isinstance(minibatches, bool)
        if not whole or minibatches < 1:
            raise ValueError(
                f"minibatches must be a whole number of at least 1, found {minibatches!r}"
            )
        if weighting.requires in ("losses", "jacobian"):
            what = "losses" if weighting.requires == "losses" else "gradients entry by entry"
            raise ValueError(
                f"{label} reads the {what}, which a Gramian does not hold; use ntkmtl.Balancer"
            )
        if _needs_more(weighting):
            raise ValueError(
                f"{label} needs more than a Gramian per step (the losses, parameters of its own, "
                "or a part in the heads' training), which TorchJD's interface has no place for; "
                "use ntkmtl.Balancer"
            )
        defaults = spec(weighting.name).defaults if weighting.name else {}
        if defaults.get("log_losses", weighting.balancer_defaults.get("log_losses")):
            raise ValueError(
                f"{label} works on logarithms of the losses, which a Gramian does not hold; use "
                "ntkmtl.Balancer"
            )
        if defaults.get("source") == "representation":
            raise ValueError(
                f"{label} is NTKMTL with the kernel of the representation, and here the kernel "
                "comes from TorchJD; take 'ntkmtl' for that kernel, or use ntkmtl.Balancer"
            )
        self.weighting = weighting
        self.minibatches = int(minibatches)
        self._tasks: int | None = None
        self._calls = 0

    def extra_repr(self) -> str:
        return f"{self.weighting!r}, minibatches={self.minibatches}"

    def forward(self, gramian: Tensor, /) -> Tensor:
        n = self.minibatches
        if not isinstance(gramian, Tensor) or not gramian.is_floating_point():
            found = gramian.dtype if isinstance(gramian, Tensor) else type(gramian)
            raise TypeError(
                "the Gramian must be a tensor of real floating-point numbers, as its weights are; "
                f"found {found}"
            )
        rows = gramian.shape[0] if gramian.ndim else 0
        if gramian.shape != (rows, rows) or rows == 0 or rows % n:
            raise ValueError(
                f"the Gramian must have shape (kn, kn) with n = {n} mini-batches per task, found "
                f"{tuple(gramian.shape)}"
            )
        k = rows // n
        if self._tasks is None:
            self._tasks = k
            self.weighting.prepare(k, torch.device("cpu"))
        elif k != self._tasks and self.weighting.state_dict():
            raise ValueError(
                f"the Gramian has {k} tasks, but the method keeps a state for {self._tasks}"
            )
        values = gramian.detach().to("cpu", torch.float64).reshape(k, n, k, n)
        step, self._calls = self._calls, self._calls + 1
        for task, total in enumerate(values.sum(dim=(1, 2, 3)).tolist()):
            if not math.isfinite(total):
                raise NonFiniteError(str(task), step, "gradient", total)
        weights = self.weighting(ExtendedNTK(values))
        return (weights / n).repeat_interleave(n).to(gramian)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state that the next weights depend on besides the Gramian."""
        return {
            "tasks": self._tasks,
            "calls": self._calls,
            "weighting": self.weighting.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`get_extra_state`."""
        self._tasks = state["tasks"]
        self._calls = state["calls"]
        if self._tasks is not None:
            self.weighting.prepare(self._tasks, torch.device("cpu"))
        self.weighting.load_state_dict(dict(state["weighting"]))


class TorchJD(GramianWeighting):
    """A TorchJD weighting for the Balancer. See :func:`from_torchjd`.

    Args:
        weighting: A TorchJD weighting of Gramians, or an aggregator with one.

    Raises:
        ValueError: The TorchJD weighting reads the gradients themselves, or those of two batches.
        TypeError: The argument is something else.
    """

    def __init__(self, weighting: TorchJDWeighting[Any] | GramianWeightedAggregator) -> None:
        if isinstance(weighting, GramianWeightedAggregator):
            weighting = weighting.gramian_weighting
        if not isinstance(weighting, TorchJDWeighting):
            raise TypeError(
                "weighting must be a torchjd.aggregation.Weighting or a GramianWeightedAggregator, "
                f"found {type(weighting)}"
            )
        for part in weighting.modules():
            if _reads_matrix(part):
                raise ValueError(
                    f"{type(part).__name__} reads the gradients themselves, or those of two "
                    "batches, where the Balancer has the Gramian of one batch; take the method of "
                    "ntkmtl.weighting.names() that corresponds to it"
                )
        self.weighting = weighting
        self._stateful = any(_keeps_state(part) for part in weighting.modules())
        self._tasks: list[int] | None = None

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        # TorchJD keeps states by row, and a task without labels shifts the rows.
        present = tasks.tolist()
        if self._stateful and self._tasks not in (None, present):
            raise ValueError(
                f"{type(self.weighting).__name__} keeps a state for the tasks {self._tasks}, which "
                f"it cannot match with the tasks {present} that have labels in this batch; give "
                "every batch a label for every task, or use a method of ntkmtl.weighting.names()"
            )
        self._tasks = present
        return super().weigh(kernel, losses, tasks)

    def of_gramian(self, gramian: Tensor) -> Tensor:
        with torch.no_grad():
            weights: Tensor = self.weighting(gramian)
        if weights.shape != gramian.shape[:1]:
            raise ValueError(
                f"{type(self.weighting).__name__} returned weights of shape "
                f"{tuple(weights.shape)} for {len(gramian)} tasks"
            )
        return weights.to(torch.float64)

    def _get_state(self) -> dict[str, Any]:
        """Return the weighting's class name and its registered parameters and buffers.

        Raises:
            NotImplementedError: It has a state that TorchJD does not save.
        """
        label = type(self.weighting).__name__
        if self._stateful:
            raise NotImplementedError(
                f"{label} keeps a state that TorchJD cannot save and load, so a run with it cannot "
                "be resumed; use a method of ntkmtl.weighting.names()"
            )
        return {"torchjd": label, **self.weighting.state_dict()}

    def _set_state(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`_get_state`.

        Raises:
            ValueError: The state is of another weighting.
        """
        found, own = state.pop("torchjd"), type(self.weighting).__name__
        if found != own:
            raise ValueError(f"the state is of TorchJD's {found}, this is {own}")
        self.weighting.load_state_dict(state)


def _needs_more(weighting: Weighting) -> bool:
    """Whether a method that reads a kernel also needs something else."""
    if isinstance(weighting, CRMOGM):
        return _needs_more(weighting._inner)
    return (
        isinstance(weighting, (GradNorm, IMTL, PINNNTK))
        or weighting.needs_after_step
        or weighting.has_head_objective
        or next(weighting.parameters(), None) is not None
    )


def _keeps_state(part: object) -> bool:
    if isinstance(part, _AsTorchJD):
        return bool(part.weighting.state_dict())
    return isinstance(part, Stateful)


def _reads_matrix(part: object) -> bool:
    """Whether a TorchJD weighting is declared to read a matrix that is not a Gramian."""
    if not isinstance(part, TorchJDWeighting) or isinstance(part, _COUNT_ROWS):
        return False
    for base in type(part).__mro__:
        for generic in base.__dict__.get("__orig_bases__", ()):
            if any(argument is PSDMatrix for argument in get_args(generic)):
                return False
            if any(argument is Matrix for argument in get_args(generic)):
                return True
    return False
