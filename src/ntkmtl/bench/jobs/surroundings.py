"""What a process on another machine must have in common with the one that started a comparison."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ntkmtl.bench.jobs.engine import EngineError
from ntkmtl.bench.runs.provenance import versions
from ntkmtl.files import write_text

__all__ = ["Surroundings", "shared_surroundings"]


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of the process that started a comparison.

    Attributes:
        mark: A file in the folder of the runs, by which another machine sees that it is the same
            folder.
        folder: The working directory.
        path: ``sys.path``.
        environment: Variables of this library.
        versions: Of the packages that decide the numbers.
    """

    mark: Path
    folder: Path
    path: tuple[str, ...]
    environment: Mapping[str, str]
    versions: Mapping[str, str]

    def adopt(self) -> None:
        """Make this process like the one that started the comparison.

        Raises:
            EngineError: This machine lacks the folder or has other versions.
        """
        node = platform.node()
        if not self.mark.exists():
            raise EngineError(
                f"the node {node} does not see {self.mark.parent}: put the folder of the runs "
                "where every node finds it under the same path"
            )
        if versions() != self.versions:
            raise EngineError(
                f"the node {node} has {versions()}, the comparison was started with "
                f"{dict(self.versions)}: install the same on every node"
            )
        if self.folder.is_dir():
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        os.environ.update(self.environment)


@contextlib.contextmanager
def shared_surroundings(out: Path) -> Iterator[Surroundings]:
    """Mark the folder of the runs, and yield the surroundings of this process.

    Args:
        out: The folder, which exists.

    Raises:
        OSError: The mark cannot be written.
    """
    own = {name: value for name, value in os.environ.items() if name.startswith("NTKMTL_")}
    mark = out.resolve() / f".ntkmtl-ray-{secrets.token_hex(8)}"
    write_text(mark, mark.name)
    try:
        yield Surroundings(mark, Path.cwd(), tuple(sys.path), own, versions())
    finally:
        mark.unlink(missing_ok=True)
