"""Groups of options, and what is written on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from ntkmtl import weighting
from ntkmtl.bench import problems
from ntkmtl.bench.cli.app import app
from ntkmtl.bench.cli.options import (
    DataOptions,
    grouped,
    method_settings,
    methods_of,
    option,
    options_in,
    seeds_of,
)
from ntkmtl.bench.reinforce.recipes import variant_named


@dataclass(frozen=True)
class Where:
    host: str = option("A name.", default="here")
    ports: Annotated[list[int] | None, typer.Option("--port")] = None


@dataclass(frozen=True)
class Elsewhere(Where):
    host: str = option("Another name.", default="there")


def made(kind: type[Where], seen: dict[str, Any]) -> typer.Typer:
    small = typer.Typer(rich_markup_mode=None)

    def command(target: Path, *, count: int = 1, where: Where, last: bool = False) -> None:
        """Do it."""
        seen.update(target=target, count=count, where=where, last=last)

    command.__annotations__["where"] = kind
    small.command()(grouped(command))
    return small


def test_a_group_is_options_of_the_command() -> None:
    seen: dict[str, Any] = {}
    small = made(Where, seen)
    assert CliRunner().invoke(small, ["x"]).exit_code == 0
    assert seen == {"target": Path("x"), "count": 1, "where": Where(), "last": False}
    given = ["x", "--port", "1", "--port", "2", "--host", "far", "--last", "--count", "3"]
    assert CliRunner().invoke(small, given).exit_code == 0
    assert seen == {"target": Path("x"), "count": 3, "where": Where("far", [1, 2]), "last": True}
    # Checked as any other option.
    assert CliRunner().invoke(small, ["x", "--port", "one"]).exit_code == 2


def test_options_stand_in_the_help_where_the_group_stands() -> None:
    text = CliRunner().invoke(made(Elsewhere, {}), ["--help"]).output
    assert "Another name." in text
    assert "default: there" in text
    assert text.index("--count") < text.index("--host") < text.index("--port")
    assert text.index("--port") < text.index("--last")


@pytest.mark.parametrize("command", ["compare", "run", "tune"])
def test_commands_that_train_take_the_same_engines(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"]).output
    for flag in ("--engine", "--ray-address", "--ray-cpus", "--ray-gpus", "--device"):
        assert flag in text, flag


@pytest.mark.parametrize("command", ["compare", "run", "tune", "analyze"])
def test_commands_on_problems_take_the_same_data(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"]).output
    for flag in ("--csv", "--targets", "--types", "--split-column", "--data", "--recipe"):
        assert flag in text, flag


def test_texts_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert options_in(["a=1", "b=x", "c=[1, 2]", "d="]) == {"a": 1, "b": "x", "c": [1, 2], "d": ""}
    assert method_settings(["famo.gamma=0.1", "famo.w=2", "ls.a=b"]) == {
        "famo": {"gamma": 0.1, "w": 2},
        "ls": {"a": "b"},
    }
    assert seeds_of(3, None) == [0, 1, 2]
    assert seeds_of(3, "7, 5,") == [7, 5]
    for call in (lambda: options_in(["a"]), lambda: method_settings(["a=1"])):
        with pytest.raises(typer.Exit):
            call()
    with pytest.raises(typer.Exit):
        seeds_of(3, "1,x")
    said = capsys.readouterr().err
    assert "an option is written KEY=VALUE. Found 'a'." in said
    assert "--set takes METHOD.KEY=VALUE. Found 'a=1'." in said
    assert "--seed-list takes whole numbers with commas between them. Found '1,x'." in said


def test_what_is_given_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for call in (
        lambda: options_in(["depth=1", "width=2", "depth=3"]),
        lambda: method_settings(["famo.w=2", "ls.w=2", "famo.w=3"]),
    ):
        with pytest.raises(typer.Exit):
            call()
    said = capsys.readouterr().err
    assert "the option depth is given twice" in said
    assert "--set famo.w is given twice" in said


def test_the_words_null_and_none_of_a_table_are_no_json() -> None:
    words = DataOptions(csv="t.csv", problem_option=["missing=null", "not_missing=None"])
    assert words.options() == {"csv": "t.csv", "missing": "null", "not_missing": "None"}
    other = DataOptions(csv="t.csv", problem_option=["width=null", 'missing=["null", "-"]'])
    assert other.options() == {"csv": "t.csv", "width": None, "missing": ["null", "-"]}
    assert DataOptions(problem_option=["missing=null"]).options() == {"missing": None}


def test_methods_that_are_not_named_fit_the_problem() -> None:
    assert methods_of("qm9-mini", None) == ["ls", "ntkmtl", "ntkmtl-sr"]
    assert methods_of("module:Class", None) == ["ls", "ntkmtl", "ntkmtl-sr"]
    assert methods_of("mt10", "ls, uw") == ["ls", "uw"]
    assert methods_of("mt10", "") == []
    assert {variant_named(name).name for name in methods_of("mt10", None)} >= {"mtl-sac"}
    for name in ("xtb", "pinn-burgers", "pinn-wave"):
        assert not problems.create(name).model().has_representation
        sources = {
            weighting.spec(method).defaults.get("source") for method in methods_of(name, None)
        }
        assert "representation" not in sources
