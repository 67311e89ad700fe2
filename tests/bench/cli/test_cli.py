from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import call, good
from typer.testing import Result

from ntkmtl import __version__
from ntkmtl.bench.cli.study import _confirmed
from ntkmtl.bench.cli.sweeps import exit_as
from ntkmtl.bench.study.runner import StudyEstimate
from ntkmtl.bench.training import Sweep

TOY = "toy_problem:Toy"
TRAINING = Path(__file__).parents[1] / "training"
COMMANDS = ["compare", "run", "table", "report", "paper", "methods", "problems", "data"]


def compare_toy(*more: str | Path) -> Result:
    return call("compare", TOY, "--jobs", "1", "--epochs", "2", "--seeds", "1", *more)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["problems"],
        ["data"],
        ["paper", "show"],
        ["paper", "show", "3"],
        ["compare", "--help"],
    ],
)
def test_torch_is_not_imported_for_this(arguments: list[str]) -> None:
    done = python(
        "import sys; from ntkmtl.bench.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'torchjd', 'matplotlib', 'plotly'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_a_missing_extra_is_told_with_the_line_to_type(module: str) -> None:
    done = python(
        f"import sys; sys.modules[{module!r}] = None; from ntkmtl.bench.cli import main; main()"
    )
    assert done.returncode == 2
    assert "pip install 'ntkmtl[bench]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_of_every_command() -> None:
    overview = good("--help").output
    for command in COMMANDS:
        assert command in overview
        assert "Usage" in good(command, "--help").output
    assert "Usage" in call().output


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(
    given: dict[str, str], expected: str
) -> None:
    code = (
        "import atexit, os, sys; sys.argv = ['ntkmtl', '--version'];"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules));"
        "from ntkmtl.bench.cli import main; main()"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{expected} False"


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ntkmtl", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == __version__


def test_methods_problems_and_data() -> None:
    lines = good("methods").output.splitlines()
    assert any(line.startswith("ntkmtl-sr ") for line in lines)
    listed = json.loads(good("methods", "--json").output)
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in listed]
    assert {"name", "summary", "requires", "paper"} == set(listed[0])
    assert good("problems").output.startswith("qm9-mini ")
    listed = [one["name"] for one in json.loads(good("problems", "--json").output)]
    assert (listed[0], listed[-1]) == ("qm9-mini", "mt10")
    (qm9,) = (e for e in json.loads(good("data", "--json").output) if e["problem"] == "qm9-mini")
    assert qm9["source"] == "shipped with the package"
    assert 0 < qm9["bytes"] <= 2_000_000
    assert "shipped" in good("data").output


def test_paper() -> None:
    assert "Table 3" in good("paper", "show").output
    assert "NTKMTL-SR" in good("paper", "show", "3").output
    assert len(json.loads(good("paper", "show", "--json").output)) == 12
    table = json.loads(good("paper", "show", "3", "--json").output)
    assert table["rows"][0]["Method"] == "STL"
    refused = call("paper", "show", "5")
    assert refused.exit_code == 2
    assert "no Table 5" in refused.stderr
    assert json.loads(good("paper", "check", "--json").output)


@pytest.mark.parametrize("command", ["compare", "run", "tune", "analyze"])
def test_a_folder_that_cannot_be_used_is_told_at_once(tmp_path: Path, command: str) -> None:
    loop, broken, file = tmp_path / "loop", tmp_path / "broken", tmp_path / "file"
    loop.symlink_to(loop)
    broken.symlink_to(tmp_path / "gone")
    file.write_text("")
    method = ["--method", "ls"] if command == "run" else []
    for place, said in (
        (loop, "--out must be a folder, found"),
        (broken, "which is not there"),
        (file, "is a file"),
    ):
        refused = call(command, TOY, *method, "--out", str(place))
        assert refused.exit_code == 2
        assert said in refused.stderr, refused.stderr


def test_compare_ends_with_the_table_and_the_page(tmp_path: Path) -> None:
    result = compare_toy("--methods", "ls,ntkmtl-sr", "--out", "runs")
    assert result.exit_code == 0, result.output
    assert "ntkmtl-sr" in result.stdout
    assert "5 runs to train" in result.stderr
    assert f"Report: {Path('runs') / 'report.html'}" in result.stderr
    assert (tmp_path / "runs" / "report.html").stat().st_size > 10_000

    again = compare_toy("--methods", "ls,ntkmtl-sr", "--out", "runs", "--json")
    assert again.exit_code == 0
    told = json.loads(again.stdout)
    assert (told["trained"], told["complete_before"]) == (0, 5)
    assert told["report"] == str(Path("runs") / "report.html")
    assert [row["method"] for row in told["table"]["rows"]] == ["stl", "ls", "ntkmtl-sr"]

    outputs = {f: good("table", "runs", "--format", f).stdout for f in FORMATS}
    assert len(set(outputs.values())) == len(FORMATS)
    assert outputs["text"] == result.stdout
    assert outputs["json"] == good("table", "runs", "--json").stdout
    page = tmp_path / "elsewhere.html"
    assert good("report", "runs", "-o", page).stdout.strip() == str(page)
    assert page.exists()
    assert json.loads(good("report", "runs", "--json").stdout)["report"]


FORMATS = ["text", "markdown", "latex", "csv", "json"]


def test_a_flag_that_is_set_is_no_string(tmp_path: Path) -> None:
    chosen = ("--methods", "ntkmtl-sr", "--seeds", "1", "--no-stl", "--set")
    done = compare_toy(*chosen, "ntkmtl-sr.weight_heads=False", "--out", "o")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "o/toy/ntkmtl-sr/seed-0/config.json").read_text())
    assert config["method_options"]["weight_heads"] is False
    done = compare_toy(*chosen, "ntkmtl-sr.weight_heads=perhaps", "--out", "p")
    assert done.exit_code != 0
    assert "weight_heads must be True, False or None, found 'perhaps'" in done.output
    assert not (tmp_path / "p/toy").exists()


def test_settings_reach_their_places(tmp_path: Path) -> None:
    result = call(
        *("compare", TOY, "--jobs", "1", "--epochs", "2", "--seed-list", "3, 7", "--no-stl"),
        *("--methods", "ntkmtl-sr,ls", "--out", "o"),
        *("--set", "ntkmtl-sr.minibatches=8", "--set", "ntkmtl-sr.exponent=0.75"),
        *("--batch-size", "24", "--lr", "0.05", "--problem-option", "data_seed=4"),
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "o/toy").iterdir()) == ["ls", "ntkmtl-sr"]
    config = json.loads((tmp_path / "o/toy/ntkmtl-sr/seed-7/config.json").read_text())
    assert config["method_options"] == {"minibatches": 8, "exponent": 0.75}
    assert config["problem_options"]["data_seed"] == 4
    recipe = config["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["learning_rate"]) == (2, 24, 0.05)
    assert recipe["reduced"] is True


def test_run(tmp_path: Path) -> None:
    result = good("run", TOY, "--method", "ls", "--seed", "2", "--out", "o", "--epochs", "1")
    assert "ρ" in result.stdout
    assert "eV" in result.stdout
    assert (tmp_path / "o/toy/ls/seed-2/result.json").exists()
    assert not (tmp_path / "o/compare.json").exists()
    arguments = ["run", TOY, "--method", "stl", "--out", "o", "--epochs", "1"]
    (told,) = json.loads(good(*arguments, "--task", "b", "--json").stdout)
    assert told["config"]["tasks"] == ["b"]
    assert list(told["test"]) == ["b"]
    assert len(json.loads(good(*arguments, "--json").stdout)) == 3


def test_a_failed_run_is_told_at_the_end(tmp_path: Path) -> None:
    result = call(
        *("compare", TOY, "--jobs", "1", "--seeds", "1", "--methods", "ls,si", "--out", "o"),
        *("--problem-option", "poison=b", "--no-stl"),
    )
    assert result.exit_code == 1
    assert "Failed: ls seed 0: NonFiniteError: the loss of task b is nan" in result.stderr
    assert str(Path("o/toy/ls/seed-0/failure.json")) in result.stderr
    assert "No table:" in result.stderr
    # Elsewhere: it would go on from right before the NaN, and the poison counts this run's batches.
    arguments = ["--out", "p", "--problem-option", "poison=b", "--json"]
    result = call("run", TOY, "--method", "ls", *arguments)
    assert result.exit_code == 1
    told = json.loads(result.stdout)["error"]
    assert told.startswith("ls seed 0: NonFiniteError: the loss of task b is nan")


def test_runs_that_were_left_untrained_are_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ntkmtl", "compare", TOY])
    sweep = Sweep("toy", Path("runs"), 2, 0, 0, 3, (), False, 1.0)
    with pytest.raises(typer.Exit) as end:
        exit_as(sweep)
    assert end.value.exit_code == 1
    said = "3 runs were not trained. Go on with: ntkmtl compare toy_problem:Toy"
    assert said in capsys.readouterr().err
    exit_as(replace(sweep, unfinished=0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", TOY, "--methods", "nash"], "unknown method 'nash'"),
        (["compare", TOY, "--set", "ntkmtl-sr.nothing=1"], "nothing"),
        (["compare", TOY, "--set", "minibatches=8"], "METHOD.KEY=VALUE"),
        (["compare", TOY, "--seed-list", "1,x"], "whole numbers"),
        (["compare", TOY, "--problem-option", "data_seed"], "KEY=VALUE"),
        (["compare", TOY, "--problem-option", "sead=1"], "sead"),
        (["compare", TOY, "--lr", "-1"], "--lr must be positive and finite, found -1"),
        (["compare", TOY, "--lr", "inf"], "--lr must be positive and finite, found inf"),
        (["compare", TOY, "--threads", "1000000"], "threads must be at most"),
        (["compare", TOY, "--out", "/proc/x/y"], "nothing can be made in /"),
        (["weigh", TOY, "--threads", "1000000"], "threads must be at most"),
        (["analyze", TOY, "--groups", "50"], "--groups must be at most the number of tasks, 3"),
        (["compare", TOY, "--clip", "inf"], "--clip must be finite, found inf"),
        (["compare", TOY, "--seed-list", str(2**64)], "numbers from 0 to 2^64 - 1, found"),
        (["compare", TOY, "--seed-list", "-1"], "numbers from 0 to 2^64 - 1, found -1"),
        (["compare", TOY, "--seeds", "2", "--seed-list", "5"], "by --seeds or by --seed-list"),
        (["tune", TOY, "--seed-list", "5", "--seeds", "2"], "by --seeds or by --seed-list"),
        (["analyze", TOY, "--seeds", "2", "--seed-list", "5"], "by --seeds or by --seed-list"),
        (
            ["compare", "table", "--csv", "x.csv", "--problem-option", "csv=y.csv"],
            "csv is given twice: by its own option and by --problem-option csv=",
        ),
        (
            ["study", "--report", ".", "--dry-run"],
            "--dry-run is for a study to run, not for --report",
        ),
        (["run", TOY, "--method", "ls", "--seed", str(2**64)], "--seed"),
        (["compare", TOY, "--set", "ls.trunk=1"], "--set cannot change trunk of ls"),
        (
            ["compare", TOY, "--set", "ntkmtl-sr.minibatches=999"],
            "minibatches of ntkmtl-sr must be at most the batch size",
        ),
        (["compare", "qm9-mini", "--set", "ntkmtl-sr.minibatches=61"], "size, 60, found 61"),
        (["compare", "qm9", "--minibatches", "9", "--batch-size", "8"], "size, 8, found 9"),
        (["compare", "table", "--csv", "x.csv", "--methods", "lss"], "did you mean 'ls'"),
        (["run", "table", "--csv", "x.csv", "--method", "lss"], "did you mean 'ls'"),
        (["tune", "table", "--csv", "x.csv", "--methods", "lss"], "did you mean 'ls'"),
        (["run", "mt10", "--method", "ls"], "trained by `ntkmtl compare mt10`"),
        (["compare", "qm8", "--methods", "ls"], "is named 'qm8'"),
        (["compare", "no_such:Thing"], "no_such"),
        (["compare", TOY, "--seeds", "0"], "--seeds"),
        (["run", TOY, "--method", "ls", "--task", "a"], "--task goes with"),
        (["run", TOY, "--method", "stl", "--task", "z"], "no task 'z'"),
        (["run", TOY, "--method", "stl", "--record", "1"], "single-task networks have none"),
        (["run", TOY, "--method", "all"], "run trains one method"),
        (["compare", TOY, "--methods", ","], "at least one method is needed"),
        (["data", "--source", "x"], "--source goes with a PROBLEM"),
        (["table", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["table", "."], "no finished"),
        (["table", ".", "--format", "docx"], "docx"),
    ],
)
def test_what_users_get_wrong_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "more",
    [
        ("--set", "minibatches=9", "--batch-size", "8"),
        ("--minibatches", "64", "--batch-size", "8"),
        ("--batch-size", "1"),
    ],
)
def test_more_minibatches_than_a_table_has_in_a_batch(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    """The size of the batch is known once the table is read."""
    rows = [f"{n * n % 97},{n % 7 + 0.5},{n % 5}.5" for n in range(80)]
    Path("t.csv").write_text("\n".join(["a,y,w", *rows]) + "\n")
    made = ("--csv", "t.csv", "--targets", "y,w")
    result = call("run", "table", *made, "--method", "ntkmtl-sr", *more)
    assert result.exit_code == 2, result.output
    assert "minibatches" in result.stderr
    assert "must be at most" in result.stderr
    assert not list((tmp_path / "runs").rglob("failure.json"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare", "nosuch"),
        ("compare", "table"),
        ("compare", "--epochs", "0", "table"),
        ("run", "qm9-mini"),
        ("run", "qm9-mini", "--method", "nosuch"),
        ("table", "nosuch"),
        ("predict", "nosuch", "--split", "test"),
        ("predict", "nosuch", "--split", "noon"),
        ("paper", "show", "99"),
        ("study", "nosuch.toml"),
        ("weigh", "qm9-mini", "--format", "nosuch"),
        ("nosuch",),
    ],
)
def test_a_refusal_is_json_where_json_was_asked_for(arguments: tuple[str, ...]) -> None:
    refused = call(*arguments, "--json")
    assert refused.exit_code == 2
    assert json.loads(refused.stdout)["error"] in refused.stderr
    assert call(*arguments).stdout == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["methods"], ["methods", "--json"], ["methods", "--help"], ["paper", "show"]]
)
def test_standard_output_on_a_full_disk_is_told_in_one_line(
    arguments: list[str], unbuffered: str
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "ntkmtl", *arguments],
            stdout=out,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == "Error: standard output: No space left on device\n"
    assert done.returncode == 2


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_times_of_a_study_leave_standard_output_to_json(
    dry_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [StudyEstimate("toy", "ls", runs=3, epochs=6, seconds=12.0)]
    with pytest.raises(typer.Exit):
        _confirmed(missing, jobs=1, dry_run=dry_run, as_json=True)
    told = capsys.readouterr()
    if dry_run:
        assert json.loads(told.out)["missing"][0]["runs"] == 3
    else:
        assert told.out == ""
        assert "What is missing" in told.err


PRINTING = """
import sys
import torch
from ntkmtl.weighting import LossWeighting
print("imported")
class Loud(LossWeighting):
    def of_losses(self, losses, tasks):
        print("weighing")
        return torch.ones_like(losses)
class Leaving(LossWeighting):
    def of_losses(self, losses, tasks):
        sys.exit(3)
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_the_code_of_a_user_does_with_standard_output_and_exits(
    tmp_path: Path, jobs: str
) -> None:
    (tmp_path / "mine.py").write_text(PRINTING)
    methods = "ls,./mine.py:Leaving,./mine.py:Loud"
    options = ["--methods", methods, "--no-stl", "--seeds", "1", "--epochs", "1", "--out", "o"]
    command = [sys.executable, "-m", "ntkmtl", "compare", TOY, *options, "--jobs", jobs, "--json"]
    environment = {**os.environ, "PYTHONPATH": f"{TRAINING}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert told["trained"] == 2
    assert [(f["run"], f["error"]) for f in told["failures"]] == [
        ("mine:Leaving seed 0", "SystemExit")
    ]
    assert "weighing" in done.stderr


def test_other_settings_are_refused_or_replace_the_runs(tmp_path: Path) -> None:
    arguments = ["--methods", "ls", "--no-stl", "--out", "o"]
    assert compare_toy(*arguments).exit_code == 0
    refused = compare_toy(*arguments, "--lr", "0.5")
    assert refused.exit_code == 2
    assert "recipe.learning_rate is 0.02, asked for 0.5" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert compare_toy(*arguments, "--lr", "0.5", "--overwrite").exit_code == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    assert compare_toy("--methods", "ls", "--no-stl", "--out", "o").exit_code == 0
    path = Path("o/toy/ls/seed-0/result.json")
    path.write_text("{")
    for arguments in (["table", "o"], ["report", "o"]):
        result = call(*arguments)
        assert result.exit_code == 2
        assert str(path) in result.stderr
    result = compare_toy("--methods", "ls", "--no-stl", "--out", "o")
    assert result.exit_code == 2
    assert str(path) in result.stderr


def test_a_damaged_run_is_replaced_if_that_is_asked_for(tmp_path: Path) -> None:
    arguments = ["compare", TOY, "--methods", "ls", "--seeds", "1", "--out", "o", "--epochs", "1"]
    arguments += ["--no-stl", "--jobs", "1"]
    good(*arguments)
    path = tmp_path / "o/toy/ls/seed-0/result.json"
    path.write_text("")
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "holds a damaged run" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert path.read_text() == ""
    good(*arguments, "--overwrite")
    assert json.loads(path.read_text())["test"]


def test_a_page_that_cannot_be_written_leaves_the_table(tmp_path: Path) -> None:
    (tmp_path / "o/report.html").mkdir(parents=True)
    arguments = ["compare", TOY, "--methods", "ls", "--seeds", "1", "--out", "o", "--epochs", "1"]
    result = call(*arguments, "--no-stl", "--jobs", "1")
    assert result.exit_code == 1
    assert "ls" in result.stdout
    assert "No report:" in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for other processes")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ntkmtl", "compare", TOY, "--methods", "ls", "--jobs", "1"),
            *("--problem-option", "pause=0.25", "--no-stl", "--out", "o"),
        ],
        env={**os.environ, "PYTHONPATH": str(TRAINING)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "3 runs to train\n"
    folder = tmp_path / "o/toy/ls/seed-0"
    for _ in range(600):
        if (folder / "config.json").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Stopped with 0 runs complete and 3 to go. Go on with: ntkmtl compare" in errors
    assert "Traceback" not in errors
    files: Any = sorted(p.name for p in folder.iterdir())
    assert files == ["checkpoint.pt", "config.json"]
