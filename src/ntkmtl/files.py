"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic_write", "numbers_beside", "write_json", "write_text"]


def numbers_beside(path: str | os.PathLike[str]) -> Path:
    """Return where the numbers behind a page or a picture go: beside it, as ``.json``.

    Args:
        path: The page or the picture.

    Raises:
        ValueError: Both would have one name.

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
    """Open a file for writing that takes its name only once it is whole and on disk.

    The bytes go to a temporary name in the same folder, are synced, and renamed over ``path``. If
    the body raises, the temporary file is removed and what stood at ``path`` before stays.

    A link stays, and the file that it leads to is replaced. What is there and is no file, as a
    pipe, a device or ``/dev/stdout``, is written to once the body has ended.

    Args:
        path: Where the file shall stand. Its folder is made if there is none.
        previous: Where to keep what stood at ``path`` before, in the same folder, a link as such;
            it is replaced if None. Between the two renames a reader finds the old file there and
            none at ``path``.

    Yields:
        A binary file object.

    Raises:
        OSError: The file cannot be written, as on a full disk; the error names ``path``.

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
        # mkstemp makes files private; give the usual permissions of a new file instead.
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
    """Return an error of the same kind that names the file, which an error of a write does not."""
    # An error of the caller's own, as of a file that it copies from, names that file.
    foreign = error.filename is not None and temporary is not None and error.filename != temporary
    if error.errno is None or foreign:
        return error
    # The constructor picks the subclass by the number, as PermissionError for EACCES.
    return OSError(error.errno, os.strerror(error.errno), str(path))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text in one piece. See :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON in one piece; NaN and infinity are refused.

    Raises:
        ValueError: The value holds NaN or infinity, which JSON cannot.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
