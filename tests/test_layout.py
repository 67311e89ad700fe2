"""What every file of the package keeps to, besides the contracts that ``lint-imports`` checks."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import ntkmtl
from ntkmtl.bench.cli.app import app

ROOT = Path(__file__).parents[1]
SOURCE = Path(ntkmtl.__file__).parent
ALLOWED = sys.stdlib_module_names | {"ntkmtl", "torch", "torchjd"}
LIBRARY = [
    path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] != "bench"
]


def imported_at_once(tree: ast.AST) -> Iterator[str]:
    """Yield the packages that a module imports when it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imported_at_once(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]
        else:
            yield from imported_at_once(node)


def test_what_is_imported_at_once() -> None:
    text = """
import a.b
if TYPE_CHECKING:
    import no
else:
    import b
class C:
    from c.d import e
    def f(self):
        import no
try:
    import d
except ImportError:
    from . import no
"""
    assert list(imported_at_once(ast.parse(text))) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_library_imports_torch_and_torchjd_only_when_it_is_imported(path: Path) -> None:
    found = set(imported_at_once(ast.parse(path.read_text(encoding="utf-8"))))
    # A module of ntkmtl.integrations imports the framework that it is named after.
    own = {path.stem} if path.parent.name == "integrations" else set()
    assert found <= ALLOWED | own


def defined_classes(tree: ast.AST) -> list[str]:
    """Return the names of all classes in a module, nested ones too."""
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_a_class_name_stands_once() -> None:
    assert defined_classes(ast.parse("class A:\n class B:\n  pass\ndef f():\n class A: ...")) == [
        "A",
        "B",
        "A",
    ]
    places: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for name in defined_classes(ast.parse(path.read_text(encoding="utf-8"))):
            places.setdefault(name, []).append(path.relative_to(SOURCE).as_posix())
    assert len(places) > 200
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def default_folders() -> dict[str, str]:
    """Return where each command writes without ``--out``."""
    group: Any = typer.main.get_command(app)
    commands = dict(group.commands)
    commands |= {f"paper {name}": one for name, one in commands.pop("paper").commands.items()}
    options = [
        (name, option)
        for name, command in commands.items()
        for option in command.params
        if option.name == "out"
    ]
    return {name: str(o.show_default if o.default is None else o.default) for name, o in options}


def test_every_command_that_trains_has_a_default_folder() -> None:
    assert set(default_folders()) >= {"analyze", "compare", "paper run", "run", "tune"}


@pytest.mark.integration
@pytest.mark.parametrize(("command", "folder"), sorted(default_folders().items()))
def test_git_ignores_default_folders(command: str, folder: str) -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    arguments = ["git", "check-ignore", "--quiet", f"{folder}/result.json"]
    done = subprocess.run(arguments, cwd=ROOT, check=False)
    assert done.returncode == 0, f"add /{folder}/ to .gitignore: {command} writes there"


def test_the_files_that_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|scripts|benchmarks|docs)/[\w./-]*)`", text)
    assert len(named) > 20
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing


BRITISH = re.compile(
    r"colour|behaviour|favour|neighbour|centre|centring|labelled\b|modelled|catalogue|artefact|analyse"
    r"|(?:normal|standard|initial|optim|parametr|parameter|summar|minim|maxim|general|regular|vector)"
    r"is(?:e|ed|er|es|ing|ation)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("folder", ["src", "benchmarks", "scripts", "examples", "docs"])
def test_spelling_is_american_as_in_torch(folder: str) -> None:
    assert BRITISH.search("the standardised columns") is not None
    texts = [
        path
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in {".py", ".md", ".js", ".jinja", ".css", ".toml"}
    ]
    assert texts
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        for match in BRITISH.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()
