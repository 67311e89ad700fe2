"""Two processes that train one network give the run of one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_accelerate_worker as worker

import two_processes
from ntkmtl.bench.training import RunConflictError, load_run, train
from ntkmtl.bench.training.learner import join_minibatches
from ntkmtl.kernel import ExtendedNTK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained everything."""
    place = tmp_path_factory.mktemp("two")
    two_processes.run(worker.main, str(place))
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of them found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same_state(one: dict[str, Any], two: dict[str, Any], tolerance: float) -> None:
    assert one["model"].keys() == two["model"].keys()
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=tolerance, atol=1e-12)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("method", worker.METHODS)
def test_two_processes_give_the_run_of_one(
    found: list[dict[str, Any]], tmp_path: Path, method: str
) -> None:
    settings = {"method_options": worker.options(method)}
    one = worker.stopped(worker.SmallQM9(), method, tmp_path / "run", 6, **settings)
    same_state(one, found[0][f"{method}-state"], 1e-6)
    assert len(one["weights"]) == 6
    whole = worker.numbers(train(worker.SmallQM9(), method, 0, tmp_path / "whole", **settings))
    two = found[0][f"{method}-whole"]
    for key in ("test", "val", "losses"):
        torch.testing.assert_close(
            torch.tensor(two[key]), torch.tensor(whole[key]), rtol=1e-6, atol=0.0
        )
    torch.testing.assert_close(two["weights"], whole["weights"], rtol=1e-6, atol=0.0)
    assert two["hardware"]["processes"] == 2
    assert "processes" not in whole["hardware"]


@pytest.mark.parametrize("method", worker.METHODS)
def test_a_stopped_run_of_two_ends_bit_equal(found: list[dict[str, Any]], method: str) -> None:
    for mine in found:
        one, other = mine[method], mine[f"{method}-whole"]
        assert torch.equal(one.pop("weights"), other.pop("weights"))
        assert one == other
    # What the first process read is what the other was told.
    assert found[0][method] == found[1][method]


def test_parts_are_shared_out_as_well(found: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe = replace(worker.SmallQM9.recipe, accumulate=2)
    settings = {"recipe": recipe, "method_options": {"minibatches": 2}}
    one = worker.stopped(worker.SmallQM9(), "ntkmtl-sr", tmp_path / "run", 6, **settings)
    same_state(one, found[0]["parts"], 1e-6)


def test_files_are_those_of_one_process(folder: Path) -> None:
    files = ["config.json", "history.json", "model.safetensors", "result.json", "steps.npz"]
    assert sorted(path.name for path in (folder / "ls").iterdir()) == files
    assert load_run(folder / "ls").config.sizes["train"] == 240


def test_a_task_without_labels_in_one_process(found: list[dict[str, Any]]) -> None:
    one, two = found[0]["missing"], found[1]["missing"]
    assert torch.equal(one["weights"], two["weights"])
    assert bool((one["weights"] == 1).all()), "each batch has labels in one process at least"
    assert all(loss is not None for losses in one["losses"] for loss in losses)


@pytest.mark.parametrize("name", ["loss", "gradient"])
def test_a_nan_in_one_process_stops_both(
    found: list[dict[str, Any]], folder: Path, name: str
) -> None:
    assert found[0][name] == found[1][name]
    assert f"the {name} of task c is nan at step" in found[0][name]
    assert (folder / name / "checkpoint.pt").exists()
    for mine in found:
        # One batch of each of the four epochs has the sample.
        assert mine[f"{name}-skip"]["skipped"] == 4


def test_what_two_cannot_do_is_refused(found: list[dict[str, Any]], folder: Path) -> None:
    for mine in found:
        assert "graddrop works on the gradients entry by entry" in mine["alone"]
        assert "45 samples of a step cannot be cut into 2 equal slices" in mine["odd"]
    assert not (folder / "alone").exists()


def test_a_run_of_two_does_not_go_on_alone(folder: Path) -> None:
    with pytest.raises(RunConflictError, match="processes is 2, asked for 1"):
        train(worker.SmallQM9(), "ls", 0, folder / "ls-6", threads=1)


@pytest.mark.parametrize("full", [True, False])
def test_joined_mini_batches_have_the_kernel_of_their_union(full: bool) -> None:
    """Against gradients: of 2 tasks on 6 samples, in 4 uneven mini-batches joined to 2."""
    rows = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts, unions = [(0, 1), (1, 3), (3, 4), (4, 6)], [(0, 3), (3, 6)]

    def kernel(slices: list[tuple[int, int]]) -> ExtendedNTK:
        means = torch.stack([rows[:, a:b].mean(1) for a, b in slices], dim=1)
        shares = torch.tensor([[(b - a) / 6 for a, b in slices]] * 2, dtype=torch.float64)
        values = torch.einsum("iup,jvp->iujv", means, means)
        if full:
            return ExtendedNTK(values, shares=shares)
        return ExtendedNTK(blocks=torch.einsum("iuiv->iuv", values), shares=shares)

    joined, expected = join_minibatches(kernel(parts), 2), kernel(unions)
    torch.testing.assert_close(joined.blocks, expected.blocks, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(joined.shares, expected.shares, rtol=1e-9, atol=0.0)
    if full:
        torch.testing.assert_close(joined.values, expected.values, rtol=1e-9, atol=0.0)


@pytest.mark.slow
def test_torchrun_trains_one_run_from_the_command_line(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    asked = ["run", "qm9-mini", "--epochs", "1", "--method", "ntkmtl-sr", "--out"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    two = [*launcher, "--nproc-per-node", "2", "-m", "ntkmtl", *asked, str(tmp_path / "two")]
    one = [sys.executable, "-m", "ntkmtl", *asked, str(tmp_path / "one")]
    for command in (two, one):
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=300)
    runs = [load_run(tmp_path / name / "qm9-mini/ntkmtl-sr/seed-0") for name in ("two", "one")]
    assert runs[0].config.identity() == runs[1].config.identity()
    assert runs[0].result.test == pytest.approx(runs[1].result.test, rel=1e-4)
    # What the first process refuses ends the others too.
    refused = [*two[:-1], str(tmp_path / "no"), "--tracker", "paper"]
    said = subprocess.run(
        refused, env=environment, cwd=tmp_path, timeout=300, capture_output=True, text=True
    )
    assert said.returncode != 0
    assert "tracker must be one of" in said.stderr


@pytest.mark.slow
def test_accelerate_launch_starts_two_processes_on_the_cpu(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    launcher = [
        "accelerate",
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launcher += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    asked = ["run", "qm9-mini", "--epochs", "1", "--method", "ntkmtl-sr", "--out"]
    # What a user has configured says nothing here.
    environment = {**environment, "HF_HOME": str(tmp_path)}
    for command, name in (
        ([*launcher, "-m", "ntkmtl"], "two"),
        ([sys.executable, "-m", "ntkmtl"], "one"),
    ):
        subprocess.run(
            [*command, *asked, str(tmp_path / name)],
            check=True,
            env=environment,
            cwd=tmp_path,
            timeout=300,
        )
    runs = [load_run(tmp_path / name / "qm9-mini/ntkmtl-sr/seed-0") for name in ("two", "one")]
    assert runs[0].config.hardware["processes"] == 2
    assert runs[0].result.test == pytest.approx(runs[1].result.test, rel=1e-4)
