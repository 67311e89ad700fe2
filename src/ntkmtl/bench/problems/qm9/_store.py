"""The sources of QM9, read into one form, and that form as prepared arrays."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ntkmtl.bench.problems._arrays import (
    PreparedData,
    accepted_notice,
    refuse_implausible,
    replacing,
    write_array,
    write_manifest,
)
from ntkmtl.bench.problems.qm9._bonds import bonds_of
from ntkmtl.bench.problems.qm9._molecules import (
    LAST_INDEX,
    MOLECULES,
    UNCHARACTERIZED,
    Molecules,
    wrong_units,
)
from ntkmtl.bench.problems.qm9_mini._data import ATOM_ENERGIES, ELEMENTS, HARTREE
from ntkmtl.files import read_bytes, require_regular

KCAL_PER_MOL = 0.04336414
"""One kcal/mol in eV, the value that torch_geometric uses."""

_NUMBER = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}

# The columns of gdb9.sdf.csv and their factors to torch_geometric's units: D, a0^3, eV, eV, a0^2,
# eV, eV four times (atomization energies), cal/(mol K).
_RAW = (
    ("mu", 1.0),
    ("alpha", 1.0),
    ("homo", HARTREE),
    ("lumo", HARTREE),
    ("r2", 1.0),
    ("zpve", HARTREE),
    ("u0_atom", KCAL_PER_MOL),
    ("u298_atom", KCAL_PER_MOL),
    ("h298_atom", KCAL_PER_MOL),
    ("g298_atom", KCAL_PER_MOL),
    ("cv", 1.0),
)

# The same for qm9pack, whose energies are total ones in hartree: less those of the free atoms.
_PACK = (
    ("Dipole_debye", 1.0, None),
    ("Polarizability_bohr3", 1.0, None),
    ("HOMO_au", HARTREE, None),
    ("LUMO_au", HARTREE, None),
    ("R2_bohr2", 1.0, None),
    ("ZPVE_au", HARTREE, None),
    ("InternalEnergy_0K_au", HARTREE, "u0"),
    ("InternalEnergy_298K_au", HARTREE, "u298"),
    ("Enthalphy_298K_au", HARTREE, "h298"),
    ("GibbsFreeEnergy_298K_au", HARTREE, "g298"),
    ("Heatcapacity_Cv_cal_mol_K", 1.0, None),
)
_PACK_PARTS = ("data/qm9_part1.csv", "data/qm9_part2.csv", "data/qm9_part3.csv")


@dataclass(frozen=True)
class _One:
    index: int
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    bonds: NDArray[np.uint8]
    targets: Sequence[float]


def _collect(molecules: Iterator[_One], progress: Callable[[str], None]) -> Molecules:
    found = []
    for one in molecules:
        found.append(one)
        if len(found) % 10_000 == 0:
            progress(f"{len(found):,} molecules read")
    if not found:
        raise ValueError("there are no molecules")
    found.sort(key=lambda one: one.index)
    return Molecules(
        index=np.array([one.index for one in found], dtype=np.int32),
        atoms=np.array([len(one.numbers) for one in found], dtype=np.uint8),
        numbers=np.concatenate([one.numbers for one in found]),
        positions=_rounded(np.concatenate([one.positions for one in found])),
        bond_counts=np.array([len(one.bonds) for one in found], dtype=np.uint8),
        bonds=np.concatenate([one.bonds for one in found]),
        targets=np.array([one.targets for one in found], dtype=np.float64),
    )


def _rounded(positions: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.round(positions, 4).astype(np.float32)


def read_source(
    source: Path, progress: Callable[[str], None] = lambda _: None, accept_implausible: bool = False
) -> Molecules:
    """Read QM9, or a part of it.

    Args:
        source: One of

            * the folder of torch_geometric's raw files ``gdb9.sdf``, ``gdb9.sdf.csv`` and
              ``uncharacterized.txt``, or the folder above it with ``raw`` in it;
            * the package ``qm9pack`` 1.0.3: its wheel or its folder;
            * an ``.npz`` file of molecules with coordinates, bonds and targets, whose arrays are
              ``idx``, ``N``, ``Z``, ``R``, ``n_bonds``, ``bonds``, ``y``, ``y_names`` and
              ``y_to_pyg``.
        progress: Called with progress messages.
        accept_implausible: Whether values that look wrong are taken for what they are.

    Returns:
        The molecules without those that are left out, checked.

    Raises:
        FileNotFoundError: There is no such source, or a file of it is missing.
        ValueError: It is damaged, with the place, or its values are implausible.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there")
    try:
        if not source.is_dir():
            require_regular(source)
        if source.is_dir():
            raw = source / "raw" if (source / "raw").is_dir() else source
            if (raw / "gdb9.sdf").exists() or (raw / "gdb9.sdf.csv").exists():
                molecules = _read_raw(raw, progress)
            else:
                molecules = _collect(_read_pack(source), progress)
        elif source.suffix == ".npz":
            molecules = _read_npz(source)
        else:
            molecules = _collect(_read_pack(source), progress)
        molecules.check()
        refuse_implausible("its values", wrong_units(molecules), accept_implausible)
    except (ValueError, KeyError, IndexError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{source} cannot be read as QM9: {what}") from error
    return molecules


# ------------------------------------------------------------------------------------------------
# torch_geometric's raw files


def _read_raw(folder: Path, progress: Callable[[str], None]) -> Molecules:
    files = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
    missing = [name for name in files if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    for name in files:
        require_regular(folder / name)
    left_out = _left_out(read_bytes(folder / files[2]))
    with (folder / files[1]).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = [name for name, _ in _RAW]
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            raise ValueError(f"{files[1]} has no column {', '.join(absent)}")
        rows = [[float(row[name] or "nan") for name in columns] for row in reader]
    values = np.array(rows, dtype=np.float64).reshape(-1, len(columns))
    values = values * np.array([factor for _, factor in _RAW])
    whole = len(values) == LAST_INDEX
    if not left_out or (whole and len(left_out) != UNCHARACTERIZED):
        wanted = f"{UNCHARACTERIZED:,} indices" if whole else "the indices"
        raise ValueError(
            f"{files[2]} must name {wanted} of the molecules to leave out, and it names "
            f"{len(left_out):,}: download it again, from "
            "https://ndownloader.figshare.com/files/3195404 as torch_geometric does"
        )

    def read() -> Iterator[_One]:
        count = 0
        with (folder / files[0]).open(encoding="ascii") as file:
            for index, block in enumerate(_records(file), start=1):
                count = index
                if index > len(values):
                    break
                if index not in left_out:
                    yield _molecule(index, block, values[index - 1].tolist())
        if count != len(values):
            more = "more than " if count > len(values) else ""
            raise ValueError(
                f"{files[0]} has {count if not more else len(values)}{' or more' if more else ''} "
                f"molecules, {files[1]} has {len(values)}"
            )

    return _collect(read(), progress)


def _left_out(content: bytes) -> set[int]:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    # Another file altogether, text or not, names none; that is refused with what was found.
    text = content.decode("utf-8", errors="replace")
    found = (int(match[1]) for match in re.finditer(r"^\s*(\d+)\s", text, re.MULTILINE))
    return {index for index in found if 1 <= index <= LAST_INDEX}


def _records(lines: Iterator[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in lines:
        if line.startswith("$$$$"):
            yield block
            block = []
        else:
            block.append(line)
    if any(line.strip() for line in block):
        raise ValueError("gdb9.sdf is cut off: its last molecule has no end")


def _molecule(index: int, block: list[str], targets: list[float]) -> _One:
    try:
        # The V2000 format: three lines of header, a line of counts, a line per atom, one per bond.
        n, b = int(block[3][:3]), int(block[3][3:6])
        if len(block) < 4 + n + b:
            raise ValueError(f"it has {len(block)} lines, of {n} atoms and {b} bonds")
        atoms, bonds = block[4 : 4 + n], block[4 + n : 4 + n + b]
        return _One(
            index,
            np.array([_NUMBER[line[31:34].strip()] for line in atoms], dtype=np.uint8),
            np.array([[float(line[at : at + 10]) for at in (0, 10, 20)] for line in atoms]),
            np.array(
                [(int(s[:3]) - 1, int(s[3:6]) - 1, int(s[6:9])) for s in bonds], dtype=np.uint8
            ).reshape(-1, 3),
            targets,
        )
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"molecule {index} of gdb9.sdf cannot be read: {error}") from error


# ------------------------------------------------------------------------------------------------
# The package qm9pack


def _read_pack(source: Path) -> Iterator[_One]:
    columns = [
        (name, factor, np.array(ATOM_ENERGIES[free]) if free else np.zeros(len(ELEMENTS)))
        for name, factor, free in _PACK
    ]
    for row in _pack_rows(source):
        index = int(row["Index"])
        try:
            symbols = re.findall(r"[A-Z][a-z]?", row["Elements"])
            numbers = np.array([_NUMBER[symbol] for symbol in symbols], dtype=np.uint8)
            places = np.array(
                row["XYZ_Ang"].replace("[", "").replace("]", "").split(","), dtype=np.float64
            ).reshape(-1, 3)
            if not len(numbers) == len(places) == int(row["N_atoms"]):
                raise ValueError(f"it has {len(numbers)} atoms and {len(places)} places")
            composition = np.array([int((numbers == element).sum()) for element in ELEMENTS])
            targets = [
                (float(row[name]) - float(composition @ free)) * factor
                for name, factor, free in columns
            ]
            yield _One(index, numbers, places, bonds_of(row["SMILES"], numbers, places), targets)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"molecule {index}: {error}") from error


def _pack_rows(source: Path) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        root: Path | zipfile.Path
        if source.is_file():
            root = zipfile.Path(stack.enter_context(zipfile.ZipFile(source))) / "qm9pack"
        else:
            root = source / "qm9pack" if (source / "qm9pack").is_dir() else source
        for part in _PACK_PARTS:
            path = root.joinpath(*part.split("/"))
            if not path.is_file():
                raise FileNotFoundError(
                    f"{source} has no {part}: is it the package qm9pack 1.0.3, or the folder of "
                    "gdb9.sdf?"
                )
            with path.open("r", encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file)


# ------------------------------------------------------------------------------------------------
# A part of QM9 as arrays


_ARRAYS = ("idx", "N", "Z", "R", "n_bonds", "bonds", "y", "y_names", "y_to_pyg")


def _read_npz(path: Path) -> Molecules:
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as archive:
            absent = [name for name in _ARRAYS if name not in archive]
            if absent:
                raise ValueError(
                    f"it has no array {', '.join(absent)}; it has {', '.join(archive)}. y_to_pyg "
                    "is the factor of each target to D, a0^3, eV, a0^2 and cal/(mol K), 1 where y "
                    "is in these units"
                )
            arrays = {name: archive[name] for name in _ARRAYS}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"it is not an archive of arrays: {error}") from error
    names = [str(name) for name in arrays["y_names"]]
    absent = [name for name, _ in _RAW if name not in names]
    if absent:
        raise ValueError(f"y_names has no {', '.join(absent)}; it has {', '.join(names)}")
    columns = [names.index(name) for name, _ in _RAW]
    if arrays["y"].shape != (len(arrays["idx"]), len(names)):
        raise ValueError(
            f"y must have shape {(len(arrays['idx']), len(names))}, a row for each of idx and a "
            f"column for each of y_names, found {arrays['y'].shape}"
        )
    if arrays["y_to_pyg"].shape != (len(names),):
        raise ValueError(
            f"y_to_pyg must have one factor for each of {len(names)} y_names, found shape "
            f"{arrays['y_to_pyg'].shape}"
        )
    factors = arrays["y_to_pyg"][columns].astype(np.float64)
    molecules = Molecules(
        index=arrays["idx"].astype(np.int32),
        atoms=arrays["N"].astype(np.uint8),
        numbers=arrays["Z"].astype(np.uint8),
        positions=_rounded(arrays["R"].astype(np.float64)),
        bond_counts=arrays["n_bonds"].astype(np.uint8),
        bonds=arrays["bonds"].astype(np.uint8),
        targets=arrays["y"][:, columns].astype(np.float64) * factors,
    )
    # Shapes first, as taking rows needs them; order and values are checked afterwards.
    order = np.argsort(molecules.index, kind="stable")
    if molecules.atoms.sum() != len(molecules.numbers):
        raise ValueError(
            f"N counts {molecules.atoms.sum()} atoms, there are {len(molecules.numbers)}"
        )
    if molecules.bond_counts.sum() != len(molecules.bonds):
        raise ValueError(
            f"n_bonds counts {molecules.bond_counts.sum()} bonds, there are {len(molecules.bonds)}"
        )
    return molecules.take(order)


KIND = "qm9 1"
HOW = (
    "`ntkmtl data qm9 --source PATH` prepares the data from the wheel of qm9pack 1.0.3 "
    "(`pip download --no-deps qm9pack==1.0.3`), from torch_geometric's raw files (gdb9.sdf, "
    "gdb9.sdf.csv, uncharacterized.txt), or, for the recipe small, from an .npz file with a part "
    "of QM9; --data or NTKMTL_DATA say where prepared data are."
)


def prepare(
    source: Path | None,
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    accept_implausible: bool = False,
) -> str:
    """Read QM9, or a part of it, and write it as prepared arrays.

    ``source`` is what :func:`~ntkmtl.bench.problems.qm9._store.read_source` takes; the installed
    package ``qm9pack`` if None. The other arguments and the return value are those of
    :attr:`ntkmtl.bench.problems.ProblemSpec.prepare`.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: It is damaged.
    """
    source = _installed() if source is None else source
    names = [field.name for field in fields(Molecules)]
    # A place that cannot be written is refused before the long reading.
    with replacing(folder) as new:
        molecules = read_source(source, progress, accept_implausible)
        accepted = refuse_implausible(source, wrong_units(molecules), accept_implausible)
        for name in names:
            write_array(new / f"{name}.npy", getattr(molecules, name))
        facts = {"source": source.name, "molecules": len(molecules), **accepted}
        write_manifest(new, KIND, names, facts)
    whole = "all of QM9" if len(molecules) == MOLECULES else f"of QM9's {MOLECULES:,}"
    return f"{len(molecules):,} molecules ({whole}) in {folder}"


def load(folder: Path) -> tuple[Molecules, str, str]:
    """Map prepared data into memory.

    Returns:
        The molecules, one digest of all arrays, and a sentence on values that were accepted though
        implausible, "" for none.

    Raises:
        DataMissingError: There are none.
        ValueError: They are damaged.
    """
    prepared = PreparedData(folder, KIND, HOW)
    molecules = Molecules(**{field.name: prepared[field.name] for field in fields(Molecules)})
    try:
        molecules.check()
        said = accepted_notice(prepared.facts)
        refuse_implausible("its values", [] if said else wrong_units(molecules), accept=False)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be used: {error}. {HOW}") from error
    return molecules, prepared.sha256, said


def _installed() -> Path:
    # Found without being imported: its import needs an old setuptools.
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"qm9pack is not installed here. {HOW}")
    return Path(next(iter(spec.submodule_search_locations)))
