"""Full disks, folders that vanish, and steps that are rejected."""

from __future__ import annotations

import errno
import math
import os
import pickle
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_problem import Toy
from training_accelerate_worker import DryToy

from ntkmtl.bench.runs import RunFolderLostError
from ntkmtl.bench.runs.folder import read_checkpoint, write_checkpoint
from ntkmtl.bench.training import RunInterrupted, train
from ntkmtl.bench.training import loop as loops
from ntkmtl.bench.training import step as steps
from ntkmtl.errors import NonFiniteError

STATE = {"tensor": torch.arange(3000.0), "more": [torch.ones(500) for _ in range(5)], "n": 1}


def limited(size: int, write: Callable[[], None]) -> None:
    """Call a function while no file may grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name != "posix", reason="limits of file sizes")
def test_a_checkpoint_that_does_not_fit_names_its_file(tmp_path: Path) -> None:
    """Wherever in the file the disk is full: torch hides the error of a write behind its own."""
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, STATE)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 401), len(whole) - 1]:
        with pytest.raises(OSError, match=r"checkpoint\.pt") as caught:
            limited(size, lambda: write_checkpoint(path, {**STATE, "n": 2}, keep_previous=True))
        assert caught.value.errno == errno.EFBIG
        assert caught.value.filename == str(path)
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert path.read_bytes() == whole
    limited(2 * len(whole), lambda: write_checkpoint(path, {**STATE, "n": 2}))
    assert read_checkpoint(path)["n"] == 2


def test_other_errors_of_torch_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        write_checkpoint(tmp_path / "checkpoint.pt", {"f": lambda: None})
    assert not list(tmp_path.iterdir())


def removed_at(folder: Path, step: int, how: str) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            if how == "moved":
                folder.rename(folder.with_name("elsewhere"))
            else:
                shutil.rmtree(folder)
            if how == "replaced":
                folder.mkdir()

    return progress


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
@pytest.mark.parametrize("by", ["a look", "a checkpoint"])
def test_a_folder_that_vanishes_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, by: str
) -> None:
    folder = tmp_path / "run"
    if by == "a look":
        monkeypatch.setattr(loops, "LOOK_SECONDS", 0.0)
    else:
        monkeypatch.setattr(loops._RunClock, "checkpoint_due", lambda clock: True)
    seen: list[int] = []
    remove = removed_at(folder, 5, how)

    def progress(done: int, total: int) -> None:
        seen.append(done)
        remove(done, total)

    with pytest.raises(RunFolderLostError, match="was removed, moved or replaced") as caught:
        train(
            Toy(),
            "ls",
            0,
            folder,
            threads=1,
            checkpoint_seconds=1e9,
            progress=progress,
        )
    assert str(folder) in str(caught.value)
    # Other processes are sent it.
    assert pickle.loads(pickle.dumps(caught.value)).path == folder  # noqa: S301
    assert seen[-1] <= 6
    # Nothing was written to where the folder had been.
    assert not folder.exists() or not list(folder.iterdir())


def test_a_folder_that_vanishes_is_noticed_before_results_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RunFolderLostError):
        train(Toy(), "ls", 0, folder, threads=1, progress=removed_at(folder, 24, "removed"))
    assert not folder.exists()


# ------------------------------------------------------------------ rejected steps


class BadHead(DryToy):
    """From some batch on the gradient of a head alone is not finite: a parameter of it is huge."""

    def model(self, tasks: Any = None) -> Any:
        model = super().model(tasks)
        model.heads[2].register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
        self.net = model
        return model

    def losses(self, outputs: Any, batch: Any, tasks: Any = None) -> dict[str, Any]:
        found = super().losses(outputs, (*batch[:2], False), tasks)
        # Of value 0; its derivative, that of a root at 0, reaches no features.
        extra = self.net.heads[2].extra.abs().sqrt().sum() if batch[2] else 0.0
        return {**found, "c": found["c"] + extra}


def stop_at(step: int) -> Callable[[], bool]:
    asked = iter(range(1, step + 1))
    return lambda: next(asked) == step


def bad_step() -> int:
    from test_training_accelerate import first_bad

    return first_bad(0, 7)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("method", ["ls", "moco", "db-mtl", "excess-mtl"])
def test_a_checkpoint_from_before_a_bad_step_ends_with_the_numbers_of_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, large: bool
) -> None:
    """Whether the method's state is copied before every step or too large for that.

    The gradient is found to be bad after the method has seen its own part of it.
    """
    if large:
        monkeypatch.setattr(steps, "SNAPSHOT_BYTES", 0)
    number = bad_step()
    whole = train(BadHead(), method, 0, tmp_path / "whole", threads=1)
    folder = tmp_path / "run"
    with pytest.raises(RunInterrupted):
        train(BadHead(bad=7), method, 0, folder, threads=1, should_stop=stop_at(max(1, number - 1)))
    with pytest.raises(NonFiniteError, match=f"at step {number} "):
        train(BadHead(bad=7), method, 0, folder, threads=1)
    state = read_checkpoint(folder / "checkpoint.pt")
    assert state["step"] <= number
    if not large:
        assert state["step"] == number
    again = train(BadHead(), method, 0, folder, threads=1)
    assert again.result.test == whole.result.test
    assert again.steps.weights.tolist() == whole.steps.weights.tolist()
    assert again.history[-1].train_losses == whole.history[-1].train_losses


@pytest.mark.parametrize("method", ["moco", "db-mtl", "excess-mtl"])
@pytest.mark.parametrize("gradient", [False, True])
def test_the_step_before_a_nan_is_kept_without_a_copy_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, gradient: bool
) -> None:
    """The Balancer looks at losses and gradients before the method does, so nothing has changed."""
    monkeypatch.setattr(steps, "SNAPSHOT_BYTES", 0)
    number = bad_step()
    with pytest.raises(NonFiniteError, match=f"at step {number} "):
        train(DryToy(bad=7, gradient=gradient), method, 0, tmp_path / "bad", threads=1)
    with pytest.raises(RunInterrupted):
        train(DryToy(), method, 0, tmp_path / "cut", threads=1, should_stop=stop_at(number))
    found, expected = (read_checkpoint(tmp_path / n / "checkpoint.pt") for n in ("bad", "cut"))
    assert found["step"] == expected["step"] == number
    assert found["balancer"].keys() == expected["balancer"].keys()
    # Besides the number of calls.
    del expected["balancer"]["json"]
    for key, value in expected["balancer"].items():
        torch.testing.assert_close(
            found["balancer"][key], value, rtol=0.0, atol=0.0, equal_nan=True
        )


@pytest.mark.parametrize("method", ["moco", "famo"])
def test_large_states_are_copied_once_and_small_ones_before_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(steps, "SNAPSHOT_BYTES", 1500)
    copied: list[bool] = []
    take = steps.Stepper._take_snapshot

    def note(self: steps.Stepper) -> steps.StepSnapshot:
        found = take(self)
        copied.append(found.balancer is not None)
        return found

    monkeypatch.setattr(steps.Stepper, "_take_snapshot", note)
    train(DryToy(), method, 0, tmp_path / "run", threads=1)
    assert sum(copied) == (2 if method == "moco" else len(copied))
    copied.clear()
    recipe = replace(Toy.recipe, on_nonfinite="skip")
    run = train(DryToy(bad=7), method, 0, tmp_path / "skip", recipe=recipe, threads=1)
    assert not any(copied), "a run that skips bad steps goes on, and needs no state from before"
    assert run.result.skipped_steps == 4
    assert all(math.isfinite(value) for value in run.result.test)
