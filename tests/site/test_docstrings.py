"""Every name that a user may import, and its methods, say what they take, return and raise."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from doctest import DocTestParser
from functools import cache, cached_property
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "ntkmtl"
BELOW = ("ntkmtl.graph",)
"""Parts for authors of the library, of which this does not ask for examples and arguments."""

UNSHOWN = {
    "summarize": "reads agents that were trained for hours",
    "film": "draws off screen",
    "film_run": "draws off screen",
}
"""Names that no example can show, and why."""


def public() -> dict[str, Any]:
    """Return functions and classes by their names."""
    path = ROOT / "docs" / "_extensions" / "public_names.py"
    spec = util.spec_from_file_location("public_names", path)
    assert spec is not None
    assert spec.loader is not None
    extension: ModuleType = util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    found = {
        f"{module}.{name}": getattr(import_module(module), name)
        for module, names in extension.public_names().items()
        for name in names
    }
    return {k: v for k, v in found.items() if inspect.isclass(v) or inspect.isroutine(v)}


PUBLIC = public()
CALLED = {
    name: value
    for name, value in PUBLIC.items()
    if not name.startswith(BELOW)
    and not (inspect.isclass(value) and issubclass(value, BaseException))
    and not getattr(value, "_is_protocol", False)
}


def said(value: Any) -> str:
    """Return the docstring, with those of the classes that a class inherits from."""
    kinds = value.__mro__ if inspect.isclass(value) else (value,)
    ours = [kind for kind in kinds if kind.__module__.startswith("ntkmtl")]
    return "\n".join(inspect.cleandoc(kind.__doc__ or "") for kind in ours)


def test_names_are_found() -> None:
    assert len(PUBLIC) > 180
    assert len(CALLED) > 140
    assert {"ntkmtl.Balancer", "ntkmtl.bench.training.compare"} <= CALLED.keys()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_summary_in_one_sentence(name: str) -> None:
    summary = inspect.cleandoc(PUBLIC[name].__doc__ or "").partition("\n\n")[0]
    assert re.fullmatch(r"\S.*[.:]", summary, flags=re.DOTALL), summary
    # What `dataclass` writes where there is no docstring.
    assert not summary.startswith(f"{PUBLIC[name].__name__}(")


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_documented(name: str) -> None:
    text = said(CALLED[name])
    parts = re.findall(r"^(?:Args|Attributes):\n((?: .*\n?|\n)+)", text, flags=re.MULTILINE)
    documented = set(re.findall(r"^    \**(\w+):", "\n".join(parts), flags=re.MULTILINE))
    parameters = inspect.signature(CALLED[name]).parameters.values()
    passed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = {p.name for p in parameters if p.kind not in passed_on and p.name[0] != "_"}
    assert asked - documented == set()


def raised(function: Any) -> set[str]:
    """Return the names of the errors that a function's own lines raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    errors = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
    names = [ast.unparse(e.func if isinstance(e, ast.Call) else e) for e in errors]
    return {name.replace("missing_extra", "MissingExtraError").split(".")[-1] for name in names}


@pytest.mark.parametrize("name", CALLED)
def test_every_error_is_documented(name: str) -> None:
    value = CALLED[name]
    # The `__init__` of a dataclass is made by it, and has no lines.
    written = "__post_init__" if is_dataclass(value) else "__init__"
    function = vars(value).get(written) if inspect.isclass(value) else value
    if inspect.isfunction(function) and function.__module__.startswith("ntkmtl"):
        part = re.search(r"^Raises:\n((?: .*\n?|\n)+)", said(value), flags=re.MULTILINE)
        documented = set(re.findall(r"^    (\w+):", part.group(1), re.MULTILINE)) if part else set()
        assert raised(function) - documented == set()


def methods() -> dict[str, tuple[type, str]]:
    """Return the public methods and properties of public classes that this package defines.

    A method is named after the class that defines it, and is there once.
    """
    found = {}
    for kind in CALLED.values():
        for name in dir(kind) if inspect.isclass(kind) else ():
            owner = next((c for c in kind.__mro__ if name in vars(c)), object)
            if name[0] == "_" or not owner.__module__.startswith("ntkmtl"):
                continue
            if function(vars(owner)[name]) is not None:
                found[f"{owner.__module__}.{owner.__qualname__}.{name}"] = (owner, name)
    return found


def function(member: Any) -> Any:
    """Return the function of a method or a property; None for another attribute of a class."""
    for holder, inner in ((property, "fget"), (cached_property, "func")):
        if isinstance(member, holder):
            return getattr(member, inner)
    inside = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return inside if inspect.isfunction(inside) else None


METHODS = methods()
ASKED = {name: (owner, function(vars(owner)[last])) for name, (owner, last) in METHODS.items()}
"""Methods whose arguments, return values and errors are documented."""


def said_of(owner: type, name: str) -> str:
    """Return the docstrings of a method in the class and in those that it inherits from."""
    members = [vars(kind).get(name) for kind in owner.__mro__ if kind.__module__[:6] == "ntkmtl"]
    functions = [function(member) for member in members]
    return "\n".join(inspect.cleandoc(f.__doc__) for f in functions if f and f.__doc__)


def test_methods_are_found() -> None:
    assert len(METHODS) > 200
    known = {
        "ntkmtl.balance._balancer.Balancer.backward",
        "ntkmtl.bench.problems.base.Problem.batch",
    }
    assert known <= ASKED.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_summary_in_one_sentence(name: str) -> None:
    summary = said_of(*METHODS[name]).partition("\n\n")[0]
    assert re.fullmatch(r"\S.*[.:]", summary, flags=re.DOTALL), summary


@pytest.mark.parametrize("name", ASKED)
def test_every_argument_of_a_method_is_documented(name: str) -> None:
    """In the section of arguments or, with backticks, in a sentence."""
    owner, member = ASKED[name]
    text = said_of(owner, member.__name__)
    parts = re.findall(r"^Args:\n((?: .*\n?|\n)+)", text, flags=re.MULTILINE)
    documented = set(re.findall(r"^    \**(\w+):", "\n".join(parts), flags=re.MULTILINE))
    documented |= set(re.findall(r"``(\w+)``", text))
    parameters = list(inspect.signature(member).parameters.values())
    if not isinstance(inspect.getattr_static(owner, member.__name__), staticmethod):
        del parameters[0]
    passed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = {p.name for p in parameters if p.kind not in passed_on and p.name[0] != "_"}
    assert asked - documented == set()


@pytest.mark.parametrize("name", ASKED)
def test_what_a_method_returns_is_documented(name: str) -> None:
    owner, member = ASKED[name]
    returned = inspect.signature(member).return_annotation
    attribute = not inspect.isfunction(vars(owner)[member.__name__])
    if returned not in ("None", "Iterator[None]") and not attribute:
        text = said_of(owner, member.__name__)
        assert re.search(r"^(Return|Yield|Whether)", text, re.MULTILINE)


@pytest.mark.parametrize("name", ASKED)
def test_every_error_of_a_method_is_documented(name: str) -> None:
    owner, member = ASKED[name]
    text = said_of(owner, member.__name__)
    part = "\n".join(re.findall(r"^Raises:\n((?: .*\n?|\n)+)", text, flags=re.MULTILINE))
    documented = set(re.findall(r"^    (\w+):", part, re.MULTILINE))
    assert raised(member) - documented == set()


def identifiers(code: str) -> set[str]:
    """Return the names and attributes that a piece of code uses or imports."""
    nodes = list(ast.walk(ast.parse(code)))
    return {
        *(node.id for node in nodes if isinstance(node, ast.Name)),
        *(node.attr for node in nodes if isinstance(node, ast.Attribute)),
        *(a.name for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names),
    }


@cache
def shown() -> frozenset[str]:
    """Return what examples use, or what that returns or holds.

    Examples are those of docstrings, of pages, and of the gallery: all of them are run.
    """
    parser = DocTestParser()
    code = []
    held: dict[str, set[str]] = {}
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                code += [example.source for example in parser.get_examples(text)]
            kinds = [node.returns] if isinstance(node, ast.FunctionDef) and node.returns else []
            if isinstance(node, ast.ClassDef):
                kinds += [item.annotation for item in node.body if isinstance(item, ast.AnnAssign)]
            for kind in kinds:
                assert isinstance(node, ast.FunctionDef | ast.ClassDef)
                held.setdefault(node.name, set()).update(re.findall(r"\w+", ast.unparse(kind)))
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            examples = [example.source for example in parser.get_examples(block)]
            code += examples or [block]
    code += [file.read_text("utf-8") for file in (ROOT / "docs" / "gallery").glob("*.py")]
    found = set().union(*map(identifiers, code))
    while more := set().union(*(held.get(name, set()) for name in found)) - found:
        found |= more
    return frozenset(found)


@pytest.mark.parametrize("name", sorted(CALLED))
def test_an_example_shows_it(name: str) -> None:
    last = name.rpartition(".")[2]
    assert (last in shown()) != (last in UNSHOWN)
