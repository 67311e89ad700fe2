from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import guard
import pytest


def ratios(value: float) -> guard.Ratios:
    return {network: dict.fromkeys(guard.METHODS, value) for network in guard.NETWORKS}


def test_kept_ratios_are_those_of_all_networks_and_methods() -> None:
    kept = json.loads(guard.KEPT.read_text())["ratios"]
    assert {network: set(methods) for network, methods in kept.items()} == {
        network: set(guard.METHODS) for network in guard.NETWORKS
    }


def test_a_step_that_is_a_tenth_dearer_is_found() -> None:
    kept, found = ratios(1.5), ratios(1.5)
    network = next(iter(found))
    found[network]["ls"] = 1.64
    assert guard.dearer(kept, found, 0.1) == []
    found[network]["ls"] = 1.66
    assert guard.dearer(kept, found, 0.1) == [(network, "ls")]
    with pytest.raises(SystemExit, match="no ratio of ls"):
        guard.dearer({}, found, 0.1)


def test_what_is_dearer_is_measured_again_and_the_smallest_counts() -> None:
    asked: list[Sequence[str]] = []

    def measured(networks: Sequence[str]) -> guard.Ratios:
        asked.append(networks)
        every = ratios(1.5 if len(asked) > 2 else 2.0)
        return {network: every[network] for network in networks}

    assert guard.settled(ratios(1.5), 0.1, 3, measured) == ratios(1.5)
    assert len(asked) == 3
    asked.clear()
    assert guard.settled(ratios(1.5), 0.1, 1, measured) == ratios(2.0)


def test_ratios_follow_from_processor_time() -> None:
    def spend(milliseconds: float) -> object:
        def step() -> None:
            end = time.thread_time() + milliseconds / 1e3
            while time.thread_time() < end:
                pass

        return step

    steps = {guard.PLAIN: spend(0.5), "same": spend(0.5), "dear": spend(1.0)}
    found = guard.ratios_of(steps, block=4, turns=5, warm_up=1)  # type: ignore[arg-type]
    assert found["same"] == pytest.approx(1.0, abs=0.1)
    assert found["dear"] == pytest.approx(2.0, abs=0.2)


def test_the_command_ends_with_1_where_a_step_is_dearer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "measure", lambda networks=(): ratios(1.2))
    monkeypatch.setattr(guard.settled, "__defaults__", (lambda networks: ratios(1.2),))
    kept = tmp_path / "kept.json"
    assert guard.main(["--write", str(kept)]) == 0
    assert guard.main(["--against", str(kept)]) == 0
    content = json.loads(kept.read_text())
    content["ratios"]["linear, 3 tasks"]["ls"] = 1.0
    kept.write_text(json.dumps(content))
    assert guard.main(["--against", str(kept)]) == 1
    assert "1.00 ->  1.20  DEARER" in capsys.readouterr().out


@pytest.mark.parametrize("network", guard.NETWORKS)
def test_steps_train(network: str) -> None:
    for step in guard.steps_of(network).values():
        step()
