"""What a run was made with: versions, processor, threads."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ntkmtl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cores", "hardware", "reproducible", "versions"]


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Return the versions of ``python``, ``torch``, ``torchjd`` and ``ntkmtl``."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchjd": metadata.version("torchjd"),
        "ntkmtl": ntkmtl.__version__,
    }


def hardware(threads: int) -> dict[str, Any]:
    """Return where a run runs.

    Args:
        threads: Threads that torch computes with.
    """
    return {
        "device": "cpu",
        "processor": _processor(),
        "cores": cores(),
        "threads": threads,
    }


def _processor() -> str:
    # platform.processor() says only "x86_64", or nothing, on most Linux systems.
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Compute so that the same seed gives the same numbers, and leave torch as it was found.

    Args:
        threads: Threads that torch computes with; the rounding of sums depends on it.
    """
    before = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    flags: Any = torch.utils.deterministic
    fill = flags.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(threads)
            # Indexing on several threads adds in any order otherwise. The better known function,
            # use_deterministic_algorithms, takes two seconds to import torch's compiler first.
            torch.set_deterministic_debug_mode("error")
            # Filling every new tensor with NaN finds bugs, it does not change right results.
            flags.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_deterministic_debug_mode(mode)
            flags.fill_uninitialized_memory = fill
