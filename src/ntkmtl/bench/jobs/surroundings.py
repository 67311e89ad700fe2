"""What a process on another machine must have in common with the one that started a comparison."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ntkmtl.bench.jobs.engine import EngineError
from ntkmtl.bench.runs.provenance import versions

__all__ = ["Surroundings"]


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

    @classmethod
    def here(cls, mark: Path) -> Surroundings:
        """Return those of this process.

        Args:
            mark: See the attribute.
        """
        own = {name: value for name, value in os.environ.items() if name.startswith("NTKMTL_")}
        return cls(mark, Path.cwd(), tuple(sys.path), own, versions())

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
