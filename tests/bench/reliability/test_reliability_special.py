"""What stands in a file's place and is none: a pipe, a socket, a device, a folder, deep JSON."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ntkmtl.bench.cli.app import app
from ntkmtl.bench.problems import _arrays
from ntkmtl.files import parse_json, read_bytes, require_regular, write_json

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes")

SECONDS = 60
COMPARE = [
    *("compare", "qm9-mini", "--methods", "ls", "--seeds", "1", "--epochs", "1", "--no-stl"),
    *("--jobs", "1", "--record", "25", "--out"),
]


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    # The address of a socket may have some hundred characters only.
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    path.write_bytes(b'{"problem_options": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}")


def very_deep(path: Path) -> None:
    path.write_bytes(b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")


SPECIAL = (a_pipe, a_socket, a_folder, a_device)
FILES = [
    *("compare.json", "ls/seed-0/config.json", "ls/seed-0/result.json"),
    *("ls/seed-0/history.json", "ls/seed-0/steps.npz", "ls/seed-0/record.json"),
]


class HangError(BaseException):
    pass


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fail where a command waits for what never comes."""

    def ring(number: int, frame: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "runs"
    assert call(*COMPARE, out).exit_code == 0
    return out


@pytest.mark.parametrize("make", [*SPECIAL, deep, very_deep], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", FILES)
def test_commands_refuse_what_is_no_file_of_a_run(
    whole: Path, tmp_path: Path, in_time: None, name: str, make: Callable[[Path], None]
) -> None:
    if make in (deep, very_deep) and not name.endswith(".json"):
        pytest.skip("is no JSON")
    out = tmp_path / "runs"
    shutil.copytree(whole, out)
    path = out / (name if name == "compare.json" else f"qm9-mini/{name}")
    path.unlink()
    make(path)
    table, report = call("table", out), call("report", out, "-o", tmp_path / "page.html")
    analysis = call("analyze", out, "-o", tmp_path / "analysis.html")
    again = call(*COMPARE, out)
    reads = {"table": table, "report": report, "analyze": analysis, "compare": again}
    told = {command for command, result in reads.items() if path.name in result.stderr}
    for command in told:
        assert reads[command].exit_code in (1, 2), reads[command].output
    expected = {
        "compare.json": {"table", "report"} | ({"compare"} if make in SPECIAL else set()),
        "config.json": {"table", "report", "analyze", "compare"},
        "result.json": {"table", "report", "compare"},
        "history.json": {"report"},
        "steps.npz": {"report"},
        "record.json": {"analyze"},
    }[path.name]
    assert expected <= told, {command: result.stderr for command, result in reads.items()}


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
@pytest.mark.parametrize("option", ["csv", "split"])
def test_commands_refuse_a_table_or_a_split_that_is_no_file(
    tmp_path: Path, in_time: None, option: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "in.csv"
    make(path)
    problem = {"csv": "table", "split": "qm9-mini"}[option]
    given = ["--csv", path, "--targets", "a"] if option == "csv" else []
    chosen = [] if given else ["--problem-option", f"split={path}"]
    result = call("compare", problem, *given, *chosen, "--out", tmp_path / "runs")
    assert result.exit_code == 2
    assert "is not a regular file but" in result.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
@pytest.mark.parametrize("problem", ["qm9", "nyuv2", "celeba", "cityscapes"])
def test_commands_refuse_a_source_that_is_no_file(
    tmp_path: Path, in_time: None, problem: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "source.npz"
    make(path)
    result = call("data", problem, "--source", path, "--data", tmp_path / "made")
    assert result.exit_code in (1, 2)
    assert "source.npz" in result.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("make", [*SPECIAL, very_deep], ids=lambda make: make.__name__)
def test_prepared_data_whose_manifest_is_no_file(
    tmp_path: Path, in_time: None, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json cannot be used"):
        _arrays.PreparedData(tmp_path, "kind 1", "Prepare it.")


@pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)
def test_what_is_no_file_is_neither_read_nor_written(
    tmp_path: Path, in_time: None, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.json"
    make(path)
    for use in (require_regular, read_bytes, lambda place: write_json(place, {})):
        with pytest.raises(OSError, match="is not a regular file but a"):
            use(path)  # type: ignore[operator]


def test_a_link_to_a_file_and_a_file_to_come_are_regular(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    assert read_bytes(tmp_path / "link") == b"{}"
    require_regular(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 101 + b"]" * 101, "more than 100 levels"),
        (b'{"a":' * 30_000, "more than 100 levels"),
        (b'{"a": NaN}', "NaN"),
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(content)


def test_json_as_deep_as_allowed_is_read() -> None:
    assert parse_json(b"[" * 99 + b"1" + b"]" * 99)
