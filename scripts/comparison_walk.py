"""Prints the walk of a comparison through the modules of ``ntkmtl.bench``.

``python scripts/comparison_walk.py`` runs

    ntkmtl compare qm9-mini --methods ls --seeds 1 --epochs 1 --no-stl --jobs 1

under a tracer that notes the module of each function when it is called for the first time: the way
of a reader who follows the program and reads each function once. A room is a module, with
``--folders`` a folder of ``ntkmtl.bench``. Entering another room than the last one starts a stay; a
return is a stay in a room that was left before.

Functions and methods count. Modules and the bodies of classes do not: they run when a module is
imported, wherever in the program that is, and no call leads there; nor do templates. The last line
counts bodies of classes and templates too, as this script did at first.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import ntkmtl

ROOT = Path(ntkmtl.__file__).parent


class Walk:
    """Notes the rooms that a program's calls go through.

    Args:
        folders: Whether a room is a folder, not a module.

    Attributes:
        stays: The rooms in the order in which calls enter them.
        all_stays: The same with the bodies of classes, and templates.
    """

    def __init__(self, *, folders: bool) -> None:
        self.folders = folders
        self.stays: list[str] = []
        self.all_stays: list[str] = []
        self.rooms: dict[str, str | None] = {}
        self.seen: set[CodeType] = set()

    def room(self, file: str) -> str | None:
        """Return the room of a file, None outside the bench."""
        if file not in self.rooms:
            self.rooms[file] = self._room(file)
        return self.rooms[file]

    def _room(self, file: str) -> str | None:
        try:
            parts = Path(file).relative_to(ROOT / "bench").with_suffix("").parts
        except ValueError:
            return None
        return parts[0] if self.folders else ".".join(parts)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take what ``sys.setprofile`` sends."""
        code = frame.f_code
        if event != "call" or code in self.seen or code.co_name.startswith("<"):
            return
        self.seen.add(code)
        room = self.room(code.co_filename)
        if room is None:
            return
        called = bool(code.co_flags & inspect.CO_OPTIMIZED) and code.co_filename.endswith(".py")
        for stays in (self.stays, self.all_stays) if called else (self.all_stays,):
            if not stays or stays[-1] != room:
                stays.append(room)


def numbers(stays: list[str]) -> str:
    """Return how many rooms, stays and returns there are."""
    rooms = len(set(stays))
    return f"{rooms} rooms, {len(stays)} stays, {len(stays) - rooms} returns"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the walk of a comparison.")
    parser.add_argument("--folders", action="store_true", help="count folders, not modules")
    parser.add_argument("--quiet", action="store_true", help="print the numbers alone")
    asked = parser.parse_args()
    from ntkmtl.bench.cli.app import app

    walk = Walk(folders=asked.folders)
    os.environ.setdefault("COLUMNS", "100")
    with tempfile.TemporaryDirectory() as out:
        os.environ["NTKMTL_CACHE"] = out
        command = ["compare", "qm9-mini", "--methods", "ls", "--seeds", "1", "--epochs", "1"]
        command += ["--no-stl", "--jobs", "1", "--out", f"{out}/runs"]
        sys.setprofile(walk)
        try:
            app(command, standalone_mode=False)
        finally:
            sys.setprofile(None)
    order = list(dict.fromkeys(walk.stays))
    if not asked.quiet:
        print("rooms, in the order of their first call, and the stays in each:")
        for room in order:
            print(f"  {room:28} {walk.stays.count(room)}")
    print(numbers(walk.stays))
    print(f"with the bodies of classes and templates: {numbers(walk.all_stays)}")


if __name__ == "__main__":
    main()
