"""Pictures of trained agents, and what is said where none can be drawn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from reinforce_toys import toy_recipe

from ntkmtl.bench.reinforce import (
    DrawingError,
    Film,
    MetaWorld,
    environment,
    expert,
    film,
    film_run,
    save_strip,
    train,
    variant_named,
)

PAIR = ("reach", "drawer-close")


def drawing() -> bool:
    """Whether there is a library to draw with; the tests that need none are those below."""
    return any(environment.find_library(name) for name in ("EGL", "OSMesa"))


@pytest.mark.skipif(not drawing(), reason="neither libEGL nor libOSMesa is installed")
def test_a_film_shows_what_the_scripted_policies_do(tmp_path: Path) -> None:
    world = MetaWorld(PAIR, horizon=90, render=48)
    world.reset()
    # Each in its own context: the second round of pictures is not drawn with the last task's.
    for one, two in zip(world.render(), world.render(), strict=True):
        assert np.array_equal(one, two)
    policies = [expert(task) for task in PAIR]
    found = film(
        lambda seen: torch.stack([act(row) for act, row in zip(policies, seen, strict=True)]),
        world,
        count=4,
    )
    world.close()
    assert found.steps == (0, 30, 60, 90)
    assert found.pictures.shape == (2, 4, 48, 48, 3)
    # The arm moves, and tasks look unlike each other.
    assert np.abs(found.pictures[:, 0].astype(int) - found.pictures[:, 3]).max() > 50
    assert np.abs(found.pictures[0, 0].astype(int) - found.pictures[1, 0]).max() > 50
    assert all(step is not None and 0 < step <= 90 for step in found.solved)
    save_strip([found], tmp_path / "strip.png", "experts")
    assert (tmp_path / "strip.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"count must be in 2..91, found 1"):
        film(lambda seen: torch.zeros(2, 4), world, count=1)


@pytest.mark.skipif(not drawing(), reason="neither libEGL nor libOSMesa is installed")
def test_a_runs_own_agent_is_filmed(tmp_path: Path) -> None:
    recipe = toy_recipe(
        tasks=PAIR,
        horizon=15,
        vector_steps=30,
        evaluate_every=30,
        goals="fixed",
        evaluation_episodes=1,
    )
    run = train(recipe, variant_named("mtl-sac"), 3, tmp_path)
    found = film_run(run, count=2)
    assert found.tasks == PAIR
    assert found.steps == (0, 15)
    # What the evaluation said of the same episode.
    assert [100.0 * (step is not None) for step in found.solved] == list(run.result.test)


def test_strips_have_a_line_per_task_of_all_films(tmp_path: Path) -> None:
    from PIL import Image

    pictures = np.zeros((1, 2, 8, 8, 3), dtype=np.uint8)
    sizes = []
    for count in (1, 3):
        films = [Film((f"task-{i}",), (0, 5), pictures, (None,)) for i in range(count)]
        save_strip(films, tmp_path / f"{count}.png")
        with Image.open(tmp_path / f"{count}.png") as image:
            sizes.append(image.size)
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] == pytest.approx(3 * sizes[0][1], rel=0.05)


@pytest.mark.parametrize(
    ("asked", "there", "message"),
    [
        ("", (), "neither libEGL nor libOSMesa was found.*apt install libegl1"),
        ("egl", ("OSMesa",), "MUJOCO_GL=egl, and libEGL was not found"),
        ("osmesa", ("EGL",), "MUJOCO_GL=osmesa, and libOSMesa was not found"),
    ],
)
def test_what_is_missing_for_pictures_is_named(
    asked: str, there: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setenv("MUJOCO_GL", asked)
    monkeypatch.setattr(environment, "find_library", lambda name: name in there or None)
    with pytest.raises(DrawingError, match=message):
        MetaWorld(("reach",), render=32)


def test_a_device_that_refuses_is_an_error_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(environment, "_choose_drawing", lambda: None)
    world = MetaWorld(("reach",), horizon=5, render=32)
    world.reset()

    class Refuses:
        mujoco_renderer = SimpleNamespace(viewer=None)

        def render(self) -> Any:
            raise RuntimeError("no EGL device")

    monkeypatch.setattr(world, "_made", [Refuses()])
    with pytest.raises(DrawingError, match=r"no EGL device. Off screen it needs libEGL"):
        world.render()
