"""Time and peak memory of one training step, relative to plain training (LS).

    python benchmarks/step_cost.py

One process per contender, so that peak memory is its own; they take turns, so that a machine that
slows down slows all of them. The network is the one that the field trains on CelebA, fed with
random images: a step costs the same whatever they show. ``peers.py`` times more networks, and other
libraries beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from sidebyside.contenders import PLAIN, Case, Contender, make_step
from sidebyside.summary import summarize
from sidebyside.turns import Entrant, take_turns


def contenders(minibatches: int) -> list[Contender]:
    n = ("minibatches", minibatches)

    def ours(label: str, method: str, *options: tuple[str, Any], branch: bool = False) -> Contender:
        run = "branched" if branch else "balancer"
        return Contender(label, "ntkmtl", run, method, options=options)

    return [
        PLAIN,
        ours("ls", "ls"),
        ours(f"ntkmtl-sr n={minibatches}", "ntkmtl-sr", n),
        ours(f"ntkmtl-sr n={minibatches}, branch", "ntkmtl-sr", n, branch=True),
        ours(f"ntkmtl-sr n={minibatches}, hooked", "ntkmtl-sr", n, ("hooked", True)),
        ours(f"ntkmtl-tk n={minibatches}", "ntkmtl-tk", n),
        ours("nash-mtl, representation", "nash-mtl", ("source", "representation")),
        ours("ntkmtl n=1 (exact), streamed", "ntkmtl", ("memory_budget", 0)),
        ours("ntkmtl n=1 (exact), gradients kept", "ntkmtl", ("memory_budget", 1 << 40)),
    ]


def measure(
    entries: list[Contender], case: Case, *, rounds: int, steps: int, threads: int
) -> list[dict[str, Any]]:
    """Return one row per contender: seconds per step, peak bytes, and both relative to ``ls``."""
    from rich.progress import Progress

    entrants = [Entrant(make_step, (entry, case)) for entry in entries]
    base = entrants[next(i for i, entry in enumerate(entries) if entry.label == "ls")]
    with Progress() as progress:
        bar = progress.add_task("taking turns", total=1.0)
        take_turns(
            base,
            [entrant for entrant in entrants if entrant is not base],
            rounds=rounds,
            threads=threads,
            turn_seconds=0.0,
            turn_steps=steps,
            progress=lambda done: progress.update(bar, completed=done),
        )
    rows = []
    for entry, entrant in zip(entries, entrants, strict=True):
        if entrant.error:
            raise RuntimeError(f"{entry.label} failed: {entrant.error}")
        found = summarize(entrant.turns, base.turns)
        rows.append(
            {
                "label": entry.label,
                "method": entry.method or None,
                "options": dict(entry.options),
                "branched": entry.run == "branched",
                "seconds": found["seconds"]["median"],
                "lower_quartile": found["seconds"]["lower"],
                "upper_quartile": found["seconds"]["upper"],
                "steps": entrant.steps,
                "peak_bytes": entrant.peak_bytes,
                "time_ratio": 1.0 if entrant is base else found["ratio"]["median"],
                "memory_ratio": entrant.peak_bytes / base.peak_bytes,
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
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
    arguments = parser.parse_args(argv)
    entries = contenders(arguments.minibatches)
    if arguments.only:
        entries = [
            e for e in entries if e.label == "ls" or any(word in e.label for word in arguments.only)
        ]
    rows = measure(
        entries,
        Case("celeba", arguments.tasks, arguments.batch, scale=arguments.size / 64),
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
