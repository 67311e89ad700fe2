"""Make the data file of the problem ``qm9-mini`` from the Python package ``qm9pack``.

The package is read as a folder or as a wheel, and never imported: only the CSV files inside it are
used. The same package gives the same molecules in the same order, whatever the version of Python or
NumPy.

Example:
    python scripts/make_qm9_mini.py --qm9pack qm9pack-1.0.3-py3-none-any.whl
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import heapq
import importlib.util
import io
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ntkmtl.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "src" / "ntkmtl" / "bench" / "problems" / "qm9_mini" / "data" / "qm9_mini.npz"

PARTS = ("data/qm9_part1.csv", "data/qm9_part2.csv", "data/qm9_part3.csv")
MOLECULES = 130_831
UNCHARACTERIZED = 3_054
COUNT = 4_000
SEED = 0

ATOMIC_NUMBER = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
# Columns of the source, in the order of the paper's targets, in QM9's own units.
TARGETS = {
    "mu": ("Dipole_debye", "D"),
    "alpha": ("Polarizability_bohr3", "a0^3"),
    "homo": ("HOMO_au", "Ha"),
    "lumo": ("LUMO_au", "Ha"),
    "r2": ("R2_bohr2", "a0^2"),
    "zpve": ("ZPVE_au", "Ha"),
    "u0": ("InternalEnergy_0K_au", "Ha"),
    "u298": ("InternalEnergy_298K_au", "Ha"),
    "h298": ("Enthalphy_298K_au", "Ha"),
    "g298": ("GibbsFreeEnergy_298K_au", "Ha"),
    "cv": ("Heatcapacity_Cv_cal_mol_K", "cal/(mol K)"),
}


def find_qm9pack() -> Path:
    """Return the folder of the installed ``qm9pack``, without importing it.

    Raises:
        FileNotFoundError: It is not installed.
    """
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "qm9pack is not installed here. Give its wheel or its folder with --qm9pack PATH; "
            "`pip download --no-deps qm9pack==1.0.3` brings the wheel."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def read_rows(source: Path, parts: Sequence[str] = PARTS) -> Iterator[dict[str, str]]:
    """Yield the rows of the package's CSV files.

    Args:
        source: The wheel, the package's folder, or a folder that holds the package's folder.
        parts: Files to read, relative to the package's folder.

    Yields:
        One dict per molecule, column name to text.

    Raises:
        FileNotFoundError: A file is missing.
    """
    with ExitStack() as stack:
        root: Path | zipfile.Path
        if source.is_file():
            root = zipfile.Path(stack.enter_context(zipfile.ZipFile(source))) / "qm9pack"
        elif (source / "qm9pack").is_dir():
            root = source / "qm9pack"
        else:
            root = source
        for part in parts:
            path = root
            for name in part.split("/"):
                path = path / name
            if not path.is_file():
                raise FileNotFoundError(f"{source} has no {part}: is it the package qm9pack 1.0.3?")
            with path.open("r", encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)


def rank(index: int, seed: int) -> bytes:
    """Return the key whose order is the random order of the molecules."""
    return hashlib.sha256(f"qm9-mini {seed} {index}".encode()).digest()


def choose(
    rows: Iterator[dict[str, str]], count: int, seed: int, expected: int | None
) -> list[dict[str, str]]:
    """Return the ``count`` rows that come first in the random order of ``seed``.

    Args:
        rows: All molecules.
        count: How many to choose.
        seed: Which random order.
        expected: Number of molecules there must be, any if None.

    Raises:
        ValueError: Molecules are missing, doubled, or fewer than ``count``.
    """
    seen: set[int] = set()
    total = 0

    def keyed() -> Iterator[tuple[bytes, int, dict[str, str]]]:
        nonlocal total
        for row in rows:
            index = int(row["Index"])
            seen.add(index)
            total += 1
            yield rank(index, seed), index, row

    chosen = heapq.nsmallest(count, keyed(), key=lambda item: item[0])
    if len(seen) != total:
        raise ValueError(f"{total - len(seen)} molecules stand twice in the source")
    if expected is not None and total != expected:
        raise ValueError(
            f"the source has {total} molecules, not {expected}, which is QM9 without the "
            f"{UNCHARACTERIZED} uncharacterized ones"
        )
    if len(chosen) < count:
        raise ValueError(f"{count} molecules wanted, the source has {total}")
    return [row for _, _, row in chosen]


def pack(rows: Sequence[dict[str, str]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of the data file.

    Args:
        rows: m molecules with a total of a atoms.

    Returns:
        ``index`` (m,) GDB index from 1; ``atoms`` (m,) number of atoms; ``numbers`` (a,) atomic
        numbers; ``positions`` (a, 3) in Angstrom, float32; ``targets`` (m, 11) in QM9's own units;
        ``names`` and ``units`` (11,).

    Raises:
        ValueError: A molecule has not as many coordinates as atoms, or a value is not finite.
    """
    numbers: list[int] = []
    positions: list[list[float]] = []
    for row in rows:
        elements = [ATOMIC_NUMBER[symbol] for symbol in ast.literal_eval(row["Elements"])]
        xyz = ast.literal_eval(row["XYZ_Ang"])
        if len(elements) != len(xyz) or len(elements) != int(row["N_atoms"]):
            raise ValueError(
                f"molecule {row['Index']} has {len(elements)} atoms and {len(xyz)} places"
            )
        numbers += elements
        positions += xyz
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "index": np.array([int(row["Index"]) for row in rows], dtype=np.int32),
        "atoms": np.array([int(row["N_atoms"]) for row in rows], dtype=np.uint8),
        "numbers": np.array(numbers, dtype=np.uint8),
        "positions": np.array(positions, dtype=np.float32),
        "targets": np.array(
            [[float(row[column]) for column, _ in TARGETS.values()] for row in rows],
            dtype=np.float64,
        ),
        "names": np.array(list(TARGETS)),
        "units": np.array([unit for _, unit in TARGETS.values()]),
    }
    for name in ("positions", "targets"):
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds a value that is not finite")
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """Write the arrays as a compressed ``.npz``, byte for byte the same for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            # A ZipInfo carries no time of writing unless it is given one.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--qm9pack", type=Path, help="wheel or folder; found if it is installed")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    try:
        source = options.qm9pack or find_qm9pack()
        if not source.exists():
            raise FileNotFoundError(f"{source} is not there")
        arrays = pack(choose(read_rows(source), COUNT, SEED, MOLECULES))
    except (FileNotFoundError, ValueError, zipfile.BadZipFile) as error:
        print(f"make_qm9_mini: {error}", file=sys.stderr)
        return 1
    write(options.output, arrays)
    digest = hashlib.sha256(options.output.read_bytes()).hexdigest()
    print(f"{options.output}: {COUNT} molecules, {len(arrays['numbers'])} atoms,")
    print(f"{options.output.stat().st_size} bytes, sha256 {digest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
