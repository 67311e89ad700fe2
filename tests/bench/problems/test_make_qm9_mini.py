from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_qm9_mini.py"

HEADER = (
    "XYZ_file,Index,SMILES,N_atoms,Elements,XYZ_Ang,Dipole_debye,Polarizability_bohr3,HOMO_au,"
    "LUMO_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,InternalEnergy_298K_au,Enthalphy_298K_au,"
    "GibbsFreeEnergy_298K_au,Heatcapacity_Cv_cal_mol_K"
)
WATER = (
    '"dsgdb9nsd_000003.xyz",{index},"O",3,"[\'O\',\'H\',\'H\']","[[-0.0343604951,0.9775395708,'
    "0.0076015923],[0.0647664923,0.0205721989,0.0015346341],[0.8717903737,1.3007924048,"
    '0.0006931336]]",1.8511,6.31,-0.2928,0.0687,19.0002,0.021375,-76.404702,-76.401867,-76.400922,'
    "-76.422349,6.002"
)
ACETYLENE = (
    "\"dsgdb9nsd_000004.xyz\",{index},\"C#C\",4,\"['C','C','H','H']\",\"[[0.5995394918,0.,1.],"
    '[-0.5995394918,0.,1.],[-1.6616385861,0.,1.],[1.6616385861,0.,1.]]",0.,16.28,-0.2845,0.0506,'
    "59.5248,0.026841,-77.308427,-77.305527,-77.304583,-77.327429,8.574"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_qm9_mini", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "qm9pack"
    (folder / "data").mkdir(parents=True)
    for part, indices in enumerate([(3, 4), (5, 6), (7, 8)], start=1):
        rows = [WATER.format(index=indices[0]), ACETYLENE.format(index=indices[1])]
        text = "\n".join([HEADER, *rows]) + "\n"
        (folder / "data" / f"qm9_part{part}.csv").write_text(text, encoding="utf-8")
    return folder


def build(script: ModuleType, source: Path, count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = script.pack(
        script.choose(script.read_rows(source), count, seed, None)
    )
    return arrays


def test_folder_parent_and_wheel_are_the_same(
    script: ModuleType, package: Path, tmp_path: Path
) -> None:
    wheel = tmp_path / "qm9pack-1.0.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted(package.rglob("*.csv")):
            archive.write(file, file.relative_to(tmp_path).as_posix())
    first = build(script, package)
    for source in (package.parent, wheel):
        other = build(script, source)
        assert all(np.array_equal(first[name], other[name]) for name in first)


def test_values(script: ModuleType, package: Path) -> None:
    arrays = build(script, package, count=6)
    assert sorted(arrays["index"]) == [3, 4, 5, 6, 7, 8]
    row = list(arrays["index"]).index(4)
    assert arrays["targets"][row, :3].tolist() == [0.0, 16.28, -0.2845]
    start = arrays["atoms"][:row].sum(dtype=int)
    assert arrays["numbers"][start : start + 4].tolist() == [6, 6, 1, 1]
    assert arrays["positions"][start, 0] == np.float32(0.5995394918)


def test_choice_depends_on_the_seed_only(script: ModuleType, package: Path) -> None:
    few, many = build(script, package, count=3), build(script, package, count=6)
    assert many["index"][:3].tolist() == few["index"].tolist()
    orders = {tuple(build(script, package, count=6, seed=seed)["index"]) for seed in range(5)}
    assert len(orders) > 1


def test_bytes_are_reproducible(script: ModuleType, package: Path, tmp_path: Path) -> None:
    arrays = build(script, package)
    script.write(tmp_path / "a.npz", arrays)
    script.write(tmp_path / "b.npz", arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert all(np.array_equal(archive[name], arrays[name]) for name in arrays)


def test_incomplete_sources_are_refused(
    script: ModuleType, package: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the source has 6 molecules, not 130831"):
        script.choose(script.read_rows(package), 3, 0, 130_831)
    with pytest.raises(ValueError, match="7 molecules wanted, the source has 6"):
        script.choose(script.read_rows(package), 7, 0, None)
    doubled = [*script.read_rows(package), *script.read_rows(package)]
    with pytest.raises(ValueError, match="6 molecules stand twice"):
        script.choose(iter(doubled), 3, 0, None)
    (package / "data" / "qm9_part2.csv").unlink()
    output = tmp_path / "out.npz"
    assert script.main(["--qm9pack", str(package), "-o", str(output)]) == 1
    assert "has no data/qm9_part2.csv" in capsys.readouterr().err
    assert script.main(["--qm9pack", str(tmp_path / "none"), "-o", str(output)]) == 1
    assert "is not there" in capsys.readouterr().err
    assert not output.exists()


def test_package_is_found_without_being_imported(
    script: ModuleType, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    assert script.find_qm9pack() == package


def test_wrong_number_of_places(script: ModuleType, package: Path) -> None:
    rows = list(script.read_rows(package))
    rows[0]["XYZ_Ang"] = "[[0.,0.,0.]]"
    with pytest.raises(ValueError, match="molecule 3 has 3 atoms and 1 places"):
        script.pack(rows)
