"""Importing a class that a user names by module or by file, and names on their first use.

This module does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

__all__ = ["LoadError", "load_class", "on_first_use", "place_of"]

_Class = TypeVar("_Class", bound=type[Any])


class LoadError(ValueError):
    """A class cannot be imported, or does not derive from the required class."""


def load_class(name: str, base: _Class, what: str, page: str) -> _Class:
    """Import a class named ``module.path:ClassName`` or ``path/to/file.py:ClassName``.

    This runs the module's code. A file is imported under its own name, and its folder is added to
    ``sys.path``, as with ``python file.py``. So other processes can import it by the same name.

    Args:
        name: The name of the class.
        base: The class that it must derive from.
        what: What it is, for error messages: ``"method"`` or ``"problem"``.
        page: The page of the docs on such classes, for error messages.

    Returns:
        The class.

    Raises:
        LoadError: The class cannot be imported, does not derive from ``base``, or lacks a method.

    Example:
        >>> load_class("decimal:Decimal", dict, "method", "docs/methods/custom.md")
        Traceback (most recent call last):
        ...
        ntkmtl.loading.LoadError: method decimal:Decimal: Decimal does not derive from builtins.dict
    """
    source, _, class_name = name.rpartition(":")
    if not source or not class_name.isidentifier():
        raise LoadError(
            f"a {what} of your own is named module.path:ClassName or path/file.py:ClassName. "
            f"Found {name!r}."
        )
    try:
        found = (
            _from_file(source, what) if source.endswith(".py") else importlib.import_module(source)
        )
    except (Exception, SystemExit) as error:
        if isinstance(error, LoadError):
            raise
        where = "" if _is_of_import(error, source) else f"{type(error).__name__}{place_of(error)}: "
        raise LoadError(f"{what} {name}: {where}{error}") from error
    kind = getattr(found, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise LoadError(f"{what} {name}: {_why_not(found, source, class_name, base)}")
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        wanted = "; ".join(_signature(kind, method) for method in missing)
        raise LoadError(f"{what} {name}: {class_name} does not define {wanted}. See {page}.")
    return cast("_Class", kind)


def _why_not(module: ModuleType, source: str, class_name: str, base: type) -> str:
    """Return why a module's attribute is not a class of the required kind."""
    wanted = f"{_public(base)}.{base.__name__}"
    if isinstance(getattr(module, class_name, None), type):
        return f"{class_name} does not derive from {wanted}"
    there = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    found = f". It has {', '.join(there)}." if there else ""
    return f"{source} has no class {class_name} that derives from {wanted}{found}"


def _public(base: type) -> str:
    """Return the package from which users import a class."""
    parts = base.__module__.split(".")
    packages = [".".join(parts[: end + 1]) for end in range(len(parts))]
    holders = (
        name for name in packages if getattr(sys.modules.get(name), base.__name__, 0) is base
    )
    return next(holders, base.__module__)


def _signature(kind: type, method: str) -> str:
    found = inspect.getattr_static(kind, method)
    if isinstance(found, property):
        return f"the property {method}"
    return f"{method}{inspect.signature(found)}"


def _is_of_import(error: BaseException, source: str) -> bool:
    """Whether the module itself was not found, and not one of its imports."""
    missing = isinstance(error, ModuleNotFoundError) and error.name is not None
    return missing and source.startswith(str(getattr(error, "name", "")))


def _from_file(source: str, what: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise LoadError(f"{what} file {source}: there is no such file (looked for {path})")
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None:
        if getattr(loaded, "__file__", None) == str(path):
            return loaded
        raise LoadError(
            f"{what} file {source}: a module named {name} is imported already, from "
            f"{getattr(loaded, '__file__', 'Python itself')}. Rename the file."
        )
    if not name.isidentifier():
        raise LoadError(
            f"{what} file {source}: its name must be one that Python can import, as my_{what}.py"
        )
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{what} file {source}: it cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Registered under its name, so that its classes can be pickled and inspected.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def place_of(error: BaseException) -> str:
    """Return where the user's code raised an error, as `` in file.py, line 3``; "" if nowhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" in {error.filename}, line {error.lineno}"
    # Frames of the user's code are helpful; those of this package, Python and torch are not.
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(Path(__file__).parent), "<frozen", str(Path(importlib.__file__).parent))
    own = [f for f in frames if not f.filename.startswith(libraries)]
    own = [f for f in own if "site-packages" not in f.filename] or own
    return f" in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def on_first_use(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package that imports its names on first use.

    Args:
        package: Its ``__name__``.
        homes: Names by the module that defines them, which is relative to the package; its own
            last name stands for itself.

    Example:
        >>> __getattr__, __dir__ = on_first_use("ntkmtl", {".metrics": ["delta_m", "mean_rank"]})
        >>> __getattr__("delta_m").__module__, __dir__()
        ('ntkmtl.metrics', ['delta_m', 'mean_rank'])
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(home_of[name], package)
        value = home if home_of[name].endswith(f".{name}") else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return find, lambda: sorted(home_of)
