"""Contracts for every method: missing labels, non-finite numbers, state, moving averages."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernel import oracle
from kernel.oracle import EXACT, Case, make_case
from ntkmtl import Balancer, BalanceResult, NonFiniteError, branch
from ntkmtl.weighting import accepted_options, create, names, spec
from placement import DTYPE

METHODS = [name for name in names() if name != "stl"]
OF_KERNEL = [name for name in METHODS if spec(name).requires != "losses"]
# Of the losses themselves: eigenvalues and weights of their logarithms are tested by hand.
OF_EIGENVALUES = [
    name
    for name in METHODS
    if spec(name).requires == "eigenvalues" and not spec(name).defaults.get("log_losses")
]
OF_GRAMIAN = [name for name in METHODS if spec(name).requires == "gramian"]
SEEDED = tuple(name for name in METHODS if "seed" in accepted_options(name))
NAMES = ["a", "b", "c"]


def make_balancer(method: str, **options: Any) -> Balancer:
    if method in SEEDED:
        options.setdefault("seed", 0)
    return Balancer(method, **options)


def run(
    case: Case,
    balancer: Balancer,
    missing: tuple[int, ...] = (),
    form: str = "tensor",
    **arguments: Any,
) -> BalanceResult:
    z = case.features()
    views = branch(z, len(case.heads)) if form == "branch" else z
    losses: list[Tensor | None] = list(case.losses(views))
    for i in missing:
        losses[i] = None
    out = balancer.backward(losses, features=views, **arguments)
    balancer.after_step(lambda: [None if x is None else 0.9 * x for x in losses])
    return out


def update(case: Case, balancer: Balancer) -> None:
    with torch.no_grad():
        for p in [*case.parameters, *balancer.parameters()]:
            if p.grad is not None:
                p -= 0.01 * p.grad.clamp(-1, 1)
                p.grad = None


# --------------------------------------------------------------------------- missing labels


def run_two_of_three(case: Case, balancer: Balancer, form: str) -> BalanceResult:
    z = case.features()
    pair: Any = z
    views: Any = z
    if form == "branch":
        pair = branch(z, 2)
        views = [pair[0], z, pair[1]]
    losses = case.losses(views)
    kept = [losses[0], losses[2]]
    out = balancer.backward(kept, features=pair)
    balancer.after_step([0.9 * loss.detach() for loss in kept])
    return out


@pytest.mark.parametrize("form", ["tensor", "branch"])
@pytest.mark.parametrize("method", METHODS)
def test_task_without_a_label_changes_nothing_for_the_others(method: str, form: str) -> None:
    case, other = make_case(), make_case()
    three, two = make_balancer(method), make_balancer(method)
    for _ in range(3):
        out = run(case, three, missing=(1,), form=form)
        expected = run_two_of_three(other, two, form)
        assert out.weights.shape == (3,)
        assert out.weights[1] == 0
        torch.testing.assert_close(out.weights[[0, 2]], expected.weights, rtol=1e-9, atol=1e-12)
        assert all(p.grad is None for p in case.heads[1].parameters())
        for p, q in zip(case.parameters, other.parameters, strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
        if out.eigenvalues is not None:
            assert out.eigenvalues[1].isnan()
            assert expected.eigenvalues is not None
            torch.testing.assert_close(out.eigenvalues[[0, 2]], expected.eigenvalues, **EXACT)
        for which, balancer in ((case, three), (other, two)):
            update(which, balancer)
            balancer.end_epoch()


@pytest.mark.parametrize("method", ["ls", "famo", "uw", "ntkmtl", "ntkmtl-sr", "nash-mtl"])
def test_dict_that_leaves_a_task_out(method: str) -> None:
    case, other = make_case(), make_case()
    expected = run(case, make_balancer(method, tasks=NAMES), missing=(1,))
    z = other.features()
    losses = dict(zip(NAMES, other.losses(z), strict=True))
    del losses["b"]
    out = make_balancer(method, tasks=NAMES).backward(losses, features=z)
    torch.testing.assert_close(out.weights, expected.weights, **EXACT)


def test_tasks_must_be_named_where_the_first_batch_does_not_show_them() -> None:
    case = make_case()
    balancer = Balancer("ls")
    a, b, _ = case.losses(case.features())
    balancer.backward({"a": a})
    with pytest.raises(ValueError, match=r"unknown tasks \['b'\].*tasks=\[\.\.\.\]"):
        balancer.backward({"b": b})
    with pytest.raises(ValueError, match="2 losses for 3 tasks"):
        Balancer("ls", tasks=3).backward([a, b])
    with pytest.raises(ValueError, match="different names"):
        Balancer("ls", tasks=["a", "a"])


@pytest.mark.parametrize("method", ["ntkmtl-sr", "ntkmtl", "nash-mtl"])
def test_task_whose_mask_is_empty_counts_as_missing(method: str) -> None:
    case, other = make_case(), make_case()
    options = {"minibatches": 2}
    expected = run(case, Balancer(method, **options), missing=(1,))
    counts = torch.ones(oracle.TASKS, oracle.BATCH)
    counts[1] = 0
    z = other.features()
    losses = [
        (row * own).sum() / own.sum().clamp_min(1)
        for row, own in zip(other.rows(z), counts, strict=True)
    ]
    out = Balancer(method, **options).backward(losses, features=z, counts=counts)
    torch.testing.assert_close(out.weights, expected.weights, **EXACT)
    assert out.weights[1] == 0
    assert all(p.grad is None for p in other.heads[1].parameters())


@pytest.mark.parametrize("method", METHODS)
def test_batch_without_any_label(method: str) -> None:
    case, other = make_case(), make_case()
    with_gap, plain = make_balancer(method), make_balancer(method)
    run(case, with_gap)
    run(other, plain)
    update(case, with_gap)
    update(other, plain)
    out = run(case, with_gap, missing=(0, 1, 2))
    assert out.weights.tolist() == [0.0, 0.0, 0.0]
    assert all(p.grad is None for p in case.parameters)
    assert torch.equal(run(case, with_gap).weights, run(other, plain).weights)


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_come_and_go(method: str) -> None:
    case = make_case()
    balancer = make_balancer(method, tasks=3)
    for missing in ((2,), (), (0, 1), (1,), ()):
        out = run(case, balancer, missing=missing)
        assert out.weights.isfinite().all()
        assert all(out.weights[i] == 0 for i in missing)
        update(case, balancer)
        balancer.end_epoch()


# --------------------------------------------------------------------------- non-finite numbers


def broken(kind: str, loss: Tensor, output: Tensor) -> Tensor:
    if kind == "gradient":
        # Finite value, infinite slope; 0 * inf is NaN further down.
        return loss + (output.sum() * 0.0).sqrt()
    return loss * {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[kind]


MODES = ["tensor", "branch", "hooked", "shared"]


def broken_calls() -> list[Any]:
    """Methods, kinds and modes that go together."""
    made = [(m, kind, "tensor") for m in ("ls", "si", "famo") for kind in ("nan", "inf", "-inf")]
    for method in ("ntkmtl", "ntkmtl-sr", "ntkmtl-tk", "nash-mtl", "graddrop"):
        for mode in MODES:
            if (method, mode) not in (("graddrop", "hooked"), ("ntkmtl-tk", "shared")):
                made += [(method, kind, mode) for kind in ("nan", "inf", "-inf", "gradient")]
    return made


def broken_step(case: Case, balancer: Balancer, kind: str, mode: str) -> None:
    z = case.features()
    views = branch(z, 3) if mode == "branch" else [z] * 3
    losses = case.losses(views)
    losses[1] = broken(kind, losses[1], case.heads[1](views[1]))
    features = None if mode == "shared" else views if mode == "branch" else z
    balancer.backward(dict(zip(NAMES, losses, strict=True)), features=features)


def options_of(method: str, mode: str, case: Case) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if spec(method).requires != "losses":
        options = {"weight_heads": True}
    if mode == "hooked":
        options["hooked"] = True
    if mode == "shared":
        options |= {"source": "exact", "shared": case.shared, "minibatches": 1}
    return options


@pytest.mark.parametrize("grads", ["none", "some"])
@pytest.mark.parametrize(("method", "kind", "mode"), broken_calls())
def test_non_finite_numbers_raise_before_any_gradient_changes(
    method: str, kind: str, mode: str, grads: str
) -> None:
    case = make_case()
    balancer = make_balancer(method, **options_of(method, mode, case))
    z = case.features()
    first = dict(zip(NAMES, case.losses(z), strict=True))
    balancer.backward(first, features=None if mode == "shared" else z)
    for p in case.parameters:
        p.grad = None if grads == "none" else torch.ones_like(p)
    with pytest.raises(NonFiniteError, match="task b") as caught:
        broken_step(case, balancer, kind, mode)
    error = caught.value
    assert error.task == "b"
    assert error.step == 1
    assert error.what == ("gradient" if kind == "gradient" else "loss")
    assert not math.isfinite(error.value)
    assert isinstance(error, FloatingPointError)
    for p in case.parameters:
        assert (p.grad is None) if grads == "none" else bool((p.grad == 1).all())


def test_infinite_gradient_of_a_head_alone() -> None:
    # The features' gradient is finite; only the head's own parameter has an infinite slope.
    for method in ("ntkmtl", "ntkmtl-sr", "nash-mtl"):
        case = make_case()
        scale = nn.Parameter(torch.zeros((), dtype=torch.float64))
        z = case.features()
        losses = case.losses(z)
        losses[2] = losses[2] + scale.sqrt()
        with pytest.raises(NonFiniteError, match="gradient of task 2"):
            Balancer(method).backward(losses, features=z)
        assert scale.grad is None
        assert all(p.grad is None for p in case.parameters)


@pytest.mark.parametrize("options", [{"weight_heads": False}, {"hooked": True}])
def test_gradient_that_becomes_infinite_when_weights_are_reused(options: dict[str, bool]) -> None:
    case = make_case()
    balancer = Balancer("ntkmtl-sr", every=2, **options)
    z = case.features()
    balancer.backward(dict(zip(NAMES, case.losses(z), strict=True)), features=z)
    for p in case.parameters:
        p.grad = None
    with pytest.raises(NonFiniteError, match="gradient of task b"):
        broken_step(case, balancer, "gradient", "tensor")
    assert all(p.grad is None for p in case.parameters)


def test_non_finite_error_survives_pickling() -> None:
    error = NonFiniteError("b", 7, "loss", math.inf)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made in this test
    assert (again.task, again.step, again.what, again.value) == ("b", 7, "loss", math.inf)
    assert str(again) == str(error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_losses_after_the_step_do_not_change_the_weights(value: float) -> None:
    case = make_case()
    balancer = Balancer("famo", tasks=NAMES)
    losses = dict(zip(NAMES, case.losses(case.features()), strict=True))
    balancer.backward(losses)
    after = {name: loss.detach() for name, loss in losses.items()}
    after["b"] = after["b"] * value
    with pytest.raises(NonFiniteError, match="loss of task b"):
        balancer.after_step(after)
    losses = dict(zip(NAMES, case.losses(case.features()), strict=True))
    assert balancer.backward(losses).weights.isfinite().all()


# --------------------------------------------------------------------------- vanishing gradients


@pytest.mark.parametrize("form", ["tensor", "branch"])
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", OF_EIGENVALUES)
def test_task_without_a_gradient_has_weight_one(method: str, n: int, form: str) -> None:
    case = make_case()
    z = case.features()
    views = branch(z, 3) if form == "branch" else z
    losses = case.losses(views)
    losses[1] = 0.0 * losses[1]
    out = Balancer(method, minibatches=n).backward(losses, features=views)
    assert out.eigenvalues is not None
    assert out.eigenvalues[1] == 0
    assert out.weights[1] == 1
    expected = (out.eigenvalues.mean() / out.eigenvalues).sqrt()
    torch.testing.assert_close(out.weights[[0, 2]], expected[[0, 2]], **EXACT)


@pytest.mark.parametrize(
    ("method", "source"),
    [
        (method, source)
        for method in OF_KERNEL
        for source in ("representation", "exact")
        if source == "exact" or method not in ("moco", "db-mtl")
    ],
)
def test_all_gradients_vanish(method: str, source: str) -> None:
    case = make_case()
    z = case.features()
    balancer = make_balancer(method, source=source)
    # The losses themselves stay positive, for methods that take their logarithms.
    losses = [loss.detach() + 0.0 * loss for loss in case.losses(z)]
    out = balancer.backward(losses, features=z)
    assert out.weights.isfinite().all()
    assert all(p.grad is not None and not p.grad.any() for p in case.parameters)
    if method in OF_EIGENVALUES:
        assert out.weights.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("method", [m for m in OF_GRAMIAN if m not in ("mgda", "cr-mogm")])
def test_one_converged_task_does_not_stop_the_others(method: str) -> None:
    # MGDA does stop, also in CR-MOGM: the shortest combination is then the gradient that is zero.
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    losses[1] = 0.0 * losses[1]
    make_balancer(method).backward(losses, features=z)
    assert any(p.grad is not None and bool(p.grad.any()) for p in case.shared)


# --------------------------------------------------------------------------- state


def variants() -> list[Any]:
    made = [pytest.param(m, {}, id=m) for m in METHODS]
    for method in ("ntkmtl-sr", "ntkmtl", "nash-mtl", "pcgrad"):
        for options in ({"every": 2}, {"ema": 0.5}, {"every": 3, "ema": 0.9}):
            text = "-".join(f"{k}{v}" for k, v in options.items())
            made.append(pytest.param(method, options, id=f"{method}-{text}"))
    return made


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize(("method", "options"), variants())
def test_state_goes_through_a_file(method: str, options: dict[str, Any], at: int) -> None:
    case = make_case()
    first = make_balancer(method, **options)
    for i in range(at):
        run(case, first, missing=(1,) if i == 2 else ())
        update(case, first)
        if i % 2:
            first.end_epoch()
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    other = {"seed": 99} if method in SEEDED else {}
    second = make_balancer(method, **options, **other)
    if at == 0:
        list(second.parameters())  # what an optimizer would do
    second.load_state_dict(torch.load(buffer, weights_only=True))
    copied = copy.deepcopy(case)
    for i in range(5):
        expected, found = run(case, first), run(copied, second)
        assert torch.equal(found.weights, expected.weights)
        for p, q in zip(case.parameters, copied.parameters, strict=True):
            assert torch.equal(p.grad, q.grad)
        update(case, first)
        update(copied, second)
        if i == 2:
            first.end_epoch()
            second.end_epoch()


@pytest.mark.parametrize(("method", "options"), variants())
def test_a_state_does_not_change_after_it_was_taken(method: str, options: dict[str, Any]) -> None:
    case = make_case()
    balancer = make_balancer(method, **options)
    run(case, balancer)
    state = balancer.state_dict()
    kept = copy.deepcopy(state)
    other = make_balancer(method, **options)
    other.load_state_dict(state)
    for which in (balancer, other):
        for _ in range(3):
            run(case, which)
            update(case, which)
            which.end_epoch()

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a.nan_to_num(-7.0), b.nan_to_num(-7.0))
        return a == b

    assert state.keys() == kept.keys()
    for key in state:
        if key == "weighting":
            assert all(same(state[key][name], kept[key][name]) for name in kept[key])
        else:
            assert same(state[key], kept[key])


def test_wrong_states() -> None:
    case = make_case()
    balancer = Balancer("ntkmtl-sr", tasks=NAMES)
    state = balancer.state_dict()
    with pytest.raises(ValueError, match="method 'ntkmtl-sr', this is 'ntkmtl'"):
        Balancer("ntkmtl").load_state_dict(state)
    with pytest.raises(ValueError, match="not a state of a Balancer"):
        balancer.load_state_dict({"step": 0})
    with pytest.raises(ValueError, match="not a state of a Balancer"):
        balancer.load_state_dict({**state, "more": 1})
    with pytest.raises(ValueError, match=r"tasks \['a', 'b', 'c'\]"):
        Balancer("ntkmtl-sr", tasks=2).load_state_dict(state)
    famo = Balancer("famo")
    run(case, famo)
    lacking = {k: v for k, v in famo.state_dict().items() if k != "weighting.logits"}
    with pytest.raises(ValueError, match=r"lacks 'weighting\.logits'"):
        famo.load_state_dict(lacking)
    # Nothing was taken over from a state that was refused.
    same = Balancer("ntkmtl-sr", tasks=NAMES).state_dict()
    assert balancer.state_dict()["json"].tolist() == same["json"].tolist()


def test_the_state_of_a_method_within_a_method() -> None:
    case, other = make_case(), make_case()
    balancer = Balancer("cr-mogm", inner="pcgrad", alpha=0.5)
    run(case, balancer)
    again = Balancer("cr-mogm", inner="pcgrad", alpha=0.5)
    again.load_state_dict(balancer.state_dict())
    run(other, Balancer("cr-mogm", inner="pcgrad", alpha=0.5))
    for p, q in zip(case.parameters, other.parameters, strict=True):
        p.grad = q.grad = None
    assert torch.equal(run(case, balancer).weights, run(other, again).weights)


@pytest.mark.parametrize("method", METHODS)
def test_pickle(method: str) -> None:
    case = make_case()
    balancer = make_balancer(method)
    run(case, balancer)
    again = pickle.loads(pickle.dumps(balancer))  # noqa: S301 - made in this test
    copied = copy.deepcopy(case)
    assert torch.equal(run(copied, again).weights, run(case, balancer).weights)


def test_repr() -> None:
    assert repr(Balancer("ls")) == "Balancer('ls')"
    text = repr(Balancer("ntkmtl-sr", minibatches=3, pooling="kernel"))
    assert text == (
        "Balancer('ntkmtl-sr', source='representation', pooling='kernel', minibatches=3)"
    )
    assert repr(Balancer("mgda")) == "Balancer('mgda', source='exact', minibatches=1)"


# --------------------------------------------------------------------------- every, ema


@pytest.mark.parametrize("source", ["representation", "exact"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_moving_average_of_eigenvalues(ema: float, every: int, source: str) -> None:
    case = make_case()
    balancer = Balancer("ntkmtl", source=source, ema=ema, every=every, minibatches=2)
    average: Tensor | None = None
    weights = torch.ones(3)
    for step in range(7):
        single = Balancer("ntkmtl", source=source, minibatches=2)
        fresh = run(copy.deepcopy(case), single).eigenvalues
        assert fresh is not None
        out = run(case, balancer)
        if step % every == 0:
            average = fresh if average is None else ema * average + (1 - ema) * fresh
            weights = (average.mean() / average).sqrt()
            torch.testing.assert_close(out.eigenvalues, average, **EXACT)
        else:
            assert out.eigenvalues is None
        torch.testing.assert_close(out.weights, weights, **EXACT)
        update(case, balancer)


@pytest.mark.parametrize("every", [1, 2])
def test_moving_average_of_gramians(every: int) -> None:
    case = make_case()
    balancer = Balancer("nash-mtl", ema=0.7, every=every)
    average: Tensor | None = None
    for step in range(5):
        copied = copy.deepcopy(case)
        rows = torch.stack(
            [oracle.flat_gradient(x, copied.shared) for x in copied.losses(copied.features())]
        )
        gramian = rows @ rows.T
        out = run(case, balancer)
        if step % every == 0:
            average = gramian if average is None else 0.7 * average + 0.3 * gramian
            weights = out.weights
            torch.testing.assert_close(average @ weights, 1 / weights, **EXACT)
        assert torch.equal(out.weights, weights)
        update(case, balancer)


def test_the_average_of_a_task_without_labels_stays() -> None:
    case = make_case()
    balancer = Balancer("ntkmtl-sr", ema=0.5, minibatches=2)
    first = run(case, balancer).eigenvalues
    second = run(case, balancer, missing=(1,)).eigenvalues
    third = run(case, balancer).eigenvalues
    assert first is not None
    assert second is not None
    assert third is not None
    assert second[1].isnan()
    # The model has not moved, so neither has any average.
    torch.testing.assert_close(third, first, **EXACT)


def test_weights_are_not_reused_before_every_task_has_one() -> None:
    case = make_case()
    balancer = Balancer("ntkmtl-sr", every=10, minibatches=2, tasks=3)
    run(case, balancer, missing=(1,))
    assert run(case, balancer, missing=(1,)).eigenvalues is None
    assert run(case, balancer).eigenvalues is not None  # needs the kernel of task 1


@pytest.mark.parametrize("weight_heads", [True, False])
def test_steps_that_reuse_weights_fill_the_same_gradients(weight_heads: bool) -> None:
    case, plain = make_case(), make_case()
    balancer = Balancer("ntkmtl-sr", every=2, minibatches=2, weight_heads=weight_heads)
    expected = run(plain, Balancer("ntkmtl-sr", minibatches=2, weight_heads=weight_heads))
    for _ in range(2):
        out = run(case, balancer)
        torch.testing.assert_close(out.weights, expected.weights, **EXACT)
        for p, q in zip(case.parameters, plain.parameters, strict=True):
            torch.testing.assert_close(p.grad, q.grad, **EXACT)
            p.grad = None


# --------------------------------------------------------------------------- calls and options


@pytest.mark.parametrize("method", METHODS)
def test_after_step_does_nothing_where_it_is_not_needed(method: str) -> None:
    case = make_case()
    balancer = make_balancer(method)
    z = case.features()
    balancer.backward(case.losses(z), features=z)
    called = []

    def losses() -> list[Tensor]:
        called.append(torch.is_grad_enabled())
        return case.losses(case.features())

    balancer.after_step(losses)
    # With gradients: losses with input derivatives need them.
    assert called == ([True] if balancer.needs_after_step else [])
    balancer.end_epoch()
    assert balancer.needs_after_step == create(method).needs_after_step


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_learned_by_the_users_optimizer(method: str) -> None:
    case = make_case()
    balancer = make_balancer(method, tasks=3)
    parameters = list(balancer.parameters())
    assert len(parameters) == len(list(create(method).parameters()))
    assert bool(parameters) or method not in ("uw", "imtl-l", "ldc-mtl")
    run(case, balancer)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


def test_uw_learns_beside_the_model() -> None:
    case = make_case()
    balancer = Balancer("uw")
    optimizer = torch.optim.SGD([*case.parameters, *balancer.parameters()], lr=0.1)
    s = torch.zeros(3, dtype=DTYPE)
    for _ in range(4):
        optimizer.zero_grad()
        z = case.features()
        losses = case.losses(z)
        out = balancer.backward(losses, features=z)
        torch.testing.assert_close(out.weights, 0.5 * torch.exp(-s), rtol=1e-5, atol=0.0)
        s -= 0.1 * 0.5 * (1 - torch.exp(-s) * torch.stack(losses).detach())
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"minibatches": 0}, ValueError, "minibatches must be a whole number"),
        ({"minibatches": 2.5}, ValueError, r"found 2\.5"),
        ({"minibatches": True}, ValueError, "minibatches"),
        ({"every": 0}, ValueError, "every must be a whole number"),
        ({"ema": 1.0}, ValueError, r"ema must be in \[0, 1\), found 1\.0"),
        ({"ema": -0.1}, ValueError, "ema"),
        ({"ema": math.nan}, ValueError, "ema"),
        ({"source": "probing"}, ValueError, "source must be one of 'representation', 'exact'"),
        ({"pooling": "mean"}, ValueError, "pooling must be one of"),
        ({"source": "exact", "pooling": "pooled"}, ValueError, "belongs to source="),
        ({"preset": "paper"}, ValueError, "preset must be 'published'"),
        ({"shared": []}, ValueError, "shared holds no parameter"),
        ({"tasks": []}, ValueError, "one or more"),
        ({"tasks": "size"}, TypeError, "a number or a sequence of names, found 'size'"),
        ({"expnent": 1.0}, TypeError, "no option 'expnent'; did you mean 'exponent'"),
        ({"minibatch": 4}, TypeError, "no option 'minibatch'; did you mean 'minibatches'"),
    ],
)
def test_options_out_of_range(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Balancer("ntkmtl-sr", **options)


def test_one_scalar_is_not_k_losses() -> None:
    total = torch.ones((), requires_grad=True) * 2
    with pytest.raises(TypeError, match="found one scalar"):
        Balancer("ls").backward(total)  # type: ignore[arg-type]


def test_fixed_weights_go_by_name() -> None:
    case = make_case()
    weights = {"c": 3.0, "a": 1.0, "b": 2.0}
    z = case.features()
    losses = dict(zip(NAMES, case.losses(z), strict=True))
    assert Balancer("fixed", weights=weights).backward(losses).weights.tolist() == [1.0, 2.0, 3.0]
    for given in ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0, "d": 3.0}):
        with pytest.raises(
            ValueError, match=r"weights for \['a', 'b'.*the tasks are \['a', 'b', 'c'\]"
        ):
            Balancer("fixed", weights=given, tasks=NAMES)


def test_contradicting_options() -> None:
    with pytest.raises(ValueError, match="no every, no ema"):
        Balancer("graddrop", every=2)
    with pytest.raises(ValueError, match="for 'ntkmtl' and 'ntkmtl-sr'"):
        Balancer("nash-mtl", preset="published")


def test_missing_input_is_named() -> None:
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    with pytest.raises(ValueError, match="losses of single samples"):
        Balancer("modo").backward(losses)
    with pytest.raises(ValueError, match="pass features=z"):
        Balancer("ntkmtl-sr", source="probe", trunk=case.trunk, minibatches=1).backward(losses)
    with pytest.raises(TypeError, match="task 0 must be a tensor or None"):
        Balancer("ls").backward([1.0])
    with pytest.raises(ValueError, match="task 0 does not require a gradient"):
        Balancer("ls").backward([losses[0].detach()])
    with pytest.raises(ValueError, match=r"must be a scalar.*found shape \(7, 1\)"):
        Balancer("ls").backward([case.rows(z)[0][:, None]])
    assert all(p.grad is None for p in case.parameters)


def test_stl_takes_one_task() -> None:
    case = make_case(tasks=1)
    z = case.features()
    out = Balancer("stl").backward(case.losses(z), features=z)
    assert out.weights.tolist() == [1.0]
    three = make_case()
    with pytest.raises(ValueError, match="one task alone"):
        Balancer("stl").backward(three.losses(three.features()))


def test_a_weighting_may_be_passed_as_it_is() -> None:
    case, other = make_case(), make_case()
    expected = run(case, Balancer("ntkmtl-sr", exponent=0.25))
    out = run(other, Balancer(create("ntkmtl-sr", exponent=0.25)))
    assert torch.equal(out.weights, expected.weights)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("method", OF_EIGENVALUES)
def test_exponent(method: str, exponent: float) -> None:
    case = make_case()
    out = run(case, Balancer(method, exponent=exponent, minibatches=2))
    assert out.eigenvalues is not None
    expected = (out.eigenvalues.mean() / out.eigenvalues) ** exponent
    torch.testing.assert_close(out.weights, expected, **EXACT)


def test_weights_follow_the_definition_at_every_step_of_a_training() -> None:
    # Eq. 14: under the weights, all largest eigenvalues are equal.
    case = make_case()
    balancer = Balancer("ntkmtl", minibatches=3)
    for _ in range(4):
        out = run(case, balancer)
        assert out.kernel is not None
        balanced = out.kernel.weighted(out.weights).max_eigenvalues()
        torch.testing.assert_close(balanced, balanced.mean().expand(3), **EXACT)
        update(case, balancer)
