"""Whether there is room for one gradient per task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["all_rows", "free_bytes", "require_room"]


def all_rows(rows: Callable[[int], Tensor], tasks: int) -> Tensor:
    """Return the gradients of all tasks, shape (k n, P).

    Args:
        rows: From a task to its n gradients, shape (n, P).
        tasks: Number of tasks k.

    Raises:
        ValueError: They are more than there is memory for.
    """
    first = rows(0)
    require_room(tasks, first)
    return torch.cat([first, *(rows(i) for i in range(1, tasks))])


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free on a device, None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu" or not (known := Path("/proc/meminfo")).exists():
        return None
    lines = dict(line.split(":", 1) for line in known.read_text(encoding="ascii").splitlines())
    available = lines.get("MemAvailable")
    return None if available is None else int(available.split()[0]) * 1024


def require_room(tasks: int, row: Tensor) -> None:
    """Refuse to hold the gradients of all tasks where memory would run out.

    An operating system hands out more memory than it has and ends the process once it is used, so
    this is asked before.

    Args:
        tasks: Number of tasks k.
        row: The gradients of one task, shape (n, P).

    Raises:
        ValueError: k of them are more than what is free.
    """
    needed = tasks * row.numel() * row.element_size()
    if needed < 1 << 28:
        return  # not worth a look
    free = free_bytes(row.device)
    if free is not None and needed > free:
        raise ValueError(
            f"this method reads the gradients of all {tasks} tasks at once: {needed / 2**30:.1f} "
            f"GiB for {row.numel():,} entries each, where {free / 2**30:.1f} GiB are free. Use a "
            "method that reads eigenvalues, one task at a time (ntkmtl-auto, ntkmtl), or "
            "source='representation', or fewer minibatches"
        )
