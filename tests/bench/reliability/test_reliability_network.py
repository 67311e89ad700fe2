"""Nothing asks the network for anything."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ntkmtl.bench.cli.app import app

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_problem" / "my_problem.py"
ASKED: list[str] = []
WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
switch = {"made": False, "watching": False}


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if switch["watching"] and event in WATCHED:
        ASKED.append(f"{event} {arguments}")
        raise ConnectionRefusedError("the network is not there")


@pytest.fixture
def offline() -> Iterator[None]:
    """Every attempt to reach the network is noted and refused, from whatever library it comes."""
    if not switch["made"]:
        # An audit hook cannot be taken away again, so it is made once and told when to look.
        sys.addaudithook(_watch)
        switch["made"] = True
    ASKED.clear()
    switch["watching"] = True
    yield
    switch["watching"] = False


def test_the_watch_sees_an_attempt(offline: None) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)
    with pytest.raises(ConnectionRefusedError):
        socket.getaddrinfo("example.invalid", 80)
    assert len(ASKED) == 2


def test_no_command_reaches_for_the_network(offline: None, tmp_path: Path) -> None:
    out = str(tmp_path / "runs")
    table = tmp_path / "t.csv"
    table.write_text("y,x\n" + "\n".join(f"{i * i % 41}.5,{i % 7}" for i in range(60)))
    for arguments in (
        [
            *("compare", f"{EXAMPLE}:MyProblem", "--methods", "ls,ntkmtl-sr", "--seeds", "1"),
            *("--epochs", "1", "--jobs", "1", "--record", "4", "--out", out),
        ],
        [
            *("compare", "table", "--csv", str(table), "--targets", "y", "--methods", "ls"),
            *("--seeds", "1", "--epochs", "1", "--jobs", "1", "--out", str(tmp_path / "t")),
        ],
        ["table", out],
        ["report", out],
        ["analyze", out],
        ["methods"],
        ["problems"],
        ["data"],
        ["paper", "show"],
    ):
        said = CliRunner().invoke(app, arguments)
        assert said.exit_code == 0, (arguments, said.output)
    # Data that are not there are not fetched: the error says where to get them.
    said = CliRunner().invoke(app, ["data", "nyuv2"])
    assert said.exit_code == 2
    assert ASKED == []
