from __future__ import annotations

import errno
import functools
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from children import last_word, start, train_one, wait_for_step
from torch import Tensor
from toy_problem import Toy

from ntkmtl.bench.runs import Run, clear_run
from ntkmtl.bench.runs.folder import CheckpointError, read_checkpoint, write_checkpoint
from ntkmtl.bench.training import RunConflictError, RunInterrupted, load_run, train
from ntkmtl.bench.training.learner import learning_rate_factor
from ntkmtl.errors import NonFiniteError

FILES = ["config.json", "history.json", "model.safetensors", "result.json", "steps.npz"]
METHODS = [
    *("ls", "si", "uw", "famo", "dwa", "rlw", "graddrop", "cagrad", "ntkmtl", "ntkmtl-sr"),
    "ntkmtl-auto",
]


def options(method: str) -> dict[str, int]:
    return {"minibatches": 2} if method == "ntkmtl-sr" else {}


def same_numbers(one: Run, other: Run) -> None:
    assert one.result.test == other.result.test
    assert one.result.val == other.result.val
    assert one.result.steps == other.result.steps
    assert one.result.model == other.result.model
    for a, b in zip(one.history, other.history, strict=True):
        assert replace(a, train_seconds=0, eval_seconds=0, cpu_seconds=0) == replace(
            b, train_seconds=0, eval_seconds=0, cpu_seconds=0
        )
    for name in ("step", "weights", "eigenvalues"):
        a, b = getattr(one.steps, name), getattr(other.steps, name)
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)


def test_a_run_leaves_the_files_of_the_format(tmp_path: Path) -> None:
    run = train(Toy(), "ntkmtl-sr", 0, tmp_path, method_options={"minibatches": 2}, threads=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert run.config.method_options == {"minibatches": 2}
    assert run.config.problem_class == "toy_problem:Toy"
    assert run.config.hardware["threads"] == 1
    assert run.config.parameters == 5 * 16 + 16 + 3 * 17
    assert run.result.steps == 24
    assert [epoch.epoch for epoch in run.history] == [0, 1, 2, 3]
    assert run.history[-1].val == run.result.val
    assert run.steps.step.tolist() == list(range(24))
    assert run.steps.weights.shape == (24, 3)
    assert run.steps.eigenvalues is not None
    assert run.steps.eigenvalues.shape == (24, 3)
    # The second task has no labels in one batch per epoch.
    assert (run.steps.weights == 0).sum(axis=0).tolist() == [0, 4, 0]


def test_it_learns(tmp_path: Path) -> None:
    recipe = replace(Toy.recipe, epochs=20)
    run = train(Toy(), "ls", 0, tmp_path, recipe=recipe, threads=1)
    first, last = run.history[0], run.history[-1]
    assert last.val[0] < 0.5 * first.val[0]
    assert last.learning_rate < 0.01 * recipe.learning_rate


def test_methods_without_eigenvalues_record_none(tmp_path: Path) -> None:
    assert train(Toy(), "ls", 0, tmp_path, threads=1).steps.eigenvalues is None


def test_the_caller_s_torch_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(Toy(), "rlw", 0, tmp_path, threads=1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    runs = [train(Toy(), "ls", s, tmp_path / str(i), threads=1) for i, s in enumerate((0, 0, 1))]
    same_numbers(runs[0], runs[1])
    assert runs[0].result.test != runs[2].result.test


def test_single_task(tmp_path: Path) -> None:
    run = train(Toy(), "stl", 0, tmp_path, single_task="c", threads=1)
    assert run.config.tasks == ("c",)
    assert [metric.name for metric in run.config.metrics] == ["corr"]
    assert len(run.result.test) == 1
    assert run.config.single_task == "c"


def test_long_runs_keep_every_so_many_th_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ntkmtl.bench.training.log.MAX_STEP_ROWS", 10)
    run = train(Toy(), "ls", 0, tmp_path, threads=1)
    assert run.steps.step.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


def test_a_complete_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(Toy(), "ls", 0, tmp_path, threads=1)
    problem = Toy()
    again = train(problem, "ls", 0, tmp_path, threads=1)
    assert problem.batches == 0
    assert again.result == first.result


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    train(Toy(), "ls", 0, tmp_path, threads=1)
    with pytest.raises(RunConflictError, match=r"problem_options\.data_seed is 0, asked for 1"):
        train(Toy(data_seed=1), "ls", 0, tmp_path, threads=1)


def reaches(steps: Iterator[int], last: int) -> bool:
    return next(steps) == last


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_bit_equal(tmp_path: Path, method: str) -> None:
    """Stopped after steps 2, 9 (within epochs) and 12 (between two)."""
    whole = train(Toy(), method, 3, tmp_path / "whole", method_options=options(method), threads=1)
    for done, stop_after in ((0, 2), (2, 9), (9, 12)):
        steps = iter(range(done + 1, stop_after + 1))
        with pytest.raises(RunInterrupted, match=f"after step {stop_after} of 24"):
            train(
                Toy(),
                method,
                3,
                tmp_path / "parts",
                method_options=options(method),
                threads=1,
                should_stop=functools.partial(reaches, steps, stop_after),
            )
        assert not (tmp_path / "parts" / "result.json").exists()
    # The number of threads is that of the first part, whatever is asked for now.
    parts = train(Toy(), method, 3, tmp_path / "parts", method_options=options(method), threads=2)
    same_numbers(whole, parts)
    assert parts.config.hardware["threads"] == 1
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()


def test_killed_at_any_moment_ends_bit_equal(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"method_options": {"minibatches": 2}, "threads": 1}
    whole = train(Toy(), "ntkmtl-sr", 0, tmp_path / "whole", **arguments)
    folder = tmp_path / "killed"
    resumed_from = []
    # A few steps further each time, and a little on, so that some are killed within a write.
    for attempt, step in enumerate((1, 2, 4, 6, 7, 9, 12, 13, 16, 18, 20, 22)):
        process, connection = start(train_one, folder)
        resumed_from.append(wait_for_step(connection, step))
        time.sleep(0.0005 * (attempt % 7))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "result.json").exists()
    assert resumed_from == sorted(resumed_from)
    assert resumed_from[-1] > 6, "the last part went on from a checkpoint"
    # What a process killed within a write leaves behind.
    (folder / ".result.json.abc.tmp").write_text("{")
    same_numbers(whole, train(Toy(), "ntkmtl-sr", 0, folder, **arguments))
    assert sorted(p.name for p in folder.iterdir()) == FILES


def interrupted_at(folder: Path, step: int) -> None:
    stop = functools.partial(reaches, iter(range(1, step + 1)), step)
    with pytest.raises(RunInterrupted):
        train(Toy(), "ls", 0, folder, threads=1, should_stop=stop)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_a_damaged_checkpoint_is_said_and_not_used(tmp_path: Path, damage: str) -> None:
    whole = train(Toy(), "ls", 0, tmp_path / "whole", threads=1)
    folder = tmp_path / "run"
    interrupted_at(folder, 10)
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "truncated": content[:middle],
            # More bytes than the padding between entries has.
            "flipped": content[:middle]
            + bytes(byte ^ 4 for byte in content[middle : middle + 128])
            + content[middle + 128 :],
            "empty": b"",
            "text": b"no checkpoint at all",
        }[damage]
    )
    with pytest.warns(RuntimeWarning, match="starts again from its beginning"):
        run = train(Toy(), "ls", 0, folder, threads=1)
    same_numbers(whole, run)


@pytest.mark.parametrize("trouble", ["a full memory", "an input error", "no file"])
def test_checkpoints_that_cannot_be_read_are_kept(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(Toy(), "ls", 0, tmp_path / "whole", threads=1)
    folder = tmp_path / "run"
    interrupted_at(folder, 10)
    kept = {p.name: p.read_bytes() for p in folder.glob("checkpoint*")}
    assert kept

    def fail(*_: object, **__: object) -> None:
        if trouble == "a full memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        if trouble == "no file":
            (folder / "checkpoint.pt").rename(folder / "aside")
            (folder / "checkpoint.pt").mkdir()
        else:
            patched.setattr(torch, "load", fail)
        with pytest.raises(MemoryError if trouble == "a full memory" else OSError):
            train(Toy(), "ls", 0, folder, threads=1)
    if trouble == "no file":
        (folder / "checkpoint.pt").rmdir()
        (folder / "aside").rename(folder / "checkpoint.pt")
    assert {p.name: p.read_bytes() for p in folder.glob("checkpoint*")} == kept
    same_numbers(whole, train(Toy(), "ls", 0, folder, threads=1))


@pytest.mark.parametrize("key", ["model", "optimizer", "device", "random"])
def test_a_checkpoint_that_lacks_a_part_is_named(tmp_path: Path, key: str) -> None:
    interrupted_at(tmp_path, 10)
    for path in tmp_path.glob("checkpoint*"):
        state = read_checkpoint(path)
        del state[key]
        write_checkpoint(path, state)
    with pytest.raises(ValueError, match=r"checkpoint\.pt (does not fit|holds another)"):
        train(Toy(), "ls", 0, tmp_path, threads=1)


def test_a_checkpoint_of_another_network_is_named_and_kept(tmp_path: Path) -> None:
    """As when a package that a problem of one's own imports has changed."""
    interrupted_at(tmp_path, 10)
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    state["model"] = {name: value[:1] for name, value in state["model"].items()}
    write_checkpoint(tmp_path / "checkpoint.pt", state)
    with pytest.raises(CheckpointError, match=r"size mismatch.*Remove it, and the run starts agai"):
        train(Toy(), "ls", 0, tmp_path, threads=1)
    assert (tmp_path / "checkpoint.pt").exists()


def test_a_checkpoint_of_another_version_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_at(tmp_path, 10)
    monkeypatch.setattr("ntkmtl.bench.compute.environment.__version__", "9.9")
    with pytest.warns(RuntimeWarning, match="another version"):
        run = train(Toy(), "ls", 0, tmp_path, threads=1)
    assert run.config.versions["ntkmtl"] == "9.9"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_at_a_step_boundary(tmp_path: Path, number: signal.Signals) -> None:
    process, connection = start(train_one, tmp_path)
    wait_for_step(connection, 5)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert last_word(process, connection).startswith("stopped after step")
    left = ["checkpoint.previous.pt", "checkpoint.pt", "config.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left


def test_a_nan_stops_with_its_name_and_keeps_a_checkpoint_from_before(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="loss of task a is nan at step 14"):
        train(Toy(poison="a"), "ls", 0, tmp_path, threads=1, checkpoint_seconds=0.0)
    assert (tmp_path / "checkpoint.pt").exists()
    assert not (tmp_path / "result.json").exists()


def test_a_metric_that_is_nan_is_an_error(tmp_path: Path) -> None:
    class Bad(Toy):
        def evaluate(self, model: object, split: object, tasks: object = None) -> torch.Tensor:
            return torch.tensor([1.0, float("nan"), 0.5])

    with pytest.raises(FloatingPointError, match="metric b is nan on the val split after epoch 0"):
        train(Bad(), "ls", 0, tmp_path, threads=1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 97}, "batch_size must be at most 96"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ],
)
def test_recipes_that_make_no_sense(tmp_path: Path, change: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(Toy(), "ls", 0, tmp_path / "run", recipe=replace(Toy.recipe, **change))
    assert not (tmp_path / "run").exists()


def test_single_task_goes_with_its_method(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method 'stl' trains one task"):
        train(Toy(), "ls", 0, tmp_path, single_task="a")
    with pytest.raises(ValueError, match="has no task 'z'"):
        train(Toy(), "stl", 0, tmp_path, single_task="z")


def test_learning_rate_rises_and_falls_to_almost_nothing() -> None:
    for total in (1, 2, 10, 1000):
        factors = [learning_rate_factor(step, total) for step in range(total)]
        peak = factors.index(max(factors))
        assert max(factors) == 1.0
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)
        assert all(factor > 0 for factor in factors)
    assert factors[-1] < 1e-5


def test_result_is_written_last(tmp_path: Path) -> None:
    """A run folder with a result is whole, even if its checkpoint was not yet removed."""
    run = train(Toy(), "ls", 0, tmp_path, threads=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"left over")
    assert train(Toy(), "ls", 0, tmp_path, threads=1).result == run.result
    assert not (tmp_path / "checkpoint.pt").exists()
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 24
    assert load_run(tmp_path).config == run.config


def test_what_is_left_of_a_removal_does_not_pass_for_a_result(tmp_path: Path) -> None:
    """A result without a configuration belongs to a run that was being replaced."""
    train(Toy(data_seed=1), "ls", 0, tmp_path, threads=1)
    (tmp_path / "config.json").unlink()
    interrupted_at(tmp_path, 2)
    assert not (tmp_path / "result.json").exists()
    whole = train(Toy(), "ls", 0, tmp_path / "whole", threads=1)
    same_numbers(train(Toy(), "ls", 0, tmp_path, threads=1), whole)


def test_runs_are_removed_from_their_result_to_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a removal is cut short, what is left is not a complete run."""
    removed: list[str] = []
    unlink = Path.unlink

    def note(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            removed.append(path.name)
        unlink(path, missing_ok=missing_ok)

    train(Toy(), "ls", 0, tmp_path, threads=1)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(Path, "unlink", note)
    clear_run(tmp_path)
    assert sorted(removed) == FILES
    assert (removed[0], removed[-1]) == ("result.json", "config.json")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_is_forgotten_once_the_run_is_complete(tmp_path: Path) -> None:
    """A worker that dies after its last write is told as a failure of a run that is whole."""
    train(Toy(), "ls", 0, tmp_path, threads=1)
    (tmp_path / "failure.json").write_text("{}")
    train(Toy(), "ls", 0, tmp_path, threads=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES


class Unlabeled(Toy):
    """Its losses are None, in all batches or in those of one epoch."""

    def __init__(self, labeled: int = 0) -> None:
        super().__init__()
        self.labeled = labeled

    def losses(self, outputs: Any, batch: Any, tasks: Any = None) -> dict[str, Tensor | None]:
        found = super().losses(outputs, batch, tasks)
        return found if self.batches <= self.labeled else dict.fromkeys(found)


@pytest.mark.parametrize("method", ["ls", "ntkmtl", "stl"])
def test_an_epoch_without_any_loss_is_an_error(method: str, tmp_path: Path) -> None:
    single = {"single_task": "a"} if method == "stl" else {}
    with pytest.raises(
        ValueError, match=r"had a loss in any batch of epoch 0: losses\(\) gave none"
    ):
        train(Unlabeled(), method, 0, tmp_path / "never", threads=1, **single)
    with pytest.raises(ValueError, match="in any batch of epoch 1"):
        train(Unlabeled(6), method, 0, tmp_path / "once", threads=1, **single)
    for folder in ("never", "once"):
        assert not (tmp_path / folder / "result.json").exists()
    # One batch with a label is enough.
    recipe = replace(Toy.recipe, epochs=1)
    train(Unlabeled(1), method, 0, tmp_path / "r", recipe=recipe, threads=1, **single)


@pytest.mark.parametrize(
    ("problem", "recipe", "said"),
    [
        ("toy", None, r"a problem must be made, as problems.create\('toy', ...\)"),
        (Toy(), {"epochs": 1}, "recipe must be a Recipe. Found {'epochs': 1}"),
        (Toy(), replace(Toy.recipe, epochs=1.5), "epochs must be a whole number. Found 1.5"),
        (Toy(), replace(Toy.recipe, weight_decay="0"), "weight_decay must be a number. Found '0'"),
    ],
)
def test_what_is_of_another_type_is_refused_before_training(
    tmp_path: Path, problem: Any, recipe: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        train(problem, "ls", 0, tmp_path / "run", recipe=recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("n", "changes"), [(17, {}), (2, {"batch_size": 1}), (9, {"accumulate": 2})]
)
def test_more_minibatches_than_samples_are_refused(
    n: int, changes: dict[str, int], tmp_path: Path
) -> None:
    recipe = replace(Toy.recipe, **changes)
    options = {"method_options": {"minibatches": n}, "recipe": recipe}
    record = {"minibatches": n}
    with pytest.raises(ValueError, match=f"minibatches={n}, which must be at most"):
        train(Toy(), "ntkmtl-sr", 0, tmp_path / "run", threads=1, **options)
    with pytest.raises(ValueError, match=f"minibatches={n}, which must be at most"):
        train(Toy(), "ls", 0, tmp_path / "run", threads=1, recipe=recipe, record=record)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [1.0, True, "1", -1, 2**64, None])
def test_a_seed_is_a_whole_number(seed: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seed must (be|not be)"):
        train(Toy(), "ls", seed, tmp_path / "run", threads=1)
    assert not (tmp_path / "run").exists()


def test_a_seed_of_numpy_is_the_same(tmp_path: Path) -> None:
    recipe = replace(Toy.recipe, epochs=1)
    runs = [
        train(Toy(), "ls", seed, tmp_path / str(place), recipe=recipe, threads=1)
        for place, seed in enumerate((3, np.int64(3)))
    ]
    assert runs[0].config.seed == runs[1].config.seed == 3
    assert runs[0].result.test == runs[1].result.test


def test_far_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"threads must be at most .* on this machine"):
        train(Toy(), "ls", 0, tmp_path / "run", threads=1_000_000)
    assert not (tmp_path / "run").exists()
