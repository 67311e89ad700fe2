"""Reading JSON files into records; errors name the file, the key, what was found and expected."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from ntkmtl.bench.runs.errors import RunFileError
from ntkmtl.bench.runs.layout import SCHEMA
from ntkmtl.files import parse_json, read_bytes

__all__ = [
    "Finite",
    "canonical_json",
    "convert",
    "read_json",
    "require_length",
    "require_schema",
    "shown",
]

T = TypeVar("T")

_LARGEST = sys.float_info.max
Finite = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
"""A number that JSON can hold: neither NaN nor infinite."""

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        RunFileError: It cannot be read, is not JSON, or holds something else.
    """
    try:
        value = parse_json(read_bytes(path))
    except OSError as error:
        what = error.strerror or str(error)
        said = what if error.errno == errno.EINVAL else f"cannot be read ({what})"
        raise RunFileError(path, said) from error
    except UnicodeDecodeError as error:
        raise RunFileError(path, f"is not UTF-8 text ({error.reason} at {error.start})") from error
    except ValueError as error:
        raise RunFileError(path, f"is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise RunFileError(path, f"the file must be an object, found {shown(value)}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RunFileError(path, "holds half of a surrogate pair, which is no text") from error
    return value


def require_schema(path: Path, value: Mapping[str, Any]) -> None:
    """Check that a file has the layout that this version reads.

    Raises:
        RunFileError: It has not.
    """
    found = convert(path, value, _Schema).schema
    if found != SCHEMA:
        raise RunFileError(
            path,
            f"has schema {found}, this version of ntkmtl reads schema {SCHEMA}; "
            "read it with the version that wrote it, or train again into another folder",
        )


class _Schema(msgspec.Struct):
    schema: int


def convert(path: Path, value: Any, kind: type[T]) -> T:
    """Return a JSON value as a record, a dataclass or a ``msgspec.Struct``; other keys are ignored.

    Args:
        path: The file that the value was read from, for errors.
        value: The value.
        kind: The record's class.

    Raises:
        RunFileError: A key is missing, or its value is of another kind.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RunFileError(path, _explain(str(error), value)) from error


def _explain(message: str, value: Any) -> str:
    """Return what msgspec found wrong in words, with the value that it found there."""
    said, _, place = message.partition(" - at ")
    steps: list[str | int] = [
        name or int(index) for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place)
    ]
    missing = re.match(r"Object missing required field `(.+)`", said)
    if missing:
        return f"key '{_key([*steps, missing[1]])}' is missing"
    for step in steps:
        value = value[step]
    subject = f"key '{_key(steps)}'" if steps else "the file"
    if "out of range" in said or "finite" in said or re.search(r"[<>]= -?1\.79", said):
        return f"{subject} must be a finite number, found {shown(value)}"
    wanted = re.match(r"Expected `([^`]+)`", said)
    if wanted is None:
        return f"{subject} is wrong ({said}), found {shown(value)}"
    words = " or ".join(_WORDS.get(word, word) for word in wanted[1].split(" | "))
    return f"{subject} must be {words}, found {shown(value)}"


def _key(steps: Sequence[str | int]) -> str:
    joined = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)
    return joined.removeprefix(".")


def require_length(path: Path, key: str, values: Sequence[object], length: int) -> None:
    """Check how many numbers a list holds.

    Raises:
        RunFileError: It holds more or fewer.
    """
    if len(values) != length:
        raise RunFileError(path, f"key '{key}' must hold {length} numbers, found {len(values)}")


def shown(value: Any) -> str:
    """Return a value as it is shown in an error, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no spaces, no NaN.

    Example:
        >>> canonical_json({"b": 1.0, "a": [True, None]})
        '{"a":[true,null],"b":1.0}'
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
