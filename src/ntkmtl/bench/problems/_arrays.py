"""Prepared data: one file per array, mapped into memory and checked."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntkmtl.errors import imports_for
from ntkmtl.files import atomic_write, parse_json, read_bytes, write_json

with imports_for("prepared data"):
    import numpy as np
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
SCHEMA = 1
_CHUNK = 1 << 24

TRUSTED = 1 << 28
"""Arrays of more bytes are not read again for their digest while their time of change stays."""


ArrayLayout = dict[str, tuple[type[np.generic], tuple[int, ...]]]
"""Type and shape of each array."""


class DataMissingError(FileNotFoundError):
    """The data of a problem are not where they were looked for."""


def data_folder(name: str, chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of a problem's prepared data.

    Args:
        name: Name of the data set.
        chosen: The folder itself, as ``--data`` names it. If None it is ``$NTKMTL_DATA/name``, and
            without that variable ``data/name`` in the user's cache folder for ntkmtl, which
            ``$NTKMTL_CACHE`` changes.

    Example:
        >>> data_folder("qm9", "somewhere").as_posix()
        'somewhere'
    """
    if chosen is not None:
        return Path(chosen)
    for variable, below in (("NTKMTL_DATA", ()), ("NTKMTL_CACHE", ("data",))):
        value = os.environ.get(variable)
        if value:
            return Path(value, *below, name)
    with imports_for("the folder of prepared data"):
        import platformdirs
    return platformdirs.user_cache_path("ntkmtl") / "data" / name


def last_change(folder: Path) -> int:
    """Return when prepared data were made, in nanoseconds; 0 where there are none.

    What was loaded from a folder may be used again for as long as this stays.
    """
    manifest = folder / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as ``.npy`` in one piece."""
    with atomic_write(path) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def write_manifest(folder: Path, kind: str, names: list[str], facts: Mapping[str, Any]) -> None:
    """Write the manifest of arrays that are already in a folder; the data are then complete."""
    arrays = {}
    for name in names:
        path = folder / f"{name}.npy"
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays[name] = {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "bytes": path.stat().st_size,
            "changed": path.stat().st_mtime_ns,
            "sha256": file_digest(path),
        }
    write_json(
        folder / MANIFEST, {"schema": SCHEMA, "kind": kind, "arrays": arrays, "facts": dict(facts)}
    )


def require_layout(found: Mapping[str, NDArray[Any]], wanted: ArrayLayout) -> None:
    """Refuse arrays of another type or shape."""
    for name, (dtype, shape) in wanted.items():
        array = found[name]
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}, not {np.dtype(dtype)} of shape "
                f"{shape}"
            )


@contextmanager
def shipped(name: str, path: Path, script: str) -> Iterator[tuple[dict[str, NDArray[Any]], str]]:
    """Yield the arrays of a data file of the package, and its SHA-256; the body may refuse them.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is damaged, or the body raised a KeyError or a ValueError.
    """
    advice = f"Install the package again, or make the file with {script}."
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"the data of {name} is missing: {path}. {advice}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {
                member.removesuffix(".npy"): np.load(
                    io.BytesIO(archive.read(member)), allow_pickle=False
                )
                for member in archive.namelist()
            }
        yield arrays, hashlib.sha256(content).hexdigest()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError) as error:
        what = f"no array {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"the data of {name} cannot be read: {path}: {what}. {advice}") from error


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Yield a new folder to write into, which replaces ``folder`` if the body succeeds.

    Raises:
        ValueError: ``folder`` holds something that is not prepared data.
        OSError: It cannot be replaced, or nothing can be written there.
    """
    new = beside(folder, secrets.token_hex(4))
    new.mkdir()
    try:
        yield new
        publish(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def beside(folder: Path, ending: str) -> Path:
    """Return where to make the folder of new data that is to take the place of another.

    That is next to ``folder``, or within it where it cannot be renamed: where it is a mount point,
    the working directory, or in a folder that may not be written.

    Raises:
        ValueError: ``folder`` holds something that is not prepared data.
    """
    refuse_foreign(folder)
    folder = _followed(folder)
    fixed = folder.is_dir() and (
        os.path.ismount(folder)
        or folder.samefile(Path.cwd())
        or not os.access(folder.parent, os.W_OK)
    )
    place = folder if fixed else folder.parent
    place.mkdir(parents=True, exist_ok=True)
    return place / f".{folder.name}-{ending}"


def publish(new: Path, folder: Path) -> None:
    """Put a folder of whole data in the place of another.

    The earlier data are removed when the new ones are there. If the process is killed before, they
    are still next to ``folder``, under a name that begins with a dot.

    Args:
        new: The whole data, at a path of :func:`beside`, where it is no longer afterwards.
        folder: The folder to replace.

    Raises:
        ValueError: ``folder`` holds something that is not prepared data.
        OSError: It cannot be replaced. One that can be renamed is as it was; another one may have
            lost its manifest, and then looks incomplete.
    """
    refuse_foreign(folder)
    folder = _followed(folder)
    if new.parent == folder:
        _replace_within(new, folder)
        return
    new.chmod(0o755)
    old = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    there = folder.exists()
    try:
        if there:
            folder.rename(old)
    except OSError as error:
        # A bind mount does not look like a mount point, nor does a layer of a container's disk.
        if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EPERM):
            raise
        _replace_within(new, folder)
        return
    try:
        new.rename(folder)
    except BaseException:
        if there:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _replace_within(new: Path, folder: Path) -> None:
    """Replace what a folder holds. Without its manifest, it looks whole at no time in between."""
    (folder / MANIFEST).unlink(missing_ok=True)
    arrays = list(new.glob("*.npy"))
    for path in arrays:
        _move(path, folder / path.name)
    kept = {path.name for path in (*arrays, new)}
    for path in folder.iterdir():
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()
    _move(new / MANIFEST, folder / MANIFEST)
    shutil.rmtree(new, ignore_errors=True)


def _move(path: Path, to: Path) -> None:
    try:
        path.replace(to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with path.open("rb") as file, atomic_write(to) as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
        # The manifest says when the array was changed.
        shutil.copystat(path, to)
        path.unlink()


def _followed(folder: Path) -> Path:
    """Return a folder by its own name: no link, and not ``.``, which has none."""
    return Path(os.path.realpath(folder))


def refuse_foreign(folder: Path) -> None:
    """Refuse to write prepared data into a folder that holds other things."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give another one for the prepared data")
    # New data that are being made inside the folder, and what earlier attempts left there.
    ours = f".{_followed(folder).name}-"
    other = [
        path.name
        for path in folder.iterdir()
        if path.name != MANIFEST
        and path.suffix != ".npy"
        and not (path.is_dir() and path.name.startswith(ours))
    ]
    if other:
        raise ValueError(
            f"{folder} holds {sorted(other)[0]}, which is not prepared data; give a new folder"
        )


class PreparedData:
    """The arrays of a prepared data set, read-only and mapped into memory.

    Attributes:
        folder: Their folder.
        facts: What the manifest says of them.
        sha256: One digest of all arrays.

    Raises:
        DataMissingError: There are no data.
        ValueError: They are damaged, incomplete or of another layout.
    """

    def __init__(self, folder: Path, kind: str, how: str) -> None:
        self.folder = folder
        self._how = how
        path = folder / MANIFEST
        if not path.exists():
            state = "holds no prepared data" if folder.is_dir() else "is not there"
            raise DataMissingError(f"{folder} {state}. {how}")
        try:
            manifest = parse_json(read_bytes(path))
            if manifest["schema"] != SCHEMA or manifest["kind"] != kind:
                found = f"{manifest['kind']}, schema {manifest['schema']}"
                raise ValueError(f"it describes {found}, not {kind}, schema {SCHEMA}")
            self.facts: dict[str, Any] = dict(manifest["facts"])
            entries = {
                name: (
                    entry["dtype"],
                    tuple(entry["shape"]),
                    entry["bytes"],
                    entry["changed"],
                    entry["sha256"],
                )
                for name, entry in manifest["arrays"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise self._damaged(path, what) from error
        self._arrays: dict[str, NDArray[Any]] = {}
        digest = hashlib.sha256()
        for name, entry in sorted(entries.items()):
            self._arrays[name] = self._open(name, *entry)
            digest.update(f"{name} {entry[-1]}\n".encode())
        self.sha256 = digest.hexdigest()

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array by name."""
        if name not in self._arrays:
            raise self._damaged(self.folder / MANIFEST, f"it names no array {name!r}")
        return self._arrays[name]

    def _open(
        self, name: str, dtype: str, shape: tuple[int, ...], size: int, changed: int, sha256: str
    ) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            status = path.stat()
        except OSError as error:
            raise self._damaged(path, error.strerror or str(error)) from error
        if status.st_size != size:
            raise self._damaged(path, f"it has {status.st_size} bytes, not {size}")
        trusted = size > TRUSTED and status.st_mtime_ns == changed
        if not trusted and file_digest(path) != sha256:
            raise self._damaged(path, "its SHA-256 is not the one in the manifest")
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(path, str(error)) from error
        if str(array.dtype) != dtype or array.shape != shape:
            raise self._damaged(path, f"it holds {array.dtype} {array.shape}, not {dtype} {shape}")
        return array

    def _damaged(self, path: Path, what: str) -> ValueError:
        return ValueError(f"{path} cannot be used: {what}. {self._how}")


# ------------------------------------------------------------------------------------------------
# Decoding samples one by one into arrays; a stopped call is continued by the next one

NOTE = "progress.json"
"""Name of the file that says how many samples are decoded."""


def decode_samples(
    folder: Path,
    source: Sequence[Any],
    names: Sequence[str],
    arrays: ArrayLayout,
    read: Callable[[str], Mapping[str, Any]],
    progress: Callable[[str], None],
    samples: str,
    every: int,
) -> None:
    """Fill ``NAME.npy`` of each array in a folder, from where an earlier call stopped.

    Args:
        folder: The folder, which exists.
        source: JSON values that change with what is decoded.
        names: The samples, in the order of the arrays' rows.
        arrays: The arrays, their shapes without the samples.
        read: Returns a sample's part of each array.
        progress: Called with progress messages.
        samples: What the samples are called, as ``"images"``.
        every: Samples between two notes of how far the decoding has come.

    Raises:
        ValueError: The note of an earlier call is damaged.
    """
    note = folder / NOTE
    key = hashlib.sha256(json.dumps([*source, names]).encode()).hexdigest()
    paths = {name: folder / f"{name}.npy" for name in arrays}
    done = _done(note, key, list(paths.values()))
    if done:
        progress(f"continuing after {done:,} {samples}")
    else:
        note.unlink(missing_ok=True)
    opened: dict[str, Any] = {
        name: np.lib.format.open_memmap(paths[name], mode="r+")
        if done
        else np.lib.format.open_memmap(
            paths[name], mode="w+", dtype=dtype, shape=(len(names), *shape)
        )
        for name, (dtype, shape) in arrays.items()
    }
    for row in range(done, len(names)):
        sample = read(names[row])
        for name, array in opened.items():
            array[row] = sample[name]
        if (row + 1) % every == 0 or row + 1 == len(names):
            for name, array in opened.items():
                array.flush()
                with paths[name].open("rb") as file:
                    os.fsync(file.fileno())
            write_json(note, {"key": key, "done": row + 1})
            progress(f"{row + 1:,} of {len(names):,} {samples} decoded")


def finish(
    partial: Path, folder: Path, kind: str, names: Sequence[str], facts: Mapping[str, Any]
) -> None:
    """Put arrays that are decoded as a whole in the place of earlier data."""
    write_manifest(partial, kind, list(names), facts)
    (partial / NOTE).unlink(missing_ok=True)
    publish(partial, folder)


def _done(note: Path, key: str, paths: Sequence[Path]) -> int:
    """Return how many samples an earlier call has decoded, 0 if it was of others."""
    if not (note.is_file() and all(path.is_file() for path in paths)):
        return 0
    try:
        found = parse_json(read_bytes(note))
        return int(found["done"]) if found["key"] == key else 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{note} is damaged; remove {note.parent} and call again") from error


# ------------------------------------------------------------------------------------------------
# Data whose values are implausible: another unit, an empty label, a wrong file

OVERRULE = "If the data are really so, pass --accept-implausible."
DARKEST = 2
"""Smallest mean of 8-bit images that show something."""

ACCEPTED = "accepted_as_implausible"
"""The fact in a manifest that holds what was found and accepted."""


def refuse_implausible(
    source: Path | str, found: Sequence[str], accept: bool
) -> dict[str, list[str]]:
    """Refuse data of which something is implausible, or return it as a fact for the manifest.

    Args:
        source: Where the data are.
        found: What is implausible: a phrase each, with what was expected and what was found.
        accept: Whether the user says that the data are really so.

    Example:
        >>> refuse_implausible("x.npz", ["depths must be in meters, found 250"], accept=False)
        Traceback (most recent call last):
        ...
        ValueError: x.npz: depths must be in meters, found 250. If the data are really so, pass \
--accept-implausible.
        >>> refuse_implausible("x.npz", [], accept=False)
        {}
    """
    if found and not accept:
        said = "; ".join(found)
        raise ValueError(f"{source}: {said}{'' if said.endswith('?') else '.'} {OVERRULE}")
    return {ACCEPTED: list(found)} if found else {}


def dark(images: NDArray[np.uint8], must: str) -> list[str]:
    """Return a phrase on 8-bit images that are black or white all over; ``must`` begins it."""
    brightness = float(images.mean())
    if DARKEST <= brightness <= 255 - DARKEST:
        return []
    return [f"{must}, found a mean of {brightness / 255:.4f} of 1"]


def accepted_notice(facts: Mapping[str, Any]) -> str:
    """Return what to say before a run on data that were accepted as implausible, "" for others."""
    found = facts.get(ACCEPTED)
    return f"These data were accepted though {'; '.join(found)}." if found else ""
