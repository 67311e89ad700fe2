"""What every weighting does, swept over the registry and over Gramians of every kind."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ntkmtl import ExtendedNTK
from ntkmtl.weighting import Weighting, accepted_options, create, load, names, spec

METHODS = [name for name in names() if name != "stl"]
OF_KERNEL = [name for name in METHODS if spec(name).requires in ("gramian", "eigenvalues")]
OF_LOSSES = [name for name in METHODS if spec(name).requires == "losses"]
OF_ENTRIES = [name for name in METHODS if spec(name).requires == "jacobian"]
RANDOM = tuple(name for name in METHODS if "seed" in accepted_options(name))
# Neighbors are compared, or the first task is primary: the order is a part of the method.
ORDERED = tuple(name for name in METHODS if load(name).depends_on_order)
SHAPES = ("full", "zero", "one-zero", "line", "opposite", "cancelling", "equal", "unlike")


def make(name: str, seed: int = 0) -> Weighting:
    return create(name, seed=seed) if name in RANDOM else create(name)


def rows(shape: str, k: int, seed: int) -> Tensor:
    """k gradients: of full rank, vanishing, on a line, cancelling each other, ..."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(k, k + 2, dtype=torch.float64, generator=generator)
    if shape == "zero":
        matrix.zero_()
    elif shape == "one-zero":
        matrix[-1] = 0
    elif shape == "line":
        matrix[:, 1:] = 0
    elif shape == "opposite":
        matrix[-1] = -3 * matrix[0]
    elif shape == "cancelling":
        matrix[-1] = -matrix[:-1].sum(dim=0)
    elif shape == "equal":
        matrix[:] = matrix[0].clone()
    elif shape == "unlike":
        matrix *= torch.logspace(-6, 6, k, dtype=torch.float64)[:, None]
    return matrix


def kernel_of(matrix: Tensor, scale: float = 1.0) -> ExtendedNTK:
    k = len(matrix)
    return ExtendedNTK((matrix @ matrix.T * scale).reshape(k, 1, k, 1))


def weights_of(weighting: Weighting, matrix: Tensor, losses: Tensor) -> Tensor:
    """What a method makes of gradients and losses, whatever it reads."""
    if weighting.requires == "jacobian":
        return weighting.combine(matrix, losses, torch.arange(len(matrix)))[1]
    if weighting.requires != "kernel":
        return weighting(kernel_of(matrix), losses=losses)
    # Two mini-batches whose mean is the matrix.
    other = matrix.roll(1, dims=1) / 4
    both = torch.stack([matrix + other, matrix - other], dim=1)
    return weighting(ExtendedNTK(torch.einsum("iup,jvp->iujv", both, both)), losses=losses)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OF_KERNEL)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**31), k=st.integers(2, 6), scale=st.sampled_from([1e-24, 1.0, 1e24]))
@example(seed=0, k=2, scale=1.0)
@example(seed=0, k=5, scale=1e-24)
@example(seed=0, k=5, scale=1e24)
def test_finite_for_every_gramian(name: str, shape: str, seed: int, k: int, scale: float) -> None:
    weights = make(name)(kernel_of(rows(shape, k, seed), scale))
    assert weights.shape == (k,)
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("name", OF_ENTRIES)
def test_finite_for_every_jacobian(name: str, shape: str, scale: float) -> None:
    weighting = make(name)
    losses = torch.tensor([1.0, 2.0, 1e-6, 3.0], dtype=torch.float64) * scale
    for dtype in (torch.float64, torch.float32):
        matrix = (rows(shape, 4, 0) * scale).to(dtype)
        combined, kept = weighting.combine(matrix, losses, torch.arange(4))
        assert combined.shape == matrix.shape[1:]
        assert combined.dtype == dtype
        assert combined.isfinite().all()
        assert kept.isfinite().all()
        assert (kept >= 0).all()
        if name == "graddrop":
            assert (kept <= 1).all()


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1.0, 1e12, 1e24])
@pytest.mark.parametrize("name", OF_LOSSES)
def test_finite_for_every_scale_of_losses(name: str, scale: float) -> None:
    weighting = make(name)
    for epoch in range(7):
        for losses in ([1.0, 2.0, 3.0], [3.0, 1e-9, 0.5], [0.0, 1.0, 1.0]):
            values = torch.tensor(losses, dtype=torch.float64) * scale
            weights = weighting(losses=values)
            assert weights.dtype == torch.float64
            assert weights.isfinite().all(), (epoch, losses)
            assert (weights >= 0).all()
            weighting.after_step(values * 0.9, torch.arange(3))
        weighting.end_epoch()


@pytest.mark.parametrize("name", [n for n in METHODS if n not in RANDOM + ORDERED])
@settings(deadline=None, max_examples=15, derandomize=True)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(4)))
def test_permuting_tasks_permutes_weights(name: str, seed: int, order: list[int]) -> None:
    matrix = rows("full", 4, seed)
    losses = matrix[:, 0].square() + 0.1
    plain, permuted = make(name), make(name)
    for _ in range(3):
        expected = weights_of(plain, matrix, losses)[order]
        found = weights_of(permuted, matrix[order], losses[order])
        rough = 1e-4 if name == "sdmgrad" else 1e-9  # its long steps make much of rounding
        torch.testing.assert_close(found, expected, rtol=rough, atol=rough)
        if plain.needs_after_step:
            after = losses * torch.linspace(0.5, 1.5, 4, dtype=torch.float64)
            plain.after_step(after, torch.arange(4))
            permuted.after_step(after[order], torch.arange(4))
        plain.end_epoch()
        permuted.end_epoch()


@pytest.mark.parametrize("name", OF_KERNEL)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-24, 24))
def test_scale_of_the_gramian(name: str, seed: int, exponent: int) -> None:
    matrix = rows("full", 3, seed)
    plain = make(name)(kernel_of(matrix))
    scaled = make(name)(kernel_of(matrix, 10.0**exponent))
    # The same up to a factor: a power of the scale, the same at every scale.
    tenfold = make(name)(kernel_of(matrix, 10.0)).sum() / plain.sum()
    expected = plain * tenfold**exponent
    torch.testing.assert_close(scaled, expected, rtol=1e-8, atol=1e-15)


def test_how_the_weights_of_fair_methods_scale() -> None:
    # With a Gramian times c they are times c ** (-alpha / (1 + alpha)); nash-mtl's alpha is 1.
    powers = {"nash-mtl": -1 / 2, "fairgrad": -2 / 3, "pivrg": -2 / 3, "consmtl": -2 / 3}
    matrix = rows("full", 3, 0)
    for name, power in {**powers, "mgda": 0.0, "ntkmtl": 0.0}.items():
        expected = make(name)(kernel_of(matrix)) * 1000.0**power
        found = make(name)(kernel_of(matrix, 1000.0))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_who_refuses_negative_losses_says_so(name: str) -> None:
    weighting = make(name)
    losses = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    weighting.prepare(3, losses.device)
    if load(name).needs_positive_losses:
        with pytest.raises(ValueError, match=f"{name} .*(negative|above)"):
            weights_of(weighting, rows("full", 3, 0), losses)
    else:
        assert weights_of(weighting, rows("full", 3, 0), losses).isfinite().all()


@pytest.mark.parametrize("name", ["si", "famo", "stch"])
def test_weighted_losses_do_not_depend_on_their_units(name: str) -> None:
    # w_i l_i is the same whatever unit a loss is given in.
    units = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    plain, other = make(name), make(name)
    for _ in range(7):
        losses = torch.rand(3, dtype=torch.float64) + 0.5
        expected = plain(losses=losses) * losses
        found = other(losses=losses * units) * losses * units
        if name == "famo":  # up to the normalization of the weights
            expected, found = expected / expected.sum(), found / found.sum()
        # FAMO adds 1e-8 to every loss.
        rough = 0.02 if name == "famo" else 1e-9
        torch.testing.assert_close(found, expected, rtol=rough, atol=0.0)
        plain.end_epoch()
        other.end_epoch()


@pytest.mark.parametrize("name", METHODS)
def test_one_task(name: str) -> None:
    weighting = make(name)
    if name == "graddrop":
        combined, kept = weighting.combine(torch.ones(1, 3))
        assert combined.tolist() == [1.0, 1.0, 1.0]
        assert kept.tolist() == [1.0]
    weights = weights_of(weighting, torch.ones(1, 4, dtype=torch.float64), torch.ones(1))
    assert weights.shape == (1,)
    assert float(weights) > 0


def step(weighting: Weighting, seed: int) -> Tensor:
    """One step of three tasks, with all that comes after it; returns what it made."""
    matrix = rows("full", 3, seed)
    losses = matrix[:, 0].square() + 0.1
    if weighting.requires == "jacobian":
        return weighting.combine(matrix, losses, torch.arange(3))[0]
    weights = weights_of(weighting, matrix, losses)
    weighting.accumulate(losses, torch.arange(3), 1.0)
    weighting.after_step(losses * 0.9, torch.arange(3))
    for parameter in weighting.parameters():
        parameter.data -= 0.1 * parameter.grad
        parameter.grad = None
    return weights


@pytest.mark.parametrize("name", METHODS)
def test_state_goes_through_a_file(name: str) -> None:
    first, second = make(name, seed=0), make(name, seed=1)

    for seed in range(4):
        step(first, seed)
        first.end_epoch()
    step(first, 4)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for seed in range(5, 8):
        assert torch.equal(step(first, seed), step(second, seed))
        first.end_epoch()
        second.end_epoch()
    with pytest.raises(ValueError, match="does not belong"):
        second.load_state_dict({"other": 1})


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_state_is_a_snapshot(name: str, before: int) -> None:
    first = make(name, seed=0)
    for seed in range(before):
        step(first, seed)
        first.end_epoch()
    state = first.state_dict()
    then = [step(first, seed) for seed in range(5, 8)]
    # Back to it, twice from one state, side by side.
    second = make(name, seed=1)
    first.load_state_dict(state)
    second.load_state_dict(state)
    for seed, expected in zip(range(5, 8), then, strict=True):
        assert torch.equal(step(first, seed), expected)
        assert torch.equal(step(second, seed), expected)


@pytest.mark.parametrize("name", METHODS)
def test_weights_do_not_depend_on_the_default_device(name: str) -> None:
    matrix = rows("full", 3, 0)
    losses, tasks = matrix[:, 0].square() + 0.1, torch.arange(3)
    half = torch.stack([matrix * 0.75, matrix * 1.25], dim=1)
    kernel = ExtendedNTK(torch.einsum("iup,jvp->iujv", half, half))

    def found() -> Tensor:
        weighting = make(name)
        if weighting.requires == "jacobian":
            return weighting.combine(matrix, losses, tasks)[0]
        return weighting(None if weighting.requires == "losses" else kernel, losses=losses)

    expected = found()
    with torch.device("meta"):  # as torch.set_default_device("cuda") beside tensors of the CPU
        assert torch.equal(found(), expected)


@pytest.mark.parametrize("name", METHODS)
def test_what_it_reads_must_be_given(name: str) -> None:
    with pytest.raises(ValueError, match=r"reads|entry by entry"):
        make(name)()


@pytest.mark.parametrize("name", METHODS)
def test_repr_is_the_call_that_makes_it(name: str) -> None:
    weighting = make(name)
    text = repr(weighting)
    assert text.startswith(type(weighting).__name__ + "(")
    assert "object at" not in text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graddrop_keeps_what_all_tasks_agree_on_in_half_precision(dtype: torch.dtype) -> None:
    for sign in (1.0, -1.0):
        combined, kept = create("graddrop", seed=0).combine(
            torch.full((2, 100_000), sign, dtype=dtype)
        )
        assert combined.dtype == dtype
        assert bool((combined == 2 * sign).all())
        assert kept.tolist() == [1.0, 1.0]
