"""The queue and the log of jobs, with jobs that train nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ntkmtl.bench.jobs.engine import JobProgress, Outcome, run_jobs
from ntkmtl.bench.jobs.local import LocalEngine
from ntkmtl.bench.jobs.reporters import Reporter


@dataclass(frozen=True)
class Job:
    folder: Path
    after: tuple[Path, ...] = ()
    may_diverge: bool = False
    error: str = ""
    steps: int = 1

    @property
    def label(self) -> str:
        return self.folder.name

    def run(
        self,
        shared: dict[str, Any],
        progress: JobProgress,
        should_stop: Callable[[], bool],
    ) -> bool:
        shared.setdefault("order", []).append(self.label)
        progress.note(f"{len(shared['order'])} begun")
        if self.error == "stop":
            return False
        if self.error:
            raise {"nan": FloatingPointError, "bug": RuntimeError}[self.error](self.error)
        return True


class Notes(Reporter):
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def run_started(self, run: int, label: str, steps: int) -> None:
        self.told.append((run, label))

    def run_note(self, run: int, words: str) -> None:
        self.told.append((run, words))


def ran(jobs: list[Job], notes: Notes | None = None, **more: Any) -> Outcome[Job]:
    with LocalEngine().start(Path(), print) as runner:
        return run_jobs(jobs, runner, notes or Notes(), **more)


def test_jobs_begin_in_their_order_but_after_those_that_they_need(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    notes = Notes()
    found = ran([Job(a, after=(b,)), Job(b, after=(c,)), Job(c)], notes)
    assert [job.label for job in found.finished] == ["c", "b", "a"]
    # Numbers are those of the list, and what a process keeps is kept from job to job.
    assert notes.told == [
        (2, "c"),
        (2, "1 begun"),
        (1, "b"),
        (1, "2 begun"),
        (0, "a"),
        (0, "3 begun"),
    ]


def test_a_failure_costs_only_what_needs_it(tmp_path: Path) -> None:
    a, b, c, d = (tmp_path / name for name in "abcd")
    found = ran([Job(a, error="bug"), Job(b, after=(a,)), Job(c, after=(b,)), Job(d)])
    assert [(f.label, f.error, f.message) for f in found.failures] == [
        ("a", "RuntimeError", "bug"),
        ("b", "DependencyError", "needs a, which failed"),
        ("c", "DependencyError", "needs b, which failed"),
    ]
    assert [job.label for job in found.finished] == ["d"]
    assert not found.interrupted
    written = json.loads((a / "failure.json").read_text())
    assert (written["error"], written["message"]) == ("RuntimeError", "bug")
    assert "in run" in written["traceback"]


@pytest.mark.parametrize("may_diverge", [False, True])
def test_divergence_is_a_result_only_where_it_may_be(tmp_path: Path, may_diverge: bool) -> None:
    ended: list[tuple[str, str]] = []
    job = Job(tmp_path / "a", may_diverge=may_diverge, error="nan")
    found = ran(
        [job, Job(tmp_path / "b", after=(job.folder,))],
        on_ended=lambda job, seconds, error: ended.append((job.label, error)),
    )
    if may_diverge:
        assert ended == [("a", "nan"), ("b", "")]
        assert (len(found.finished), found.failures) == (2, ())
        assert not (job.folder / "failure.json").exists()
    else:
        assert ended == []
        assert [failure.label for failure in found.failures] == ["a", "b"]


def test_a_job_is_prepared_when_what_it_needs_has_ended(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    ended: list[str] = []

    def prepare(job: Job) -> Job:
        if job.label == "c":
            raise ValueError("no settings")
        return replace(job, steps=len(ended))

    found = ran(
        [Job(a), Job(b, after=(a,)), Job(c)],
        on_ended=lambda job, seconds, error: ended.append(job.label),
        prepare=prepare,
    )
    assert [(job.label, job.steps) for job in found.finished] == [("a", 0), ("b", 1)]
    assert [(f.label, f.message) for f in found.failures] == [("c", "no settings")]


def test_a_job_that_stops_ends_the_others(tmp_path: Path) -> None:
    found = ran([Job(tmp_path / "a", error="stop"), Job(tmp_path / "b")])
    assert (found.finished, found.failures, found.interrupted) == ((), (), True)
