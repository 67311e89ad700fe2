from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ntkmtl.bench.compute.environment import source_digest

FILES = {
    "one_problem.py": "from one_parts import losses\nclass P: ...\n",
    "one_parts/__init__.py": "",
    "one_parts/losses.py": "def weigh():\n    import one_deep\n",
    "one_deep.py": "DEPTH = 1\n",
    "one_stranger.py": "x = 1\n",
    "two/__init__.py": "",
    "two/common.py": "class Base: ...\n",
    "two/unused.py": "x = 1\n",
    "two/tasks/__init__.py": "",
    "two/tasks/problem.py": "from ..common import Base\nclass P(Base): ...\n",
    "two/tasks/beside.py": "x = 1\n",
    "two/tasks/heads/__init__.py": "",
    "two/tasks/heads/linear.py": "x = 1\n",
    "two/tasks/.ipynb_checkpoints/problem.py": "x = 1\n",
    "three_problem.py": "from elsewhere.base import Base\nclass P(Base): ...\n",
    "path/elsewhere/base.py": "from elsewhere import helper\nclass Base: ...\n",
    "path/elsewhere/helper.py": "x = 1\n",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Write files, from which modules can be imported for the length of a test."""

    def do(place: str = ".", **texts: str) -> None:
        for name, text in (texts or FILES).items():
            file = tmp_path / place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.syspath_prepend(tmp_path)
    yield do
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "changed", "counts"),
    [
        ("one_problem", "one_problem.py", True),
        ("one_problem", "one_parts/__init__.py", True),
        ("one_problem", "one_parts/losses.py", True),
        ("one_problem", "one_deep.py", True),
        ("one_problem", "one_stranger.py", False),
        ("two.tasks.problem", "two/tasks/problem.py", True),
        ("two.tasks.problem", "two/common.py", True),
        ("two.tasks.problem", "two/__init__.py", True),
        ("two.tasks.problem", "two/tasks/beside.py", True),
        ("two.tasks.problem", "two/tasks/heads/linear.py", True),
        ("two.tasks.problem", "two/unused.py", False),
        ("two.tasks.problem", "two/tasks/.ipynb_checkpoints/problem.py", False),
        ("three_problem", "path/elsewhere/base.py", True),
        ("three_problem", "path/elsewhere/helper.py", True),
    ],
)
def test_a_problem_s_digest_follows_its_bases_and_imports(
    write: Callable[..., None], tmp_path: Path, module: str, changed: str, counts: bool
) -> None:
    write()
    kind = importlib.import_module(module).P
    before = source_digest(kind)
    assert source_digest(kind) == before
    file = tmp_path / changed
    file.write_text(file.read_text() + "# changed\n")
    assert (source_digest(kind) != before) == counts


def test_the_digest_is_the_same_in_a_process_that_imported_less(
    write: Callable[..., None], tmp_path: Path
) -> None:
    write()
    kind = importlib.import_module("one_problem").P
    importlib.import_module("one_parts.losses").weigh()
    code = (
        "from ntkmtl.bench.compute.environment import source_digest; import one_problem, sys\n"
        "assert 'one_deep' not in sys.modules; print(source_digest(one_problem.P))"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == source_digest(kind)


def test_installed_packages_beside_a_problem_do_not_count(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "lib/site-packages"
    monkeypatch.syspath_prepend(tmp_path / place)
    write(
        place,
        **{
            "four/__init__.py": "",
            "four/problem.py": "import five\nfrom four import parts\nclass P(five.Base): ...\n",
            "four/parts.py": "x = 1\n",
            "five/__init__.py": "import five.more\nclass Base: ...\n",
            "five/more.py": "x = 1\n",
        },
    )
    kind = importlib.import_module("four.problem").P
    before = source_digest(kind)
    write(place, **{"five/more.py": "x = 2\n"})
    assert source_digest(kind) == before
    write(place, **{"four/parts.py": "x = 2\n"})
    assert source_digest(kind) != before


def test_a_class_without_a_file_has_no_digest() -> None:
    assert source_digest(type("Made", (), {"__module__": "no_such_module"})) == ""


def test_a_file_that_is_not_python_any_more_is_taken_as_it_is(write: Callable[..., None]) -> None:
    write()
    kind = importlib.import_module("one_problem").P
    write(**{"one_problem.py": "class P(:"})
    assert len(source_digest(kind)) == 64
