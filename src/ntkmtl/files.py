"""Reading regular files safely, and writing files atomically."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "atomic_write",
    "finite",
    "numbers_beside",
    "parse_json",
    "read_bytes",
    "require_regular",
    "write_json",
    "write_text",
]

MAX_DEPTH = 100
"""Deepest nesting allowed in a JSON file, as recursive code reads it. Ours have about 5 levels."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise if a path is not a regular file: reading a pipe or a device may never end.

    Args:
        path: A file, or a link to one. No error is raised if it does not exist.

    Raises:
        OSError: It is a folder, a pipe, a socket or a device; the message names it.

    Example:
        >>> require_regular("/")
        Traceback (most recent call last):
        ...
        OSError: [Errno 22] is not a regular file but a folder: '/'
    """
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        found = next((word for test, word in _KINDS if test(mode)), "something else")
        raise OSError(errno.EINVAL, f"is not a regular file but {found}", os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file. See :func:`require_regular`.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
    """
    require_regular(path)
    return Path(path).read_bytes()


def parse_json(content: bytes) -> Any:
    """Return the value of an untrusted JSON string.

    Raises:
        ValueError: It is not UTF-8, not JSON, holds NaN or infinity, or is nested more than 100
            levels deep.

    Example:
        >>> parse_json(b'{"a": [1]}')
        {'a': [1]}
        >>> parse_json(b"[" * 200 + b"]" * 200)
        Traceback (most recent call last):
        ...
        ValueError: it is nested more than 100 levels deep
    """
    too_deep = f"it is nested more than {MAX_DEPTH} levels deep"
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    if _deeper_than(value, MAX_DEPTH):
        raise ValueError(too_deep)
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def finite(value: Any) -> Any:
    """Return JSON values with every number that is not finite made None.

    Example:
        >>> finite({"loss": [0.5, float("nan")]})
        {'loss': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def numbers_beside(path: str | os.PathLike[str]) -> Path:
    """Return the path of the JSON file with the numbers of a page or picture, next to it.

    Args:
        path: The page or the picture.

    Raises:
        ValueError: Both would have the same path.

    Example:
        >>> numbers_beside("a/page.html").name, numbers_beside("a/v1.0").name
        ('page.json', 'v1.0.json')
    """
    path = Path(path)
    if path.suffix == ".json":
        raise ValueError(
            f"{path} is where the numbers would go: give the page or the picture another ending"
        )
    known = path.suffix in (".html", ".htm", ".png", ".svg", ".pdf")
    return path.with_suffix(".json") if known else path.with_name(path.name + ".json")


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], previous: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    """Open a file for writing that appears at its path only when it is complete and on disk.

    Bytes are written to a temporary file in the same folder, synced, and renamed to ``path``. If
    the body raises, the temporary file is removed and an existing file at ``path`` stays.

    If ``path`` is a link, its target is replaced. If it is not a file (a pipe, a device,
    ``/dev/stdout``), the content is written to it after the body has ended.

    Args:
        path: Path of the file. Its folder is created if missing.
        previous: Path in the same folder to which an existing file (or link) is renamed first; None
            to overwrite it. Between the two renames there is no file at ``path``.

    Yields:
        A binary file object.

    Raises:
        OSError: The file cannot be written (a full disk, say); the message names ``path``.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with atomic_write(folder / "a.txt") as file:
        ...     _ = file.write(b"whole")
        >>> (folder / "a.txt").read_bytes()
        b'whole'
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        content = io.BytesIO()
        yield content
        try:
            with path.open("wb") as file:
                file.write(content.getbuffer())
        except OSError as error:
            raise _naming(path, error) from error
        return
    if previous is None and path.is_symlink():
        path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
    except OSError as error:
        raise _naming(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates private files; set the usual permissions of a new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # noqa: PTH101
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, previous)  # noqa: PTH105
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        if isinstance(error, OSError):
            raise _naming(path, error, temporary) from error
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _naming(path: Path, error: OSError, temporary: str | None = None) -> OSError:
    """Return an error of the same class that names the file; errors of writes do not."""
    # An error about another file (one that the caller copies from, say) already names that file.
    foreign = error.filename is not None and temporary is not None and error.filename != temporary
    if error.errno is None or foreign:
        return error
    # OSError(number, ...) creates the right subclass, such as PermissionError for EACCES.
    return OSError(error.errno, os.strerror(error.errno), str(path))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically. See :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON does not have.
        OSError: It cannot be written, or ``path`` is not a regular file.
    """
    require_regular(path)
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
