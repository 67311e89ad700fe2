"""Time and peak memory of one training step, relative to plain training (LS).

    python benchmarks/step_cost.py

One process per contender, so that peak memory is its own; they take turns, so that a machine that
slows down slows all of them. The network is the one that the field trains on CelebA, fed with
random images: a step costs the same whatever they show.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from typing import Any


@dataclass(frozen=True)
class Contender:
    """What is timed: a method of the Balancer and its options, or plain training."""

    label: str
    method: str | None
    options: tuple[tuple[str, Any], ...] = ()
    branched: bool = False
    slow: bool = False


def contenders(minibatches: int) -> list[Contender]:
    n = ("minibatches", minibatches)
    return [
        Contender("plain sum(losses).backward()", None),
        Contender("ls", "ls"),
        Contender(f"ntkmtl-sr n={minibatches}", "ntkmtl-sr", (n,)),
        Contender(f"ntkmtl-sr n={minibatches}, branch", "ntkmtl-sr", (n,), branched=True),
        Contender(f"ntkmtl-sr n={minibatches}, hooked", "ntkmtl-sr", (n, ("hooked", True))),
        Contender(f"ntkmtl-tk n={minibatches}", "ntkmtl-tk", (n,)),
        Contender("nash-mtl, representation", "nash-mtl", (("source", "representation"),)),
        Contender("ntkmtl n=1 (exact), streamed", "ntkmtl", (("memory_budget", 0),), slow=True),
        Contender(
            "ntkmtl n=1 (exact), gradients kept", "ntkmtl", (("memory_budget", 1 << 40),), slow=True
        ),
    ]


def _build(contender: Contender, tasks: int, batch: int, size: int) -> Callable[[], None]:
    import torch

    import ntkmtl
    from ntkmtl.problems.networks import CelebANetwork, celeba_losses

    torch.manual_seed(0)
    network = CelebANetwork(tasks)
    images = torch.randn(batch, 3, size, size)
    labels = (torch.rand(batch, tasks) < 0.5).float()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-4)
    balancer = None
    if contender.method is not None:
        balancer = ntkmtl.Balancer(contender.method, tasks=tasks, **dict(contender.options))

    def step() -> None:
        optimiser.zero_grad()
        z = network.represent(images)
        features = ntkmtl.branch(z, tasks) if contender.branched else z
        losses = celeba_losses(network.predict(features), labels)
        if balancer is None:
            torch.stack(losses).sum().backward()
        else:
            balancer.backward(losses, features=features)
        optimiser.step()

    return step


def _serve(
    pipe: Connection, contender: Contender, tasks: int, batch: int, size: int, threads: int
) -> None:
    """Run steps when told to; answer with their times, at the end with the peak memory."""
    import torch

    torch.set_num_threads(threads)
    step = _build(contender, tasks, batch, size)
    while (steps := pipe.recv()) is not None:
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        pipe.send(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send(peak * (1 if sys.platform == "darwin" else 1024))


def measure(
    entries: list[Contender],
    *,
    tasks: int,
    batch: int,
    size: int,
    rounds: int,
    steps: int,
    threads: int,
) -> list[dict[str, Any]]:
    """Return one row per contender: seconds per step, peak bytes, and both relative to ``ls``."""
    from rich.progress import Progress

    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    times: list[list[float]] = [[] for _ in entries]
    with Progress() as progress:
        bar = progress.add_task("warming up", total=(rounds + 1) * len(entries))
        for entry in entries:
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, entry, tasks, batch, size, threads)
            )
            process.start()
            pipes.append(here)
            processes.append(process)
        for pipe in pipes:
            pipe.send(1)
            pipe.recv()
            progress.advance(bar)
        for number in range(rounds):
            # Turn the order round each time, so that no contender always follows the same one.
            for i in list(range(len(entries)))[:: -1 if number % 2 else 1]:
                progress.update(bar, description=entries[i].label)
                if not entries[i].slow or number < 2:
                    pipes[i].send(1 if entries[i].slow else steps)
                    times[i] += pipes[i].recv()
                progress.advance(bar)
    rows = []
    for entry, pipe, process, seconds in zip(entries, pipes, processes, times, strict=True):
        pipe.send(None)
        peak = pipe.recv()
        process.join()
        quartiles = statistics.quantiles(seconds, n=4)
        rows.append(
            {
                **asdict(entry),
                "options": dict(entry.options),
                "seconds": statistics.median(seconds),
                "lower_quartile": quartiles[0],
                "upper_quartile": quartiles[2],
                "steps": len(seconds),
                "peak_bytes": peak,
            }
        )
    base = next(row for row in rows if row["label"] == "ls")
    for row in rows:
        row["time_ratio"] = row["seconds"] / base["seconds"]
        row["memory_ratio"] = row["peak_bytes"] / base["peak_bytes"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of one step against LS.")
    parser.add_argument("--tasks", type=int, default=40, help="heads k")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    parser.add_argument("--size", type=int, default=64, help="side of an image in pixels")
    parser.add_argument("--minibatches", type=int, default=4, help="the paper's n")
    parser.add_argument("--rounds", type=int, default=10, help="turns that each contender takes")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", help="labels that contain one of these words")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    entries = contenders(arguments.minibatches)
    if arguments.only:
        entries = [
            e for e in entries if e.label == "ls" or any(word in e.label for word in arguments.only)
        ]
    rows = measure(
        entries,
        tasks=arguments.tasks,
        batch=arguments.batch,
        size=arguments.size,
        rounds=arguments.rounds,
        steps=arguments.steps,
        threads=arguments.threads,
    )
    import torch

    facts = {
        "network": "CelebA, nine layers",
        "tasks": arguments.tasks,
        "batch": arguments.batch,
        "size": arguments.size,
        "device": "cpu",
        "machine": platform.machine(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if arguments.json:
        print(json.dumps({"facts": facts, "rows": rows}, indent=2))
        return
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        f"{'':36}{'ms/step':>10}{'quartiles':>18}{'x ls':>8}{'peak MiB':>10}{'x ls':>8}{'steps':>7}"
    )
    for row in rows:
        spread = f"{row['lower_quartile'] * 1e3:.0f} to {row['upper_quartile'] * 1e3:.0f}"
        print(
            f"{row['label']:36}{row['seconds'] * 1e3:10.1f}{spread:>18}{row['time_ratio']:8.3f}"
            f"{row['peak_bytes'] / 2**20:10.0f}{row['memory_ratio']:8.3f}{row['steps']:7d}"
        )


if __name__ == "__main__":
    main()
