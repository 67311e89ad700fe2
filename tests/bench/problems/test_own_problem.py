"""Custom problems: importing them, trying them out, and the example."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from ntkmtl.bench import problems
from ntkmtl.bench.problems import Metric, ProblemNotFoundError, Recipe, find_problem

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "own_problem" / "my_problem.py"


@pytest.fixture
def example() -> type[problems.Problem]:
    return type(problems.create(f"{EXAMPLE}:MyProblem"))


def test_example_keeps_the_protocol_and_leaves_the_random_state(example: Any) -> None:
    before = torch.get_rng_state()
    problems.check(example(noise=0.3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_example_is_compared_from_the_command_line(jobs: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ntkmtl", "compare", f"{EXAMPLE.name}:MyProblem"]
    command += ["--methods", "ls,ntkmtl-sr", "--seeds", "1", "--epochs", "2", "--jobs", jobs]
    command += ["--no-stl", "--out", str(tmp_path / "runs"), "--json"]
    command += ["--problem-option", "noise=0.5"]
    environment = {**os.environ, "NTKMTL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=EXAMPLE.parent, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"] == 2


def write(folder: Path, name: str, code: str) -> str:
    (folder / f"{name}.py").write_text(textwrap.dedent(code), encoding="utf-8")
    return f"{folder / name}.py"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1 +", "SyntaxError in .*line 1"),
        ("import no_such_thing_xyz", "No module named 'no_such_thing_xyz'"),
        ("\n1 / 0", "ZeroDivisionError in .*line 2: division by zero"),
        ("raise SystemExit(3)", "SystemExit"),
        ("x = 1", "has no class P that derives from"),
        (
            "from ntkmtl.bench.problems import Problem\nclass Q(Problem): pass",
            "has no class P .* It has Q",
        ),
        (
            "from ntkmtl.bench.problems import load_target\n"
            "class P(load_target('qm9-mini')):\n    def __init__(self): {}['images']",
            r"KeyError in .*\.py, line 3: 'images'",
        ),
        (
            "from ntkmtl.bench.problems import load_target\n"
            "class P(load_target('qm9-mini')):\n    def __init__(self): [] + 1",
            r"TypeError in .*\.py, line 3: can only concatenate",
        ),
        (
            "from ntkmtl.bench.problems import load_target\n"
            "class P(load_target('qm9-mini')):\n    def __init__(self, noise): pass",
            r"problem .*:P: .*missing 1 required positional argument: 'noise'",
        ),
        (
            "from ntkmtl.bench.problems import Problem\nclass P(Problem): pass",
            r"P does not define batch\(self, split.*; the property options; size",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    code: str, message: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = f"own_{abs(hash(request.node.name))}"
    path = write(tmp_path, name, code)
    with pytest.raises(ProblemNotFoundError, match=message):
        find_problem(f"{path}:P")
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py:P", "there is no such file"),
        ("json.py:", "is named module.path:ClassName"),
        ("nowhere.py", "is named module.path:ClassName"),
        ("no_such_module_xyz:P", "No module named"),
        ("qm9-mimi", "did you mean 'qm9-mini'"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str) -> None:
    with pytest.raises(ProblemNotFoundError, match=message):
        find_problem(name)


def test_a_file_named_as_a_module_in_use_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "json", "x = 1")
    with pytest.raises(problems.ProblemError, match="a module named json is imported already"):
        problems.create(f"{path}:P")


def test_unknown_option_of_ones_own(example: Any) -> None:
    with pytest.raises(ProblemNotFoundError, match="has no option 'nois'; it takes: noise"):
        find_problem(f"{EXAMPLE}:MyProblem", {"nois": 1})


def wrong(example: Any, **members: Any) -> problems.Problem:
    return type("Wrong", (example,), members)()


def outputs_cut(self: Any, tasks: Any = None) -> Any:
    model = self.__class__.__mro__[1].model(self, tasks)
    model.predict = lambda features: []
    return model


def detached(self: Any, tasks: Any = None) -> Any:
    model = self.__class__.__mro__[1].model(self, tasks)
    model.represent = lambda batch: model.trunk(batch[0]).detach()
    return model


def loss_of(value: Any) -> Any:
    return lambda self, outputs, batch, tasks=None: dict.fromkeys(tasks or self.tasks, value)


def short_evaluation(self: Any, model: Any, split: Any, tasks: Any = None) -> torch.Tensor:
    return torch.zeros(5)


def eval_mode(self: Any, model: Any, split: Any, tasks: Any = None) -> torch.Tensor:
    model.eval()
    return torch.ones(len(tasks or self.tasks))


def fails_on_test(self: Any, model: Any, split: Any, tasks: Any = None) -> torch.Tensor:
    if split == "test":
        raise FileNotFoundError("test.npz")
    return torch.ones(len(tasks or self.tasks))


def named_parameters(self: Any, tasks: Any = None) -> Any:
    model = self.__class__.__mro__[1].model(self, tasks)
    model.shared_parameters = model.trunk.named_parameters
    return model


def first_frozen(self: Any, tasks: Any = None) -> Any:
    model = self.__class__.__mro__[1].model(self, tasks)
    model.trunk[0].requires_grad_(False)
    return model


def only_height(self: Any, outputs: Any, batch: Any, tasks: Any = None) -> Any:
    """Right for all tasks and for the first one."""
    every = self.__class__.__mro__[1].losses
    return every(self, outputs, batch, tasks and ("height",))


def raising(self: Any, split: str, indices: Any) -> Any:
    raise KeyError("image_17.png")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tasks": ()}, "tasks must be a tuple of distinct names"),
        ({"tasks": ("a", "a")}, "tasks must be a tuple of distinct names"),
        ({"tasks": ("height",)}, "judges the task 'kind', which is not among"),
        ({"metrics": ()}, "metrics must be a tuple of Metric"),
        ({"metrics": ("height",)}, "metrics must hold Metric"),
        ({"recipe": {"epochs": 3}}, "recipe must be a Recipe"),
        ({"recipe": Recipe(2.5, 8, 0.1)}, "recipe: epochs must be a whole number. Found 2.5"),
        ({"recipe": Recipe(2, 8, "0.1")}, "recipe: learning_rate must be a number. Found '0.1'"),
        ({"recipe": Recipe(2, True, 0.1)}, "recipe: batch_size must be a whole number. Found True"),
        ({"metrics": (Metric("kind", "kind", unit=None),)}, "metric 'kind': unit must be a string"),
        (
            {"metrics": (Metric("kind", "kind", higher_is_better="no"),)},
            "higher_is_better must be True or False",
        ),
        ({"metrics": (Metric("", "kind"),)}, "name must not be empty"),
        ({"model": named_parameters}, r"must yield parameters. Found tuple of length 2"),
        ({"model": first_frozen}, None),
        ({"losses": only_height}, r"losses\(outputs, batch, \('kind',\)\) must have the keys kind"),
        ({"evaluate": fails_on_test}, r"evaluate\(model, 'test'\) raised FileNotFoundError"),
        ({"options": property(lambda self: {"a": {1, 2}})}, "options must hold JSON values"),
        ({"options": property(lambda self: {"a": float("nan")})}, "options must hold JSON values"),
        ({"notice": lambda self: 1 / 0}, r"notice\(\) raised ZeroDivisionError in .*line \d+"),
        ({"describe": lambda self: None}, r"describe\(\) must return a string. Found NoneType"),
        ({"size": lambda self, split: sys.exit(3)}, r"size\('train'\) raised SystemExit in .*: 3"),
        ({"size": lambda self, split: 0}, r"size\('train'\) must be a number above 0"),
        ({"batch": raising}, r"raised KeyError in .*test_own_problem.py, line \d+: 'image_17"),
        ({"model": lambda self, tasks=None: torch.nn.Linear(1, 1)}, "must return a MultiTaskModel"),
        ({"model": outputs_cut}, "predict must return a list of 2 outputs"),
        ({"model": detached}, "returned a tensor without gradient"),
        ({"losses": loss_of(None)}, None),
        ({"losses": loss_of(1.0)}, "must give task 'height' one number, .* Found float"),
        ({"losses": loss_of(torch.ones(3))}, r"Found a tensor of shape \(3,\)"),
        ({"losses": loss_of(torch.tensor(float("nan")))}, "a loss of nan"),
        ({"losses": loss_of(torch.tensor(1.0))}, "a loss without gradient"),
        ({"losses": loss_of(torch.ones((), requires_grad=True))}, "depends on no shared parameter"),
        ({"losses": lambda *a, **k: {"height": None}}, "must have the keys height, kind"),
        ({"losses": lambda *a, **k: [1.0]}, "must return a dict"),
        ({"evaluate": short_evaluation}, r"must return a tensor of shape \(2,\)"),
        ({"evaluate": eval_mode}, "left the network in eval mode"),
    ],
)
def test_what_is_wrong_is_said_before_training(example: Any, members: Any, message: Any) -> None:
    problem = wrong(example, **members)
    if message is None:
        problems.check(problem)
        return
    with pytest.raises(problems.ProblemError, match=message):
        problems.check(problem)


def test_a_recipe_of_another_kind_is_left_to_the_trial(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "own_recipe",
        "from ntkmtl.bench.problems import load_target\n"
        "class P(load_target('qm9-mini')):\n    recipe = {'epochs': 3}",
    )
    assert problems.known_recipe(f"{path}:P") is None
