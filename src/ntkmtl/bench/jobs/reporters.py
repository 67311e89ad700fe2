"""Progress reporting: silent, lines of text, or bars."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["PlainReporter", "Reporter", "RichReporter", "duration", "reporter_for"]


def duration(seconds: float) -> str:
    """Return a length of time for people.

    Example:
        >>> duration(7.25), duration(200.0), duration(7384.0)
        ('7.2 s', '3 min 20 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Reporter:
    """Receives the progress of a sweep; this one shows nothing.

    Runs are known by a number, the same from start to end.
    """

    def start(self, runs: int, steps: int) -> None:
        """The sweep begins, with this number of runs and of steps to be trained."""

    def run_started(self, run: int, label: str, steps: int) -> None:
        """A run begins."""

    def run_progress(self, run: int, done: int) -> None:
        """This number of steps of a run are done, including those before a resume."""

    def run_note(self, run: int, words: str) -> None:
        """The state of a run changes, described in a few words."""

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

    A line in between says how much of all is done and, of each run that is being trained, where it
    stands and how long it has to go.

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
        self.clocks: dict[int, _Clock] = {}
        self.began = self.last = time.monotonic()
        self.clock = _Clock()

    def start(self, runs: int, steps: int) -> None:
        """See :meth:`Reporter.start`."""
        self.runs, self.steps = runs, steps
        self.began = self.last = time.monotonic()
        self.clock = _Clock()
        if runs:
            self.message(f"{runs} runs to train")

    def run_started(self, run: int, label: str, steps: int) -> None:
        """See :meth:`Reporter.run_started`."""
        self.labels[run], self.totals[run] = label, steps
        self.clocks[run] = _Clock()

    def run_progress(self, run: int, done: int) -> None:
        """See :meth:`Reporter.run_progress`."""
        clock = self.clocks[run]
        if clock.behind is None and self.clock.behind is not None:
            # Steps from before a resume took no time now.
            self.clock.skip(done)
        self.done[run] = done
        now = time.monotonic()
        clock.see(done, now)
        self.clock.see(sum(self.done.values()), now)
        if now - self.last >= self.every:
            self.last = now
            share = sum(self.done.values()) / max(1, self.steps)
            left = self.clock.left(self.steps)
            runs = "".join(f"\n  {self._standing(each)}" for each in self.clocks)
            self.message(
                f"{100 * share:.0f} % of all steps after {duration(now - self.began)}"
                f"{'' if left is None else f', {duration(left)} left'}{runs}"
            )

    def _standing(self, run: int) -> str:
        left = self.clocks[run].left(self.totals[run])
        words = [self.notes.get(run, ""), "" if left is None else f"{duration(left)} left"]
        return f"{self.labels[run]}: {', '.join(filter(None, words)) or 'starting'}"

    def run_note(self, run: int, words: str) -> None:
        """See :meth:`Reporter.run_note`."""
        self.notes[run] = words

    def run_finished(self, run: int, seconds: float) -> None:
        """See :meth:`Reporter.run_finished`."""
        self._ended(run, f"done in {duration(seconds)}")

    def run_failed(self, run: int, why: str) -> None:
        """See :meth:`Reporter.run_failed`."""
        # Its remaining steps will not be done: leave them out of the speed.
        self.clock.skip(self.totals[run] - self.done.get(run, 0))
        self._ended(run, f"FAILED: {why}")

    def run_stopped(self, run: int) -> None:
        """See :meth:`Reporter.run_stopped`."""
        self._forget(run)
        self.message(f"{self.labels[run]}: stopped")

    def message(self, text: str) -> None:
        """See :meth:`Reporter.message`."""
        print(text, file=self.stream, flush=True)

    def _ended(self, run: int, text: str) -> None:
        self.finished += 1
        self.done[run] = self.totals[run]
        self.last = time.monotonic()
        words = self._forget(run)
        self.message(f"[{self.finished}/{self.runs}] {self.labels[run]}: {text}{words}")

    def _forget(self, run: int) -> str:
        self.clocks.pop(run, None)
        words = self.notes.pop(run, "")
        return f"; {words}" if words else ""


class _Clock:
    """Estimates the time left from the steps done since the first one that was seen."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.now = self.began
        self.behind: int | None = None
        self.done = 0

    def see(self, done: int, now: float) -> None:
        """Note the steps done at a time."""
        if self.behind is None:
            self.behind, self.began = done, now
        self.done, self.now = done, now

    def skip(self, steps: int) -> None:
        """Leave out steps that were done at no cost of time."""
        self.behind = (self.behind or 0) + steps

    def left(self, total: int) -> float | None:
        """Return the seconds left of ``total`` steps, None where no speed is known yet."""
        steps = self.done - (self.behind or 0)
        if steps <= 0:
            return None
        return (self.now - self.began) / steps * (total - self.done)


class RichReporter(Reporter):
    """One bar per running job with where it stands and its time left, and one for all.

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
        from rich.table import Column

        # Else a long note would leave no room for the bars and the time left.
        room = max(12, console.width - 46)
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn(
                "{task.fields[note]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", max_width=room),
            ),
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
            # Steps from before a resume took no time now: the clock starts after them.
            self.progress.reset(bar, completed=done)
        self.progress.update(bar, completed=done, note=self.notes.get(run, ""))
        self._advance(run, done)

    def run_note(self, run: int, words: str) -> None:
        """See :meth:`Reporter.run_note`."""
        self.notes[run] = words

    def run_finished(self, run: int, seconds: float) -> None:
        """See :meth:`Reporter.run_finished`."""
        words = self.notes.get(run, "")
        self._end(run, f"done in {duration(seconds)}{'; ' if words else ''}{words}")

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
