"""Files and folders of runs: names, as ``docs/run-format.md`` says, and errors about them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

__all__ = [
    "AGENT",
    "BEST",
    "CHECKPOINT",
    "CONFIG",
    "FAILURE",
    "FILES",
    "HISTORY",
    "MAX_STEP_ROWS",
    "MODEL",
    "PREVIOUS",
    "RECORD",
    "REFERENCES",
    "REQUEST",
    "RESULT",
    "SCHEMA",
    "SINGLE_TASK",
    "STEPS",
    "STUDY",
    "TRIAL",
    "RunBusyError",
    "RunConflictError",
    "RunFileError",
    "RunFolderLostError",
    "RunInterrupted",
    "clear_run",
    "folder_name",
    "method_labels",
    "run_folder",
]

SCHEMA = 1
"""Version of the files' layout, written into ``config.json`` and ``result.json``."""

SINGLE_TASK = "stl"
"""Name of the method that trains one network per task: the baseline of Delta-m."""

CONFIG, HISTORY, STEPS, RESULT = "config.json", "history.json", "steps.npz", "result.json"
CHECKPOINT, FAILURE = "checkpoint.pt", "failure.json"
PREVIOUS = "checkpoint.previous.pt"
"""Previous checkpoint, used if the latest is corrupt."""
RECORD = "record.json"
"""What :class:`ntkmtl.analysis.Recorder` kept, where a run was recorded."""
MODEL = "model.safetensors"
"""The trained network."""
STUDY, TRIAL, BEST = "study.json", "trial.json", "best.json"
REQUEST = "compare.json"
REFERENCES = "references.json"
"""Metrics of reference models, which are not networks, in the problem's folder."""
AGENT = "agent.pt"
"""The trained agent of a reinforcement-learning run."""
FILES = (
    *(RESULT, TRIAL, FAILURE, CHECKPOINT, PREVIOUS, HISTORY, STEPS, RECORD, MODEL, AGENT, CONFIG),
)
"""Every file of a run folder, in the order of removal: an interrupted removal must not look like a
complete run."""

MAX_STEP_ROWS = 2000
"""Most rows in ``steps.npz``."""


def folder_name(name: str) -> str:
    """Return a name as one path component on every system; distinct names stay distinct.

    Raises:
        ValueError: The name is empty or made of dots.

    Example:
        >>> folder_name("ntkmtl-sr"), folder_name("R/S: 1")
        ('ntkmtl-sr', 'R%2FS%3A%201')
        >>> len(folder_name("ü" * 100))
        206
    """
    if not name.strip("."):
        raise ValueError(f"a problem, method or task needs a name that can name a folder: {name!r}")
    found = quote(name, safe="+=,@")
    if len(found) > 255:  # more than file systems allow; no other name has a % before a hyphen
        found = f"{found[:180]}%-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    return found


def run_folder(
    out: str | os.PathLike[str], problem: str, method: str, seed: int, task: str | None = None
) -> Path:
    """Return the folder of a run below the folder of a comparison.

    Args:
        out: The comparison's folder.
        problem: Name of the problem.
        method: Name of the method.
        seed: Seed.
        task: The task of a single-task baseline.

    Example:
        >>> run_folder("runs", "qm9-mini", "stl", 0, "mu").as_posix()
        'runs/qm9-mini/stl/seed-0/mu'
    """
    path = Path(out) / folder_name(problem) / folder_name(method) / f"seed-{seed}"
    return path if task is None else path / folder_name(task)


def method_labels(methods: Iterable[str]) -> dict[str, str]:
    """Return how to show methods to people: the class alone of those outside the package.

    Two classes of one name keep their modules.

    Example:
        >>> method_labels(["ls", "mine.methods:Inverse", "a:Half", "b:Half"])
        {'ls': 'ls', 'mine.methods:Inverse': 'Inverse', 'a:Half': 'a:Half', 'b:Half': 'b:Half'}
    """
    names = list(dict.fromkeys(methods))
    short = {name: _class_of(name) for name in names}
    counts = Counter(short.values())
    return {name: label if counts[label] == 1 else name for name, label in short.items()}


def _class_of(method: str) -> str:
    """Return the class of ``module:Class`` or ``file.py:Class``, and any other string as it is."""
    source, _, name = method.rpartition(":")
    module = source.endswith(".py") or all(part.isidentifier() for part in source.split("."))
    return name if module and name.isidentifier() else method


def clear_run(folder: Path) -> None:
    """Remove the files of a run, and nothing else."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------
# Errors


class RunFileError(ValueError):
    """A file of a run folder cannot be read: damaged, foreign, or of another version.

    Attributes:
        path: The file.
        why: What is wrong with it.
    """

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        self.path = Path(path)
        self.why = why
        super().__init__(f"{path}: {why}")

    def __reduce__(self) -> tuple[type[RunFileError], tuple[Path, str]]:
        return (type(self), (self.path, self.why))


class RunConflictError(ValueError):
    """The folder of a run holds another run.

    Attributes:
        path: The folder.
        differences: One string per key that differs.
    """

    def __init__(self, path: str | os.PathLike[str], differences: Sequence[str]) -> None:
        self.path = Path(path)
        self.differences = list(differences)
        super().__init__(f"{path} holds another run: {'; '.join(differences)}")

    def __reduce__(self) -> tuple[type[RunConflictError], tuple[Path, list[str]]]:
        return (type(self), (self.path, self.differences))


class RunBusyError(ValueError):
    """Another process works in the folder of a run or of a comparison."""


class RunFolderLostError(OSError):
    """The folder of a run was removed, moved or replaced while the run was being trained.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        super().__init__(
            f"{path} was removed, moved or replaced while the run in it was being trained; "
            "training has stopped, as nothing of it could be kept. Run the same command again to "
            "start over"
        )

    def __reduce__(self) -> tuple[type[RunFolderLostError], tuple[Path]]:
        return (type(self), (self.path,))


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped on request at a step boundary; its checkpoint is written."""
