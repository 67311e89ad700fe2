"""What each of two processes trains for the tests of parameters that are spread over them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from toy_problem import Toy
from training_accelerate_worker import DryToy, SmallQM9, meet, numbers, stopped

from ntkmtl.bench.training import train
from ntkmtl.bench.training.distributed import gathered, sharded

CASES: dict[str, dict[str, Any]] = {
    "uw": {},
    "ntkmtl-sr": {"minibatches": 4},
}
# One looks at the losses again after each step, the other reads the Gramian.
MORE: dict[str, dict[str, Any]] = {"famo": {}, "mgda": {"source": "representation"}}


def refused(method: str, folder: Path, **settings: Any) -> str:
    try:
        train(SmallQM9(), method, 0, folder, threads=1, shard=True, **settings)
    except ValueError as error:
        return str(error)
    raise AssertionError("the run was not refused")


def memory() -> list[int]:
    """Entries of the parameters of a layer that this process holds: before, within and after."""
    layer = nn.Linear(6, 8)

    def held() -> int:
        return sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in spread())

    def spread() -> Any:
        return layer.parameters()

    counts = [held()]
    module: Any = sharded(layer, torch.device("cpu"), 2)
    counts.append(held())
    output = module(torch.ones(2, 6))
    counts.append(held())
    output.sum().backward()
    counts.append(held())
    assert gathered(layer.weight).shape == (8, 6)
    return counts


def trained(folder: Path) -> dict[str, Any]:
    """Train everything that the tests look at."""
    small = SmallQM9()
    found: dict[str, Any] = {"memory": memory()}
    for method, options in CASES.items():
        settings = {"method_options": options, "shard": True}
        found[f"{method}-state"] = stopped(small, method, folder / method, 6, **settings)
        found[method] = numbers(train(small, method, 0, folder / method, threads=1, **settings))
        whole = train(small, method, 0, folder / f"{method}-whole", threads=1, **settings)
        found[f"{method}-whole"] = numbers(whole)
    stopped(small, "ls", folder / "left", 3, shard=True)
    for method, options in MORE.items():
        settings = {"method_options": options, "shard": True}
        found[f"{method}-state"] = stopped(small, method, folder / method, 6, **settings)
    recipe = replace(small.recipe, accumulate=2, clip=0.5)
    found["parts"] = stopped(
        small,
        "ntkmtl-sr",
        folder / "parts",
        6,
        recipe=recipe,
        method_options={"minibatches": 2},
        shard=True,
    )
    # The second task has no label in one process's slice of one batch of each epoch.
    for shard in (True, False):
        run = train(Toy(), "ntkmtl-sr", 0, folder / f"missing-{shard}", threads=1, shard=shard)
        found[f"missing-{shard}"] = numbers(run)
    skip = replace(DryToy.recipe, on_nonfinite="skip")
    for name, gradient in (("loss", False), ("gradient", True)):
        problem = DryToy(bad=7, gradient=gradient)
        try:
            train(problem, "ls", 0, folder / name, threads=1, shard=True)
        except FloatingPointError as error:
            found[name] = str(error)
        for shard in (True, False):
            place = folder / f"{name}-skip-{shard}"
            run = train(problem, "ls", 0, place, threads=1, recipe=skip, shard=shard)
            found[f"{name}-skip-{shard}"] = numbers(run)
    found["exact"] = refused("ntkmtl", folder / "no")
    found["fp16"] = refused("ls", folder / "no", recipe=replace(small.recipe, precision="fp16"))
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    told = train(small, "uw", 0, folder / "told", threads=1)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    found["told"] = numbers(told)
    return found


def main(rank: int, folder: str) -> None:
    """Train what the tests look at."""
    meet(rank, folder, lambda: trained(Path(folder)))
