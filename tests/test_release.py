"""Wheel and sdist: made twice alike, complete, and at work where nothing else is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(*command: object, **options: object) -> str:
    """Run a command and return its output, or fail with all that it printed."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment with the build tools that `make dist` pins."""
    folder = tmp_path_factory.mktemp("release")
    run("make", f"VENV={folder}", f"PYTHON={sys.executable}", f"{folder}/release/.done", cwd=ROOT)
    return folder


def build(tools: Path, out: Path) -> dict[str, Path]:
    run("make", "dist", f"VENV={tools}", f"PYTHON={sys.executable}", f"DIST={out}", cwd=ROOT)
    return {path.suffix: path for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = build(tools, tmp_path_factory.mktemp("first"))
    assert found.keys() == {".whl", ".gz"}
    return found


@pytest.fixture(scope="module")
def unpacked(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built[".gz"]) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def test_the_same_commit_gives_the_same_bytes(
    built: dict[str, Path], tools: Path, tmp_path: Path
) -> None:
    again = build(tools, tmp_path)
    for kind, path in built.items():
        assert path.name == again[kind].name
        digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, again[kind])]
        assert digests[0] == digests[1], path.name


def test_the_sdist_makes_the_same_wheel(
    built: dict[str, Path], unpacked: Path, tools: Path, tmp_path: Path
) -> None:
    command = (tools / "release/bin/python", "-m", "build", "--no-isolation", "--wheel")
    run(*command, "--outdir", tmp_path, ".", cwd=unpacked)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == built[".whl"].name  # the version, without git


def test_an_archive_without_history_has_a_version(tools: Path, tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    names = run("git", "ls-files", "src", "README.md", "LICENSE", "pyproject.toml", cwd=ROOT)
    for name in names.splitlines():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    command = (tools / "release/bin/python", "-m", "build", "--no-isolation", "--wheel")
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path)}
    run(*command, "--outdir", out, ".", cwd=tree, env=environment)
    (wheel,) = out.iterdir()
    assert wheel.name.startswith("ntkmtl-0.2.0-")


def test_the_wheel_works_in_an_empty_environment(built: dict[str, Path], tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "empty")
    python = tmp_path / "empty/bin/python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", ROOT / "constraints.txt", built[".whl"])
    program = """
import torch, ntkmtl
trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
z = trunk(torch.randn(8, 3))
out = ntkmtl.Balancer().backward([head(z).square().mean() for head in heads])
assert out.weights.shape == (2,) and trunk.weight.grad is not None
print(ntkmtl.__version__, len(ntkmtl.weighting.names()))
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = run(python, "-c", program, cwd=tmp_path, env=environment).split()
    assert built[".whl"].name.startswith(f"ntkmtl-{said[0]}-")
    assert int(said[1]) > 40
    done = subprocess.run(
        [tmp_path / "empty/bin/ntkmtl"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
    assert "bench" in done.stderr  # the extra that the command line needs


def test_the_sdists_tests_pass(unpacked: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked / "src"), "OMP_NUM_THREADS": "1"}
    tests = ("tests/weighting", "tests/test_metrics.py", "tests/test_files.py")
    said = run(sys.executable, "-m", "pytest", "-q", *tests, cwd=unpacked, env=environment)
    assert " passed" in said
