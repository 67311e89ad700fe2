"""What ``Balancer(record=...)`` adds to a training that is sampled every so many steps.

    python benchmarks/recording_cost.py

One thread, the network and batches of qm9-mini, 11 tasks. Each recorded step is compared with the
median of the steps since the one before it, so a machine that slows down slows both; the steps in
between push the recorder's code and data out of the caches, as they do in a training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch

from ntkmtl import Balancer
from ntkmtl.analysis import Recorder
from ntkmtl.bench import problems


def cost(method: str, every: int, samples: int, source: str, minibatches: int) -> dict[str, float]:
    """Train, and return seconds of a step, seconds on top of a recorded one, and their share.

    Args:
        method: Name of the method.
        every: A record each so many steps.
        samples: Recorded steps that are measured.
        source: Where the recorded kernel comes from.
        minibatches: Its n.
    """
    problem = problems.create("qm9-mini")
    torch.manual_seed(0)
    model = problem.model(None)
    recorder = Recorder(every=every, source=source, minibatches=minibatches)
    balancer = Balancer(method, tasks=list(problem.tasks), record=recorder)
    size = problem.recipe.batch_size
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    between: list[float] = []
    plain, extra = [], []
    # The first window warms up.
    for step in range(every * (samples + 1) + 1):
        batch = problem.batch("train", torch.randint(problem.size("train"), (size,)))
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        features = model.represent(batch)
        losses = problem.losses(model.predict(features), batch, None)
        balancer.backward(losses, features=features)
        optimizer.step()
        seconds = time.perf_counter() - begin
        if step % every:
            between.append(seconds)
        elif step:
            usual = statistics.median(between)
            between.clear()
            if step > every:
                plain.append(usual)
                extra.append(seconds - usual)
    base, more = statistics.median(plain), statistics.median(extra)
    return {"step": base, "extra": more, "share": more / (every * base)}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What recording the kernel costs.")
    parser.add_argument("--methods", nargs="+", default=["ls", "ntkmtl-sr"])
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--samples", type=int, default=80, help="recorded steps to measure")
    parser.add_argument("--source", choices=["representation", "exact"], default="representation")
    parser.add_argument("--minibatches", type=int, default=4)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| method | step (ms) | a record, on top (ms) | of the training (%) |")
    print("| --- | ---: | ---: | ---: |")
    for method in arguments.methods:
        found = cost(
            method, arguments.every, arguments.samples, arguments.source, arguments.minibatches
        )
        print(
            f"| {method} | {found['step'] * 1e3:.2f} | {found['extra'] * 1e3:.2f} | "
            f"{found['share'] * 100:.2f} |"
        )


if __name__ == "__main__":
    main()
