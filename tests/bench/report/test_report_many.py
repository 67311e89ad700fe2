"""A thousand runs in one folder: what a table and a report read of them, and how long it takes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from report_folders import RECIPE, TARGETS, VERSIONS

from ntkmtl.bench.report import build_table, write_html
from ntkmtl.bench.runs import (
    Epoch,
    RunConfig,
    RunMetric,
    RunResult,
    Steps,
    run_folder,
    write_history,
    write_steps,
)
from ntkmtl.files import write_json

METHODS = ("ls", "si", "rlw", "dwa", "uw", "famo", "mgda", "ntkmtl-sr", "ntkmtl-tk")
SEEDS = 50
EPOCHS, STEPS = 30, 2000
RUNS = SEEDS * (len(METHODS) + len(TARGETS))

SECONDS = 5.0
SLACK = 4.0
"""How much slower than the machine of docs/sweeps.md another may be."""


def write_one(root: Path, method: str, seed: int, like: Path | None, task: str | None) -> Path:
    """Write a run as the trainer does; its curves are those of ``like`` where one is given."""
    metrics = tuple(
        RunMetric(name, name, unit, False, label)
        for name, label, unit, _ in TARGETS
        if task in (None, name)
    )
    rng = np.random.default_rng(sum(map(ord, f"{method} {seed} {task}")))
    values = np.exp(rng.normal(0, 0.1, (EPOCHS, len(metrics))))
    folder = run_folder(root, "qm9-mini", method, seed, task)
    config = RunConfig(
        problem="qm9-mini",
        problem_class="ntkmtl.bench.problems.qm9_mini:QM9Mini",
        problem_options={},
        method=method,
        method_options={},
        seed=seed,
        recipe={**RECIPE, "epochs": EPOCHS},
        tasks=tuple(metric.task for metric in metrics),
        metrics=metrics,
        sizes={"train": 1000, "val": 100, "test": 200},
        parameters=12345,
        versions=VERSIONS,
        hardware={"device": "cpu", "processor": "A processor", "cores": 2, "threads": 1},
    )
    write_json(folder / "config.json", config.to_json())
    if like is not None:
        for name in ("history.json", "steps.npz"):
            os.link(like / name, folder / name)
    else:
        write_history(
            folder / "history.json",
            [Epoch(e, tuple(v), tuple(v), 1e-3, 1.0, 0.1) for e, v in enumerate(values.tolist())],
        )
        weights = np.exp(rng.normal(0, 1, (STEPS, len(metrics)))).astype(np.float32)
        read = weights if method.startswith("ntkmtl") else None
        write_steps(folder / "steps.npz", Steps(np.arange(STEPS), weights, read))
    test = tuple(values[-1].tolist())
    result = RunResult(test, test, 1.0, EPOCHS, EPOCHS + 1.0, STEPS, "2026-01-01T00:00:00+00:00")
    write_json(folder / "result.json", result.to_json())
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("many")
    with pytest.MonkeyPatch.context() as patch:
        # Thousands of files are synced in minutes, and none of them must outlive the machine.
        patch.setattr("ntkmtl.files.os.fsync", lambda handle: None)
        for method in METHODS:
            like = None
            for seed in range(SEEDS):
                like = write_one(root, method, seed, like, None)
        for task, *_ in TARGETS:
            like = None
            for seed in range(SEEDS):
                like = write_one(root, "stl", seed, like, task)
    yield root
    shutil.rmtree(root)


class Opened:
    """Counts the files of a folder that Python opens."""

    def __init__(self) -> None:
        self.root: str | None = None
        self.found: Counter[str] = Counter()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.root is not None and event == "open" and str(arguments[0]).startswith(self.root):
            self.found[str(arguments[0])] += 1

    def names(self) -> Counter[str]:
        """Return how often a file of each name was opened."""
        counted: Counter[str] = Counter()
        for path, times in self.found.items():
            counted[Path(path).name] += times
        return counted


OPENED = Opened()


@pytest.fixture
def opened(many: Path) -> Iterator[Opened]:
    OPENED.found.clear()
    OPENED.root = str(many)
    yield OPENED
    OPENED.root = None


def test_a_table_opens_two_files_of_each_run(many: Path, opened: Opened) -> None:
    table = build_table(many)
    assert table.facts["runs"] == RUNS == 1000
    assert opened.names() == {"config.json": RUNS, "result.json": RUNS}
    assert set(opened.found.values()) == {1}


def test_a_report_opens_each_file_at_most_once(many: Path, opened: Opened, tmp_path: Path) -> None:
    page = write_html(many, tmp_path / "report.html")
    # Single-task networks have no weights to draw.
    assert opened.names() == {
        "config.json": RUNS,
        "result.json": RUNS,
        "history.json": RUNS,
        "steps.npz": SEEDS * len(METHODS),
    }
    assert set(opened.found.values()) == {1}
    assert page.stat().st_size < 12_000_000, "a page does not grow with the number of runs"


@pytest.mark.parametrize("command", ["table", "report"])
def test_a_thousand_runs_take_seconds(many: Path, tmp_path: Path, command: str) -> None:
    more = ["-o", str(tmp_path / "report.html")] if command == "report" else []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "ntkmtl", command, str(many), *more],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Time of the processor: others that use the machine do not count.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"ntkmtl {command}: {RUNS} runs in {seconds:.2f} s")
    assert done.stdout
    assert seconds < SECONDS * SLACK
