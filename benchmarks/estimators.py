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

from ntkmtl.files import atomic_write, write_json, write_text

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def measure(name: str, data: Path | None, steps: int | None, kept: Path) -> dict[str, Any]:
    """Record one training, unless it was recorded before with the same settings."""
    from rich.progress import Progress

    settings = {"name": name, "steps": steps, "schema": 1}
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


def _fill(page: Path, text: str) -> None:
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page} has no place for the table: put {BEGIN} and {END} on lines there")
    write_text(page, f"{before}{BEGIN}\n{text}\n{END}{after}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Error of estimated weights against exact ones, and the price."
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    add("--data", type=Path, help="folder with celeba/ and nyuv2/; qm9-mini needs none")
    add("--steps", type=int, help="steps of each training, instead of its own number")
    add("--threads", type=int, default=1)
    add("--cache", type=Path, default=Path("runs/estimators"), help="where recordings are kept")
    add("--json", type=Path, help="where the numbers go; beside the figures by default")
    add("--write", metavar="PAGE", type=Path, help="fill PAGE.md and draw to images/ beside it")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    cases = {}
    for name in arguments.workloads:
        run = measure(name, arguments.data, arguments.steps, arguments.cache / f"{name}.pt")
        timed = arguments.cache / f"{name}-seconds.json"
        if not timed.exists():
            torch.manual_seed(0)
            write_json(timed, prices(MAKERS[name](arguments.data, 1)))
        seconds = json.loads(timed.read_text("utf-8"))
        cases[name] = {**study(run, seconds), "wall_seconds": round(run["wall_seconds"], 1)}
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
    _fill(arguments.write.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
