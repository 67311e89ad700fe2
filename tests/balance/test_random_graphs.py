"""Random programs with several losses: either the right result or an error.

The environment variable NTKMTL_EXAMPLES sets the number of examples, 10,000 by default.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from balance.random_graphs import BATCH, Cut, Program, Tape, draw_program
from ntkmtl import Balancer, BalanceResult
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting import create, spec

EXAMPLES = int(os.environ.get("NTKMTL_EXAMPLES", "10000"))
METHODS = (
    "ntkmtl-auto",
    "ntkmtl",
    "ntkmtl-sr",
    "ntkmtl-sr",
    "mgda",
    "imtl-g",
    "aligned-mtl",
    "upgrad",
    "ls",
)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 0.15}


@dataclass
class Setting:
    """What the Balancer is told."""

    method: str
    options: dict[str, Any]
    absent: list[int]
    scale: float
    extra: bool
    again: str
    """A second call: within one ``hold``, or adding to the first one's gradients."""


def draw_setting(tape: Tape, program: Program) -> Setting:
    method = METHODS[tape.pick(len(METHODS))]
    options: dict[str, Any] = {}
    k = len(program.tasks)
    if create(method).requires != "losses":
        options["hooked"] = (None, None, True, False)[tape.pick(4)]
        options["memory_budget"] = (1 << 28, 0)[tape.pick(2)]
        options["weight_heads"] = (None, True, False)[tape.pick(3)]
    if method == "ntkmtl-sr":
        options["minibatches"] = 1
        # A head that mixes samples has no mini-batches, which losses of samples show.
        mixed = any(op.kind == "attention" for op in program.ops)
        tails = ("scalar",) if mixed else ("scalar", "vector")
        if program.tail in tails and not program.masked and tape.chance(3):
            options |= {"minibatches": 2, "batch_dim": 0}
    elif create(method).requires == "gramian" and tape.chance(3):
        options["source"] = "representation"
    elif method == "ntkmtl" and program.tail == "vector" and not program.masked and tape.chance(2):
        options["minibatches"] = 2
    if tape.chance(4):
        options["priorities"] = [1.0 + tape.pick(3) for _ in range(k)]
    if create(method).requires != "losses" and tape.chance(4):
        options["length"] = ("plain", 2.0, "unit")[tape.pick(3)]
    absent = [i for i in range(k) if tape.chance(8)]
    return Setting(
        method,
        options,
        absent,
        0.25 if tape.chance(4) else 1.0,
        tape.chance(4),
        ("", "", "hold", "accumulate")[tape.pick(4)],
    )


def flat_gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    """One row of a Jacobian, float64."""
    grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    rows = [
        (torch.zeros_like(p) if g is None else g).reshape(-1).double()
        for p, g in zip(parameters, grads, strict=True)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.float64)


class Oracle:
    """Everything that is compared, by slow and obvious ways."""

    def __init__(self, program: Program, setting: Setting) -> None:
        self.program, self.setting = program, setting
        live = Cut(program, list(range(len(program.tasks)))).live
        self.present = [
            i for i, at in enumerate(program.tasks) if i not in setting.absent and live[at]
        ]
        if program.added is not None and not set(program.added) <= set(self.present):
            program.added = None
        self.cut = Cut(program, self.present)
        self.source = setting.options.get("source", spec(setting.method).defaults.get("source"))

    @property
    def separate(self) -> bool:
        return len({frozenset(self.cut.crossings[b]) for b in self.cut.connected}) > 1

    def kernel(self) -> ExtendedNTK:
        """The kernel of the connected tasks."""
        n = self.setting.options.get("minibatches", 1)
        at = self.cut.connected
        if self.source == "representation":
            return self._of_border(n, at)
        means, _ = self.program.losses()
        shared = self.cut.shared
        if n == 1:
            rows = [flat_gradient(means[self.present[b]], shared)[None] for b in at]
        else:
            values = self.program.run(self.program.tasks)
            parts = [values[self.program.tasks[self.present[b]]].chunk(n) for b in at]
            rows = [torch.stack([flat_gradient(c.mean(), shared) for c in p]) for p in parts]
        return ExtendedNTK(torch.einsum("iup,jvp->iujv", torch.stack(rows), torch.stack(rows)))

    def _of_border(self, n: int, at: list[int]) -> ExtendedNTK:
        sent = [self.cut.sent(b) for b in at]
        targets = sorted({t for s in sent for t in s})
        size = BATCH // n
        rows = []
        for own in sent:
            parts = []
            for u in range(n):
                pieces = []
                for t in targets:
                    whole = next(s[t] for s in sent if t in s)
                    g = torch.zeros_like(whole)
                    if t in own:
                        g[u * size : (u + 1) * size] = n * own[t][u * size : (u + 1) * size]
                    pieces.append(g.double().reshape(-1))
                parts.append(torch.cat(pieces))
            rows.append(torch.stack(parts))
        return ExtendedNTK(torch.einsum("iup,jvp->iujv", torch.stack(rows), torch.stack(rows)))

    def refuses(self) -> bool:
        """Whether the kernel that is asked for does not exist."""
        setting, cut = self.setting, self.cut
        if self.source != "representation" or create(setting.method).requires == "losses":
            return False
        if not cut.connected:
            return False
        if cut.bypass:
            return True
        return self.needs_products and self.separate

    @property
    def needs_products(self) -> bool:
        """Whether blocks between tasks are read."""
        return (
            create(self.setting.method).requires != "eigenvalues"
            or "length" in self.setting.options
        )

    def may_refuse(self) -> bool:
        """Whether the kernel that is asked for may not exist.

        Tasks that read the same part of a tensor share that part, which others do not read.
        """
        if self.refuses():
            return True
        parts = any(op.kind == "part" for op in self.program.ops)
        of_border = self.source == "representation"
        return of_border and parts and self.needs_products and len(self.present) > 2

    def weights(self, kernel: ExtendedNTK) -> Tensor:
        """Weights of the connected tasks, before length."""
        rule = create(self.setting.method)
        return rule(kernel) * self.priorities()[self.cut.connected]

    def priorities(self) -> Tensor:
        given = self.setting.options.get("priorities")
        if given is None:
            return torch.ones(len(self.present), dtype=torch.float64)
        factors = torch.tensor(given, dtype=torch.float64)
        return (factors / factors.mean())[self.present]


def expected_gradients(program: Program, oracle: Oracle, out: BalanceResult) -> list[Tensor]:
    """Autograd's gradient of the sum that the reported weights stand for."""
    setting = oracle.setting
    usual = spec(setting.method).defaults.get("weight_heads", True)
    wanted = setting.options.get("weight_heads")
    weight_heads = usual if wanted is None else wanted
    means, _ = program.losses()
    parameters = program.flat
    heads = {id(p) for b in range(len(oracle.present)) for p in oracle.cut.head(b)}
    total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    # One loss alone does not tell what it shares with the others.
    unknown = len(oracle.present) == 1 < len(program.tasks)
    for task in oracle.present:
        if not means[task].requires_grad:
            continue
        grads = torch.autograd.grad(means[task], parameters, retain_graph=True, allow_unused=True)
        for t, p, g in zip(total, parameters, grads, strict=True):
            if g is None:
                continue
            own = id(p) in heads and not weight_heads and not unknown
            t += g.double() * (1.0 if own else float(out.weights[task]))
    if setting.extra:
        grads = torch.autograd.grad(outside(program), parameters, allow_unused=True)
        for t, g in zip(total, grads, strict=True):
            if g is not None:
                t += g.double()
    return [t * setting.scale for t in total]


def outside(program: Program) -> Tensor:
    """A loss outside the balance, of parameters alone."""
    return sum(p.square().mean() for p in program.flat)


def close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    error = float((found.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    assert error <= tolerance * size + 1e-30, f"{what}: {found} instead of {wanted}"


def compare_gradients(parameters: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    """Compare relative to each parameter's gradient, in low precision to the largest of all."""
    largest = max(float(w.abs().max()) for w in wanted)
    for p, w in zip(parameters, wanted, strict=True):
        found = torch.zeros_like(p) if p.grad is None else p.grad
        error = float((found.double() - w).abs().max())
        size = float(w.abs().max()) if tolerance < 1e-6 else largest
        assert error <= tolerance * size + 1e-13 * largest, f"gradient: {found} instead of {w}"


def backward(program: Program, oracle: Oracle, balancer: Balancer) -> BalanceResult:
    setting = oracle.setting
    _, given_losses = program.losses()
    losses = [loss if i in oracle.present else None for i, loss in enumerate(given_losses)]
    extra = outside(program) if setting.extra else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return balancer.backward(losses, scale=setting.scale, extra=extra)


def run_example(data: bytes) -> str:
    """Run one example; return how it ended."""
    tape = Tape(data)
    program = draw_program(tape)
    setting = draw_setting(tape, program)
    oracle = Oracle(program, setting)
    if not oracle.present:
        return "empty"
    balancer = Balancer(setting.method, tasks=len(program.tasks), **setting.options)
    parameters = program.flat
    try:
        out = backward(program, oracle, balancer)
    except ValueError:
        if not oracle.may_refuse() or any(p.grad is not None for p in parameters):
            raise
        return "refused"
    assert not oracle.refuses(), "a kernel that means nothing was used"
    check(program, oracle, out, parameters)
    if setting.again:
        check_again(program, oracle, balancer, parameters)
    return setting.method


def check_again(
    program: Program, oracle: Oracle, balancer: Balancer, parameters: list[Tensor]
) -> None:
    """Weights that are held stay; gradients add up."""
    setting = oracle.setting
    tolerance = TOLERANCE[program.dtype]
    if setting.again == "accumulate":
        before = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        out = backward(program, oracle, balancer)
        wanted = [
            b + e for b, e in zip(before, expected_gradients(program, oracle, out), strict=True)
        ]
        compare_gradients(parameters, wanted, tolerance)
        return
    with balancer.hold():
        first = backward(program, oracle, balancer)
        with torch.no_grad():
            for p in parameters:
                p.grad = None
                p.mul_(1.25)
        second = backward(program, oracle, balancer)
    close(second.weights, first.weights, 1e-6, "held weights")
    compare_gradients(parameters, expected_gradients(program, oracle, second), tolerance)


def check(program: Program, oracle: Oracle, out: BalanceResult, parameters: list[Tensor]) -> None:
    tolerance = TOLERANCE[program.dtype]
    requires = create(oracle.setting.method).requires
    compare_gradients(parameters, expected_gradients(program, oracle, out), tolerance)
    if requires == "losses":
        assert out.weights[oracle.present].tolist() == pytest.approx(oracle.priorities().tolist())
        return
    at = oracle.cut.connected
    tasks = [oracle.present[b] for b in at]
    alone = [b for b in range(len(oracle.present)) if b not in at]
    for b in alone:
        assert float(out.weights[oracle.present[b]]) == pytest.approx(float(oracle.priorities()[b]))
    if not at:
        return
    kernel = oracle.kernel()
    if requires == "eigenvalues":
        found = out.eigenvalues[tasks]
        for f, wanted in zip(found, kernel.max_eigenvalues(), strict=True):
            close(f, wanted, 2 * tolerance, "eigenvalue")
    else:
        (kept,) = (out.kernel.select(at),)
        close(kept.gramian(), kernel.gramian(), 2 * tolerance, "Gramian")
    check_weights(program, oracle, out.weights[tasks].double(), kernel)


def check_weights(program: Program, oracle: Oracle, found: Tensor, kernel: ExtendedNTK) -> None:
    """Compare weights with the method's, as long as they were asked to be."""
    if program.dtype is not torch.float64:
        return
    weights = oracle.weights(kernel)
    gramian = kernel.gramian()
    own = math.sqrt(max(float(weights @ gramian @ weights), 0.0))
    length = oracle.setting.options.get("length")
    if length == "plain" and own > 0:
        weights = weights * math.sqrt(max(float(gramian.sum()), 0.0)) / own
    elif isinstance(length, float) and own > 0:
        weights = weights * length / own
    eigenvalues = torch.linalg.eigvalsh(gramian)
    if oracle.setting.method != "ntkmtl" and float(eigenvalues[0]) < 1e-6 * float(eigenvalues[-1]):
        return  # weights of nearly dependent gradients: any rounding moves them
    close(found, weights, 1e-5, "weights")


PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


@PROFILE
@given(st.binary(min_size=90, max_size=90))
def test_right_or_an_error(data: bytes) -> None:
    run_example(data)
