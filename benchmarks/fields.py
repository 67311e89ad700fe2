"""What `Balancer()` costs on energies, forces and equations.

    python benchmarks/fields.py [--json docs/fields/measured.json]

Plain training and training with `Balancer()` take turns on the recipe of each problem, block by
block from the first step, so that the early kernels count. Times are of the processor, one thread.
"late" is the median ratio of the later half of the blocks. Eigenvalues of the exact source are
compared with one ordinary backward pass per loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ntkmtl import Balancer
from ntkmtl.bench import problems
from ntkmtl.bench.problems.base import Problem
from ntkmtl.files import write_text

NAMES = (
    "xtb",
    "pinn-burgers",
    "pinn-helmholtz",
    "pinn-allen-cahn",
    "pinn-wave",
    "pinn-navier-stokes",
)


class Run:
    """A training with one method.

    Args:
        problem: The problem.
        method: Name of the method, or "plain".
        batch: Samples per step, the recipe's if None.
    """

    def __init__(self, problem: Problem, method: str, batch: int | None = None) -> None:
        torch.manual_seed(0)
        self.problem = problem
        self.batch = batch or problem.recipe.batch_size
        self.model = problem.model()
        self.balancer = Balancer(method, tasks=problem.tasks) if method != "plain" else None
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=problem.recipe.learning_rate, fused=True
        )
        self.generator = torch.Generator().manual_seed(0)

    def losses(self) -> dict[str, Any]:
        """Return the losses of a new batch."""
        some = torch.randint(self.problem.size("train"), (self.batch,), generator=self.generator)
        batch = self.problem.batch("train", some)
        return self.problem.losses(self.model.predict(self.model.represent(batch)), batch)

    def steps(self, count: int) -> float:
        """Take steps; return the processor's time in seconds."""
        begun = time.process_time()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            losses = self.losses()
            if self.balancer is None:
                sum(losses.values()).backward()
            else:
                self.balancer.backward(losses)
            self.optimizer.step()
        return time.process_time() - begun

    def error(self) -> float:
        """Return the largest relative error of the exact source's eigenvalues in this batch."""
        state = self.generator.get_state()
        found = Balancer("ntkmtl", shared=self.model.parameters()).backward(self.losses())
        assert found.eigenvalues is not None
        worst = 0.0
        for task, value in zip(self.problem.tasks, found.eigenvalues.tolist(), strict=True):
            self.generator.set_state(state)
            self.model.zero_grad(set_to_none=True)
            self.losses()[task].backward()
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            expected = sum(float(g.double().square().sum()) for g in grads)
            worst = max(worst, abs(value / expected - 1))
        return worst


def measure(name: str, steps: int, blocks: int, batch: int | None) -> dict[str, Any]:
    """Measure one problem."""
    problem = problems.create(name)
    plain, auto = Run(problem, "plain", batch), Run(problem, "ntkmtl-auto", batch)
    Run(problem, "ntkmtl-auto", batch).steps(3)  # what is set up once per process
    times = [(plain.steps(steps // blocks), auto.steps(steps // blocks)) for _ in range(blocks)]
    whole, part = [sum(column) for column in zip(*times, strict=True)]
    return {
        "problem": name,
        "tasks": len(problem.tasks),
        "batch": plain.batch,
        "step_ms": 1e3 * whole / steps,
        "ratio": part / whole,
        "late": statistics.median(b / a for a, b in times[blocks // 2 :]),
        "error": auto.error(),
    }


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    print("| problem | batch | k | plain step (ms) | `Balancer()` / plain | late | error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.names:
        row = measure(name, args.steps, args.blocks, args.batch)
        found.append(row)
        ratios = f"{row['ratio']:.2f} | {row['late']:.2f} | {row['error']:.0e}"
        sizes = f"{row['batch']} | {row['tasks']} | {row['step_ms']:.1f}"
        print(f"| `{name}` | {sizes} | {ratios} |", flush=True)
    if args.json:
        write_text(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
