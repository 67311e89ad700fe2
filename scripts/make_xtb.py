"""Make the data of the problem `xtb`: GFN2-xTB along short trajectories of small molecules.

    python -m venv venv-xtb && venv-xtb/bin/pip install tblite==0.8.0 ase==3.29.0 rdkit
    PYTHONPATH=src venv-xtb/bin/python scripts/make_xtb.py

A molecule is embedded from its SMILES by RDKit, heated to 500 K by Langevin dynamics on GFN2-xTB,
and sampled every 20 fs after the first 100. Positions are rounded to float32 before energy, forces,
dipole and charges are computed, so that labels belong to the positions that are stored. It takes
about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from tblite.ase import TBLite

from ntkmtl.files import atomic_write

OUTPUT = (
    Path(__file__).parents[1]
    / "src" / "ntkmtl" / "bench" / "problems" / "xtb" / "data" / "xtb.npz"
)  # fmt: skip
ELEMENTS = (1, 6, 7, 8, 9)
# Number of unpaired electrons of the free atoms H, C, N, O, F.
UNPAIRED = (1, 2, 3, 2, 1)

TEMPERATURE = 500.0
EVERY = 20
HEATING = 100

# Trajectories per molecule and samples per trajectory; the last two are for validation and testing.
PLAN = {
    "ethanol": ("CCO", 10, 50),
    "aspirin": ("CC(=O)Oc1ccccc1C(=O)O", 10, 40),
}
SMALL = (
    "C", "CC", "CCC", "C=C", "C#C", "C=O", "CC=O", "CC(C)=O", "O", "CO", "OC=O", "CC(=O)O",
    "COC=O", "COC", "C1CO1", "N", "CN", "CNC", "NC=O", "CC(N)=O", "C#N", "CC#N", "N#CC#N",
    "NCC=O", "NCCO", "OCCO", "OCC=O", "C1CC1", "C1CCC1", "C=CC=C", "C1=CCC1", "c1ccccc1",
    "c1ccoc1", "c1cc[nH]c1", "c1ccncc1", "c1c[nH]cn1", "CF", "FC(F)F", "CC(F)F", "C=CF",
    "FCC=O", "OCCF", "NC(N)=O", "NC(=N)N", "CNC=O", "NCC#N", "OCC#N", "CC=C", "CC#C", "C=CC=O",
    "C#CC=O", "OC1CC1", "NC1CC1", "CC(C)O", "CC(C)N",
)  # fmt: skip
SMALL_TRAJECTORIES, SMALL_SAMPLES = 5, 3


def embedded(smiles: str, seed: int) -> Atoms:
    """Return a conformer with hydrogens."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=seed + 1) != 0:
        raise RuntimeError(f"RDKit found no conformer of {smiles}")
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    return Atoms(numbers, positions=molecule.GetConformer().GetPositions())


def calculator(**options: Any) -> TBLite:
    """Return GFN2-xTB, silent."""
    return TBLite(method="GFN2-xTB", verbosity=0, **options)


def trajectory(smiles: str, samples: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the samples of one trajectory."""
    atoms = embedded(smiles, seed)
    atoms.calc = calculator()
    generator = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * TEMPERATURE, rng=generator)
    dynamics = Langevin(
        atoms,
        units.fs,
        temperature_K=TEMPERATURE,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=generator,
    )
    dynamics.run(HEATING)
    for _ in range(samples):
        dynamics.run(EVERY)
        copy = Atoms(atoms.numbers, positions=atoms.positions.astype(np.float32))
        copy.calc = calculator()
        yield {
            "numbers": copy.numbers,
            "positions": copy.positions,
            "energy": copy.get_potential_energy(),
            "forces": copy.get_forces(),
            "dipole": copy.get_dipole_moment(),
            "charges": copy.get_charges(),
        }


def atomic_energies() -> list[float]:
    """Return the energies of the free atoms in eV."""
    found = []
    for number, unpaired in zip(ELEMENTS, UNPAIRED, strict=True):
        atom = Atoms([number], positions=[[0.0, 0.0, 0.0]])
        atom.calc = calculator(multiplicity=unpaired + 1)
        found.append(float(atom.get_potential_energy()))
    return found


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    plan = {**PLAN, **{s: (s, SMALL_TRAJECTORIES, SMALL_SAMPLES) for s in SMALL}}
    found, split, group = [], [], []
    for place, (name, (smiles, trajectories, samples)) in enumerate(plan.items()):
        for number in range(trajectories):
            frames = list(trajectory(smiles, samples, 1000 * place + number))
            found += frames
            # 0 train, 1 validation, 2 test.
            split += [max(0, number + 3 - trajectories)] * len(frames)
            group += [min(place, 2)] * len(frames)
        print(name, len(found), file=sys.stderr, flush=True)
    arrays: dict[str, Any] = {
        "atoms": np.array([len(f["numbers"]) for f in found], dtype=np.int16),
        "numbers": np.concatenate([f["numbers"] for f in found]).astype(np.int8),
        "positions": np.concatenate([f["positions"] for f in found]).astype(np.float32),
        "energy": np.array([f["energy"] for f in found], dtype=np.float64),
        "forces": np.concatenate([f["forces"] for f in found]).astype(np.float32),
        "dipole": np.stack([f["dipole"] for f in found]).astype(np.float32),
        "charges": np.concatenate([f["charges"] for f in found]).astype(np.float32),
        "split": np.array(split, dtype=np.int8),
        "group": np.array(group, dtype=np.int8),
        "elements": np.array(ELEMENTS, dtype=np.int8),
        "atomic_energies": np.array(atomic_energies(), dtype=np.float64),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        file.write(buffer.getvalue())
    print(f"{output}: {len(found)} geometries, {len(buffer.getvalue())} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
