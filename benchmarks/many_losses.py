"""Cost and memory of a step against the number of losses: 10, 80 and 1,000.

    python benchmarks/many_losses.py --json docs/performance/many-losses.json

A trunk of 128, 512 and 512 units, a linear head per task, batches of 64, one thread. Each row is
measured in a process of its own. "look": the first step, which makes an exact kernel where the
method reads one. "step": median of the others.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ntkmtl import Balancer
from ntkmtl.files import write_json

METHODS = ("sum", "ls", "ntkmtl-sr", "ntkmtl-auto")
TASKS = (10, 80, 1000)


def measure(method: str, tasks: int, steps: int) -> dict[str, float]:
    """Return milliseconds of the first step and of the others, and the peak in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)
    )
    heads = nn.ModuleList(nn.Linear(512, 1) for _ in range(tasks))
    optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=1e-3)
    minibatches = 1 if method == "ntkmtl-sr" else None
    balancer = None if method == "sum" else Balancer(method, minibatches=minibatches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(steps):
        x, y = torch.randn(64, 128), torch.randn(64, 1)
        started = time.process_time()
        optimizer.zero_grad()
        z = trunk(x).relu()
        losses = [(head(z) - y).square().mean() for head in heads]
        if balancer is None:
            torch.stack(losses).sum().backward()
        else:
            balancer.backward(losses)
        optimizer.step()
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "look_ms": 1e3 * seconds[0],
        "step_ms": 1e3 * statistics.median(seconds[1:]),
        "peak_mib": (peak - before) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "K"))
    chosen = parser.parse_args()
    if chosen.one is not None:
        print(json.dumps(measure(chosen.one[0], int(chosen.one[1]), chosen.steps)))
        return
    rows: list[dict[str, Any]] = []
    for tasks in TASKS:
        for method in METHODS:
            command = [sys.executable, __file__, "--steps", str(chosen.steps)]
            done = subprocess.run(
                [*command, "--one", method, str(tasks)], check=True, capture_output=True, text=True
            )
            rows.append({"tasks": tasks, "method": method, **json.loads(done.stdout)})
            print(rows[-1], flush=True)
    if chosen.json is not None:
        write_json(chosen.json, {"steps": chosen.steps, "rows": rows})


if __name__ == "__main__":
    main()
