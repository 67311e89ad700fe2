"""Disks that are full or read-only, and clocks that jump."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from faults import Outcome
from faults.inputs import _train
from faults.runs import numbers, same, start, unreadable, unsaid
from ntkmtl.bench.runs import load_run
from ntkmtl.bench.training import find_problem, train

__all__ = [
    "clock_jumps",
    "full_tmpfs",
    "mountable",
    "no_space_at_each_sync",
    "read_only_folder",
    "size_limit",
]

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def _refused(outcome: Outcome, folder: Path, name: str) -> bool:
    """Train where there may be no room, judge what is said and left; return whether there was."""
    room = False
    try:
        _train(folder)
        room = True
    except OSError as error:
        outcome.expect(error.errno in FULL, f"{name}: {error!r}")
        outcome.expect(str(folder) in str(error), f"{name}: names no file: {error}")
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        outcome.broken.append(f"{name}: {type(error).__name__}: {error}")
    broken = unreadable(folder)
    outcome.expect(not broken, f"{name}: {broken}")
    left = [path.name for path in folder.rglob("*.tmp")]
    outcome.expect(not left, f"{name}: {left} was left behind")
    return room


def _recovers(outcome: Outcome, folder: Path, whole: dict[str, Any], name: str) -> None:
    try:
        with unsaid():
            _train(folder)
        same(outcome, folder, whole, f"{name}")
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        outcome.broken.append(f"{name}: could not go on: {type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------
# Full


def mountable() -> bool:
    """Return whether this process may mount file systems."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with contextlib.suppress(OSError, subprocess.CalledProcessError), _tmpfs(Path("/tmp"), "64k"):
        return True
    return False


@contextlib.contextmanager
def _tmpfs(work: Path, size: str) -> Iterator[Path]:
    place = work / f"tmpfs-{os.getpid()}"
    place.mkdir(parents=True, exist_ok=True)
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True, capture_output=True)
    finally:
        place.rmdir()


def full_tmpfs(times: int, work: Path, seed: int = 0) -> Outcome:
    """A tmpfs with room for a part of the run: refused by name; with room, it goes on."""
    outcome = Outcome()
    draw = random.Random(seed)
    _train(work / "whole")
    whole = numbers(work / "whole")
    enough = 0
    with _tmpfs(work, "256k") as place:
        for attempt in range(times):
            filler = place / "filler"
            # Pages of 4 KiB, of which about half of the draws leave a run too few.
            filler.write_bytes(bytes(4096 * draw.randint(46, 63)))
            outcome.tried += 1
            enough += _refused(outcome, place / "run", f"attempt {attempt}")
            filler.unlink()
            _recovers(outcome, place / "run", whole, f"attempt {attempt}")
            shutil.rmtree(place / "run")
    outcome.expect(enough <= times / 2, f"the room was enough {enough} times")
    outcome.notes.append(f"the room was enough {enough} times")
    return outcome


@contextlib.contextmanager
def _file_size(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def size_limit(times: int, work: Path, seed: int = 0) -> Outcome:
    """Files that the system lets grow to a random size only (RLIMIT_FSIZE, which gives EFBIG)."""
    outcome = Outcome()
    draw = random.Random(seed)
    _train(work / "whole")
    whole = numbers(work / "whole")
    enough = 0
    for attempt in range(times):
        folder = work / f"limited-{attempt}"
        outcome.tried += 1
        with _file_size(draw.choice([0, draw.randrange(2_000), draw.randrange(30_000)])):
            enough += _refused(outcome, folder, f"attempt {attempt}")
        _recovers(outcome, folder, whole, f"attempt {attempt}")
    outcome.expect(enough <= times / 2, f"the limit was enough {enough} times")
    outcome.notes.append(f"the limit was enough {enough} times")
    return outcome


def no_space_at_each_sync(times: int, work: Path) -> Outcome:
    """A writer that raises ENOSPC at the n-th file of a run, for each n in turn."""
    outcome = Outcome()
    _train(work / "whole")
    whole = numbers(work / "whole")
    number = 0
    while number < times:
        number += 1
        folder = work / f"sync-{number}"
        seen = 0
        sync = os.fsync

        def failing(handle: int, number: int = number, sync: Callable[[int], None] = sync) -> None:
            nonlocal seen
            seen += 1
            # The sync of the file, not that of its folder after it has its name.
            if seen == 2 * number - 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(handle)

        with mock.patch("ntkmtl.files.os.fsync", failing):
            _refused(outcome, folder, f"file {number}")
        if seen < 2 * number - 1:
            break  # the run has no such file any more
        outcome.tried += 1
        outcome.expect(not (folder / "result.json").exists(), f"file {number}: called complete")
        _recovers(outcome, folder, whole, f"file {number}")
    outcome.expect(number > 4, f"only {number - 1} files were written")
    return outcome


# ------------------------------------------------------------------------------------------------
# Read-only


def _as_nobody(folder: Path, report: Path) -> None:
    """Train as a user who may not write, and put what was said into a file that is open."""
    with report.open("w") as file:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            _train(folder)
        except OSError as error:
            file.write(f"{type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001  (that is what is looked for)
            file.write(f"not an OSError: {type(error).__name__}: {error}")


def read_only_folder(times: int, work: Path) -> Outcome:
    """A folder that may not be written: refused by name; and a finished run in one is read."""
    outcome = Outcome()
    _train(work / "whole")
    for path in (work, *work.parents):
        # pytest's folders are private; what is tested is the one that may not be written.
        if path.stat().st_uid == os.geteuid() and path.is_relative_to(tempfile.gettempdir()):
            path.chmod(path.stat().st_mode | 0o055)
    for attempt in range(times):
        parent = work / f"read-only-{attempt}"
        run = parent / "run"
        (run if attempt % 2 else parent).mkdir(parents=True)
        for place in (parent, run):
            if place.exists():
                place.chmod(0o555)
        report = work / f"said-{attempt}"
        outcome.tried += 1
        try:
            process = start(partial(_as_nobody, report=report), run)
            process.join()
        finally:
            for place in (parent, run):
                if place.exists():
                    place.chmod(0o755)
        said = report.read_text()
        outcome.expect(said.startswith("PermissionError"), f"said {said!r}")
        outcome.expect(str(run) in said, f"names no file: {said}")
        outcome.expect(not list(parent.rglob("*.*")), "something was written")
    # A finished run may lie where nothing can be written.
    (work / "whole").chmod(0o555)
    report = work / "said-whole"
    process = start(partial(_as_nobody, report=report), work / "whole")
    process.join()
    (work / "whole").chmod(0o755)
    outcome.tried += 1
    outcome.expect(report.read_text() == "", f"a finished run: {report.read_text()}")
    return outcome


# ------------------------------------------------------------------------------------------------
# Clocks


def clock_jumps(times: int, work: Path, seed: int = 0) -> Outcome:
    """The clock jumps back by up to ten years at each look, and files are of the year 2038."""
    outcome = Outcome()
    draw = random.Random(seed)
    _train(work / "whole")
    whole = numbers(work / "whole")
    real = time.time
    for attempt in range(times):
        folder = work / f"jump-{attempt}"
        outcome.tried += 1

        def jumping() -> float:
            return real() - draw.uniform(0, 10 * 365 * 86400)

        def jumping_ns(jumping: Callable[[], float] = jumping) -> int:
            return int(jumping() * 1e9)

        stop_after = draw.randint(1, 15)
        with (
            mock.patch("time.time", jumping),
            mock.patch("time.time_ns", jumping_ns),
        ):
            with contextlib.suppress(KeyboardInterrupt):
                _train(folder, stop_after=stop_after)
            for path in folder.iterdir():
                os.utime(path, (2_147_480_000, 2_147_480_000))
            _train(folder)
        same(outcome, folder, whole, f"{folder.name}")
        run = load_run(folder)
        seconds = [run.result.wall_seconds, run.result.train_seconds]
        seconds += [epoch.train_seconds for epoch in run.history]
        outcome.expect(all(0 <= s < 600 for s in seconds), f"{folder.name}: seconds {seconds}")
        # And a finished run of the future is not trained again.
        for path in folder.iterdir():
            os.utime(path, (2_147_480_000, 2_147_480_000))
        before = numbers(folder)
        problem = find_problem("qm9-mini", {})
        with contextlib.suppress(ValueError):
            train(problem, "ls", 0, folder)  # another run's folder: still refused
        outcome.expect(numbers(folder) == before, f"{folder.name}: was changed")
    return outcome
