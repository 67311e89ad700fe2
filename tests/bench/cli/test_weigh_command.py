"""``ntkmtl weigh``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["weigh", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_weights_with_intervals() -> None:
    code, out, err = run("qm9-mini", "--percent", "2", "--priority", "mu=3")
    assert code == 0, err
    assert out.startswith('loss_weights = {"mu": ')
    assert "95 % interval" in err
    assert "50 looks in 50 steps by ntkmtl" in err


def test_json() -> None:
    code, out, err = run("qm9-mini", "--json", "--method", "si", "--format", "chemprop")
    assert code == 0, err
    found = json.loads(out)
    assert found["problem"] == "qm9-mini"
    assert sum(found["weights"].values()) == pytest.approx(len(found["weights"]))
    assert found["text"].startswith("--task-weights ")
    for task, weight in found["weights"].items():
        assert found["low"][task] <= weight <= found["high"][task]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "mace", "--lr", "1e30"], "MACE has no losses"),  # before a step is trained
        (["--format", "toml"], "--format must be one of python, yaml"),
        (["--percent", "0"], "percent must be above 0"),
        (["--method", "graddrop"], "makes no weight per loss"),
        (["--method", "nonsense"], "nonsense"),
        (["--priority", "mu"], "--priority must be TASK=P"),
        (["--priority", "mass=2"], "unknown tasks"),
        (["--priority", "mu=2", "--priority", "mu=3"], "--priority is given twice for mu"),
        (["--lr", "1e30"], "lower the learning rate"),
        (["--minibatches", "2"], "--minibatches is for methods in training"),
        (["--problem-option", "shape=round"], "qm9-mini has no option 'shape'"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    code, _, err = run("qm9-mini", *arguments)
    assert code == 2
    assert message in err


FAILING = """
from ntkmtl.weighting import LossWeighting

class Raises(LossWeighting):
    def of_losses(self, losses, tasks):
        raise RuntimeError("a bug of mine")

class Refuses(LossWeighting):
    def of_losses(self, losses, tasks):
        raise ValueError("another")

class Prepares(LossWeighting):
    def prepare(self):
        pass

    def of_losses(self, losses, tasks):
        return losses * 0 + 1
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", "a bug of mine"),
        ("Refuses", "refuses_mine.py, line 10: another"),
        ("Prepares", "prepare()"),
    ],
)
def test_a_method_that_fails_is_told_in_words(name: str, said: str) -> None:
    Path(f"{name.lower()}_mine.py").write_text(FAILING)
    code, out, err = run("toy_problem:Toy", "--method", f"./{name.lower()}_mine.py:{name}")
    assert code == 2, err
    assert said in err
    assert "_mine.py" in err
    assert "Traceback" not in out + err
