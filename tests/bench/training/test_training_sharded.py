"""Two processes that hold half of the parameters each (FSDP2) give the run of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_sharded_worker as worker
from training_accelerate_worker import SmallQM9, numbers, stopped

import two_processes
from ntkmtl.bench.training import RunConflictError, load_run, train
from ntkmtl.bench.training.accelerating import told_to_shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained everything."""
    place = tmp_path_factory.mktemp("sharded")
    two_processes.run(worker.main, str(place))
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of them found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same_state(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two["model"].keys() == one["model"].keys()
    for name, value in one["model"].items():
        assert type(two["model"][name]) is torch.Tensor
        torch.testing.assert_close(two["model"][name], value, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-6, atol=0.0)
    # The file is that of one process: moments in whole.
    for mine, other in zip(
        two["optimizer"]["state"].values(), one["optimizer"]["state"].values(), strict=True
    ):
        assert mine["exp_avg"].shape == other["exp_avg"].shape
        torch.testing.assert_close(mine["exp_avg"], other["exp_avg"], rtol=1e-6, atol=1e-12)


def test_each_process_holds_half_between_steps(found: list[dict[str, Any]]) -> None:
    for mine in found:
        assert mine["memory"] == [56, 28, 56, 28]


@pytest.mark.parametrize("method", worker.CASES)
def test_two_that_share_parameters_give_the_run_of_one(
    found: list[dict[str, Any]], tmp_path: Path, method: str
) -> None:
    settings = {"method_options": worker.CASES[method]}
    one = stopped(SmallQM9(), method, tmp_path / "run", 6, **settings)
    same_state(found[0][f"{method}-state"], one)
    whole = numbers(train(SmallQM9(), method, 0, tmp_path / "whole", threads=1, **settings))
    two = found[0][f"{method}-whole"]
    for key in ("test", "val", "losses"):
        torch.testing.assert_close(
            torch.tensor(two[key]), torch.tensor(whole[key]), rtol=1e-6, atol=0.0
        )
    torch.testing.assert_close(two["weights"], whole["weights"], rtol=1e-6, atol=0.0)
    assert two["hardware"]["sharded"] is True
    assert "sharded" not in whole["hardware"]


@pytest.mark.parametrize("method", worker.CASES)
def test_a_stopped_run_ends_bit_equal(found: list[dict[str, Any]], method: str) -> None:
    for mine in found:
        one, other = mine[method], mine[f"{method}-whole"]
        assert torch.equal(one.pop("weights"), other.pop("weights"))
        assert one == other


@pytest.mark.parametrize("method", worker.MORE)
def test_methods_that_need_something_else(
    found: list[dict[str, Any]], tmp_path: Path, method: str
) -> None:
    settings = {"method_options": worker.MORE[method]}
    one = stopped(SmallQM9(), method, tmp_path / "run", 6, **settings)
    same_state(found[0][f"{method}-state"], one)


def test_parts_and_clipping(found: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe = replace(SmallQM9.recipe, accumulate=2, clip=0.5)
    settings = {"recipe": recipe, "method_options": {"minibatches": 2}}
    same_state(found[0]["parts"], stopped(SmallQM9(), "ntkmtl-sr", tmp_path / "run", 6, **settings))


def same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    one, other = dict(one), dict(other)
    assert one.pop("hardware") == {**other.pop("hardware"), "sharded": True}
    assert torch.equal(one.pop("weights"), other.pop("weights"))
    assert one == other


def test_a_task_without_labels_in_one_process(found: list[dict[str, Any]]) -> None:
    """The processes take different numbers of backward passes; the numbers are those of DDP."""
    for mine in found:
        same_run(mine["missing-True"], mine["missing-False"])


@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_a_nan_in_one_process_stops_both(
    found: list[dict[str, Any]], folder: Path, name: str
) -> None:
    assert found[0][name] == found[1][name]
    assert f"the {name} of task c is nan at step" in found[0][name]
    assert (folder / name / "checkpoint.pt").exists()
    for mine in found:
        assert mine[f"{name}-skip-True"]["skipped"] == 4
        same_run(mine[f"{name}-skip-True"], mine[f"{name}-skip-False"])


def test_accelerate_may_ask_for_it(found: list[dict[str, Any]], folder: Path) -> None:
    for mine in found:
        assert mine["told"]["hardware"]["sharded"] is True
        assert mine["told"]["test"] == mine["uw-whole"]["test"]
    assert load_run(folder / "told").config.hardware["processes"] == 2


def test_what_does_not_go_with_it_is_refused(
    found: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mine in found:
        assert "ntkmtl with source='exact' works with the whole" in mine["exact"]
        assert "gradient scaler of fp16" in mine["fp16"]
    assert not (folder / "no").exists()
    with pytest.raises(RunConflictError, match="sharded"):
        train(SmallQM9(), "ls", 0, folder / "left", threads=1)
    with pytest.raises(ValueError, match="this one was launched alone"):
        train(SmallQM9(), "ls", 0, folder / "alone", threads=1, shard=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(ValueError, match=r"FSDP of version 1.*--fsdp_version 2"):
        train(SmallQM9(), "ls", 0, folder / "alone", threads=1)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert told_to_shard()
