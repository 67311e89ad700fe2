"""How far the weights of each estimator of the kernel are from exact ones, and what it costs.

    python benchmarks/estimators.py --data FOLDER --write docs/estimators

Trains each workload once with exact weights, records along the way what every estimator is made
of, and compares the weights that each would have given. Recordings are kept beside the numbers, so
that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from estimators_figures import draw, table
from estimators_record import prices, record
from estimators_study import study
from estimators_workloads import MAKERS
from sidebyside.tables import fill_page

from ntkmtl.files import atomic_write, write_json, write_text


def measure(name: str, data: Path | None, steps: int | None, kept: Path) -> dict[str, Any]:
    """Record one training, unless it was recorded before with the same settings."""
    from rich.progress import Progress

    settings = {"name": name, "steps": steps, "schema": 2}
    if kept.exists():
        old: dict[str, Any] = torch.load(kept, weights_only=True)
        if old["settings"] == settings:
            return old
    torch.manual_seed(0)
    start = time.perf_counter()
    with Progress() as progress:
        bar = progress.add_task(name, total=1.0)
        run = record(MAKERS[name](data, steps), lambda done: progress.update(bar, completed=done))
    run |= {"settings": settings, "wall_seconds": time.perf_counter() - start}
    with atomic_write(kept) as file:
        torch.save(run, file)
    return run


def _steps(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Sequence[int | None]:
    """Return the steps of each training, None for its own number."""
    count = len(arguments.workloads)
    given: list[int] = arguments.steps or []
    if len(given) not in (0, 1, count):
        parser.error(f"--steps needs one number, or {count}, one per workload; found {len(given)}")
    return [None] * count if not given else given * count if len(given) == 1 else given


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Error of estimated weights against exact ones, and the price."
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    add("--data", type=Path, help="folder with celeba/ and nyuv2/; qm9-mini needs none")
    add("--steps", nargs="+", type=int, help="instead of each training's own: for all, or each")
    add("--threads", type=int, default=1)
    add("--cache", type=Path, default=Path("runs/estimators"), help="where recordings are kept")
    add("--json", type=Path, help="where the numbers go; beside the figures by default")
    add("--write", metavar="PAGE", type=Path, help="fill PAGE.md and draw to images/ beside it")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    cases = {}
    for name, steps in zip(arguments.workloads, _steps(parser, arguments), strict=True):
        run = measure(name, arguments.data, steps, arguments.cache / f"{name}.pt")
        timed = arguments.cache / f"{name}-seconds.json"
        if not timed.exists():
            torch.manual_seed(0)
            write_json(timed, prices(MAKERS[name](arguments.data, 1)))
        seconds = json.loads(timed.read_text("utf-8"))
        cases[name] = {
            **study(run, seconds),
            "reduced": steps is not None,
            "wall_seconds": round(run["wall_seconds"], 1),
        }
    report = {
        "facts": {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "date": datetime.now(timezone.utc).date().isoformat(),
        },
        "cases": cases,
    }
    text = table(report)
    if arguments.write is None:
        print(text)
        if arguments.json is not None:
            write_json(arguments.json, report)
        return
    folder = arguments.write.parent / "images"
    write_json(arguments.json or folder / "estimators-measured.json", report)
    draw(report, folder)
    page = arguments.write.with_suffix(".md")
    write_text(page, fill_page(page.read_text("utf-8"), text))


if __name__ == "__main__":
    main()
