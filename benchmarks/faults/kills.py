"""Processes that are killed, stopped, or in each other's way."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from faults import Outcome
from faults.runs import OWN, OWN_PROBLEM, Training, begun, numbers, same, start, unreadable, unsaid

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["kill_at_random", "kill_within_writes", "stop", "two_at_once", "worker_dies"]


def _kill(process: BaseProcess) -> bool:
    """Kill a process with all that it started; return whether it was still alive."""
    alive = process.is_alive()
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def _undisturbed(training: Training, folder: Path) -> tuple[dict[str, object], float]:
    """Return the numbers of a run that nothing happened to, and the seconds that it trained."""
    # The first is slower: it starts the server that the others are forked from.
    for place in (folder / "first", folder / "second"):
        process = start(training, place)
        while process.is_alive() and not begun(place).exists():
            time.sleep(0.001)
        started = time.monotonic()
        process.join()
        seconds = time.monotonic() - started
        if process.exitcode != 0:
            raise RuntimeError(f"the undisturbed run of {training.name} failed; see {place}")
    if numbers(folder / "first") != numbers(folder / "second"):
        raise RuntimeError(f"two undisturbed runs of {training.name} differ; see {folder}")
    return numbers(folder / "second"), seconds


def kill_at_random(training: Training, times: int, work: Path, seed: int = 0) -> Outcome:
    """SIGKILL at a random moment of a run, up to three times, then go on to the end."""
    outcome = Outcome()
    draw = random.Random(seed)
    whole, seconds = _undisturbed(training, work / "whole")
    states = {"before its first file": 0, "with a checkpoint": 0, "without one": 0}
    number = 0
    while outcome.tried < times:
        folder = work / f"killed-{number}"
        number += 1
        for _ in range(min(draw.randint(1, 3), times - outcome.tried)):
            process = start(training, folder)
            # One in ten while it still gets ready, the others while it trains.
            early = draw.random() < 0.1
            while process.is_alive() and not early and not begun(folder).exists():
                time.sleep(0.001)
            process.join(draw.uniform(0, seconds))
            if not _kill(process):
                break  # it was done before its time came
            outcome.tried += 1
            broken = unreadable(folder)
            outcome.expect(not broken, f"{folder.name}: {broken}")
            checkpoints = list(folder.rglob("checkpoint*.pt"))
            there = any(folder.rglob("config.json"))
            states[
                "with a checkpoint"
                if checkpoints
                else "without one"
                if there
                else "before its first file"
            ] += 1
        process = start(training, folder)
        process.join()
        outcome.expect(process.exitcode == 0, f"{folder.name}: could not go on")
        same(outcome, folder, whole, f"{folder.name}")
    outcome.notes.append(
        f"{number} runs; killed {', '.join(f'{what} {n}' for what, n in states.items() if n)}"
    )
    return outcome


def _killed_at(training: Training, call: str, count: int, after: bool, folder: Path) -> None:
    """Train, and be killed just before or just after the given call of ``os.fsync`` or so."""
    real = getattr(os, call)
    seen = 0

    def calling(*arguments: object) -> None:
        nonlocal seen
        seen += 1
        if seen == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            real(*arguments)
        finally:
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    # ntkmtl.files has no os of its own: it is the module, in a process that is about to end.
    setattr(os, call, calling)
    training(folder)


MOMENTS = (("fsync", False), ("replace", False), ("replace", True))
"""A whole temporary file that is not yet on disk; one that has no name yet; one that has it."""


def kill_within_writes(training: Training, first: int, work: Path) -> Outcome:
    """SIGKILL within each of the first writes of a run, at three moments of each, then go on."""
    outcome = Outcome()
    whole, _ = _undisturbed(training, work / "whole")
    for count in range(1, first + 1):
        for call, after in MOMENTS:
            folder = work / f"{call}-{count}-{after}"
            process = start(partial(_killed_at, training, call, count, after), folder)
            process.join()
            outcome.tried += 1
            outcome.expect(
                process.exitcode == -signal.SIGKILL, f"{folder.name}: ended by {process.exitcode}"
            )
            broken = unreadable(folder)
            outcome.expect(not broken, f"{folder.name}: {broken}")
            with unsaid():
                training(folder)
            same(outcome, folder, whole, f"{folder.name}")
    return outcome


# ------------------------------------------------------------------------------------------------
# The command line


def _command(folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "ntkmtl", "compare", f"{OWN_PROBLEM}:MyProblem"),
        *("--methods", "ls,ntkmtl-sr", "--seeds", "1", "--epochs", "60", "--no-stl"),
        *("--out", str(folder), *more),
    ]


def _environment(work: Path) -> dict[str, str]:
    return {**os.environ, "NTKMTL_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}


def _begin(work: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start a comparison, and wait until it trains."""
    process = subprocess.Popen(
        _command(folder, *more),
        env=_environment(work),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not any(folder.rglob("config.json")):
        time.sleep(0.02)
    return process


def _to_the_end(work: Path, folder: Path, *more: str) -> int:
    return subprocess.run(
        _command(folder, *more), env=_environment(work), capture_output=True, check=False
    ).returncode


def stop(number: signal.Signals, times: int, work: Path, jobs: int = 1) -> Outcome:
    """Ctrl-C or SIGTERM to ``ntkmtl compare`` while it trains, then the same command again."""
    outcome = Outcome()
    more = ("--jobs", str(jobs))
    _to_the_end(work, work / "whole", *more)
    whole = numbers(work / "whole")
    for attempt in range(times):
        folder = work / f"stopped-{attempt}"
        process = _begin(work, folder, *more)
        time.sleep(0.1 * attempt)
        # A terminal sends Ctrl-C to all processes of the group, kill TERM to the one it is told.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=120)
        outcome.tried += 1
        outcome.expect(process.returncode == 130, f"exit status {process.returncode}: {said}")
        outcome.expect("Traceback" not in said, said)
        broken = unreadable(folder)
        outcome.expect(not broken, f"{folder.name}: {broken}")
        outcome.expect(_to_the_end(work, folder, *more) == 0, f"{folder.name}: could not go on")
        same(outcome, folder, whole, f"{folder.name}")
    return outcome


def worker_dies(times: int, work: Path) -> Outcome:
    """SIGKILL to one worker process of a comparison: its run fails by name, the other is whole."""
    import psutil

    outcome = Outcome()
    more = ("--jobs", "2")
    _to_the_end(work, work / "whole", *more)
    whole = numbers(work / "whole")
    for attempt in range(times):
        folder = work / f"died-{attempt}"
        process = _begin(work, folder, *more)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if any("spawn_main" in part for part in child.cmdline())
        ]
        workers[0].kill()
        _, said = process.communicate(timeout=300)
        outcome.tried += 1
        outcome.expect(process.returncode == 1, f"exit status {process.returncode}: {said}")
        outcome.expect("signal SIGKILL" in said, f"the cause is not named: {said}")
        outcome.expect(
            len(list(folder.rglob("result.json"))) == 1, f"{folder.name}: the other is not whole"
        )
        outcome.expect(_to_the_end(work, folder, *more) == 0, f"{folder.name}: could not go on")
        same(outcome, folder, whole, f"{folder.name}")
    return outcome


def two_at_once(times: int, work: Path) -> Outcome:
    """Two comparisons, then two trainings, into one folder at the same time."""
    outcome = Outcome()
    whole, _ = _undisturbed(OWN, work / "whole")
    for attempt in range(times):
        folder = work / f"two-{attempt}"
        first = _begin(work, folder, "--jobs", "1")
        second = subprocess.run(
            _command(folder, "--jobs", "1"),
            env=_environment(work),
            capture_output=True,
            text=True,
            check=False,
        )
        busy = first.poll() is None
        first.communicate(timeout=300)
        outcome.tried += 1
        outcome.expect(first.returncode == 0, f"{folder.name}: the first failed")
        if busy:
            outcome.expect(second.returncode == 2, f"the second: status {second.returncode}")
            outcome.expect("another process is working in" in second.stderr, second.stderr)

        both = [start(OWN, work / f"trained-{attempt}") for _ in range(2)]
        for process in both:
            process.join()
        outcome.tried += 1
        # The second waits for the first and finds the run complete, or is refused.
        outcome.expect(0 in [p.exitcode for p in both], f"{[p.exitcode for p in both]}")
        same(outcome, work / f"trained-{attempt}", whole, "two trainings")
    return outcome
