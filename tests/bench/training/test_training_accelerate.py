"""Devices, precisions, parts of a step, clipping, compilation, NaN and trackers in one process."""

from __future__ import annotations

import json
import math
import sys
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import training_accelerate_worker as worker
from toy_problem import Toy
from training_accelerate_worker import DryToy, SmallQM9, stopped
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.compute.device import (
    Arithmetic,
    DeviceError,
    Evaluated,
    choose_device,
    to_device,
)
from ntkmtl.bench.compute.processes import check_launch
from ntkmtl.bench.problems.base import MultiTaskModel, Recipe
from ntkmtl.bench.runs import canonical_json
from ntkmtl.bench.runs.folder import read_checkpoint
from ntkmtl.bench.training import load_run, train
from ntkmtl.bench.training.spec import run_identity
from ntkmtl.errors import MissingExtraError, NonFiniteError

CPU = torch.device("cpu")
BEFORE = (
    '"recipe":{"batch_size":16,"description":"Four epochs.","epochs":4,"learning_rate":0.02,'
    '"min_learning_rate":1e-05,"minibatches":2,"plateau_factor":0.7,"plateau_patience":10,'
    '"reduced":false,"schedule":"one-cycle","tested_epochs":1}'
)


# ------------------------------------------------------------------ what a run is called


def test_the_identity_of_runs_from_before_is_unchanged() -> None:
    assert BEFORE in canonical_json(run_identity(Toy(), "ls", 0))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("precision", "bf16"),
        ("accumulate", 2),
        ("clip", 0.5),
        ("compile", True),
        ("on_nonfinite", "skip"),
    ],
)
def test_a_setting_is_part_of_the_identity(key: str, value: Any) -> None:
    recipe = replace(Toy.recipe, **{key: value})
    identity = run_identity(Toy(), "ls", 0, recipe=recipe)
    assert identity["recipe"] == {**Toy.recipe.to_json(), key: value}
    assert Recipe(**identity["recipe"]) == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "fp64"}, "precision must be one of fp32, bf16, fp16. Found 'fp64'"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1"),
        ({"accumulate": 3}, "accumulate=3 must divide the samples of a step, batch_size=16"),
        ({"clip": -1.0}, "clip must be a norm"),
        ({"clip": math.nan}, "clip must be a norm"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of stop, skip"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(Toy(), "ls", 0, tmp_path / "run", recipe=replace(Toy.recipe, **change))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ devices


def test_devices_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(DeviceError, match="device is 'cuda', and torch sees no GPU"):
        train(Toy(), "ls", 0, tmp_path / "run", device="cuda")
    with pytest.raises(DeviceError, match="device must be one of auto, cpu, cuda"):
        choose_device("tpu")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == CPU


def test_precisions_that_a_device_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    with pytest.raises(DeviceError, match="Old GPU does not compute in bfloat16"):
        Arithmetic("bf16", torch.device("cuda"))

    def fail(*_: object) -> None:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "linear", fail)
    with pytest.raises(DeviceError, match=r"this cpu does not compute in float16 \(not implem"):
        Arithmetic("fp16", CPU)


class Pair(NamedTuple):
    x: torch.Tensor
    rest: dict[str, Any]


def test_batches_go_to_a_device_whatever_holds_them() -> None:
    meta = torch.device("meta")
    batch = Pair(torch.ones(2), {"y": [torch.zeros(1), "name"], "n": 3})
    moved = to_device(batch, meta)
    assert isinstance(moved, Pair)
    assert moved.x.device == meta
    assert moved.rest["y"][0].device == meta
    assert moved.rest["y"][1:] == ["name"]
    assert moved.rest["n"] == 3
    assert to_device(batch, CPU) is batch


def test_an_evaluated_network_reads_and_returns_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a device that notes what is sent to it, as there is no GPU here."""
    problem = Toy()
    torch.manual_seed(0)
    model = problem.model()
    sent: list[object] = []
    monkeypatch.setattr(
        "ntkmtl.bench.compute.device.to_device", lambda batch, device: sent.append(batch) or batch
    )
    wrapped: MultiTaskModel = Evaluated(model, CPU)
    expected = problem.evaluate(model, "val")
    assert torch.equal(problem.evaluate(wrapped, "val"), expected)
    assert len(sent) == 1
    assert model.training, "evaluation leaves the network in the mode that it was in"
    assert list(wrapped.shared_parameters()) == list(model.shared_parameters())


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr", "ntkmtl", "famo"])
def test_low_precision_trains(tmp_path: Path, precision: str, method: str) -> None:
    recipe = replace(Toy.recipe, epochs=12, precision=precision)
    run = train(DryToy(), method, 0, tmp_path / "low", recipe=recipe, threads=1)
    full = replace(recipe, precision="fp32")
    reference = train(DryToy(), method, 0, tmp_path / "full", recipe=full, threads=1)
    first, last = run.history[0].train_losses, run.history[-1].train_losses
    assert last[0] < 0.5 * first[0]
    assert last[0] != reference.history[-1].train_losses[0]
    assert run.history[0].val[0] == pytest.approx(reference.history[0].val[0], rel=0.05)
    assert (run.result.overflowed_steps is None) == (precision == "bf16")
    assert "overflowed_steps" not in reference.result.to_json()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_goes_on_bit_equal(tmp_path: Path, precision: str) -> None:
    recipe = replace(Toy.recipe, precision=precision, clip=1.0)
    whole = train(Toy(), "ls", 0, tmp_path / "whole", recipe=recipe, threads=1)
    state = stopped(Toy(), "ls", tmp_path / "parts", 9, recipe=recipe)
    assert (state["scaler"] is None) == (precision == "bf16")
    parts = train(Toy(), "ls", 0, tmp_path / "parts", recipe=recipe, threads=1)
    assert worker.numbers(parts).pop("test") == worker.numbers(whole).pop("test")
    assert parts.history[-1].train_losses == whole.history[-1].train_losses


class Steep(DryToy):
    """A loss whose gradient overflows fp16 at the scaler's first scale, not at lower ones."""

    def losses(self, outputs: Any, batch: Any, tasks: Any = None) -> dict[str, Any]:
        return {task: 4000.0 * loss for task, loss in super().losses(outputs, batch, tasks).items()}


def test_overflow_in_fp16_is_left_out_and_counted(tmp_path: Path) -> None:
    recipe = replace(Toy.recipe, precision="fp16")
    run = train(Steep(), "ls", 0, tmp_path, recipe=recipe, threads=1)
    assert run.result.overflowed_steps
    assert 0 < run.result.overflowed_steps < 20
    assert json.loads((tmp_path / "result.json").read_text())["overflowed_steps"] > 0
    assert load_run(tmp_path).result == run.result


def test_a_nan_loss_in_fp16_is_no_overflow(tmp_path: Path) -> None:
    recipe = replace(Toy.recipe, precision="fp16")
    with pytest.raises(NonFiniteError, match="the loss of task c is nan at step"):
        train(DryToy(bad=7), "ls", 0, tmp_path, recipe=recipe, threads=1)


def test_gradients_that_overflow_at_any_scale_end_the_run(tmp_path: Path) -> None:
    recipe = replace(Toy.recipe, epochs=40, precision="fp16")
    # The sample of every batch, so that no step is taken.
    problem = DryToy(bad=7, gradient=True)
    problem.data["train"] = tuple(part.clone() for part in problem.data["train"])
    problem.batch = lambda split, indices: (*(p[indices] for p in problem.data[split]), True)
    with pytest.raises(FloatingPointError, match="not finite even at a scale of"):
        train(problem, "ls", 0, tmp_path, recipe=recipe, threads=1)


# ------------------------------------------------------------------ parts of a step, clipping


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_of_a_step_are_the_step(tmp_path: Path, parts: int) -> None:
    """Equal weights: the mean of the parts' gradients is the gradient of the whole."""
    recipe = replace(SmallQM9.recipe, accumulate=parts)
    whole = stopped(SmallQM9(), "ls", tmp_path / "whole", 6)
    split = stopped(SmallQM9(), "ls", tmp_path / "parts", 6, recipe=recipe)
    for name, value in whole["model"].items():
        torch.testing.assert_close(split["model"][name], value, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(split["loss_sums"], whole["loss_sums"], rtol=1e-9, atol=0.0)


def test_weights_of_a_step_are_the_mean_over_its_parts(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Seen(SmallQM9):
        def losses(self, outputs: Any, batch: Any, tasks: Any = None) -> dict[str, Any]:
            found = super().losses(outputs, batch, tasks)
            seen.append(torch.stack(list(found.values())).detach())
            return found

    recipe = replace(Seen.recipe, accumulate=2)
    state = stopped(Seen(), "si", tmp_path, 2, recipe=recipe)
    # Scale-invariant: weights are 1 / loss of each part.
    expected = torch.stack([(1.0 / seen[i] + 1.0 / seen[i + 1]) / 2 for i in (0, 2)])
    torch.testing.assert_close(state["weights"].double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_is_of_the_gradient_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """The norm that arrives at the optimizer, also under the scaler of fp16."""
    norms: list[float] = []
    taken = Arithmetic.step

    def step(self: Arithmetic, optimizer: torch.optim.Optimizer) -> bool:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norm = float(torch.stack([g.norm() for g in gradients]).norm())
        # The scaler begins too high, and leaves such steps out.
        if math.isfinite(norm):
            norms.append(norm)
        return taken(self, optimizer)

    monkeypatch.setattr(Arithmetic, "step", step)
    found = []
    for name, clip in (("free", 0.0), ("clipped", 0.5), ("far", 1e9)):
        recipe = replace(Toy.recipe, epochs=2, clip=clip, precision=precision)
        norms.clear()
        train(DryToy(), "ls", 0, tmp_path / name, recipe=recipe, threads=1)
        found.append(list(norms))
    free, clipped, far = found
    assert len(free) == len(clipped) > 5
    assert min(free) > 0.5
    assert max(clipped) == pytest.approx(0.5, rel=1e-3)
    assert free == far


# ------------------------------------------------------------------ compilation


def test_compilation_is_of_trunk_and_heads_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a compiler that does nothing but say what it was given."""
    compiled: list[str] = []

    def compile_(function: Any, **_: object) -> Any:
        compiled.append(function.__qualname__)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__)
    )
    recipe = replace(Toy.recipe, compile=True)
    run = train(Toy(), "ls", 0, tmp_path / "compiled", recipe=recipe, threads=1)
    plain = train(Toy(), "ls", 0, tmp_path / "plain", threads=1)
    assert compiled == ["ToyModel.represent", "Linear", "Linear", "Linear"]
    assert run.result.test == plain.result.test
    with pytest.raises(ValueError, match="runs the trunk again at other parameters"):
        train(Toy(), "ntkmtl-auto", 0, tmp_path / "auto", recipe=recipe)
    monkeypatch.setattr("ntkmtl.bench.compute.device.shutil.which", lambda name: None)
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler"):
        train(Toy(), "ls", 0, tmp_path / "none", recipe=recipe)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ls", "ntkmtl-sr", "ntkmtl"])
def test_a_compiled_run_is_the_run(tmp_path: Path, method: str) -> None:
    recipe = replace(SmallQM9.recipe, compile=True)
    plain = stopped(SmallQM9(), method, tmp_path / "plain", 6)
    fast = stopped(SmallQM9(), method, tmp_path / "compiled", 6, recipe=recipe)
    for name, value in plain["model"].items():
        torch.testing.assert_close(fast["model"][name], value, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(fast["weights"], plain["weights"], rtol=1e-5, atol=0.0)


# ------------------------------------------------------------------ NaN


def first_bad(seed: int, bad: int) -> int:
    """Return the first step of DryToy whose batch has a sample."""
    from ntkmtl.bench.problems.base import batches
    from ntkmtl.bench.training.learner import text_seed

    generator = torch.Generator().manual_seed(text_seed(f"order {seed} 0"))
    order = list(batches(96, 16, generator))
    return next(i for i, indices in enumerate(order) if bad in indices.tolist())


def same(one: Any, other: Any) -> None:
    """Bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    else:
        assert one == other


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("method", ["ls", "uw", "ntkmtl-sr", "ntkmtl"])
def test_a_nan_names_task_step_and_batch_and_leaves_what_was_before(
    tmp_path: Path, method: str, gradient: bool
) -> None:
    step = first_bad(0, 7)
    what = "gradient" if gradient else "loss"
    problem = DryToy(bad=7, gradient=gradient)
    with pytest.raises(NonFiniteError, match=f"the {what} of task c is nan at step {step} ") as e:
        train(problem, method, 0, tmp_path / "bad", threads=1)
    assert f"epoch 0, batch {step} of 6, samples " in str(e.value)
    assert (e.value.task, e.value.step, e.value.what) == ("c", step, what)
    found = read_checkpoint(tmp_path / "bad" / "checkpoint.pt")
    assert found["step"] == step
    assert step > 0, "there is something before it"
    before = stopped(DryToy(), method, tmp_path / "good", step)
    for key in ("model", "random", "balancer", "loss_sums", "weights"):
        same(found[key], before[key])
    same(found["optimizer"], before["optimizer"])


def test_a_nan_at_the_first_step_is_told_as_any_other(tmp_path: Path) -> None:
    bad = next(sample for sample in range(96) if first_bad(0, sample) == 0)
    with pytest.raises(NonFiniteError, match="the loss of task c is nan at step 0 "):
        train(DryToy(bad=bad), "ntkmtl-sr", 0, tmp_path / "run", threads=1)
    found = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert (found["step"], found["weights"].shape) == (0, (0, 3))
    whole = train(DryToy(), "ntkmtl-sr", 0, tmp_path / "whole", threads=1)
    run = train(DryToy(), "ntkmtl-sr", 0, tmp_path / "run", threads=1)
    assert run.result.test == whole.result.test


def test_a_mended_batch_lets_the_run_go_on_bit_equal(tmp_path: Path) -> None:
    whole = train(DryToy(), "ntkmtl-sr", 0, tmp_path / "whole", threads=1)
    with pytest.raises(NonFiniteError):
        train(DryToy(bad=7), "ntkmtl-sr", 0, tmp_path / "run", threads=1)
    # `bad` stands for what a data file says, and is not an option.
    run = train(DryToy(), "ntkmtl-sr", 0, tmp_path / "run", threads=1)
    assert run.result.test == whole.result.test


class Normed(DryToy):
    """With a batch norm, whose running means a batch of NaN would spoil."""

    def model(self, tasks: Any = None) -> Any:
        model = super().model(tasks)
        model.trunk.append(torch.nn.BatchNorm1d(16))
        return model

    def batch(self, split: Any, indices: torch.Tensor) -> Any:
        x, y, bad = super().batch(split, indices)
        return (x * float("nan") if bad else x), y, False


@pytest.mark.parametrize("method", ["ls", "famo", "ntkmtl-sr"])
def test_skipped_steps_are_counted_and_leave_nothing_behind(tmp_path: Path, method: str) -> None:
    recipe = replace(Toy.recipe, on_nonfinite="skip")
    run = train(Normed(bad=7), method, 0, tmp_path / "bad", recipe=recipe, threads=1)
    assert run.result.skipped_steps == 4
    assert run.result.steps == 24
    assert (run.steps.weights == 0).all(axis=1).sum() == 4
    assert all(math.isfinite(value) for value in run.result.test)
    none = train(Normed(), method, 0, tmp_path / "good", recipe=recipe, threads=1)
    assert none.result.skipped_steps == 0


class BadAfter(Normed):
    """What is looked at after a step is NaN where a sample is among the batch."""

    seen: torch.Tensor | None = None

    def model(self, tasks: Any = None) -> Any:
        model = super().model(tasks)
        model.trunk.register_forward_pre_hook(self._spoil)
        return model

    def _spoil(self, trunk: torch.nn.Module, given: tuple[torch.Tensor]) -> Any:
        (x,) = given
        after = trunk.training and self.seen is not None and torch.equal(x, self.seen)
        self.seen = x if trunk.training else self.seen
        here = (x == self.data["train"][0][7]).all(dim=1).any()
        return (x * float("nan"),) if after and here else None


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_a_step_counts_as_taken_whatever_the_losses_after_it(
    tmp_path: Path, on_nonfinite: Any
) -> None:
    recipe = replace(Toy.recipe, on_nonfinite=on_nonfinite)
    run = train(BadAfter(), "famo", 0, tmp_path / "run", recipe=recipe, threads=1)
    assert run.result.skipped_steps == (0 if on_nonfinite == "skip" else None)
    assert (run.steps.weights > 0).all()
    assert all(math.isfinite(value) for value in run.result.test)
    # FAMO learns nothing from that step, and goes on from there as it would have.
    step = first_bad(0, 7)
    state = stopped(BadAfter(), "famo", tmp_path / "cut", step + 1, recipe=recipe)
    before = stopped(BadAfter(), "famo", tmp_path / "before", step, recipe=recipe)
    logits = [found["balancer"]["weighting.logits"] for found in (before, state)]
    same(logits[1], logits[0])
    again = train(BadAfter(), "famo", 0, tmp_path / "cut", recipe=recipe, threads=1)
    assert again.result.test == run.result.test
    assert again.steps.weights.tolist() == run.steps.weights.tolist()


class Broken(DryToy):
    """From the pass after the fifth step on, one loss is NaN: each step takes two passes."""

    passes = 0

    def losses(self, outputs: Any, batch: Any, tasks: Any = None) -> Any:
        found = super().losses(outputs, batch, tasks)
        self.passes += 1
        return {**found, "c": found["c"] * float("nan")} if self.passes >= 10 else found


def test_a_loss_that_stays_nan_after_a_step_is_told_at_the_next(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="the loss of task c is nan at step 5 "):
        train(Broken(), "famo", 0, tmp_path / "bad", threads=1)
    found = read_checkpoint(tmp_path / "bad" / "checkpoint.pt")
    before = stopped(DryToy(), "famo", tmp_path / "good", 5)
    for key in ("model", "optimizer", "random", "loss_sums", "weights", "step"):
        same(found[key], before[key])


class Hopeless(DryToy):
    """Every batch is bad."""

    def batch(self, split: Any, indices: torch.Tensor) -> Any:
        x, y, _ = super().batch(split, indices)
        return (x * float("nan") if split == "train" else x), y, False


def test_a_network_that_took_no_step_is_no_result(tmp_path: Path) -> None:
    recipe = replace(Toy.recipe, on_nonfinite="skip")
    with pytest.raises(FloatingPointError, match="none of 24 steps could be taken"):
        train(Hopeless(), "ls", 0, tmp_path, recipe=recipe, threads=1)
    assert not (tmp_path / "result.json").exists()


# ------------------------------------------------------------------ trackers


def test_tensorboard_gets_losses_weights_eigenvalues_and_metrics(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    plain = train(DryToy(), "ntkmtl-sr", 0, tmp_path / "plain", threads=1)
    run = train(DryToy(), "ntkmtl-sr", 0, tmp_path / "run", threads=1, tracker="tensorboard")
    assert run.result.test == plain.result.test
    events = accumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for task in ("a", "b", "c"):
        assert {f"loss/{task}", f"weight/{task}", f"eigenvalue/{task}"} <= tags
        logged = [event.value for event in events.Scalars(f"weight/{task}")]
        assert logged == run.steps.weights[:, "abc".index(task)].tolist()
    assert {"learning_rate", "val/a", "val/b", "val/corr"} <= tags
    assert [event.step for event in events.Scalars("val/a")] == [5, 11, 17, 23]
    # What accelerate remembers does not keep a later run from another place.
    train(DryToy(), "ls", 0, tmp_path / "again", threads=1, tracker="tensorboard")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("ntkmtl.bench.training.log.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=f"the tracker {name} needs .*pip install"):
        train(Toy(), "ls", 0, tmp_path / "run", tracker=name)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracker must be one of tensorboard, .* Found 'paper'"):
        train(Toy(), "ls", 0, tmp_path, tracker="paper")


def test_wandb_stays_offline_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the library, which is not among those that tests need."""
    rows: list[dict[str, float]] = []
    modes: list[object] = []
    config = types.SimpleNamespace(update=lambda *_, **__: None)
    made = types.SimpleNamespace(
        log=lambda values, step=None, **_: rows.append({**values, "step": step}),
        finish=lambda: rows.append({"finished": 1.0}),
        config=config,
    )

    def init(**settings: object) -> Any:
        modes.append(settings.get("mode"))
        return made

    module = types.ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.init, module.config = init, config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    train(Toy(), "ntkmtl-sr", 0, tmp_path / "off", threads=1, tracker="wandb")
    assert {"loss/a", "weight/a", "eigenvalue/a", "step"} <= rows[0].keys()
    assert rows[-1] == {"finished": 1.0}
    monkeypatch.setenv("WANDB_MODE", "online")
    train(Toy(), "ls", 0, tmp_path / "on", threads=1, tracker="wandb")
    assert modes == ["offline", None], "the user's own setting is left to the library"


# ------------------------------------------------------------------ accelerate launch


@pytest.mark.parametrize(
    ("key", "told", "said"),
    [
        ("DYNAMO_BACKEND", "INDUCTOR", "compile with inductor; .* give --compile to ntkmtl"),
        ("DYNAMO_BACKEND", "aot_eager", "compile with aot_eager"),
        (
            "USE_FSDP",
            "true",
            "told to use FSDP, which ntkmtl's trainer does not",
        ),
        ("USE_DEEPSPEED", "true", "told to use DeepSpeed"),
        ("MIXED_PRECISION", "fp8", r"use fp8, .* give --precision fp32\|bf16\|fp16 to ntkmtl"),
        ("MIXED_PRECISION", "fp16", "the recipe says bf16; give --precision fp16"),
    ],
)
def test_what_accelerate_launch_was_told_and_is_not_done_is_refused(
    monkeypatch: pytest.MonkeyPatch, key: str, told: str, said: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{key}", told)
    with pytest.raises(ValueError, match=said) as refused:
        check_launch("bf16")
    assert "--precision fp8" not in str(refused.value)
    # Before processes meet, when the recipe is not known yet.
    if key != "MIXED_PRECISION":
        with pytest.raises(ValueError, match=said):
            check_launch()


def test_what_accelerate_launch_says_unasked_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_launch("bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launch("bf16")


# ------------------------------------------------------------------ the command line


def test_flags_reach_the_run(tmp_path: Path) -> None:
    asked = ["--precision", "bf16", "--accumulate", "2", "--clip", "1", "--on-nonfinite", "skip"]
    command = ["run", "toy_problem:Toy", "--method", "ls", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, *asked, "--device", "auto", "--json"])
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "toy/ls/seed-0/config.json").read_text())
    changed = {"precision": "bf16", "accumulate": 2, "clip": 1.0, "on_nonfinite": "skip"}
    assert {key: config["recipe"][key] for key in changed} == changed
    assert "precision fp32 to bf16" in config["recipe"]["description"]
    assert json.loads((tmp_path / "toy/ls/seed-0/result.json").read_text())["skipped_steps"] == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--device", "tpu"], "device must be one of auto, cpu, cuda"),
        (["--tracker", "paper"], "tracker must be one of"),
        (["--precision", "fp8"], "precision must be one of fp32, bf16, fp16"),
        (["--accumulate", "3"], "accumulate=3 must divide"),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_flags_that_make_no_sense_are_refused(
    tmp_path: Path, command: str, asked: list[str], said: str
) -> None:
    method = ["--method", "ls"] if command == "run" else ["--methods", "ls", "--seeds", "1"]
    result = CliRunner().invoke(
        app, [command, "toy_problem:Toy", *method, "--out", str(tmp_path / "runs"), *asked]
    )
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not (tmp_path / "runs").exists()
