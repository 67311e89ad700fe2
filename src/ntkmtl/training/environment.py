"""What a run was made with: versions, processor, threads."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
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
    """Return the number of processor cores for this process.

    Those that it may use, shared out among the processes that were launched together with it.
    """
    return max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cores() -> int:
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


def source_digest(kind: type) -> str:
    """Return a digest of the Python files of the package or module that defines a class."""
    try:
        file = Path(inspect.getfile(kind))
    except (TypeError, OSError):
        return ""
    in_package = (file.parent / "__init__.py").is_file()
    files = sorted(file.parent.glob("*.py")) if in_package else [file]
    digest = hashlib.sha256()
    for source in files:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def problem_version(kind: type) -> dict[str, str]:
    """Return the version of a problem that is not of this library: its module's, and a digest.

    Example:
        >>> from ntkmtl.problems.qm9_mini import QM9Mini
        >>> problem_version(QM9Mini)
        {}
    """
    module = kind.__module__
    digest = "" if module.partition(".")[0] == "ntkmtl" else source_digest(kind)
    return {f"source of {module}": digest[:12]} if digest else {}


def hardware(
    threads: int, device: torch.device | None = None, processes: int = 1
) -> dict[str, Any]:
    """Return where a run runs.

    Args:
        threads: Threads that torch computes with.
        device: Where it computes, the CPU if None. A GPU's name is ``gpu``.
        processes: Number of processes that train together, said where there are several.
    """
    found: dict[str, Any] = {
        "device": "cpu" if device is None else device.type,
        "processor": _processor(),
        "cores": _cores(),
        "threads": threads,
    }
    if device is not None and device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    if processes > 1:
        found["processes"] = processes
    return found


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
def reproducible(threads: int, device: torch.device | None = None) -> Iterator[None]:
    """Compute so that the same seed gives the same numbers, and leave torch as it was found.

    On a GPU sums may be added in any order: several operations have no other way there, so equal
    bits are promised on the CPU only.

    Args:
        threads: Threads that torch computes with; the rounding of sums depends on it.
        device: Where it computes, the CPU if None.
    """
    on_gpu = device is not None and device.type == "cuda"
    before = torch.get_num_threads()
    mode = torch.get_deterministic_debug_mode()
    flags: Any = torch.utils.deterministic
    fill = flags.fill_uninitialized_memory
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        try:
            torch.set_num_threads(threads)
            # Indexing on several threads adds in any order otherwise. The better known function,
            # use_deterministic_algorithms, takes two seconds to import torch's compiler first.
            torch.set_deterministic_debug_mode("default" if on_gpu else "error")
            # Filling every new tensor with NaN finds bugs, it does not change right results.
            flags.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_num_threads(before)
            torch.set_deterministic_debug_mode(mode)
            flags.fill_uninitialized_memory = fill
