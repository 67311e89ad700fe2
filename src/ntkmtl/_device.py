"""Where tensors that nobody gives a device are made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["with_cpu_default"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def with_cpu_default(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function's small tensors (kernels, weights, indices) be made on the CPU.

    Under ``torch.set_default_device("cuda")`` they would be made on the GPU, beside others that
    were brought from there.

    Example:
        >>> import torch
        >>> @with_cpu_default
        ... def ones() -> torch.Tensor:
        ...     return torch.ones(2)
        >>> with torch.device("meta"):
        ...     print(ones().device, torch.ones(2).device)
        cpu meta
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped
