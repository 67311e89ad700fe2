"""What is shown of runs while they are trained, in logs and in terminals."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from ntkmtl.bench.jobs import reporters
from ntkmtl.bench.jobs.reporters import PlainReporter, Reporter, RichReporter

NOTE = "epoch 3/8, loss 1.25, val -10.0 %, best -12.5 % in epoch 2"


class Time:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(reporters, "time", time)
    return time


def drive(reporter: Reporter, clock: Time) -> None:
    """Two runs of 80 steps: ten seconds to start, then 2 steps a second, one resumed at 40."""
    reporter.start(2, 160)
    reporter.run_started(0, "ls seed 0", 80)
    clock.now += 10
    reporter.run_progress(0, 0)
    reporter.run_note(0, NOTE)
    clock.now += 15
    reporter.run_progress(0, 30)
    reporter.run_started(1, "si seed 0", 80)
    reporter.run_progress(1, 40)
    clock.now += 15
    reporter.run_progress(1, 70)
    reporter.run_finished(1, 20.0)
    clock.now += 15
    reporter.run_progress(0, 60)


def test_lines_say_loss_epoch_best_and_time_left(clock: Time) -> None:
    stream = io.StringIO()
    drive(PlainReporter(stream), clock)
    assert stream.getvalue().splitlines() == [
        "2 runs to train",
        # After 15 s of training 30 of 160 steps are done, so 130 take 65 s; 50 of this run 25 s.
        "19 % of all steps after 25.0 s, 1 min 5 s left",
        f"  ls seed 0: {NOTE}, 25.0 s left",
        # 60 steps in 30 s, the 40 that were there before left out: 60 more take 30 s.
        "62 % of all steps after 40.0 s, 30.0 s left",
        f"  ls seed 0: {NOTE}, 25.0 s left",
        "  si seed 0: 5.0 s left",
        "[1/2] si seed 0: done in 20.0 s",
        # 100 steps in 45 s, 20 are left of the whole and of the run (60 in 45 s).
        "88 % of all steps after 55.0 s, 9.0 s left",
        f"  ls seed 0: {NOTE}, 15.0 s left",
    ]


def test_a_failed_run_adds_no_speed(clock: Time) -> None:
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.start(2, 200)
    for run in (0, 1):
        reporter.run_started(run, f"run {run}", 100)
        reporter.run_progress(run, 0)
    reporter.run_failed(1, "NaN")
    clock.now += 20
    reporter.run_progress(0, 50)
    assert stream.getvalue().splitlines()[2:] == [
        # 50 of 100 real steps in 20 s.
        "75 % of all steps after 20.0 s, 20.0 s left",
        "  run 0: 20.0 s left",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_bars_stay_on_one_line(width: int) -> None:
    screen = io.StringIO()
    reporter = RichReporter(Console(file=screen, force_terminal=True, width=width))
    reporter.start(1, 80)
    reporter.run_started(0, "ntkmtl-auto seed 0", 80)
    reporter.run_note(0, NOTE)
    reporter.run_progress(0, 30)
    reporter.progress.refresh()
    reporter.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = re.split(r"[\r\n]+", plain)
    assert all(len(line) <= width for line in lines)
    bar = [line for line in lines if line.startswith("ntkmtl-auto")][-1]
    for shown in ("ntkmtl-auto seed 0", " 38% ", "-:--:--", "epoch 3/8"):
        assert shown in bar
    assert (NOTE in bar) == (width == 120)
