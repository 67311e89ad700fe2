from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ntkmtl.bench.problems.qm9_mini import _data, read

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = REPOSITORY.parent / "shared" / "data" / "qm9" / "qm9_10k.npz"


@pytest.fixture(scope="module")
def molecules() -> _data.MiniMolecules:
    return read()[0]


def test_water_has_the_values_of_qm9(molecules: _data.MiniMolecules) -> None:
    row = int(np.flatnonzero(molecules.index == 3)[0])
    water = molecules.take(np.array([row]))
    assert water.numbers.tolist() == [8, 1, 1]
    assert water.composition().tolist() == [[2, 0, 0, 1, 0]]
    # Dipole, polarizability, HOMO, LUMO, <R^2>, ZPVE, U0, U, H, G, Cv as in dsgdb9nsd_000003.xyz.
    expected = [1.8511, 6.31, -0.2928, 0.0687, 19.0002, 0.021375]
    expected += [-76.404702, -76.401867, -76.400922, -76.422349, 6.002]
    assert water.targets[0].tolist() == expected
    bond = np.linalg.norm(water.positions[1:] - water.positions[0], axis=1)
    np.testing.assert_allclose(bond, 0.962, atol=1e-3)
    # Atomization energy: U0 less those of O and two H, -0.339577 Ha.
    hartree = -76.404702 + 75.064579 + 2 * 0.500273
    assert water.properties()[0, 6] == pytest.approx(hartree * 27.211386246, rel=1e-12)


def test_shape_and_size(molecules: _data.MiniMolecules) -> None:
    assert len(molecules) == 4000
    assert len(np.unique(molecules.index)) == 4000
    assert molecules.atoms.max() <= 29
    assert _data.DATA.stat().st_size <= 2 * 1024**2
    for name in ("README.md", "LICENSE.txt"):
        assert "CC0" in (_data.DATA.parent / name).read_text(encoding="utf-8")


def test_splits_are_disjoint_whole_and_fixed(molecules: _data.MiniMolecules) -> None:
    rows = [row for first, last in _data.SPLITS.values() for row in range(first, last)]
    assert rows == list(range(len(molecules)))
    digest = hashlib.sha256(molecules.index.astype("<i8").tobytes()).hexdigest()
    assert digest == "951b6aa85022eac3e5ce2cdd6ad247b6182ab60a7e1869185ed70d5b64c995dc"


def test_splits_look_alike(molecules: _data.MiniMolecules) -> None:
    properties = molecules.properties()
    means = [properties[first:last].mean(0) for first, last in _data.SPLITS.values()]
    spread = properties.std(0)
    for mean in means[1:]:
        # Four standard errors of a mean of 500.
        assert (np.abs(mean - means[0]) < 4 * spread / np.sqrt(500)).all()


@pytest.mark.skipif(not SHARED.exists(), reason="needs qm9_10k.npz in ../shared/data/qm9")
def test_agrees_with_an_independent_copy(molecules: _data.MiniMolecules) -> None:
    with np.load(SHARED, allow_pickle=False) as archive:
        other = dict(archive)
    common, ours, theirs = np.intersect1d(molecules.index, other["idx"], return_indices=True)
    assert len(common) > 200
    columns = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(molecules.targets[ours], other["y"][theirs][:, columns])
    # torch_geometric's targets, those of the atomization energies from kcal/mol with 7 digits.
    converted = (other["y"] * other["y_to_pyg"])[theirs]
    columns = [0, 1, 2, 3, 5, 6, 12, 13, 14, 15, 11]
    np.testing.assert_allclose(molecules.properties()[ours], converted[:, columns], rtol=2e-7)
    start = np.cumsum(other["N"].astype(int)) - other["N"]
    for a, b in zip(ours[:50], theirs[:50], strict=True):
        one = molecules.take(np.array([a]))
        atoms = slice(start[b], start[b] + other["N"][b])
        np.testing.assert_array_equal(one.numbers, other["Z"][atoms])
        np.testing.assert_array_equal(one.positions.astype(np.float32), other["R"][atoms])


@pytest.mark.skipif(not SHARED.exists(), reason="needs uncharacterized.txt.gz in ../shared/data")
def test_no_uncharacterized_molecule(molecules: _data.MiniMolecules) -> None:
    import gzip

    text = gzip.decompress((SHARED.parent / "uncharacterized.txt.gz").read_bytes()).decode()
    words = [line.split() for line in text.splitlines()]
    left_out = {int(word[0]) for word in words if word and word[0].isdigit()}
    assert len(left_out) == 3054
    assert left_out.isdisjoint(molecules.index.tolist())


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing: .*none\.npz.*make_qm9_mini\.py"):
        read(tmp_path / "none.npz")


@pytest.mark.parametrize("length", [0, 100, 500_000, -1])
def test_cut_off_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.npz"
    path.write_bytes(_data.DATA.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cannot be read: .*cut\.npz"):
        read(path)


@pytest.mark.parametrize("percent", [1, 10, 25, 50, 75, 90, 99])
def test_flipped_bits(tmp_path: Path, percent: int) -> None:
    path = tmp_path / "flipped.npz"
    content = bytearray(_data.DATA.read_bytes())
    place = len(content) * percent // 100
    content[place : place + 8] = bytes(byte ^ 0xFF for byte in content[place : place + 8])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": None}, "no array 'targets'"),
        ({"targets": np.zeros((4000, 3))}, r"targets has shape \(4000, 3\), not \(4000, 11\)"),
        ({"targets": np.full((4000, 11), np.nan)}, "not finite"),
        ({"numbers": np.full(71701, 16, np.uint8)}, "none of H, C, N, O, F"),
        ({"names": np.array(["mu"])}, "the columns are"),
        ({"targets": np.array([object()])}, "cannot be read"),
    ],
)
def test_wrong_contents(tmp_path: Path, change: dict[str, np.ndarray | None], message: str) -> None:
    with np.load(_data.DATA, allow_pickle=False) as archive:
        arrays = {**archive, **change}
    path = tmp_path / "wrong.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ValueError, match=message):
        read(path)


def test_not_an_archive_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("index.npy", b"not an array")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="cannot be read"):
        read(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "single.npy")
