"""The benchmark of recording runs and prints a row per method."""

from __future__ import annotations

import pytest
from recording_cost import cost, main


def test_one_row_per_method(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--every", "3", "--samples", "2", "--methods", "ls", "ntkmtl-sr"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ls", "| ntkmtl-sr"]


def test_the_share_is_that_of_all_steps() -> None:
    found = cost("ls", every=4, samples=3, source="representation", minibatches=2)
    assert found["step"] > 0
    assert found["share"] == pytest.approx(found["extra"] / (4 * found["step"]))
