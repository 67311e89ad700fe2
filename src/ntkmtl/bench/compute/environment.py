"""What the numbers of a run depend on besides its settings: threads, machine, versions, source."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ntkmtl._version import __version__

__all__ = [
    "available_cores",
    "check_threads",
    "cores",
    "default_threads",
    "hardware",
    "problem_version",
    "reproducible",
    "source_digest",
    "versions",
]


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores() -> int:
    """Return the number of processor cores for this process.

    Those that it may use, divided by the number of processes that were launched with it.
    """
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def check_threads(threads: int | None) -> int | None:
    """Refuse far more threads than there are cores: each needs memory, and they wait in turns.

    Raises:
        ValueError: There are more than 256 and more than 16 for each core.
    """
    most = max(256, 16 * (os.cpu_count() or 1))
    if threads is not None and threads > most:
        raise ValueError(
            f"threads must be at most {most} on this machine, which has {os.cpu_count()} cores; "
            f"more than one for each core only slows a run. Found {threads}."
        )
    return threads


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


def hardware(
    threads: int, device: torch.device | None = None, processes: int = 1
) -> dict[str, Any]:
    """Return what a run is trained on.

    Args:
        threads: Threads that torch computes with.
        device: Device of the run, the CPU if None. A GPU's name is ``gpu``.
        processes: Number of processes that train together, included if there are several.
    """
    found: dict[str, Any] = {
        "device": "cpu" if device is None else device.type,
        "processor": _processor(),
        "cores": available_cores(),
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


def versions() -> dict[str, str]:
    """Return the versions of ``python``, ``torch``, ``torchjd`` and ``ntkmtl``."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchjd": metadata.version("torchjd"),
        "ntkmtl": __version__,
    }


def problem_version(kind: type) -> dict[str, str]:
    """Return the version of a problem that is not of this library: its module's, and a digest.

    Example:
        >>> from ntkmtl.bench.problems.qm9_mini import QM9Mini
        >>> problem_version(QM9Mini)
        {}
    """
    module = kind.__module__
    digest = "" if module.partition(".")[0] == "ntkmtl" else source_digest(kind)
    return {f"source of {module}": digest[:12]} if digest else {}


def source_digest(kind: type) -> str:
    """Return a digest of the Python files that a problem's class is made of.

    These are the file that defines it and all files of the package that it is in, the files of its
    base classes, and everything that any of them imports from the same package or from beside it,
    within functions too. Imports are read and not watched, so it does not matter what has been
    imported so far, nor in which process. Libraries are left out, as they have versions.

    Args:
        kind: The class.

    Returns:
        64 hexadecimal digits, or nothing for a class that no file defines.
    """
    found: set[tuple[str, bytes]] = set()
    for base in kind.__mro__:
        if base is not kind and _top(base.__module__) in _LIBRARIES:
            continue
        file = _file(base)
        if file is not None:
            # Relative, so that it is the same wherever the folder lies.
            found |= {
                (Path(os.path.relpath(source, file.parent)).as_posix(), source.read_bytes())
                for source in _sources(file, base.__module__, kind)
            }
        elif base is kind:
            return ""
    digest = hashlib.sha256()
    for name, text in sorted(found):
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()


_LIBRARIES = sys.stdlib_module_names | {"ntkmtl", "torch"}
_INSTALLED = frozenset(("site-packages", "dist-packages"))


def _top(module: str) -> str:
    return module.partition(".")[0]


def _file(kind: type) -> Path | None:
    try:
        file = Path(inspect.getfile(kind)).absolute()
    except (TypeError, OSError):
        return None
    return file if file.is_file() else None


def _sources(file: Path, module: str, kind: type) -> set[Path]:
    """Return the files that a module is made of.

    Args:
        file: The module's file.
        module: Its name.
        kind: The problem's class; the module defines it or one of its bases.
    """
    own = _top(kind.__module__)
    root = _import_root(file, module)
    installed = not _INSTALLED.isdisjoint(root.parts)
    found = {file}
    if installed and _top(module) != own:
        return found
    if module == kind.__module__ and (file.parent / "__init__.py").is_file():
        found |= {s for s in file.parent.rglob("*.py") if _is_code(s.relative_to(file.parent))}
    if own == "ntkmtl":
        return found
    depth = len(file.relative_to(root).parts) - 1
    found |= {p for parent in file.parents[:depth] if (p := parent / "__init__.py").is_file()}
    todo = list(found)
    while todo:
        source = todo.pop()
        for level, name in _imports(source.read_bytes()):
            if level:
                places = source.parents[level - 1 : level]
            elif installed and _top(name) != own:
                # Every installed package lies beside it.
                continue
            else:
                places = (root, file.parent)
            new = {p for place in places for p in _modules(place, name)} - found
            found |= new
            todo += new
    return found


def _is_code(path: Path) -> bool:
    """Whether a file below a package is its own, and no editor's copy or other environment's."""
    return not any(part.startswith(".") or part in _INSTALLED for part in path.parts)


def _import_root(file: Path, module: str) -> Path:
    """Return the folder that a module is imported from."""
    names = tuple(module.split("."))
    place = file.parent if file.name == "__init__.py" else file.with_suffix("")
    if place.parts[-len(names) :] == names:
        return place.parents[len(names) - 1]
    # It goes by another name, as a script does.
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


def _modules(place: Path, name: str) -> Iterator[Path]:
    """Yield the files of a module in a folder, those of the packages that it is in first."""
    for part in name.split("."):
        place = place / part
        for file in (place.with_name(f"{part}.py"), place / "__init__.py"):
            if file.is_file():
                yield file
        if not place.is_dir():
            return


@functools.lru_cache(maxsize=1024)
def _imports(text: bytes) -> tuple[tuple[int, str], ...]:
    """Return what a module imports: the number of dots in front, and the name after them."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # compiled
        return ()
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # What is imported from a package may be a module of it.
            before = f"{node.module}." if node.module else ""
            found += [(node.level, before + alias.name) for alias in node.names]
    return tuple(found)
