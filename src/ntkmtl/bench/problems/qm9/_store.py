"""QM9 as prepared arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from ntkmtl.bench.problems._arrays import PreparedData, replacing, write_array, write_manifest
from ntkmtl.bench.problems._plausible import accepted_notice, refuse_implausible
from ntkmtl.bench.problems.qm9._molecules import MOLECULES, Molecules
from ntkmtl.bench.problems.qm9._sources import read_source
from ntkmtl.bench.problems.qm9._units import wrong_units

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

    ``source`` is what :func:`~ntkmtl.bench.problems.qm9._sources.read_source` takes; the installed
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
