"""The cache of single-task baselines.

A baseline costs as much as a run and does not depend on the methods that it is compared with, so it
is trained once per machine and copied from then on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock, Timeout

from ntkmtl.bench.compute.environment import hardware, source_digest, versions
from ntkmtl.bench.runs import (
    CONFIG,
    HISTORY,
    MODEL,
    RESULT,
    STEPS,
    RunFileError,
    canonical_json,
    load_run,
)
from ntkmtl.bench.runs.locks import PATIENCE
from ntkmtl.bench.runs.model_file import model_bytes
from ntkmtl.files import atomic_write, read_bytes, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["TRAINING_VERSION", "BaselineCache", "baseline_key", "cache_folder"]

TRAINING_VERSION = 2
"""Raised when a change of the trainer changes the numbers of a run."""

_COPIED = (CONFIG, HISTORY, STEPS)


def cache_folder() -> Path:
    """Return the folder of caches: ``$NTKMTL_CACHE``, or the user's cache folder for ntkmtl."""
    chosen = os.environ.get("NTKMTL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("ntkmtl")


def baseline_key(identity: Mapping[str, Any], problem_class: type, threads: int) -> str:
    """Return the key of everything that determines a baseline's numbers.

    Besides the run's identity these are the versions of the libraries and of the trainer, the
    source of the problem, the processor, and the number of threads.

    Args:
        identity: What :func:`ntkmtl.bench.training.identity.run_identity` returned.
        problem_class: The problem's class.
        threads: Threads that torch computes with.

    Returns:
        64 hexadecimal digits.
    """
    everything = {
        "identity": dict(identity),
        "versions": versions(),
        "training": TRAINING_VERSION,
        "source": source_digest(problem_class),
        "hardware": hardware(threads),
    }
    return hashlib.sha256(canonical_json(everything).encode()).hexdigest()


class BaselineCache:
    """Complete runs of single-task baselines by key.

    Args:
        folder: Where they are kept; :func:`cache_folder` if None.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = (cache_folder() if folder is None else Path(folder)) / "stl"

    def fetch(
        self, key: str, identity: Mapping[str, Any], to: Path, keep_model: bool = True
    ) -> bool:
        """Copy a baseline into a run's folder.

        Args:
            key: Its key.
            identity: What the run must be.
            to: The run's folder.
            keep_model: Whether to copy its network, where the cache has it.

        Returns:
            True if there was one.

        Raises:
            RunFileError: There was one, and it is damaged; nothing was copied.
        """
        entry = self.folder / key
        if not entry.is_dir():
            return False
        run = load_run(entry)
        if run.config.identity() != identity:
            raise RunFileError(entry / CONFIG, "is not the run that its folder is named after")
        # Read before anything is copied, so that damage is found here and not in a report.
        _ = run.history, run.steps
        result = run.result
        if not keep_model:
            result = replace(result, model=None)
        if result.model is not None:
            content = model_bytes(run)
            with atomic_write(to / MODEL) as file:
                file.write(content)
        _copy(entry, to, _COPIED)
        write_json(to / RESULT, result.to_json())
        return True

    def store(self, key: str, run: Path) -> None:
        """Store a complete run; other processes may store the same at the same time.

        Raises:
            OSError: The cache cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = self.folder / key
        if entry.exists():
            return
        try:
            with FileLock(self.folder.with_name(".stl.lock"), timeout=PATIENCE):
                self._store(entry, run)
        except Timeout as error:
            raise OSError(f"another process has been writing in {self.folder}") from error

    def _store(self, entry: Path, run: Path) -> None:
        # No other process writes: unfinished entries are of processes that were killed.
        for leftover in self.folder.glob(".new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=".new-"))
        try:
            model = (MODEL,) if (run / MODEL).exists() else ()
            _copy(run, temporary, (*_COPIED, *model, RESULT))
            temporary.chmod(0o755)
            try:
                temporary.rename(entry)
            except OSError:
                # If another process was first, it stored the same.
                if not entry.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def discard(self, key: str) -> None:
        """Remove a baseline, as after :meth:`fetch` has found it damaged."""
        shutil.rmtree(self.folder / key, ignore_errors=True)


def _copy(source: Path, to: Path, names: Sequence[str]) -> None:
    for name in names:
        with atomic_write(to / name) as file:
            file.write(read_bytes(source / name))
