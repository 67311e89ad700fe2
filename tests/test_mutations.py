"""The list of lines whose breaking a test must notice fits the code as it is."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import mutations  # noqa: E402
from mutations import MUTATIONS, Mutation  # noqa: E402


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_line_is_there_once_and_so_is_its_test(mutation: Mutation) -> None:
    text = (ROOT / "src" / "ntkmtl" / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1
    assert mutation.old != mutation.new
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
    file, _, name = mutation.test.partition("::")
    assert name == "" or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_ten_lines_are_broken() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) == 10


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src" / "ntkmtl" / "weighting", tmp_path / "ntkmtl" / "weighting")
    return tmp_path


@pytest.mark.parametrize(("status", "expected"), [(1, True), (0, False)])
def test_a_mutation_is_caught_where_its_test_fails_on_the_broken_line(
    source: Path, monkeypatch: pytest.MonkeyPatch, status: int, expected: bool
) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == "weight")
    path = source / "ntkmtl" / mutation.file
    before = path.read_text(encoding="utf-8")
    seen: list[str] = []

    def run(place: Path, tests: list[str]) -> int:
        assert tests == [mutation.test]
        seen.append(path.read_text(encoding="utf-8"))
        return status

    monkeypatch.setattr(mutations, "_pytest", run)
    assert mutations.caught(mutation, source) is expected
    assert seen == [before.replace(mutation.old, mutation.new)]
    assert path.read_text(encoding="utf-8") == before


def test_what_cannot_be_tried_is_said(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == "weight")
    with pytest.raises(ValueError, match=r"must hold .* once, found 0"):
        mutations.caught(mutation._replace(old="nowhere in the file"), source)
    monkeypatch.setattr(mutations, "_pytest", lambda place, tests: 4)
    with pytest.raises(RuntimeError, match="could not be run: pytest ended with 4"):
        mutations.caught(mutation, source)


@pytest.mark.slow
def test_every_broken_line_is_noticed() -> None:
    assert mutations.main([]) == 0
