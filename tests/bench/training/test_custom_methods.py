"""Methods outside the package wherever a name goes: trained, resumed, compared, tuned, shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_problem import Toy

from ntkmtl import weighting
from ntkmtl.bench.report import build_table, write_html
from ntkmtl.bench.runs import RunConflictError, load_run, load_runs
from ntkmtl.bench.training import Comparison, SweepError, compare, train
from ntkmtl.bench.training.comparison import named, named_all
from ntkmtl.bench.training.spec import method_source
from ntkmtl.weighting import LossWeighting

TOY = "toy_problem:Toy"
SOURCE = """
from ntkmtl.weighting import LossWeighting, SearchRange


class Inverse(LossWeighting):
    search_space = (SearchRange("power", 0.25, 4.0, 1.0, log=True),)

    def __init__(self, power: float = 1.0):
        self.power = power
        self._steps = 0

    def of_losses(self, losses, tasks):
        # A state, which checkpoints keep and which decides the numbers.
        self._steps += 1
        return (0.9 + losses) ** (-self.power * self._steps / 24)

    def _get_state(self):
        return {"steps": self._steps}

    def _set_state(self, state):
        self._steps = state["steps"]
"""


class Here(LossWeighting):
    """A method of this module."""

    def __init__(self, alpha: float = 1.0, names: tuple[str, ...] = ()) -> None:
        self.alpha = alpha
        self.names = names

    def of_losses(self, losses: Any, tasks: Any) -> Any:
        return 1 / (self.alpha + losses)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a file with a method, and let it be imported anew."""
    folder = tmp_path / "code"
    folder.mkdir()
    path = folder / "custom_inverse.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(folder)
    # What the loader adds to sys.path goes with the test.
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield path
    sys.modules.pop("custom_inverse", None)


def ask(out: Path, *methods: Any, **changes: Any) -> Comparison:
    values: dict[str, Any] = {"problem": TOY, "methods": methods, "seeds": [0], "out": out}
    return Comparison(**{**values, "epochs": 2, **changes})


# --------------------------------------------------------------------------- names


def test_names_of_what_is_given(file: Path) -> None:
    assert named("ls") == ("ls", {})
    assert named("./custom_inverse.py:Inverse") == ("custom_inverse:Inverse", {})
    kind: Any = weighting.load("./custom_inverse.py:Inverse")
    assert named(kind(2.0)) == ("custom_inverse:Inverse", {"power": 2.0})
    assert named(weighting.create("custom_inverse:Inverse", power=3)) == (
        "custom_inverse:Inverse",
        {"power": 3},
    )
    assert named(Here()) == (f"{__name__}:Here", {})
    assert named(weighting.create("ntkmtl-tk", exponent=1.0)) == ("ntkmtl-tk", {"exponent": 1.0})
    # A class of the package that was called by hand.
    assert named(type(weighting.create("fairgrad"))()) == ("fairgrad", {})


def test_what_is_no_method(file: Path) -> None:
    class Local(Here):
        pass

    with pytest.raises(ValueError, match=r"Local is not to be found in its module .*top level"):
        named(Local())
    with pytest.raises(TypeError, match=r"found the class Here; make one: Here\(\)"):
        named(Here)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a method is a name or a weighting, found 3"):
        named(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NTKMTL has several names, use one of them: ntkmtl, "):
        named(type(weighting.create("ntkmtl"))())


def test_each_method_once_with_its_options(file: Path) -> None:
    path = "./custom_inverse.py:Inverse"
    found = named_all(["ls", path, Here(2.0)], {path: {"power": 2}, "ls": {"every": 2}})
    assert found == (
        ["ls", "custom_inverse:Inverse", f"{__name__}:Here"],
        {
            "custom_inverse:Inverse": {"power": 2},
            "ls": {"every": 2},
            f"{__name__}:Here": {"alpha": 2.0},
        },
    )
    assert named_all(["all", "ls"], {})[0] == [n for n in weighting.names() if n != "stl"]
    with pytest.raises(ValueError, match=r"Here is given twice, with settings {} and {'alpha': 2"):
        named_all([Here(), Here(2.0)], {})
    with pytest.raises(ValueError, match=r"alpha of .*Here is given twice: to the weighting, and"):
        named_all([Here(2.0)], {f"{__name__}:Here": {"alpha": 3.0}})


def test_the_source_of_a_method(file: Path) -> None:
    assert method_source("ls") == ""
    before = method_source("./custom_inverse.py:Inverse")
    assert len(before) == 12
    file.write_text(SOURCE.replace("0.9", "0.8"), encoding="utf-8")
    assert method_source("custom_inverse:Inverse") != before
    made: Any = type("Made", (Here,), {"__module__": "__main__"})
    sys.modules["__main__"].Made = made  # type: ignore[attr-defined]
    try:
        # As in a notebook: a class of no file.
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(sys.modules["__main__"], "__file__", raising=False)
            with pytest.raises(ValueError, match=r"__main__:Made is defined in no file.*put it in"):
                method_source("__main__:Made")
    finally:
        del sys.modules["__main__"].Made  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- runs


def test_a_run_by_name_by_file_and_by_instance_is_one(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kind: Any = weighting.load("./custom_inverse.py:Inverse")
    mine = kind(power=0.5)
    first = train(Toy(), mine, 0, out, threads=1)
    assert mine.state_dict() == {"steps": 0}, "the run makes a weighting of its own"
    assert first.config.method == "custom_inverse:Inverse"
    assert first.config.method_options == {"power": 0.5}
    assert first.config.method_source == method_source("custom_inverse:Inverse")
    written = (out / "result.json").stat().st_mtime_ns
    for method, options in (
        ("custom_inverse:Inverse", {"power": 0.5}),
        ("./custom_inverse.py:Inverse", {"power": 0.5}),
        (weighting.create("custom_inverse:Inverse", power=0.5), {}),
    ):
        again = train(Toy(), method, 0, out, method_options=options)
        assert (again.path / "result.json").stat().st_mtime_ns == written
    with pytest.raises(RunConflictError, match=r"method_options.power is 0.5, asked for 2"):
        train(Toy(), kind(power=2.0), 0, out)
    file.write_text(SOURCE + "\n# changed\n", encoding="utf-8")
    with pytest.raises(RunConflictError, match=r"method_source is '\w+', asked for '\w+'"):
        train(Toy(), mine, 0, out)


def test_registered_methods_keep_their_identity(tmp_path: Path) -> None:
    run = train(Toy(), weighting.create("fairgrad", alpha=1.0), 0, tmp_path / "run", threads=1)
    config = json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))
    assert (config["method"], config["method_options"]) == ("fairgrad", {"alpha": 1.0})
    assert "method_source" not in config
    assert run.config.method_source == ""


def test_settings_that_are_no_json(tmp_path: Path) -> None:
    class Opaque:
        pass

    with pytest.raises(ValueError, match="must be JSON values"):
        train(Toy(), Here(names=Opaque()), 0, tmp_path / "run")  # type: ignore[arg-type]


# --------------------------------------------------------------------------- comparisons


def test_compared_with_baselines_table_and_page(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    asked = ask(
        out,
        "ls",
        "./custom_inverse.py:Inverse",
        Here(alpha=0.5, names=("a", "b")),
        method_options={"./custom_inverse.py:Inverse": {"power": 2}},
        jobs=2,
    )
    here = f"{__name__}:Here"
    assert asked.methods == ["ls", "custom_inverse:Inverse", here]
    sweep = compare(asked)
    assert (sweep.trained, sweep.failures) == (6, ())
    assert compare(asked).trained == 0
    folder = out / "toy" / "custom_inverse%3AInverse" / "seed-0"
    assert load_run(folder).config.method_options == {"power": 2}
    table = build_table(out)
    assert [row.method for row in table.rows] == ["stl", "ls", "custom_inverse:Inverse", here]
    assert [row.label for row in table.rows] == ["stl", "ls", "Inverse", "Here"]
    assert all(row.delta_m is not None for row in table.rows[1:])
    source = method_source("custom_inverse:Inverse")
    note = f"Inverse: custom_inverse:Inverse, a class outside ntkmtl, its source {source}."
    assert note in table.notes
    write_html(out, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert note in text
    assert '"Inverse"' in text or ">Inverse<" in text


def test_two_classes_of_one_name_keep_their_modules(file: Path, tmp_path: Path) -> None:
    (file.parent / "custom_other.py").write_text(SOURCE, encoding="utf-8")
    try:
        compare(
            ask(
                tmp_path / "runs",
                "./custom_inverse.py:Inverse",
                "./custom_other.py:Inverse",
                single_task_baselines=False,
                epochs=1,
            )
        )
    finally:
        sys.modules.pop("custom_other", None)
    labels = [row.label for row in build_table(tmp_path / "runs").rows]
    assert labels == ["custom_inverse:Inverse", "custom_other:Inverse"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("./nowhere.py:Inverse", "method file ./nowhere.py: there is no such file"),
        ("./custom_inverse.py:Nothing", "has no class Nothing that derives from"),
        ("./custom_inverse.py:Inverse", "power must be a number. Found power='x'"),
        (3, "a method is a name or a weighting, found 3"),
    ],
)
def test_refused_before_anything_is_trained(
    file: Path, tmp_path: Path, method: Any, message: str
) -> None:
    with pytest.raises(SweepError, match=message):
        compare(ask(tmp_path / "runs", "ls", method, method_options={str(method): {"power": "x"}}))
    assert not (tmp_path / "runs").exists()


def test_a_changed_source_is_another_method(file: Path, tmp_path: Path) -> None:
    asked = ask(tmp_path / "runs", "./custom_inverse.py:Inverse", single_task_baselines=False)
    compare(asked)
    file.write_text(SOURCE.replace("0.9", "0.8"), encoding="utf-8")
    with pytest.raises(SweepError, match=r"holds another run: method_source is .* or --overwrite"):
        compare(asked)


def test_tuned_over_its_search_space(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from ntkmtl.bench.search import Search, tune

    out = tmp_path / "runs"
    sweep = tune(Search(ask(out, "./custom_inverse.py:Inverse", epochs=1), trials=2))
    assert (sweep.failures, sweep.unfinished) == ((), 0)
    (row,) = [row for row in build_table(out).rows if not row.is_baseline]
    assert row.label == "Inverse (tuned, 2 trials)"
    assert row.tuning is not None
    assert set(row.tuning.parameters) == {"learning_rate", "options.power"}


SPACES = """
from ntkmtl.weighting import LossWeighting, SearchRange

class Mine(LossWeighting):
    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def of_losses(self, losses, tasks):
        return losses ** -self.power

class NoRange(Mine):
    search_space = ("power",)

class NoTuple(Mine):
    search_space = SearchRange("power", 0.1, 1.0, start=1.0)

class NoSetting(Mine):
    search_space = (SearchRange("pover", 0.1, 1.0, start=1.0),)

class Outside(Mine):
    search_space = (SearchRange("power", 0.1, 1.0, start=2.0),)

class Text(Mine):
    search_space = (SearchRange("power", "a", 1.0, start=1.0),)

class Logarithm(Mine):
    search_space = (SearchRange("power", 0, 1.0, start=1.0, log=True),)

class Twice(Mine):
    search_space = (SearchRange("power", 0.1, 1.0, start=1.0),) * 2
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoRange", "must hold SearchRange, found 'power'"),
        ("NoTuple", "must hold SearchRange in a tuple"),
        ("NoSetting", "has no option 'pover'"),
        ("Outside", "power must have numbers low <= start <= high"),
        ("Text", "power must have numbers low <= start <= high"),
        ("Logarithm", "low must be above 0, found 0"),
        ("Twice", "names 'power' twice"),
    ],
)
def test_a_wrong_search_space_is_refused_before_anything_is_trained(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from ntkmtl.bench.search import Search, tune

    monkeypatch.chdir(tmp_path)
    file = Path(f"space_{name.lower()}.py")
    file.write_text(SPACES, encoding="utf-8")
    with pytest.raises(SweepError, match=said):
        tune(Search(ask(tmp_path / "runs", f"./{file}:{name}", epochs=1), trials=2))
    assert not (tmp_path / "runs").exists()


SCRIPT = """
import sys
from ntkmtl.bench.training import Comparison, compare
from ntkmtl.weighting import LossWeighting


class Mine(LossWeighting):
    def __init__(self, alpha=1.0):
        self.alpha = alpha

    def of_losses(self, losses, tasks):
        return 1 / (self.alpha + losses)


if __name__ == "__main__":
    sweep = compare(
        Comparison(
            problem="toy_problem:Toy",
            methods=[Mine(2.0)],
            seeds=[0, 1],
            out=sys.argv[1],
            jobs=2,
            epochs=1,
            single_task_baselines=False,
        )
    )
    assert not sweep.failures, sweep.failures
    print(sweep.trained)
"""


def test_a_class_of_the_script_itself_in_worker_processes(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    out = tmp_path / "runs"
    command = [sys.executable, str(script), str(out)]
    for trained in ("2", "0"):
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert (ended.returncode, ended.stdout.strip()) == (0, trained), ended.stderr
    runs = load_runs(out)[0]
    assert [run.config.method for run in runs] == ["__main__:Mine"] * 2
    assert [run.config.method_options for run in runs] == [{"alpha": 2.0}] * 2
    assert [row.label for row in build_table(out).rows] == ["Mine"]


# --------------------------------------------------------------------------- command line


def ntkmtl(environment: dict[str, str], cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ntkmtl", *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def done(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def test_killed_and_resumed_by_the_command_line(
    file: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    methods = "ls,./custom_inverse.py:Inverse,custom_inverse:Inverse"
    arguments = ["compare", TOY, "--methods", methods]
    arguments += ["--set", "./custom_inverse.py:Inverse.power=0.5", "--no-stl", "--seeds", "1"]
    arguments += ["--jobs", "1", "--epochs", "4", "--problem-option"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done(ntkmtl(environment, file.parent, *arguments, "pause=0.0", "--out", str(whole)))
    process = ntkmtl(environment, file.parent, *arguments, "pause=0.2", "--out", str(parts))
    folder = parts / "toy" / "custom_inverse%3AInverse" / "seed-0"
    deadline = time.monotonic() + 120
    while not (folder / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (folder / "config.json").exists()
    assert not (folder / "result.json").exists()
    shown = done(ntkmtl(environment, file.parent, *arguments, "pause=0.0", "--out", str(parts)))
    assert "Inverse" in shown
    # A table needs neither the file nor the module.
    file.unlink()
    assert "Inverse" in done(ntkmtl(environment, tmp_path, "table", str(parts)))
    one, two = (
        {run.config.method: run.result.test for run in load_runs(out)[0]} for out in (whole, parts)
    )
    assert one == two
    assert len(one) == 2


def test_run_takes_a_file(file: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = ["run", TOY, "--method", "custom_inverse:Inverse", "--set", "power=2"]
    arguments += ["--epochs", "1", "--out", str(tmp_path / "runs"), "--json"]
    (found,) = json.loads(done(ntkmtl(environment, file.parent, *arguments)))
    assert found["config"]["method"] == "custom_inverse:Inverse"
    assert found["config"]["method_options"] == {"power": 2}
    process = ntkmtl(environment, file.parent, *[a.replace("power", "pow") for a in arguments])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "no option 'pow'; did you mean 'power'" in err


ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "methods" / "custom.md").read_text(encoding="utf-8")


def test_the_page_shows_the_example_as_it_is() -> None:
    example = (ROOT / "examples" / "own_method" / "equal_norms.py").read_text(encoding="utf-8")
    code = example[example.index("import torch") :]
    assert f"```python\n{code}```" in PAGE


def test_the_command_of_the_page(tmp_path: Path, environment: dict[str, str]) -> None:
    (command,) = (line for line in PAGE.splitlines() if line.endswith("--out own-runs"))
    arguments = [*command.split()[1:-1], str(tmp_path / "runs")]
    arguments[arguments.index("--seeds") + 1] = "1"
    done(ntkmtl(environment, ROOT, *arguments, "--epochs", "1", "--no-stl"))
    rows = build_table(tmp_path / "runs").rows
    assert [row.label for row in rows] == ["ls", "imtl-g", "EqualNorms"]
