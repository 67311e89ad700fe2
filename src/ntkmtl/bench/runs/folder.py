"""Folders of runs while they are trained: locks, identity, checkpoints, result."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import torch
from filelock import BaseFileLock, FileLock, Timeout

from ntkmtl._warnings import warn
from ntkmtl.bench.runs.layout import (
    BEST,
    CHECKPOINT,
    CONFIG,
    FAILURE,
    FILES,
    HISTORY,
    PREVIOUS,
    REFERENCES,
    REQUEST,
    RESULT,
    STEPS,
    STUDY,
    RunBusyError,
    RunConflictError,
    RunFolderLostError,
    clear_run,
)
from ntkmtl.bench.runs.records import canonical_json, differences, read_config, write_history
from ntkmtl.bench.runs.run import Run, load_run, write_steps
from ntkmtl.files import atomic_write, require_regular, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from ntkmtl.bench.runs.records import Epoch, RunConfig, RunResult
    from ntkmtl.bench.runs.run import Steps

__all__ = [
    "LOCK",
    "PATIENCE",
    "CheckpointError",
    "RunFolder",
    "read_checkpoint",
    "remove_checkpoints",
    "run_lock",
    "sweep_lock",
    "write_checkpoint",
]


LOCK = ".ntkmtl.lock"

PATIENCE = 10.0
"""Seconds to wait for the other process: orphaned workers exit after their current step."""

# Torch has no error class for it.
_NO_MEMORY = "DefaultCPUAllocator"


class CheckpointError(ValueError):
    """A checkpoint cannot be used: damaged, or made by something else."""


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoint of a run and the previous one, if they exist."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def write_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Any], *, keep_previous: bool = False
) -> None:
    """Write a checkpoint in one piece.

    Args:
        path: The file.
        state: Tensors, numbers, strings, None, and dicts and lists of them.
        keep_previous: Whether the checkpoint that stood at ``path`` is kept beside it, as
            :data:`PREVIOUS`, to be used if the new one is corrupt.

    Raises:
        OSError: It cannot be written, as on a full disk; the error names ``path``. What stood there
            is still there, under one of the two names.
    """
    with atomic_write(path, Path(path).with_name(PREVIOUS) if keep_previous else None) as file:
        watched = _Watched(file)
        try:
            torch.save(dict(state), cast("IO[bytes]", watched))
        except RuntimeError as error:
            # Torch closes its archive after a failed write, which fails with an error of its own
            # that hides the first one.
            if watched.error is None:
                raise
            raise watched.error from error


class _Watched:
    """A binary file that remembers the first error of a write.

    Args:
        file: The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            if self.error is None:
                self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no checkpoint.
        CheckpointError: It is truncated, has flipped bits, or holds something else.
        OSError: It is not a regular file, or cannot be opened or read; its content may be fine.
        MemoryError: There is not enough memory for it.
    """
    path = Path(path)
    require_regular(path)
    try:
        # torch.load does not look at the checksums that torch.save wrote.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path}: {damaged} has a wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        # A damaged archive makes zipfile seek before the file's beginning.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, RuntimeError) and _NO_MEMORY in str(error):
            raise MemoryError(f"{path} cannot be read: {error}") from error
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a checkpoint")
    return state


class RunFolder:
    """The folder of one run; both trainers read and write it through this class.

    A trainer locks it, asks whether it holds the complete run, resumes from its checkpoint or
    starts one, saves checkpoints, and finishes::

        folder = RunFolder(path, identity, versions)
        with folder.lock():
            if (run := folder.complete()) is not None:
                return run
            state = folder.resume()
            ...
            if state is None:
                folder.start(config)
            ...
            folder.save(training.state_dict())
            ...
            folder.finish(history, steps, result)

    Args:
        path: The folder; it need not exist.
        identity: What determines the run's numbers, as :meth:`RunConfig.identity` returns it.
        versions: Versions of the libraries; a checkpoint of other versions is not used.

    Attributes:
        path: The folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        identity: Mapping[str, Any],
        versions: Mapping[str, str],
    ) -> None:
        self.path = Path(path)
        self.identity = dict(identity)
        self.versions = dict(versions)
        self._place: tuple[int, int] | None = None

    def lock(self) -> AbstractContextManager[None]:
        """Return a context in which no other process trains in the folder.

        Raises:
            RunBusyError: Another process trains in it.
        """
        return run_lock(self.path)

    # ------------------------------------------------------------------ what is there

    def complete(self, check: Callable[[], Sequence[str]] = list) -> Run | None:
        """Return the run of the folder if it is the one asked for and complete.

        Args:
            check: Called if it is; returns what is wrong with it all the same, one string each.

        Raises:
            RunConflictError: The folder holds another run, or ``check`` found something.
            RunFileError: A file in it is damaged.
        """
        if not self.file(CONFIG).exists():
            # A result without a configuration is left of a run that was being removed.
            self.file(RESULT).unlink(missing_ok=True)
            return None
        if found := self.conflicts():
            raise RunConflictError(self.path, found)
        if not self.file(RESULT).exists():
            return None
        if wrong := check():
            raise RunConflictError(self.path, wrong)
        for name in (CHECKPOINT, PREVIOUS, FAILURE):
            self.file(name).unlink(missing_ok=True)
        return load_run(self.path)

    def conflicts(self) -> list[str]:
        """Return how the identity of the run in the folder differs, one string per key.

        Raises:
            RunFileError: ``config.json`` is damaged.
        """
        if not self.file(CONFIG).exists():
            return []
        return differences(read_config(self.file(CONFIG)).identity(), self.identity)

    def clear(self) -> None:
        """Remove the files of the run, and nothing else."""
        clear_run(self.path)

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    # ------------------------------------------------------------------ checkpoints

    def resume(
        self, why_not: Callable[[Mapping[str, Any]], str | None] = lambda state: None
    ) -> dict[str, Any] | None:
        """Return the latest usable checkpoint, None if there is none; remove leftovers.

        A checkpoint of other versions or of another run is not used, with a warning.

        Args:
            why_not: Returns why else a checkpoint cannot be used, None if it can.

        Raises:
            OSError: A checkpoint cannot be opened or read; none is removed.
            MemoryError: There is not enough memory for one; none is removed.
        """
        for name in FILES:
            for leftover in self.path.glob(f".{name}.*.tmp"):
                leftover.unlink(missing_ok=True)
        self.file(FAILURE).unlink(missing_ok=True)
        state = self._usable_checkpoint(why_not)
        if state is not None:
            self._note_place()
        return state

    def _usable_checkpoint(
        self, why_not: Callable[[Mapping[str, Any]], str | None]
    ) -> dict[str, Any] | None:
        """Return the latest usable checkpoint, and warn if it is not the latest one.

        If there are checkpoints and none is usable, both are removed.
        """
        reasons = []
        for place in (self.file(CHECKPOINT), self.file(PREVIOUS)):
            try:
                state = read_checkpoint(place)
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            why = self._why_foreign(state) or why_not(state)
            if why is None:
                if reasons:
                    warn(
                        "the latest checkpoint cannot be used, so the run resumes from the "
                        f"previous one, {place}. {'; '.join(reasons)}",
                        RuntimeWarning,
                    )
                    # Otherwise the next write would replace the good one by it.
                    self.file(CHECKPOINT).unlink(missing_ok=True)
                return state
            reasons.append(f"{place}: {why}")
        if reasons:
            warn(
                "the checkpoint cannot be used, so the run starts again from its beginning. "
                f"{'; '.join(reasons)}",
                RuntimeWarning,
            )
            remove_checkpoints(self.path)
        return None

    def _why_foreign(self, state: Mapping[str, Any]) -> str | None:
        if not self.file(CONFIG).exists():
            return f"stands without {CONFIG}"
        written = state.get("identity"), state.get("versions")
        if written == (canonical_json(self.identity), self.versions):
            return None
        return f"was written by another version or for another run ({written[1]})"

    def start(self, config: RunConfig) -> None:
        """Write ``config.json``, the first file of a run; the folder is locked, so it exists."""
        self._note_place()
        write_json(self.file(CONFIG), config.to_json())

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and keep the previous one; the run's identity is added to it.

        Raises:
            RunFolderLostError: The folder is not there any more.
            OSError: It cannot be written, as on a full disk.
        """
        self.require_present()
        own = {"identity": canonical_json(self.identity), "versions": self.versions}
        write_checkpoint(self.file(CHECKPOINT), {**own, **state}, keep_previous=True)

    # ------------------------------------------------------------------ while it is trained

    def _note_place(self) -> None:
        found = self.path.stat()
        self._place = found.st_dev, found.st_ino

    def present(self) -> bool:
        """Whether the folder is still the one that the run was started or resumed in."""
        try:
            found = self.path.stat()
            return self._place == (found.st_dev, found.st_ino) and self.file(CONFIG).exists()
        except OSError:
            return False

    def require_present(self) -> None:
        """Check that the folder is still there.

        Raises:
            RunFolderLostError: It is not.
        """
        if not self.present():
            raise RunFolderLostError(self.path)

    def finish(
        self,
        history: Sequence[Epoch],
        steps: Steps,
        result: RunResult,
        others: Callable[[], None] = lambda: None,
    ) -> None:
        """Write the results, ``result.json`` last, and remove the checkpoints.

        Args:
            history: The epochs.
            steps: Task weights and eigenvalues over training.
            result: The outcome.
            others: Writes what else the run leaves, before ``result.json``.

        Raises:
            RunFolderLostError: The folder is not there any more.
            OSError: A file cannot be written.
        """
        self.require_present()
        content = result.to_json()
        write_history(self.file(HISTORY), history)
        write_steps(self.file(STEPS), steps)
        others()
        write_json(self.file(RESULT), content)
        remove_checkpoints(self.path)


# ------------------------------------------------------------------------------------------------
# Locks: one process at a time in the folder of a run, or of a comparison


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run's folder; the system releases the lock when the process dies.

    Args:
        folder: The folder, made if there is none. No file is left in it.

    Raises:
        RunBusyError: Another process has held the lock for :data:`PATIENCE` seconds.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with run_lock(folder):
        ...     [path.name for path in folder.iterdir()]
        ['.ntkmtl.lock']
    """
    made = not folder.exists()
    lock = _acquired(folder, "training", PATIENCE)
    try:
        yield
    finally:
        if os.name == "posix":
            # Removed while it is held: a process that waits for the removed file notices and
            # tries again.
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        if made:
            # A run that could not begin leaves nothing behind.
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def sweep_lock(out: Path) -> Iterator[None]:
    """Lock the folder of a comparison, and remove what killed processes left in it.

    Args:
        out: The folder, made if there is none.

    Raises:
        RunBusyError: Another process holds the lock; it is not waited for.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "runs"
        >>> with sweep_lock(folder), sweep_lock(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
            ...
        ntkmtl.bench.runs.layout.RunBusyError: another process is working in ...
    """
    lock = _acquired(out, "working", 0)
    try:
        _remove_leftovers(out)
        yield
    finally:
        lock.release()


def _acquired(folder: Path, what: str, patience: float) -> BaseFileLock:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise RunBusyError(
            f"another process is {what} in {folder}; wait until it is done, or give another folder"
        ) from error
    return lock


def _remove_leftovers(out: Path) -> None:
    """Remove files of killed processes, except in runs that another process is training."""
    ours = {*FILES, STUDY, BEST, REQUEST, REFERENCES}
    for path in list(out.rglob(".*.tmp")):
        if path.name[1:].rsplit(".", 2)[0] not in ours:
            continue
        lock = FileLock(path.parent / LOCK)
        if path.parent != out:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
        path.unlink(missing_ok=True)
        if lock.is_locked:
            (path.parent / LOCK).unlink(missing_ok=True)
            lock.release()
