r"""What does an update of each method cost beside one of plain multi-task SAC?

    python benchmarks/update_cost_rl.py --json runs/update-cost-rl.json

    python benchmarks/update_cost_rl.py --tasks 4 --per-task 32 --hidden 256,256 \
        --bfloat16-products      # of the recipe cpu-mt4

At the paper's size (networks of 3 x 400, 128 transitions of each of ten tasks) unless told
otherwise, on random transitions: no simulator is needed. All agents live in one process and take
turns, one update each per round in an order that changes, so that a machine that slows down slows
all. A ratio is the median over rounds of a method's time over plain SAC's in the same round.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ntkmtl.bench.reinforce import MultiTaskSAC, Replay, variant_named
from ntkmtl.files import write_json

VARIANTS = (
    "mtl-sac",
    "mh-sac",
    "pcgrad",
    "cagrad",
    "moco",
    "nash-mtl",
    "famo",
    "fairgrad",
    "aligned-mtl",
    "ntkmtl",
    "ntkmtl-sr",
)
BASE = "mtl-sac"


def filled(tasks: int, device: str) -> Replay:
    """Return a replay of random transitions."""
    replay = Replay(tasks, 4096, device=device)
    for _ in range(4096):
        seen = torch.randn(2, tasks, 39)
        replay.add(seen[0], 2 * torch.rand(tasks, 4) - 1, torch.rand(tasks), seen[1])
    return replay


def measure(
    contenders: Sequence[tuple[str, int]],
    *,
    tasks: int,
    per_task: int,
    hidden: Sequence[int],
    rounds: int,
    device: str = "cpu",
    compile: bool = False,
) -> dict[str, Any]:
    """Return median seconds per update and ratios to plain SAC.

    Args:
        contenders: Names of rows, each with the updates between two makings of weights.
        tasks: Number of tasks k.
        per_task: Transitions of each task in a batch.
        hidden: Widths of the hidden layers.
        rounds: Rounds; each times ``every`` updates of a contender, so that a round has the price
            of its weights once.
        device: Where all of it is.
        compile: Compile the contenders' updates; plain SAC, which they are held against, stays as
            it is.
    """
    replay = filled(tasks, device)
    agents = {(BASE, 1): MultiTaskSAC(tasks, hidden=hidden, device=device)}
    for name, every in contenders:
        row = variant_named(name)
        label = f"{name}, compiled" if compile else name
        agents[label, every] = MultiTaskSAC(
            tasks,
            hidden=hidden,
            heads=row.heads,
            encoding=row.encoding or "one-hot",
            method=row.method,
            method_options=dict(row.options),
            every=every,
            device=device,
            compile=compile,
        )

    def timed(name: str, every: int) -> float:
        batches = [replay.stratified(per_task) for _ in range(every)]
        if device != "cpu":
            torch.cuda.synchronize()
        before = time.perf_counter()
        for batch in batches:
            agents[name, every].update(batch)
        if device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - before) / every

    order = list(agents)
    shuffle = random.Random(0)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in agents}
    for key in order:
        # Twice, as updates that make weights and those that reuse them are compiled apart.
        timed(*key)
        timed(*key)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for key in order:
            times[key].append(timed(*key))
    base = times[BASE, 1]
    return {
        "settings": {
            "tasks": tasks,
            "per_task": per_task,
            "hidden": list(hidden),
            "rounds": rounds,
            "device": device,
            "threads": torch.get_num_threads(),
            "products": torch.get_float32_matmul_precision(),
            "torch": str(torch.__version__),
            "processor": platform.processor() or platform.machine(),
        },
        "rows": [
            {
                "row": name,
                "every": every,
                "milliseconds": 1e3 * statistics.median(own),
                "ratio": statistics.median(a / b for a, b in zip(own, base, strict=True)),
            }
            for (name, every), own in times.items()
        ],
    }


def table(found: dict[str, Any]) -> str:
    """Return the measured rows as Markdown."""
    lines = [
        "| row | weights every | ms per update | ratio to plain SAC |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        cells = (row["row"], row["every"], f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=",".join(VARIANTS))
    parser.add_argument("--every", default="1,10", help="updates between two makings of weights")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--per-task", type=int, default=128)
    parser.add_argument("--hidden", default="400,400,400")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bfloat16-products", action="store_true", help="as in the recipe cpu-mt4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="all but the plain SAC beside them")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    torch.set_float32_matmul_precision("medium" if chosen.bfloat16_products else "highest")
    contenders = []
    for name in chosen.rows.split(","):
        row = variant_named(name)
        kept = row.method not in ("ls", "famo", "moco")
        contenders += [(name, n) for n in map(int, chosen.every.split(",")) if kept or n == 1]
    found = measure(
        contenders,
        tasks=chosen.tasks,
        per_task=chosen.per_task,
        hidden=[int(width) for width in chosen.hidden.split(",")],
        rounds=chosen.rounds,
        device=chosen.device,
        compile=chosen.compile,
    )
    print(table(found))
    print(json.dumps(found["settings"]))
    if chosen.json is not None:
        write_json(chosen.json, found)


if __name__ == "__main__":
    main()
