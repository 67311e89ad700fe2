"""Errors that several parts of the library raise.

This module does not import torch, as the command line uses it before torch is needed.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

__all__ = ["MissingExtraError", "NonFiniteError", "imports_for", "missing_extra"]


class NonFiniteError(FloatingPointError):
    """A loss, a weight or a gradient is NaN or infinite.

    Raised before any ``.grad`` is changed.

    Attributes:
        task: Name of the task, or its position where tasks have no names.
        step: Number of the call to :meth:`ntkmtl.Balancer.backward`, counted from 0.
        what: ``"loss"``, ``"gradient"``, ``"weight"`` or ``"weighted gradient"``.
        value: The value found.
        where: Description of the batch if known; ``step`` is then the step of the run.
        scaled: Whether a gradient scaler was used.

    Example:
        >>> import torch
        >>> from ntkmtl import Balancer
        >>> x = torch.ones(1, requires_grad=True)
        >>> try:
        ...     _ = Balancer("ls", tasks=["a"]).backward([x.sum() * float("nan")])
        ... except NonFiniteError as error:
        ...     print(error.task, error.what, error.step)
        a loss 0
    """

    def __init__(
        self,
        task: str,
        step: int,
        what: str,
        value: float,
        where: str = "",
        *,
        scaled: bool = False,
    ) -> None:
        self.task = task
        self.step = step
        self.what = what
        self.value = value
        self.where = where
        self.scaled = scaled
        found = f"the {what} of task {task} is {value} at step {step}"
        super().__init__(
            f"{found} ({where}); the network is as it was before this step. {self._cause()}, or "
            "leave such steps out with on_nonfinite='skip'."
            if where
            else f"{found}; no .grad was changed. {self._cause()}, or skip the batch."
        )

    def _cause(self) -> str:
        """Return the likely cause and what to do."""
        if self.what == "loss" and math.isnan(self.value):
            return (
                "Look at this batch: a mean over no labels is NaN (give None for a task without a "
                "label, or counts), and so are bad inputs; else lower the learning rate"
            )
        if self.what == "weight" and math.isnan(self.value):
            return (
                "The method made no number of this batch's losses and gradients: look at them, or, "
                "where the method is your own, at its code"
            )
        if self.what in ("weight", "weighted gradient"):
            return (
                "The product of weight and gradient has no place in this precision: use float32 "
                "or bfloat16, or a gradient scaler (backward(losses, scaler=scaler)), or bring the "
                "losses to one scale"
            )
        return "Look at this batch's inputs and labels, lower the learning rate"

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild = functools.partial(type(self), scaled=self.scaled)
        return (rebuild, (self.task, self.step, self.what, self.value, self.where))


class MissingExtraError(ImportError):
    """The optional dependencies of a feature are not installed."""


def missing_extra(what: str, extra: str, error: ImportError) -> MissingExtraError:
    """Return the error to raise when an optional dependency is missing.

    Args:
        what: The feature, as the subject of a sentence.
        extra: Name of the extra that installs the dependency.
        error: The import error.

    Returns:
        An error that names the missing module and the command to install it.

    Example:
        >>> str(missing_extra("a page", "bench", ImportError("x", name="jinja2")))
        "a page needs jinja2, which is not installed. Install it with: pip install 'ntkmtl[bench]'"
    """
    return MissingExtraError(
        f"{what} needs {error.name or error}, which is not installed. "
        f"Install it with: pip install 'ntkmtl[{extra}]'",
        name=error.name,
    )


@contextlib.contextmanager
def imports_for(what: str, extra: str = "bench") -> Iterator[None]:
    """Import optional dependencies in the body; see :func:`missing_extra`.

    Args:
        what: What needs them, as the error says it.
        extra: The extra of this package that installs them.

    Raises:
        MissingExtraError: One is not installed.

    Example:
        >>> with imports_for("a page"):
        ...     import no_such_module
        Traceback (most recent call last):
        ...
        ntkmtl.errors.MissingExtraError: a page needs no_such_module, which is not installed. \
Install it with: pip install 'ntkmtl[bench]'
    """
    try:
        yield
    except ImportError as error:
        raise missing_extra(what, extra, error) from error
