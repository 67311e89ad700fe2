"""Readers under Hypothesis: whatever they are given, an object or their own error.

``benchmarks/reliability.py`` feeds them 200,000 inputs and more, under atheris where it is there.
"""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from faults import fuzzing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JSON_READERS = [name for name in fuzzing.READERS if fuzzing.NAMES[name].endswith(".json")]
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([2**63, 10**400, 1e308, -0.0, "\ud800", "x" * 3000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    fuzzing.begin(tmp_path_factory.mktemp("fuzz"))


@st.composite
def changed(draw: st.DrawFn, reader: str) -> bytes:
    """A whole file with a few of its values, however deep, replaced, dropped or added."""
    value = json.loads(fuzzing.seeds(reader)[0])
    for _ in range(draw(st.integers(1, 3))):
        place: Any = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            what = draw(st.integers(0, 3))
            if what == 0:
                del place[key]
            elif what == 1 and isinstance(place, list):
                place.insert(key, draw(VALUES))
            else:
                place[key] = draw(VALUES)
            break
    return json.dumps(value).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("reader", JSON_READERS)
def test_values_put_in(reader: str) -> None:
    said: set[str] = set()

    @settings(max_examples=100, **QUIET)  # type: ignore[arg-type]
    @given(changed(reader))
    def check(content: bytes) -> None:
        said.add(fuzzing.read(reader, content))

    check()
    # They reach further than "not valid JSON", and are refused for more than one reason.
    # Of a study only the schema is looked at here; what is in it is compared with what is asked.
    assert len(said) > (2 if reader == "study" else 5)


@pytest.mark.parametrize("reader", fuzzing.READERS)
def test_mutations_and_bytes(reader: str) -> None:
    @settings(max_examples=80, **QUIET)  # type: ignore[arg-type]
    @given(st.integers(0, 2**32))
    def mutations(number: int) -> None:
        draw = random.Random(number)
        fuzzing.read(reader, fuzzing.mutated(reader, draw.choice(fuzzing.seeds(reader)), draw))

    @settings(max_examples=40, **QUIET)  # type: ignore[arg-type]
    @given(st.binary(max_size=200))
    def anything(content: bytes) -> None:
        fuzzing.read(reader, content)

    mutations()
    anything()


@pytest.mark.parametrize("reader", fuzzing.READERS)
def test_a_whole_file_is_read(reader: str) -> None:
    """What mutations begin with is not a damaged file: else they would not get far."""
    if reader == "study":
        assert "problem_class" not in fuzzing.read(reader, fuzzing.seeds(reader)[0])
    elif reader != "CSV":
        assert fuzzing.read(reader, fuzzing.seeds(reader)[0]) == ""
    else:
        said = [fuzzing.read(reader, content) for content in fuzzing.seeds(reader)]
        assert said[:2] == ["", ""]


def test_a_crash_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr("ntkmtl.bench.runs.folder.read_checkpoint", crash)
    with pytest.raises(ZeroDivisionError):
        fuzzing.read("checkpoint", b"")


def test_an_error_that_names_no_file_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from ntkmtl.bench.runs.folder import CheckpointError

    def vague(path: object) -> object:
        raise CheckpointError("something is wrong")

    monkeypatch.setattr("ntkmtl.bench.runs.folder.read_checkpoint", vague)
    with pytest.raises(AssertionError, match="names no file"):
        fuzzing.read("checkpoint", b"")


def test_every_input_is_counted() -> None:
    shares = fuzzing.sharing(200_000)
    assert sum(shares.values()) >= 200_000
    assert math.isclose(sum(shares.values()), 200_000, rel_tol=1e-3)
