from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from prediction_oracle import check_predictions
from torch import nn
from torchmetrics.functional import mean_absolute_error

from ntkmtl.bench import paper, problems
from ntkmtl.bench.problems._arrays import DataMissingError, PreparedData
from ntkmtl.bench.problems.qm9 import (
    QM9,
    Graphs,
    Molecules,
    _store,
    load,
    prepare,
    read_source,
)
from ntkmtl.bench.problems.qm9._bonds import bonds_of, read_smiles
from ntkmtl.bench.problems.qm9._molecules import MOLECULES, UNCHARACTERIZED
from ntkmtl.bench.problems.qm9._problem import graphs
from ntkmtl.bench.training import train

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = REPOSITORY.parent / "shared" / "data" / "qm9" / "qm9_10k.npz"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="needs qm9_10k.npz in ../shared/data")

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
COLUMNS = [
    *("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298"),
    *("g298", "cv", "u0_atom", "u298_atom", "h298_atom", "g298_atom"),
]
# Water, numbers of dsgdb9nsd_000003.xyz; its atomization energies in kcal/mol follow from U0, U, H
# and G and the free atoms' energies at 627.5089 kcal/mol.
WATER = {
    **{"mu": 1.8511, "alpha": 6.31, "homo": -0.2928, "lumo": 0.0687, "r2": 19.0002},
    **{"zpve": 0.021375, "cv": 6.002, "u0_atom": -213.087624, "u298_atom": -213.974294},
    **{"h298_atom": -214.609018, "g298_atom": -201.407171},
}
WATER_PACK = (
    '"dsgdb9nsd_000003.xyz",{index},"O",3,"[\'O\',\'H\',\'H\']","[[-0.0343604951,0.9775395708,'
    "0.0076015923],[0.0647664923,0.0205721989,0.0015346341],[0.8717903737,1.3007924048,"
    '0.0006931336]]",1.8511,6.31,-0.2928,0.0687,19.0002,0.021375,-76.404702,-76.401867,-76.400922,'
    "-76.422349,6.002"
)
PACK_HEADER = (
    "XYZ_file,Index,SMILES,N_atoms,Elements,XYZ_Ang,Dipole_debye,Polarizability_bohr3,HOMO_au,"
    "LUMO_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,InternalEnergy_298K_au,Enthalphy_298K_au,"
    "GibbsFreeEnergy_298K_au,Heatcapacity_Cv_cal_mol_K"
)


def write_raw(folder: Path, count: int) -> None:
    """Write molecules of the shared file as torch_geometric's raw files, numbered from 1."""
    folder.mkdir(parents=True)
    with np.load(SHARED, allow_pickle=False) as archive:
        d = {name: archive[name] for name in archive.files if name != "smiles"}
    ends, bond_ends = np.cumsum(d["N"].astype(int)), np.cumsum(d["n_bonds"].astype(int))
    names = [str(name) for name in d["y_names"]]
    sdf, table = [], ["mol_id," + ",".join(COLUMNS)]
    for k in range(count):
        atoms = slice(ends[k] - d["N"][k], ends[k])
        bonds = d["bonds"][bond_ends[k] - d["n_bonds"][k] : bond_ends[k]].astype(int)
        sdf += [f"gdb_{k + 1}", "", "", f"{d['N'][k]:3d}{len(bonds):3d}  0  0  0999 V2000"]
        sdf += [
            f"{x:10.4f}{y:10.4f}{z:10.4f} {SYMBOLS[int(e)]:<3s} 0  0  0  0"
            for (x, y, z), e in zip(d["R"][atoms], d["Z"][atoms], strict=True)
        ]
        sdf += [f"{i + 1:3d}{j + 1:3d}{order:3d}  0  0  0" for i, j, order in bonds]
        sdf += ["M  END", "$$$$"]
        values = [repr(float(d["y"][k, names.index(name)])) for name in COLUMNS]
        table.append(f"gdb_{k + 1}," + ",".join(values))
    (folder / "gdb9.sdf").write_text("\n".join(sdf) + "\n", encoding="ascii")
    (folder / "gdb9.sdf.csv").write_text("\n".join(table) + "\n", encoding="ascii")
    lines = ["# Index"] * 9 + ["     7     C1CC1", "    11     CC"] + ["=" * 30, ""]
    (folder / "uncharacterized.txt").write_text("\n".join(lines), encoding="ascii")


def write_pack(folder: Path) -> Path:
    (folder / "qm9pack" / "data").mkdir(parents=True)
    for part, index in ((1, 3), (2, 9), (3, 12)):
        text = PACK_HEADER + "\n" + WATER_PACK.format(index=index) + "\n"
        (folder / "qm9pack" / "data" / f"qm9_part{part}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not SHARED.exists():
        pytest.skip("needs qm9_10k.npz in ../shared/data")
    place = tmp_path_factory.mktemp("qm9") / "qm9"
    assert prepare(SHARED, place).startswith("10,000 molecules (of QM9's 130,831) in ")
    return place


@pytest.fixture(scope="module")
def problem(folder: Path) -> QM9:
    return QM9("small", data=str(folder))


# ------------------------------------------------------------------------------------------------
# Bonds


def test_hydrogens_and_bonds_of_a_smiles() -> None:
    # Charges in brackets, a branch, a ring.
    skeleton = read_smiles("C1C[NH2+]C1C(=O)[O-]")
    assert skeleton.elements == ("C", "C", "N", "C", "C", "O", "O")
    assert skeleton.hydrogens == (2, 2, 2, 1, 0, 0, 0)
    assert sorted(skeleton.bonds) == [
        *((0, 1, 1), (0, 3, 1), (1, 2, 1), (2, 3, 1), (3, 4, 1), (4, 5, 2), (4, 6, 1)),
    ]


@pytest.mark.parametrize("smiles", ["", "C(", "C1CC", "CC)", "C=", "c1ccccc1", "CS", "1CC1", "ClC"])
def test_no_smiles(smiles: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read the SMILES|must be C, N|must be written"):
        read_smiles(smiles)


def test_bonds_do_not_depend_on_the_order_of_atoms() -> None:
    # Formic acid, C(=O)O, with its atoms in another order.
    numbers = np.array([8, 1, 6, 1, 8], dtype=np.uint8)
    places = np.array(
        [
            [1.16, 0.66, 0],
            [-1.06, -0.55, 0],
            [0, 0.42, 0],
            [-0.55, 1.37, 0],
            [-0.99, -0.45 - 0.1, 0],
        ]
    )
    places[1] = places[4] + [-0.9, 0.35, 0]
    assert bonds_of("O=CO", numbers, places).tolist() == [
        *([0, 2, 2], [1, 4, 1], [2, 3, 1], [2, 4, 1]),
    ]
    with pytest.raises(ValueError, match="other heavy atoms"):
        bonds_of("O=CN", numbers, places)
    with pytest.raises(ValueError, match="do not fit"):
        bonds_of("O=CO", numbers, places * [[4], [1], [1], [1], [1]])


@needs_data
def test_bonds_agree_with_an_independent_copy() -> None:
    with np.load(SHARED, allow_pickle=False) as archive:
        smiles = [text.decode() for text in archive["smiles"]]
    molecules = read_source(SHARED)
    with np.load(SHARED, allow_pickle=False) as archive:
        smiles = [smiles[row] for row in np.argsort(archive["idx"])]
    ends = np.cumsum(molecules.atoms, dtype=int)
    bond_ends = np.cumsum(molecules.bond_counts, dtype=int)
    orders = 0
    for row in range(0, 10_000, 10):
        atoms = slice(ends[row] - molecules.atoms[row], ends[row])
        found = bonds_of(smiles[row], molecules.numbers[atoms], molecules.positions[atoms])
        bonds = molecules.bonds[bond_ends[row] - molecules.bond_counts[row] : bond_ends[row]]
        expected = np.array(sorted((min(i, j), max(i, j), o) for i, j, o in bonds.tolist()))
        assert found[:, :2].tolist() == expected[:, :2].tolist()
        orders += bool((found != expected).any())
    # Rings with two Kekule structures: which of them is written down is arbitrary.
    assert orders <= 20


# ------------------------------------------------------------------------------------------------
# Sources


def test_water_from_the_package(tmp_path: Path) -> None:
    molecules = read_source(write_pack(tmp_path))
    assert molecules.index.tolist() == [3, 9, 12]
    water = molecules.take(np.array([0]))
    assert water.numbers.tolist() == [8, 1, 1]
    assert water.bonds.tolist() == [[0, 1, 1], [0, 2, 1]]
    np.testing.assert_array_equal(water.positions[0], np.float32([-0.0344, 0.9775, 0.0076]))
    eV = 27.211386246
    expected = [1.8511, 6.31, -0.2928 * eV, 0.0687 * eV, 19.0002, 0.021375 * eV]
    # Atomization energy: U0 less those of O and two H is -0.339577 Ha.
    np.testing.assert_allclose(water.targets[0, :6], expected, rtol=1e-12)
    assert water.targets[0, 6] == pytest.approx(-0.339577 * eV, rel=1e-9)
    assert water.targets[0, 10] == 6.002
    # kcal/mol, as the other source has it.
    assert water.targets[0, 6] == pytest.approx(WATER["u0_atom"] * 0.04336414, rel=1e-6)


def write_water(path: Path, factors: dict[str, float], changed: dict[str, float]) -> Path:
    """Write one molecule of water as an .npz, targets divided by ``factors``."""
    pack = read_source(write_pack(path.parent))
    water = pack.take(np.array([0]))
    values = {**WATER, **changed}
    np.savez(
        path,
        idx=water.index,
        N=water.atoms,
        Z=water.numbers,
        R=water.positions,
        n_bonds=water.bond_counts,
        bonds=water.bonds,
        y=np.array([[float(values[name]) for name in WATER]]),
        y_names=np.array(list(WATER)),
        y_to_pyg=np.array([factors[name] for name in WATER]),
    )
    return path


def test_an_archive_is_read_by_its_own_factors(tmp_path: Path) -> None:
    eV = 27.211386246
    factors = dict.fromkeys(WATER, 1.0)
    factors |= {"homo": eV, "lumo": eV, "zpve": eV}
    factors |= {name: 0.04336414 for name in COLUMNS if name.endswith("_atom")}
    plain = read_source(write_water(tmp_path / "a" / "x.npz", factors, {})).targets
    in_ev = {"homo": float(WATER["homo"]) * eV}
    path = write_water(tmp_path / "b" / "x.npz", {**factors, "homo": 1.0}, in_ev)
    np.testing.assert_allclose(read_source(path).targets, plain, rtol=1e-12)
    path = write_water(tmp_path / "c" / "x.npz", factors, in_ev)
    message = r"homo must be in eV, from -25 to 0, found -216.8 for molecule 3 .*another unit"
    with pytest.raises(ValueError, match=message):
        read_source(path)


@needs_data
def test_methane_and_units_against_torch_geometric_factors() -> None:
    molecules = read_source(SHARED)
    with np.load(SHARED, allow_pickle=False) as archive:
        order = np.argsort(archive["idx"])
        converted = (archive["y"] * archive["y_to_pyg"])[order]
        heavy_of = archive["N"][order]
    np.testing.assert_allclose(
        molecules.targets, converted[:, [0, 1, 2, 3, 5, 6, 12, 13, 14, 15, 11]], rtol=1e-8
    )
    assert molecules.atoms.tolist() == heavy_of.tolist()
    assert MOLECULES + UNCHARACTERIZED == 133_885


@needs_data
def test_reads_what_torch_geometric_reads(tmp_path: Path) -> None:
    pytest.importorskip("rdkit", reason="torch_geometric reads raw files with rdkit only")
    datasets = pytest.importorskip("torch_geometric.datasets")
    write_raw(tmp_path / "raw", 60)
    reference = datasets.QM9(str(tmp_path))
    molecules = read_source(tmp_path)
    assert molecules.index.tolist() == [int(d.name.removeprefix("gdb_")) for d in reference]
    assert len(molecules) == 58
    every = graphs(molecules, torch.arange(58))
    for row, data in enumerate(reference):
        n = len(data.z)
        assert int(every.present[row].sum()) == n
        assert torch.equal(every.nodes[row, :n], data.x)
        complete = torch.zeros(n, n, 5)
        complete[data.edge_index[0], data.edge_index[1], :4] = data.edge_attr
        complete[..., 4] = torch.cdist(data.pos.double(), data.pos.double()).float()
        torch.testing.assert_close(every.edges[row, :n, :n], complete, atol=1e-6, rtol=1e-6)
        columns = [0, 1, 2, 3, 5, 6, 12, 13, 14, 15, 11]
        ours = torch.from_numpy(molecules.targets[row]).float()
        torch.testing.assert_close(ours, data.y[0, columns], rtol=3e-7, atol=0)


@needs_data
def test_raw_files_are_those_of_the_arrays(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 40)
    raw = read_source(tmp_path)
    assert 7 not in raw.index
    assert 11 not in raw.index
    with np.load(SHARED, allow_pickle=False) as archive:
        index = archive["idx"]
    arrays = read_source(SHARED)
    rows = [int(np.searchsorted(arrays.index, index[k - 1])) for k in raw.index]
    same = arrays.take(np.array(rows))
    for name in ("atoms", "numbers", "bonds", "bond_counts"):
        np.testing.assert_array_equal(getattr(raw, name), getattr(same, name))
    np.testing.assert_allclose(raw.positions, same.positions, atol=1.01e-4)
    np.testing.assert_allclose(raw.targets, same.targets, rtol=1e-12)


@needs_data
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gdb9.sdf", lambda t: t[: len(t) // 2], "cut off|cannot be read"),
        ("gdb9.sdf", lambda t: t + t[: t.index("$$$$") + 5], "more molecules"),
        ("gdb9.sdf", lambda t: t.replace(" C  ", " Xe ", 1), "molecule 1 of gdb9.sdf cannot"),
        ("gdb9.sdf.csv", lambda t: t.replace("u0_atom", "u0_atm"), "no column u0_atom"),
        ("gdb9.sdf.csv", lambda t: t[: t.rindex("\ngdb")] + "\n", "9 or more|gdb9.sdf.csv has 9"),
        ("gdb9.sdf.csv", lambda t: t.replace("2.7362", "nan"), "mu of molecule 1 is not finite"),
    ],
)
def test_damaged_raw_files(tmp_path: Path, name: str, change: object, message: str) -> None:
    write_raw(tmp_path / "raw", 10)
    path = tmp_path / "raw" / name
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path)


@needs_data
def test_missing_raw_file(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 3)
    (tmp_path / "raw" / "uncharacterized.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks uncharacterized\.txt"):
        read_source(tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", 0),
        ("<!DOCTYPE html>\n<title>404 Not Found</title>\n", 0),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", 0),
        ("     7     C1CC1\n", 1),
        ("     7     C1CC1\n    11     CC\n999999     CC\n    12     C\n", 3),
    ],
    ids=["empty", "page", "picture", "cut-off", "other-list"],
)
def test_molecules_to_leave_out_that_are_not_named_are_not_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, found: int
) -> None:
    write_raw(tmp_path / "raw", 20)
    # As if these were all molecules of QM9.
    monkeypatch.setattr(_store, "UNCHARACTERIZED", 2)
    monkeypatch.setattr(_store, "LAST_INDEX", 20)
    assert len(read_source(tmp_path)) == 18
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "raw" / "uncharacterized.txt").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"uncharacterized\.txt must name 2 .*it names {found}: download it again"
    ):
        read_source(tmp_path)


@needs_data
def test_a_part_of_the_molecules_needs_a_list_of_those_to_leave_out_too(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 20)
    (tmp_path / "raw" / "uncharacterized.txt").write_text("")
    with pytest.raises(ValueError, match=r"uncharacterized\.txt must name the indices"):
        read_source(tmp_path)


def test_damaged_package(tmp_path: Path) -> None:
    write_pack(tmp_path)
    part = tmp_path / "qm9pack" / "data" / "qm9_part2.csv"
    text = part.read_text()
    for old, new, message in (
        ('"O",3', '"O",4', "molecule 9: it has 3 atoms and 3 places"),
        ('"O",3', '"N",3', "molecule 9: 'N' has other heavy atoms than O"),
        ("1.8511", "one", "molecule 9: could not convert"),
        (",9,", ",3,", "each once"),
    ):
        part.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_source(tmp_path)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no data/qm9_part2\.csv"):
        read_source(tmp_path)


@needs_data
def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "part.npz"
    path.write_bytes(SHARED.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"part\.npz cannot be read as QM9"):
        read_source(path)
    with np.load(SHARED, allow_pickle=False) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "N": arrays["N"] + 1})
    with pytest.raises(ValueError, match="atoms, there are"):
        read_source(path)
    del arrays["bonds"]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="it has no array bonds"):
        read_source(path)


# ------------------------------------------------------------------------------------------------
# Prepared data


def test_missing_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"is not there\. `ntkmtl data qm9 --source PATH`"):
        QM9("small", data=str(tmp_path / "none"))
    with pytest.raises(DataMissingError, match="holds no prepared data"):
        QM9("small", data=str(tmp_path))


def test_prepared_data_are_those_of_the_source(tmp_path: Path) -> None:
    source = write_pack(tmp_path / "source")
    assert prepare(source, tmp_path / "made").startswith("3 molecules (of QM9's 130,831)")
    molecules, digest, _ = load(tmp_path / "made")
    for name, array in vars(read_source(source)).items():
        np.testing.assert_array_equal(getattr(molecules, name), array)
    prepare(source, tmp_path / "made")
    assert load(tmp_path / "made")[1] == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "source"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[:-1], "it has .* bytes, not"),
        (lambda c: c[:-3] + bytes([c[-3] ^ 1]) + c[-2:], "SHA-256"),
    ],
)
def test_damaged_prepared_data(tmp_path: Path, damage: object, message: str) -> None:
    prepare(write_pack(tmp_path / "source"), tmp_path / "made")
    path = tmp_path / "made" / "targets.npy"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"targets\.npy cannot be used: .*{message}"):
        load(tmp_path / "made")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, "not qm9 1, schema 1"),
        ({"kind": "other 1"}, "describes other 1"),
        ({"arrays": {}}, "names no array"),
        ({"facts": None}, "cannot be used"),
    ],
)
def test_wrong_manifest(tmp_path: Path, change: dict[str, object], message: str) -> None:
    prepare(write_pack(tmp_path / "source"), tmp_path / "made")
    path = tmp_path / "made" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "made")


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds letter\.txt, which is not prepared data"):
        prepare(write_pack(tmp_path / "source"), tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_place_for_the_data_is_looked_at_before_the_source_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: object) -> Molecules:
        raise AssertionError("the source was read")

    monkeypatch.setattr(_store, "read_source", read)
    (tmp_path / "file").write_text("dear")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((ValueError, OSError), match="file"):
            prepare(write_pack(tmp_path / place.name), place)


def test_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    prepare(write_pack(tmp_path / "source"), tmp_path / "made")
    array = PreparedData(tmp_path / "made", "qm9 1", "")["targets"]
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable


def test_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(write_pack(tmp_path / "source"), tmp_path / "qm9")
    monkeypatch.setenv("NTKMTL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"takes 4,500 molecules, and .*qm9 holds 3"):
        problems.create("qm9", recipe="small")
    monkeypatch.delenv("NTKMTL_DATA")
    monkeypatch.setenv("NTKMTL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataMissingError, match="cache/data/qm9"):
        problems.create("qm9")


# ------------------------------------------------------------------------------------------------
# The problem


def test_the_paper_recipe_is_that_of_the_paper() -> None:
    recipe = QM9.recipes["paper"]
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (300, 60, 1e-3)
    assert (recipe.schedule, recipe.plateau_factor, recipe.plateau_patience) == ("plateau", 0.7, 10)
    assert (recipe.min_learning_rate, recipe.minibatches, recipe.reduced) == (1e-5, 4, False)
    assert QM9.recipes["small"].reduced
    stl = next(row for row in paper.table(3).rows if row.method == "stl")
    published = tuple(float(stl.cells[task].text) for task in QM9.tasks)
    assert QM9.reference == published


def test_parameters_follow_from_the_published_definition(problem: QM9) -> None:
    def linear(a: int, b: int) -> int:
        return a * b + b

    def count(width: int, hidden: int, heads: int) -> int:
        convolution = linear(5, hidden) + linear(hidden, width**2) + width**2 + width
        gru = 3 * width * (width + width) + 2 * 3 * width
        lstm = 4 * width * (2 * width + width) + 2 * 4 * width
        last = linear(2 * width, width) + heads * linear(width, 1)
        return linear(11, width) + convolution + gru + lstm + last

    assert count(64, 128, 11) == 617_675
    published = problem.model()
    assert sum(p.numel() for p in published.parameters()) == count(32, 32, 11)
    problem_paper = object.__new__(QM9)
    problem_paper._architecture = problem._architecture
    problem_paper._part = dataclasses.replace(problem._part, width=64, hidden=128)
    model = problem_paper.model()
    assert sum(p.numel() for p in model.parameters()) == 617_675
    one = problem.model(tasks=["u0"])
    assert sum(p.numel() for p in one.parameters()) == count(32, 32, 1)


def test_network_equals_that_of_torch_geometric(problem: QM9) -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    model: nn.Module = problem.model().double()
    batch = problem.batch("val", torch.arange(6)).graphs
    batch = Graphs(*(part.double() for part in batch))
    width = 32
    maps = nn.Sequential(model.convolve.first, nn.ReLU(), model.convolve.second)
    convolution = geometric.NNConv(width, width, maps, aggr="mean").double()
    gru = nn.GRU(width, width).double()
    readout = geometric.aggr.Set2Set(width, processing_steps=3).double()
    with torch.no_grad():
        convolution.lin.weight.copy_(model.convolve.root.weight)
        convolution.bias.copy_(model.convolve.root.bias.normal_())
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(gru, f"{kind}_l0").copy_(getattr(model.update, kind))
            getattr(readout.lstm, f"{kind}_l0").copy_(getattr(model.readout.cell, kind))
    sizes = batch.present.sum(1).long().tolist()
    nodes = torch.cat([batch.nodes[b, :n] for b, n in enumerate(sizes)])
    edges, attributes, start = [], [], 0
    for b, n in enumerate(sizes):
        row, column = (torch.ones(n, n) - torch.eye(n)).nonzero().T
        edges.append(torch.stack([row, column]) + start)
        attributes.append(batch.edges[b, row, column])
        start += n
    index, edge = torch.cat(edges, dim=1), torch.cat(attributes)
    out = torch.relu(model.embed(nodes))
    hidden = out[None]
    for _ in range(3):
        message = torch.relu(convolution(out, index, edge))
        out, hidden = gru(message[None], hidden)
        out = out[0]
    owner = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    expected = torch.relu(model.last(readout(out, owner)))
    torch.testing.assert_close(model.represent(batch), expected, rtol=1e-9, atol=1e-12)


def test_graphs_equal_a_slow_reading(problem: QM9, folder: Path) -> None:
    molecules = load(folder)[0]
    rows = [5, 4321, 77]
    fast = graphs(molecules, torch.tensor(rows))
    for b, row in enumerate(rows):
        one: Molecules = molecules.take(np.array([row]))
        n = len(one.numbers)
        hydrogens = [0] * n
        kinds = np.zeros((n, n, 4))
        for i, j, order in one.bonds.tolist():
            kinds[i, j, order - 1] = kinds[j, i, order - 1] = 1
            hydrogens[i] += one.numbers[j] == 1
            hydrogens[j] += one.numbers[i] == 1
        for i in range(n):
            z = int(one.numbers[i])
            x = [float(z == e) for e in (1, 6, 7, 8, 9)] + [z, 0, 0, 0, 0, hydrogens[i]]
            assert fast.nodes[b, i].tolist() == x
            for j in range(n):
                length = np.linalg.norm(one.positions[i].astype(float) - one.positions[j])
                assert fast.edges[b, i, j, :4].tolist() == kinds[i, j].tolist()
                assert float(fast.edges[b, i, j, 4]) == pytest.approx(length, abs=1e-5)
                assert float(fast.linked[b, i, j]) == float(i != j)
        assert float(fast.nodes[b, n:].abs().sum() + fast.edges[b, n:].abs().sum()) == 0
        assert fast.present[b].tolist() == [1.0] * n + [0.0] * (fast.present.shape[1] - n)


def test_split_is_disjoint_and_targets_are_standardized(problem: QM9) -> None:
    assert [problem.size(s) for s in ("train", "val", "test")] == [3000, 500, 1000]
    rows = torch.cat([problem._rows[s] for s in ("train", "val", "test")])
    assert len(rows.unique()) == 4500
    labels = problem.batch("train", torch.arange(3000)).targets.double()
    torch.testing.assert_close(labels.mean(0), torch.zeros(11).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        labels.std(0, correction=0), torch.ones(11).double(), atol=1e-5, rtol=0
    )


def test_options_are_json_without_the_place(problem: QM9, folder: Path) -> None:
    assert json.loads(json.dumps(problem.options)) == problem.options
    assert str(folder) not in json.dumps(problem.options)
    raw = QM9("small", targets="raw", data=str(folder))
    assert raw.options != problem.options
    assert "raw" in raw.describe()
    assert "3,000 for training" in problem.describe()


@pytest.mark.parametrize("targets", ["standardized", "raw"])
@pytest.mark.parametrize("tasks", [None, ["u0", "mu"]])
def test_errors_equal_those_of_torchmetrics(
    folder: Path, targets: str, tasks: list[str] | None
) -> None:
    problem = problems.create("qm9", recipe="small", targets=targets, data=str(folder))
    model = problem.model(tasks)
    found = problem.evaluate(model, "val", tasks)
    assert model.training
    rows = problem._rows["val"]
    truth = torch.from_numpy(load(folder)[0].targets[rows.numpy()])
    training = torch.from_numpy(load(folder)[0].targets[problem._rows["train"].numpy()])
    center, spread = training.mean(0), training.std(0, correction=0)
    if targets == "raw":
        center, spread = torch.zeros(11), torch.ones(11)
    with torch.no_grad():
        outputs = model.predict(model.represent(problem.batch("val", torch.arange(500))))
    names = tasks or list(problem.tasks)
    expected = []
    for metric in problem.metrics:
        if metric.task in names:
            column = problem.tasks.index(metric.task)
            said = outputs[names.index(metric.task)].double() * spread[column] + center[column]
            error = mean_absolute_error(said, truth[:, column])
            expected.append(float(error) * (1000 if metric.unit == "meV" else 1))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_losses_of_some_tasks(problem: QM9) -> None:
    batch = problem.batch("train", torch.arange(20))
    outputs = list(torch.randn(11, 20).unbind(0))
    losses = problem.losses(outputs, batch)
    for column, task in enumerate(problem.tasks):
        expected = ((outputs[column] - batch.targets[:, column]) ** 2).mean()
        torch.testing.assert_close(losses[task], expected)
    some = problem.losses([outputs[8], outputs[1]], batch, ["h", "alpha"])
    assert some == {task: losses[task] for task in ("h", "alpha")}
    with pytest.raises(ValueError, match="2 outputs for 11 tasks"):
        problem.losses(outputs[:2], batch)
    with pytest.raises(ValueError, match="no task is named 'gap'"):
        problem.model(["gap"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"recipe": "large"}, "recipe must be one of paper, small. Found recipe='large'"),
        ({"recipe": "small", "targets": "log"}, "'standardized' or 'raw'"),
        ({"recipe": "paper"}, r"takes 130,831 molecules, and .* holds 10,000"),
    ],
)
def test_wrong_options(folder: Path, option: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        problems.create("qm9", data=str(folder), **option)


def constant_errors(problem: QM9, split: str) -> torch.Tensor:
    """Return the errors of predicting the training molecules' mean."""
    properties = problem._properties
    mean = properties[problem._rows["train"]].mean(0)
    return (properties[problem._rows[split]] - mean).abs().mean(0) * problem._unit


def test_two_epochs_beat_the_mean(problem: QM9, tmp_path: Path) -> None:
    done = train(
        problem, "ls", 0, tmp_path, recipe=dataclasses.replace(problem.recipe, epochs=2), threads=1
    )
    first, last = done.history
    assert sum(last.train_losses) < 0.8 * sum(first.train_losses)
    errors = torch.tensor(done.result.test) / constant_errors(problem, "test")
    assert errors.mean() < 0.75


def test_single_task_baseline(problem: QM9, tmp_path: Path) -> None:
    recipe = dataclasses.replace(problem.recipe, epochs=1, batch_size=300)
    done = train(problem, "stl", 0, tmp_path, recipe=recipe, single_task="cv", threads=1)
    assert done.config.tasks == ("cv",)
    assert len(done.result.test) == 1


@pytest.mark.slow
def test_small_recipe_learns(problem: QM9, tmp_path: Path) -> None:
    done = train(problem, "ls", 0, tmp_path, threads=1)
    losses = [sum(epoch.train_losses) for epoch in done.history]
    assert losses[-1] < 0.35 * losses[0]
    errors = torch.tensor(done.result.test) / constant_errors(problem, "test")
    assert errors.max() < 0.95
    assert errors.mean() < 0.5


@pytest.mark.parametrize("tasks", [None, ("mu",)])
def test_metrics_follow_from_predictions(problem: QM9, tasks: tuple[str] | None) -> None:
    check_predictions(problem, tasks)
