"""Progress reporting: silent, lines of text, or bars."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["PlainReporter", "Reporter", "RichReporter", "reporter_for"]


class Reporter:
    """Receives the progress of a sweep; this one shows nothing.

    Runs are known by a number, the same from start to end.
    """

    def start(self, runs: int, steps: int) -> None:
        """The sweep begins: so many runs are to be trained, of so many steps in all."""

    def run_started(self, run: int, label: str, steps: int) -> None:
        """A run begins."""

    def run_progress(self, run: int, done: int) -> None:
        """So many steps of a run are done, those before a resume among them."""

    def run_note(self, run: int, words: str) -> None:
        """What a run has come to so far, in a few words."""

    def run_finished(self, run: int, seconds: float) -> None:
        """A run is complete."""

    def run_failed(self, run: int, why: str) -> None:
        """A run has failed."""

    def run_stopped(self, run: int) -> None:
        """A run was stopped on request."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The sweep is over."""


class PlainReporter(Reporter):
    """Lines of text, for logs and pipes: one per finished run, and now and then one in between.

    Args:
        stream: Where they go.
        every: Least time between two lines about progress, in seconds.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self.stream = stream or sys.stderr
        self.every = every
        self.runs = self.finished = self.steps = 0
        self.labels: dict[int, str] = {}
        self.totals: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.notes: dict[int, str] = {}
        self.began = self.last = time.monotonic()

    def start(self, runs: int, steps: int) -> None:
        """See :meth:`Reporter.start`."""
        self.runs, self.steps = runs, steps
        self.began = self.last = time.monotonic()
        if runs:
            self.message(f"{runs} runs to train")

    def run_started(self, run: int, label: str, steps: int) -> None:
        """See :meth:`Reporter.run_started`."""
        self.labels[run], self.totals[run] = label, steps

    def run_progress(self, run: int, done: int) -> None:
        """See :meth:`Reporter.run_progress`."""
        self.done[run] = done
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            share = sum(self.done.values()) / max(1, self.steps)
            notes = "".join(f"; {self.labels[n]}: {words}" for n, words in self.notes.items())
            self.message(f"{100 * share:.0f} % of all steps after {now - self.began:.0f} s{notes}")

    def run_note(self, run: int, words: str) -> None:
        """See :meth:`Reporter.run_note`."""
        self.notes[run] = words

    def run_finished(self, run: int, seconds: float) -> None:
        """See :meth:`Reporter.run_finished`."""
        self.done[run] = self.totals[run]
        self._ended(run, f"done in {seconds:.1f} s")

    def run_failed(self, run: int, why: str) -> None:
        """See :meth:`Reporter.run_failed`."""
        self._ended(run, f"FAILED: {why}")

    def run_stopped(self, run: int) -> None:
        """See :meth:`Reporter.run_stopped`."""
        self.notes.pop(run, None)
        self.message(f"{self.labels[run]}: stopped")

    def message(self, text: str) -> None:
        """See :meth:`Reporter.message`."""
        print(text, file=self.stream, flush=True)

    def _ended(self, run: int, text: str) -> None:
        self.finished += 1
        self.notes.pop(run, None)
        self.last = time.monotonic()
        self.message(f"[{self.finished}/{self.runs}] {self.labels[run]}: {text}")


class RichReporter(Reporter):
    """One bar per running job with its steps per second and time left, and one for all.

    Args:
        console: Where they are drawn.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False, justify="right"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=30.0,
        )
        self.console = console
        self.runs = self.ended = 0
        self.bars: dict[int, TaskID] = {}
        self.done: dict[int, int] = {}
        self.labels: dict[int, str] = {}
        self.notes: dict[int, str] = {}
        self.overall: TaskID | None = None

    def start(self, runs: int, steps: int) -> None:
        """See :meth:`Reporter.start`."""
        if not runs:
            return
        self.runs = runs
        self.progress.start()
        self.overall = self.progress.add_task("all runs", total=steps, note=f"0/{runs} runs")

    def run_started(self, run: int, label: str, steps: int) -> None:
        """See :meth:`Reporter.run_started`."""
        self.labels[run] = label
        self.bars[run] = self.progress.add_task(label, total=steps, note="starting")

    def run_progress(self, run: int, done: int) -> None:
        """See :meth:`Reporter.run_progress`."""
        bar = self.bars[run]
        if run not in self.done:
            # What a resumed run has behind it was not done now: the clock starts after it.
            self.progress.reset(bar, completed=done)
        self.progress.update(bar, completed=done)
        speed = self.progress.tasks[self.progress.task_ids.index(bar)].speed
        said = [] if speed is None else [f"{speed:.0f} steps/s"]
        said += [self.notes[run]] if self.notes.get(run) else []
        self.progress.update(bar, note=", ".join(said))
        self._advance(run, done)

    def run_note(self, run: int, words: str) -> None:
        """See :meth:`Reporter.run_note`."""
        self.notes[run] = words

    def run_finished(self, run: int, seconds: float) -> None:
        """See :meth:`Reporter.run_finished`."""
        self._end(run, f"done in {seconds:.1f} s")

    def run_failed(self, run: int, why: str) -> None:
        """See :meth:`Reporter.run_failed`."""
        self._end(run, f"FAILED: {why}")

    def run_stopped(self, run: int) -> None:
        """See :meth:`Reporter.run_stopped`."""
        self.progress.remove_task(self.bars.pop(run))

    def message(self, text: str) -> None:
        """See :meth:`Reporter.message`."""
        self.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """See :meth:`Reporter.close`."""
        self.progress.stop()

    def _advance(self, run: int, done: int) -> None:
        if self.overall is not None:
            self.progress.advance(self.overall, done - self.done.get(run, 0))
        self.done[run] = done

    def _end(self, run: int, text: str) -> None:
        self.ended += 1
        bar = self.bars.pop(run)
        total = self.progress.tasks[self.progress.task_ids.index(bar)].total
        # A failed run has no steps left to do either.
        self._advance(run, int(total or 0))
        self.progress.remove_task(bar)
        if self.overall is not None:
            self.progress.update(self.overall, note=f"{self.ended}/{self.runs} runs")
        self.message(f"{self.labels[run]}: {text}")


def reporter_for(console: Console) -> Reporter:
    """Return bars where a person looks on, lines elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        return RichReporter(console)
    return PlainReporter(console.file)  # type: ignore[arg-type]
