"""Keep small tensors on the CPU under ``torch.set_default_device``, and copy tensors to the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["default_device", "read", "with_cpu_default"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def default_device() -> torch.device:
    """Return the device of new tensors.

    In torch 2.6 ``torch.get_default_device`` does not see ``with torch.device(...)``.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     default_device()
        device(type='meta')
    """
    return torch.empty(0).device


def with_cpu_default(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a function so that it creates small tensors (kernels, weights) on the CPU.

    Under ``torch.set_default_device("cuda")`` these tensors would be on the GPU, and could not be
    combined with those that were copied to the CPU.

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
        if default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped


def read(*values: torch.Tensor) -> list[torch.Tensor]:
    """Copy tensors to the CPU as float64, all in one transfer.

    Steps read numbers from the device only by this function, as each transfer waits for the device.

    Example:
        >>> import torch
        >>> [t.shape for t in read(torch.ones(2, 3), torch.tensor(1.0))]
        [torch.Size([2, 3]), torch.Size([])]
    """
    if all(value.device.type == "cpu" for value in values):
        return [value.detach().to(torch.float64) for value in values]
    device = next(value.device for value in values if value.device.type != "cpu")
    flat = [value.detach().to(device, torch.float64).reshape(-1) for value in values]
    whole = torch.cat(flat).cpu()
    parts = whole.split([len(part) for part in flat])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
