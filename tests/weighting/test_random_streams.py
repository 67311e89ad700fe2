"""Random methods draw from streams of their own: threads, seeds, states."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import Weighting, accepted_options, create, names
from ntkmtl.weighting._random import RandomState

RANDOM = [name for name in names() if "seed" in accepted_options(name)]


def step(weighting: Weighting, seed: int) -> Tensor:
    """One step with eight gradients, of which many conflict; returns what it made of them."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(8, 5, dtype=torch.float64, generator=generator)
    if weighting.requires == "jacobian":
        return weighting.combine(matrix)[0]
    if weighting.requires == "losses":
        return weighting(losses=matrix[:, 0].square())
    return weighting(ExtendedNTK((matrix @ matrix.T).reshape(8, 1, 8, 1)))


def run(method: str, steps: int = 20) -> Callable[[], Tensor]:
    """Return a function that makes steps with a weighting that is made now."""
    # By default relobralo looks back to the first step once in a thousand steps.
    weighting = create(method, **({"rho": 0.5} if method == "relobralo" else {}))
    return lambda: torch.stack([step(weighting, seed) for seed in range(steps)])


def test_these_methods_draw_random_numbers() -> None:
    assert set(RANDOM) == {"rlw", "relobralo", "pcgrad", "graddrop", "gradvac"}


@pytest.mark.parametrize("method", RANDOM)
def test_a_step_leaves_the_global_stream_alone(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighting = create(method, seed=0)
    before = torch.get_rng_state()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the global stream was changed")

    for name in ("manual_seed", "seed", "set_rng_state"):
        monkeypatch.setattr(torch, name, refuse)
        monkeypatch.setattr(torch.random, name, refuse)
    monkeypatch.setattr(torch.random, "fork_rng", refuse)
    step(weighting, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", RANDOM)
def test_a_seed_before_the_method_is_made_decides_the_run(method: str) -> None:
    torch.manual_seed(3)
    first = run(method)()
    torch.manual_seed(3)
    made = run(method)
    torch.rand(7)  # what others draw meanwhile does not matter
    second = made()
    torch.manual_seed(4)
    other = run(method)()
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", RANDOM)
def test_weightings_in_threads_are_reproducible(method: str) -> None:
    torch.manual_seed(0)
    expected = run(method)()
    torch.manual_seed(0)
    made = [run(method) for _ in range(3)]
    found: dict[int, Tensor] = {}
    drawn: list[Tensor] = []

    def work(index: int) -> None:
        found[index] = made[index]()

    def draw() -> None:
        drawn.extend(torch.rand(4) for _ in range(300))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    threads.append(threading.Thread(target=draw))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        assert torch.equal(found[index], expected), index
    # The other thread's numbers do not repeat.
    assert len({tuple(row.tolist()) for row in drawn}) == len(drawn) == 300


@pytest.mark.parametrize("method", RANDOM)
def test_the_state_holds_the_stream_as_a_tensor(method: str) -> None:
    first, second = create(method, seed=0), create(method, seed=1)
    torch.rand(11, generator=first._random.generator)
    state = first.state_dict()
    assert isinstance(state["random"], Tensor)
    second.load_state_dict(state)
    drawn = [torch.rand(5, generator=w._random.generator) for w in (first, second)]
    assert torch.equal(*drawn)


def test_other_devices_get_a_generator_of_their_own() -> None:
    stream = RandomState(0)
    assert stream.on(torch.device("cpu")) is stream.generator
    before = stream.get()
    if torch.cuda.is_available():
        device = torch.device("cuda")
        twice = [RandomState(0).on(device) for _ in range(2)]
        drawn = [torch.rand(4, device=device, generator=g) for g in twice]
        assert torch.equal(drawn[0], drawn[1])
    else:
        with pytest.raises(RuntimeError):
            stream.on(torch.device("cuda"))
    # Its seed came from the stream, which has moved on.
    assert torch.cuda.is_available() or not torch.equal(stream.get(), before)
