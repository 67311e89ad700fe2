"""What ``ntkmtl-auto`` settles on for several networks, and the price of exact kernels it counted.

python benchmarks/choices.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sidebyside.workloads import WORKLOADS

import ntkmtl
from ntkmtl.kernel import RememberInputs

CASES = (
    ("celeba", 40, 4),
    ("celeba", 2, 1),
    ("qm9", 11, 4),
    ("mtan", 3, 2),
    ("mtan", 2, 1),
    ("transformer", 2, 1),
    ("transformer", 2, 4),
)


def choice(network: str, tasks: int, minibatches: int, budget: float, scale: float) -> str:
    """Return one row of the table."""
    torch.manual_seed(0)
    kind = WORKLOADS[network]
    workload = kind.make(tasks, 8, scale, "cpu")
    trunk = RememberInputs(workload.model, "represent")
    balancer = ntkmtl.Balancer(
        "ntkmtl-auto",
        tasks=tasks,
        trunk=trunk,
        shared=workload.shared,
        minibatches=minibatches,
        budget=budget,
    )
    z = trunk(workload.inputs)
    balancer.backward(workload.losses(workload.predict(z)), features=z)
    found = balancer.choice
    assert found is not None
    return f"| {kind.title} | {tasks} | {minibatches} | {found.price:.2f} | {found.reason} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What ntkmtl-auto chooses.")
    parser.add_argument("--budget", type=float, default=1.1, help="relative to plain training")
    parser.add_argument("--scale", type=float, default=1.0, help="of the networks")
    arguments = parser.parse_args(argv)
    print("| network | k | n | exact kernels cost (x LS) | choice |")
    print("| --- | ---: | ---: | ---: | --- |")
    for network, tasks, minibatches in CASES:
        print(choice(network, tasks, minibatches, arguments.budget, arguments.scale))


if __name__ == "__main__":
    main()
