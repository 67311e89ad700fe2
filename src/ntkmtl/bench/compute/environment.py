"""Threads, and computing so that the same seed gives the same numbers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from ntkmtl.bench.runs.provenance import available_cores

__all__ = ["cores", "default_threads", "reproducible"]


def cores() -> int:
    """Return the number of processor cores for this process.

    Those that it may use, divided by the number of processes that were launched with it.
    """
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextlib.contextmanager
def reproducible(threads: int, device: torch.device | None = None) -> Iterator[None]:
    """Compute so that the same seed gives the same numbers, and restore torch's settings.

    On a GPU sums may be added in any order: several operations have no other way there, so equal
    bits are promised on the CPU only.

    Args:
        threads: Threads that torch computes with; the rounding of sums depends on it.
        device: Device of the run, the CPU if None.
    """
    on_gpu = device is not None and device.type == "cuda"
    before = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    flags: Any = torch.utils.deterministic
    fill = flags.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        try:
            torch.set_num_threads(threads)
            # Otherwise indexing on several threads adds in any order. The better known function,
            # use_deterministic_algorithms, takes two seconds to import torch's compiler first.
            torch.set_deterministic_debug_mode("default" if on_gpu else "error")
            # Filling every new tensor with NaN finds bugs, it does not change right results.
            flags.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_deterministic_debug_mode(mode)
            flags.fill_uninitialized_memory = fill


def default_threads(jobs: int) -> int:
    """Return the default number of threads of a run.

    ``OMP_NUM_THREADS`` where it is set; otherwise 1 where runs are trained side by side, as their
    times would depend on each other, and all cores for a run alone.

    Raises:
        ValueError: ``OMP_NUM_THREADS`` is not a positive whole number.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, OMP_NUM_THREADS="3"):
        ...     default_threads(jobs=2)
        3
        >>> with mock.patch.dict(os.environ, OMP_NUM_THREADS=""):
        ...     default_threads(jobs=2)
        1
    """
    said = os.environ.get("OMP_NUM_THREADS", "").strip()
    if said:
        # OpenMP takes a list, one number for each level of nested parallelism.
        first = said.partition(",")[0].strip()
        if not (first.isdecimal() and int(first) > 0):
            raise ValueError(
                f"OMP_NUM_THREADS must be a positive whole number, found {said!r}; set it right, "
                "unset it, or give a number of threads"
            )
        return int(first)
    return 1 if jobs > 1 else cores()
