"""What is said of a run while it is trained."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from toy_problem import Toy

from ntkmtl.bench.runs import Epoch, RunMetric
from ntkmtl.bench.training import train
from ntkmtl.bench.training.loop import progress_words


def test_higher_is_better_and_metrics_that_are_not_positive() -> None:
    history = [
        Epoch(n, (None, 1.0), (v, 2.0), 0.1, 1.0, 0.1) for n, v in enumerate((5.0, 7.0, 6.0))
    ]
    one = [RunMetric("acc", task="a", higher_is_better=True)]
    single = [Epoch(e.epoch, e.train_losses, e.val[:1], 0.1, 1.0, 0.1) for e in history]
    assert progress_words(single, one, 3, "val").endswith("val 6, best 7 in epoch 2")
    two = [*one, RunMetric("mae", task="b")]
    assert progress_words(history, two, 3, "val") == (
        "epoch 3/3, loss 1, val -10.0 %, best -20.0 % in epoch 2"
    )
    bad = [Epoch(0, (1.0, 1.0), (0.0, 2.0), 0.1, 1.0, 0.1)]
    assert progress_words(bad, two, 3, "val") == "epoch 1/3, loss 2"


def test_a_run_tells_each_epoch(tmp_path: Path) -> None:
    told: list[str] = []
    toy = Toy()
    run = train(
        toy, "ls", 0, tmp_path, recipe=replace(toy.recipe, epochs=2), threads=1, note=told.append
    )
    assert [words.split(",")[0] for words in told] == ["epoch 1/2", "epoch 2/2"]
    loss = sum(value or 0.0 for value in run.history[-1].train_losses)
    assert f", loss {loss:.3g}" in told[-1]


def test_a_run_records_how_much_of_its_time_it_had_a_core(tmp_path: Path) -> None:
    class Waiting(Toy):
        """Sleeps as long in each step as it computes for, or longer."""

        def losses(self, *rest: Any, **more: Any) -> Any:
            began = time.thread_time()
            found = super().losses(*rest, **more)
            while time.thread_time() - began < 0.002:
                pass
            time.sleep(0.004)
            return found

    recipe = replace(Toy().recipe, epochs=2)
    run = train(Waiting(), "ls", 0, tmp_path, recipe=recipe, threads=1)
    share = run.result.cpu_share
    assert share is not None
    assert 0 < share < 0.7
    for epoch in run.history:
        assert epoch.cpu_seconds is not None
        steps = run.result.steps // 2
        assert 0.002 * steps <= epoch.cpu_seconds <= epoch.train_seconds - 0.004 * steps
