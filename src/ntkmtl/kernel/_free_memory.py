"""Check for enough free memory before the gradients of all tasks are held at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["all_rows", "free_bytes", "require_memory"]


def all_rows(rows: Callable[[int], Tensor], tasks: int) -> Tensor:
    """Return the gradients of all tasks, shape (k n, P).

    Args:
        rows: From a task to its n gradients, shape (n, P).
        tasks: Number of tasks k.

    Raises:
        ValueError: The gradients do not fit in free memory.
    """
    first = rows(0)
    require_memory(tasks, first)
    return torch.cat([first, *(rows(i) for i in range(1, tasks))])


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes, None if the system does not report it."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu" or not (known := Path("/proc/meminfo")).exists():
        return None
    lines = dict(line.split(":", 1) for line in known.read_text(encoding="ascii").splitlines())
    available = lines.get("MemAvailable")
    return None if available is None else int(available.split()[0]) * 1024


def require_memory(tasks: int, row: Tensor) -> None:
    """Raise if the gradients of all tasks do not fit in free memory.

    Checked in advance because allocation itself may succeed: Linux hands out more memory than it
    has, and kills the process when the memory is used.

    Args:
        tasks: Number of tasks k.
        row: The gradients of one task, shape (n, P).

    Raises:
        ValueError: k of these rows need more than the free memory.
    """
    needed = tasks * row.numel() * row.element_size()
    if needed < 1 << 28:
        return  # less than 256 MiB: skip the check
    free = free_bytes(row.device)
    if free is not None and needed > free:
        raise ValueError(
            f"this method reads the gradients of all {tasks} tasks at once: {needed / 2**30:.1f} "
            f"GiB for {row.numel():,} entries each, where {free / 2**30:.1f} GiB are free. Use a "
            "method that reads eigenvalues, one task at a time (ntkmtl-auto, ntkmtl), or "
            "source='representation', or fewer minibatches"
        )
