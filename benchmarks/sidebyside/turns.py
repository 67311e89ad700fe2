"""One process per contender; they take turns, so that a machine that slows down slows all."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Entrant", "take_turns"]

Step = Callable[[], None]
# torch.optim imports _dynamo with the first optimizer that is made.
LIBRARIES = (
    "networks",
    "torch._dynamo",
    "torchjd.aggregation",
    "torchjd.autojac",
)
_WARM = 0.05
"""Steps shorter than this (in seconds) are preceded by one that is not timed: caches are cold."""
_ALIKE = 1.7
"""Contenders below this many times plain training take all turns, however long a step is."""
_PAUSE = 0.01
"""Seconds between turns, in which the threads of the last one stop spinning."""


@dataclass
class Entrant:
    """One contender in a heat.

    Attributes:
        build: Makes the step that is timed; runs in the process of its own. Must be picklable.
        arguments: What it is called with.
        turns: Place of each turn among all turns, and seconds per step.
        steps: Number of steps timed.
        start_bytes: Memory after the imports, before the network is made.
        peak_bytes: Peak memory.
        error: Why it cannot take part, "" if it can.
    """

    build: Callable[..., Step]
    arguments: tuple[Any, ...]
    turns: list[tuple[int, float]] = field(default_factory=list)
    steps: int = 0
    start_bytes: int = 0
    peak_bytes: int = 0
    error: str = ""
    first: float = 0.0


def _memory(peak: bool) -> int:
    """Return resident memory in bytes: of now, or its peak since the process started."""
    import resource

    if not peak:
        try:
            with open("/proc/self/statm") as file:  # noqa: PTH123
                return int(file.read().split()[1]) * resource.getpagesize()
        except FileNotFoundError:
            pass  # not Linux: the peak so far is the next best
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024)


def _serve(
    pipe: Connection,
    build: Callable[..., Step],
    arguments: tuple[Any, ...],
    threads: int,
    cuda: bool,
) -> None:
    """Run steps when told to; answer with their seconds, at the end with the peak memory."""
    import torch

    # The same libraries in each process, so that memory on top is training's.
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    start = 0 if cuda else _memory(peak=False)

    def timed(step: Step) -> float:
        begin = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    try:
        step = build(*arguments)
        timed(step)
        last = timed(step)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
        pipe.send(f"{type(error).__name__}: {error}".split("\n")[0])
        return
    pipe.send((start, last))
    while (order := pipe.recv()) is not None:
        minimum, seconds = order
        if last < _WARM:
            timed(step)
        times: list[float] = []
        while len(times) < minimum or sum(times) < seconds:
            times.append(timed(step))
        last = times[-1]
        pipe.send(times)
    pipe.send(torch.cuda.max_memory_allocated() if cuda else _memory(peak=True))


def _context() -> Any:
    """Return a way to start processes that does not import everything each time, if there is one.

    Those of the fork server are copies of a process that has done nothing but import.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    return context


def take_turns(
    base: Entrant,
    others: Sequence[Entrant],
    *,
    rounds: int,
    threads: int,
    turn_seconds: float = 0.02,
    turn_steps: int = 1,
    between: int = 3,
    slow_seconds: float = 2.0,
    slow_rounds: int = 2,
    cuda: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> None:
    """Let entrants take turns and note their times in them.

    Args:
        base: Plain training: takes a turn at both ends of a round and after every ``between`` of
            the others, so that each of them has one shortly before and one shortly after.
        others: The contenders.
        rounds: Turns that each takes.
        threads: Threads of each process.
        turn_seconds: Steps are repeated within a turn until they took this long.
        turn_steps: Steps of a turn at least.
        between: See ``base``.
        slow_seconds: A contender whose step takes longer, and not about as long as plain
            training's, takes part in the first ``slow_rounds`` rounds only.
        slow_rounds: See ``slow_seconds``.
        cuda: Whether steps run on a GPU.
        progress: Called with the share of the work that is done.

    Raises:
        RuntimeError: Plain training failed.
    """
    context = _context()
    entrants = [base, *others]
    pipes: list[Connection] = []
    processes = []
    try:
        for entrant in entrants:
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(there, entrant.build, entrant.arguments, threads, cuda),
                daemon=True,
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
            # One after the other: two that warm up at once would have the memory of both.
            try:
                answer = here.recv()
            except EOFError:
                process.join()
                answer = f"its process ended with code {process.exitcode}"
            if isinstance(answer, str):
                entrant.error = answer
            else:
                entrant.start_bytes, entrant.first = answer
            progress(0.3 * len(processes) / len(entrants))
        if base.error:
            raise RuntimeError(f"plain training failed: {base.error}")
        _rounds(
            entrants,
            pipes,
            rounds=rounds,
            order=(turn_steps, turn_seconds),
            between=between,
            slow=(slow_seconds, slow_rounds),
            progress=lambda done: progress(0.3 + 0.7 * done),
        )
        for entrant, pipe in zip(entrants, pipes, strict=True):
            if not entrant.error:
                pipe.send(None)
                entrant.peak_bytes = pipe.recv()
    finally:
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()


def _rounds(
    entrants: Sequence[Entrant],
    pipes: Sequence[Connection],
    *,
    rounds: int,
    order: tuple[int, float],
    between: int,
    slow: tuple[float, int],
    progress: Callable[[float], None],
) -> None:
    clock = 0

    def turn(i: int) -> None:
        nonlocal clock
        time.sleep(_PAUSE)
        entrant = entrants[i]
        pipes[i].send(order)
        try:
            times = pipes[i].recv()
        except EOFError:
            entrant.error = "its process ended in the middle, for lack of memory perhaps"
            return
        entrant.turns.append((clock, sum(times) / len(times)))
        entrant.steps += len(times)
        clock += 1

    limit, few = slow
    for number in range(rounds):
        able = [
            i
            for i in range(1, len(entrants))
            if not entrants[i].error
            and (number < few or entrants[i].first <= max(limit, _ALIKE * entrants[0].first))
        ]
        # Turned round each time, so that no contender always follows the same one.
        if number % 2:
            able.reverse()
        turn(0)
        for position, i in enumerate(able, start=1):
            turn(i)
            if position % between == 0 or position == len(able):
                turn(0)
        progress((number + 1) / rounds)
