"""Runs as Ray tasks: what dies is begun again where it was, and the numbers are the local ones."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import start
from ray_children import compare_on_ray
from typer.testing import CliRunner

from ntkmtl.bench import reinforce
from ntkmtl.bench.cli.app import app
from ntkmtl.bench.jobs.engine import EngineError
from ntkmtl.bench.jobs.ray_engine import RayEngine
from ntkmtl.bench.jobs.ray_session import LOOPBACK
from ntkmtl.bench.jobs.reporters import Reporter
from ntkmtl.bench.reinforce import ReinforceRecipe
from ntkmtl.bench.runs.folder import read_checkpoint
from ntkmtl.bench.training import Comparison, SweepError, compare, load_run, load_runs
from ntkmtl.errors import MissingExtraError

TOY = "toy_problem:Toy"


class Notes(Reporter):
    """Keeps what is told, and calls a function once when so many runs have come so far."""

    def __init__(self, runs: int = 0, step: int = 0, act: Callable[[], None] | None = None) -> None:
        self.messages: list[str] = []
        self.steps: dict[int, list[int]] = {}
        self.labels: dict[int, str] = {}
        self.ended: dict[int, str] = {}
        self.before_message: dict[int, int] = {}
        self.runs, self.step, self.act = runs, step, act

    def run_started(self, run: int, label: str, steps: int) -> None:
        self.labels[run] = label

    def run_progress(self, run: int, done: int) -> None:
        self.steps.setdefault(run, []).append(done)
        under_way = [r for r, seen in self.steps.items() if r not in self.ended]
        if self.act and sum(max(self.steps[r]) >= self.step for r in under_way) >= self.runs:
            act, self.act = self.act, None
            act()

    def run_finished(self, run: int, seconds: float) -> None:
        self.ended[run] = "finished"

    def run_failed(self, run: int, why: str) -> None:
        self.ended[run] = why

    def message(self, text: str) -> None:
        self.messages.append(text)
        self.before_message = {run: len(seen) for run, seen in self.steps.items()}


def ask(out: Path, **changes: Any) -> Comparison:
    values: dict[str, Any] = {
        "problem": TOY,
        "methods": ["ntkmtl-sr", "uw"],
        "seeds": [0, 1],
        "out": out,
        "threads": 1,
        "checkpoint_seconds": 0.0,
        "single_task_baselines": False,
    }
    return Comparison(**{**values, **changes})


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def assert_same_bits(one: Path, other: Path) -> None:
    """Every number of every run is the same; only times may differ."""
    assert files(one) == files(other)
    runs = load_runs(one)[0]
    assert len(runs) == len(load_runs(other)[0]) > 0
    for run in runs:
        twin = load_run(other / run.path.relative_to(one))
        # The toy problem is told by an option where to crash.
        assert replace(run.config, created_with=None) == replace(twin.config, created_with=None)
        assert (run.result.test, run.result.val) == (twin.result.test, twin.result.val)
        assert run.result.steps == twin.result.steps
        for mine, yours in zip(run.history, twin.history, strict=True):
            assert (mine.train_losses, mine.val) == (yours.train_losses, yours.val)
        np.testing.assert_array_equal(run.steps.step, twin.steps.step)
        np.testing.assert_array_equal(run.steps.weights, twin.steps.weights)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes, each with room for one run, on 127.0.0.1 alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LOOPBACK.items():
            patch.setenv(name, value)
        # Such a cluster has no token to show; a user's own must not be taken for it.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        assert "ray" not in sys.modules, "Ray reads the variables when it is imported"
        from ray.cluster_utils import Cluster

        common = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
        made = Cluster()
        try:
            for left in (2, 1, 0):
                try:
                    made.add_node(**common)
                    made.add_node(**common)
                    break
                # Where others use the machine, Ray may find its nodes too slow.
                except Exception:
                    made.shutdown()
                    if not left:
                        raise
                    made = Cluster()
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the local engine leaves."""
    out = tmp_path_factory.mktemp("local")
    assert compare(ask(out)).trained == 4
    return out


def test_a_worker_that_dies_costs_its_run_only(cluster: Any, local: Path, tmp_path: Path) -> None:
    notes = Notes()
    out = tmp_path / "runs"
    # The first run of seed 1 ends its process at its first step.
    crash = {"crash": str(tmp_path / "crashed")}
    sweep = compare(
        ask(out, problem_options=crash), reporter=notes, engine=RayEngine(cluster.address)
    )
    assert (sweep.failures, sweep.trained, sweep.interrupted) == ((), 4, False)
    (told,) = notes.messages
    assert "seed 1: its worker died" in told
    assert_same_bits(local, out)


def test_agents_are_trained_by_ray_too(cluster: Any, tmp_path: Path) -> None:
    recipe = ReinforceRecipe(
        name="tiny",
        description="",
        tasks=("reach", "drawer-close"),
        goals="fixed",
        horizon=15,
        vector_steps=90,
        random_steps=30,
        evaluate_every=45,
        evaluation_episodes=1,
        hidden=(16,),
        batch_size=8,
        capacity=2000,
    )
    engine = RayEngine(address=cluster.address)
    found = reinforce.compare(recipe, ["ntkmtl"], [0], tmp_path / "ray", engine=engine)
    assert [job.label for job in found.finished] == ["ntkmtl seed 0"]
    reinforce.compare(recipe, ["ntkmtl"], [0], tmp_path / "local")
    assert_same_bits(tmp_path / "local", tmp_path / "ray")


OWN = """
from ntkmtl.weighting import LossWeighting


class Slower(LossWeighting):
    def of_losses(self, losses, tasks):
        return 1 / (2 + losses.abs())
"""


@pytest.mark.slow
def test_methods_of_the_user_are_trained_by_ray(cluster: Any, tmp_path: Path) -> None:
    """Workers find a file that only the process that asks has in its path."""
    file = tmp_path / "own_for_ray.py"
    file.write_text(OWN, encoding="utf-8")
    engine = RayEngine(cluster.address)
    methods = [f"{file}:Slower", "ls"]
    sweep = compare(ask(tmp_path / "ray", methods=methods, seeds=[0]), engine=engine)
    assert (sweep.failures, sweep.trained) == ((), 2)
    compare(ask(tmp_path / "local", methods=methods, seeds=[0]))
    assert_same_bits(tmp_path / "local", tmp_path / "ray")
    (own,) = [run for run in load_runs(tmp_path / "ray")[0] if ":" in run.config.method]
    assert (own.config.method, len(own.config.method_source)) == ("own_for_ray:Slower", 12)


def test_what_cannot_be_done_is_refused_before_anything_is_made(
    cluster: Any, tmp_path: Path
) -> None:
    with pytest.raises(SweepError, match=r"no node has 64 processors .*, found 2 nodes: 1 proc"):
        compare(ask(tmp_path), engine=RayEngine(cluster.address, cpus=64))
    with pytest.raises(SweepError, match=r"0\.5 GPUs"):
        compare(ask(tmp_path), engine=RayEngine(cluster.address, gpus=0.5))
    assert files(tmp_path) == [".ntkmtl.lock"]


def test_a_node_that_is_killed_costs_its_run_only(
    cluster: Any, local: Path, tmp_path: Path
) -> None:
    (node,) = cluster.worker_nodes
    out = tmp_path / "runs"
    kept: dict[str, int] = {}

    def kill() -> None:
        for place in out.rglob("checkpoint.pt"):
            kept[f"{place.parts[-3]} {place.parts[-2].replace('-', ' ')}"] = read_checkpoint(place)[
                "step"
            ]
        cluster.remove_node(node, allow_graceful=False)

    notes = Notes(runs=2, step=8, act=kill)
    sweep = compare(
        ask(out, problem_options={"pause": 0.15}), reporter=notes, engine=RayEngine(cluster.address)
    )
    assert notes.act is None, "the node was killed while both runs were under way"
    assert (sweep.failures, sweep.trained) == ((), 4)
    (died,) = notes.messages
    (number,) = (n for n, label in notes.labels.items() if died.startswith(f"{label}: its worker"))
    # Progress is told now and then, so that what was seen last may be before the checkpoint.
    again = notes.steps[number][notes.before_message[number] :]
    assert min(again) > kept[notes.labels[number]] > 0, "went on from its checkpoint"
    assert_same_bits(local, out)


def test_runs_that_wait_for_a_node_are_taken_back(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More at a time than the nodes have room for: Ray keeps the rest until a node is free.
    monkeypatch.setattr(RayEngine, "room", lambda engine: 4)
    notes = Notes(runs=1, step=2, act=lambda: signal.raise_signal(signal.SIGINT))
    sweep = compare(
        ask(tmp_path, problem_options={"pause": 0.5}),
        reporter=notes,
        engine=RayEngine(cluster.address),
    )
    assert notes.act is None
    assert len(notes.labels) == 4
    assert (sweep.interrupted, sweep.failures, sweep.trained) == (True, (), 0)
    assert sweep.unfinished == 4
    begun = {path.parent for path in tmp_path.rglob("config.json")}
    assert 0 < len(begun) < 4
    assert all((folder / "checkpoint.pt").exists() for folder in begun)


def test_a_ray_of_its_own_is_for_this_machine_alone_and_stops_on_ctrl_c(
    local: Path, tmp_path: Path
) -> None:
    process, connection = start(compare_on_ray, tmp_path)
    _, _, addresses, commands = connection.recv()
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    assert any("raylet" in command for command in commands)
    assert process.pid is not None
    # As a terminal does: to every process of the group.
    os.killpg(process.pid, signal.SIGINT)
    word = connection.recv()
    process.join(30)
    assert process.exitcode == 0
    _, interrupted, unfinished, children, folders = word
    assert (interrupted, unfinished) == (True, 4)
    assert not any("ray" in command for command in children)
    assert folders == []
    # Where it took longer than from one checkpoint to the next there are two.
    left = [name for name in files(tmp_path / "toy") if "previous" not in name]
    assert left == [f"ntkmtl-sr/seed-0/{name}" for name in ("checkpoint.pt", "config.json")]
    # What was begun on Ray goes on without it.
    notes = Notes()
    compare(ask(tmp_path), reporter=notes)
    assert notes.steps[0][0] > 1, "went on from the checkpoint"
    assert_same_bits(local, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpus": 0}, "at least 1 processor, found 0"),
        ({"gpus": -1.0}, "from 0 to 1 or a whole number, found -1"),
        ({"gpus": 1.5}, "from 0 to 1 or a whole number, found 1.5"),
        ({"jobs": 0}, "jobs must be at least 1, found 0"),
        ({"retries": -1}, "retries must not be negative"),
        ({"address": "ray://127.0.0.1:10001"}, "host:port .*Ray Client is not supported"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        RayEngine(**changes)


def test_no_cluster_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SweepError, match=f"cannot be joined at 127.0.0.1:{port}"):
        compare(ask(tmp_path), engine=RayEngine(f"127.0.0.1:{port}"))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ntkmtl\[ray\]'"):
        RayEngine()


def test_a_ray_that_does_not_start_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**settings: Any) -> None:
        folders.append(Path(os.environ["RAY_TMPDIR"]))
        # What Ray raises where its processes are not up in time.
        raise Exception("The current node timed out during startup.")

    folders: list[Path] = []
    monkeypatch.setattr("ray.init", fail)
    before = dict(os.environ)
    with pytest.raises(SweepError, match="Ray cannot be started: The current node timed out"):
        compare(ask(tmp_path), engine=RayEngine())
    assert dict(os.environ) == before
    assert len(folders) == 3
    assert not folders[0].exists()
    assert files(tmp_path) == [".ntkmtl.lock"]


@pytest.mark.parametrize("command", [["compare", TOY], ["run", TOY, "--method", "ls"]])
def test_options_of_ray_without_ray_are_refused(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--ray-gpus", "1"])
    assert result.exit_code == 2
    assert "--ray-gpus goes with --engine ray" in result.stderr
