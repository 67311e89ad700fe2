"""Random programs with several losses, and their cut by definition.

A program is a list of operations with one output each. Which tasks reach an operation, where the
shared part ends, and which gradient a task has there is computed from the program, not from the
autograd graph: tensors at the border are replaced by leaves, and everything above is run again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

BATCH, WIDTH, MODULES = 6, 4, 3
EMBEDDING, SCALE, FIRST_HEAD = MODULES, MODULES + 1, MODULES + 2


class Tape:
    """Choices read off a string of bytes; the first choice when it is at its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def pick(self, count: int) -> int:
        self.at += 1
        return self.data[self.at - 1] % count if self.at <= len(self.data) else 0

    def chance(self, one_in: int) -> bool:
        return self.pick(one_in) == one_in - 1


@dataclass(frozen=True)
class Op:
    """One operation: its kind, the operations that it reads and the modules that it uses."""

    kind: str
    args: tuple[int, ...] = ()
    modules: tuple[int, ...] = ()
    extra: int = 0

    @property
    def parameters(self) -> list[tuple[int, int]]:
        """Module and position of what the operation uses itself."""
        # The bias of the last layer has no part in a derivative.
        count = 1 if self.kind in ("lookup", "scale", "tied", "adjoint") else 2
        return [(m, j) for m in self.modules for j in range(count)]


# Kinds with one argument, and whether they use a module.
ONE = {
    "linear": True,
    "tanh": False,
    "residual": True,
    "in_place": True,
    "view_in_place": True,
    "reshape": False,
    "part": False,
    "swap": False,
    "masked": True,
    "scale": False,
    "tied": False,
    "complex": False,
    "attention": False,
    "detached_gate": True,
    "frozen": False,
}
DATA_KINDS = ("force", "lookup")


@dataclass
class Program:
    """Operations, the head that each task reads, and the form of the losses."""

    ops: list[Op]
    tasks: list[int]
    """For each task the operation that makes its losses of single samples."""
    tail: str
    added: tuple[int, int] | None
    """Positions (j, i): the loss of task j has that of task i added."""
    dtype: torch.dtype
    seed: int
    masked: bool

    @cached_property
    def parameters(self) -> list[list[Tensor]]:
        """Parameters of each module, drawn from the seed."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> nn.Parameter:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.6
            return nn.Parameter(values.to(self.dtype))

        modules: list[list[Tensor]] = [[draw(WIDTH, WIDTH), draw(WIDTH)] for _ in range(MODULES)]
        modules += [[draw(BATCH, WIDTH)], [draw(WIDTH)]]
        heads = 1 + max([m for op in self.ops for m in op.modules], default=0) - FIRST_HEAD
        modules += [[draw(1, WIDTH), draw(1)] for _ in range(max(0, heads))]
        return modules

    @cached_property
    def data(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        size = (2 + len(self.tasks), BATCH, WIDTH)
        return list(torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype))

    @cached_property
    def masks(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 2)
        masks = torch.rand(len(self.tasks), BATCH, generator=generator) < 0.6
        masks[:, 0] = True
        return masks

    @property
    def flat(self) -> list[Tensor]:
        return [p for module in self.parameters for p in module]

    def run(
        self, wanted: Iterable[int], known: dict[int, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Compute operations, some of which may be given."""
        values: dict[int, Tensor] = dict(known or {})
        self._splits: dict[int, tuple[Tensor, ...]] = {}

        def value(i: int) -> Tensor:
            if i not in values:
                values[i] = self._apply(self.ops[i], [value(a) for a in self.ops[i].args], i)
            return values[i]

        for i in wanted:
            value(i)
        return values

    def _apply(self, op: Op, args: list[Tensor], at: int) -> Tensor:
        p = [self.parameters[m] for m in op.modules]
        kind = op.kind
        if kind == "data":
            return self.data[op.extra]
        if kind == "adjoint":
            return torch.ones(BATCH, WIDTH, dtype=self.dtype) @ p[0][0]
        if kind == "force":
            return self._force(op, p[0], args[0])
        if kind == "lookup":
            rows = torch.tensor([0, 2, 1, 5, 5, 3])
            return nn.functional.embedding(rows, p[0][0])
        if kind in ("add", "mul"):
            return args[0] + args[1] if kind == "add" else args[0] * args[1]
        if kind == "head":
            if not p:
                out = torch.tanh(args[0]).sum(dim=1)
            else:
                out = nn.functional.linear(args[0], *p[0])[:, 0]
            return (out - self.data[op.extra][:, 0]).square()
        return _ONE[kind](self, args[0], p, op)

    def _force(self, op: Op, first: list[Tensor], adjoint: Tensor) -> Tensor:
        """The derivative of an energy with respect to its inputs."""
        x = self.data[op.extra].clone().requires_grad_()
        hidden = torch.tanh(nn.functional.linear(x, *first))
        if adjoint.grad_fn is None:  # the border: what comes from above it, written out
            return (adjoint * (1 - hidden.square())) @ first[0]
        last = self.parameters[self.ops[op.args[0]].modules[0]]
        energy = nn.functional.linear(hidden, *last)
        return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Halves of a tensor: several operations read outputs of one node."""
        if id(x) not in self._splits:
            self._splits[id(x)] = x.chunk(2, dim=-1)
        return self._splits[id(x)]

    def losses(self, known: dict[int, Tensor] | None = None) -> tuple[list[Tensor], list[object]]:
        """Return the mean losses, and what is passed to the Balancer."""
        values = self.run(self.tasks, known)
        rows = [values[t] for t in self.tasks]
        if self.tail == "vector":
            if not self.masked:
                return [r.mean() for r in rows], list(rows)
            means = [(r * m).sum() / m.sum() for r, m in zip(rows, self.masks, strict=True)]
            return means, list(zip(rows, self.masks, strict=True))
        means = [r.mean() for r in rows]
        if self.added is not None:
            j, i = self.added
            means[j] = means[j] + means[i]
        if self.tail == "stack":
            means = list(torch.stack(rows, dim=1).mean(dim=0))
        elif self.tail == "unbind":
            means = list((torch.stack(means) * 1.5).unbind(-1))
        elif self.tail == "columns":
            columns = torch.stack(rows, dim=-1).chunk(len(rows), dim=-1)
            means = [c.mean() for c in columns]
        return means, list(means)


def _view_in_place(x: Tensor, p: list[list[Tensor]]) -> Tensor:
    y = nn.functional.linear(x, *p[0])
    y[:, :2].mul_(2.0)
    y.view(-1)[1:3].add_(0.5)
    return torch.tanh(y)


def _masked(x: Tensor, p: list[list[Tensor]]) -> Tensor:
    weight, bias = p[0]
    mask = (torch.arange(weight.numel()).view_as(weight) % 3 > 0).to(weight.dtype)
    return nn.functional.linear(x, weight * mask, bias)


def _complex(x: Tensor) -> Tensor:
    c = torch.view_as_complex(x.reshape(BATCH, WIDTH // 2, 2).contiguous())
    return torch.view_as_real(c * (c.conj() + (0.5 - 1j))).reshape(BATCH, WIDTH).tanh()


_ONE = {
    "linear": lambda self, x, p, op: nn.functional.linear(x, *p[0]),
    "tanh": lambda self, x, p, op: torch.tanh(x),
    "residual": lambda self, x, p, op: x + torch.tanh(nn.functional.linear(x, *p[0])),
    "in_place": lambda self, x, p, op: nn.functional.linear(x, *p[0]).mul_(0.5).tanh_(),
    "view_in_place": lambda self, x, p, op: _view_in_place(x, p),
    "reshape": lambda self, x, p, op: torch.sigmoid(x.t().reshape(WIDTH, BATCH).t()),
    "part": lambda self, x, p, op: torch.tanh(self.split(x)[op.extra % 2]).repeat(1, 2),
    "swap": lambda self, x, p, op: torch.tanh(torch.cat(x.chunk(2, dim=1)[::-1], dim=1)),
    "masked": lambda self, x, p, op: _masked(x, p),
    "scale": lambda self, x, p, op: x * p[0][0],
    "tied": lambda self, x, p, op: (x @ p[0][0].t())[:, :WIDTH].tanh(),
    "complex": lambda self, x, p, op: _complex(x),
    "attention": lambda self, x, p, op: torch.softmax(x @ x.t(), dim=1) @ x,
    "detached_gate": lambda self, x, p, op: nn.functional.linear(x, *p[0]) * x.detach(),
    "frozen": lambda self, x, p, op: torch.tanh(x @ self.data[0][:WIDTH, :WIDTH]),
}


def draw_program(tape: Tape) -> Program:
    """Read a program off a tape."""
    k = 1 if tape.chance(16) else 2 + tape.pick(3)
    dtype = (torch.float64, torch.float64, torch.float64, torch.float32, torch.bfloat16)[
        tape.pick(5)
    ]
    ops = [Op("data", extra=0), Op("data", extra=1)]
    kinds = list(ONE)
    if dtype is torch.bfloat16:
        kinds.remove("complex")
    for _ in range(1 + tape.pick(7)):
        ops += _draw_ops(tape, kinds, ops)
    tasks = []
    for i in range(k):
        near = len(ops) - 1 - min((0, 0, 1, 2)[tape.pick(4)], len(ops) - 3)
        arg = next(a for a in range(near, -1, -1) if ops[a].kind not in ("head", "adjoint"))
        kind = tape.pick(4)
        # Heads of the task alone, heads that several use, and no head's parameters at all.
        modules = ((FIRST_HEAD + i,), (FIRST_HEAD + i,), (FIRST_HEAD,), ())[kind]
        ops.append(Op("head", (arg,), modules, 2 + i))
        tasks.append(len(ops) - 1)
    tail = ("scalar", "scalar", "vector", "stack", "unbind", "columns")[tape.pick(6)]
    added = None
    if tail == "scalar" and k > 1 and tape.chance(6):
        added = (1, 0)
    return Program(ops, tasks, tail, added, dtype, tape.pick(256), tape.chance(2))


def _draw_ops(tape: Tape, kinds: list[str], ops: list[Op]) -> list[Op]:
    """Draw the next operation; a derivative consists of two."""
    choice = tape.pick(len(kinds) + 5)
    usable = [i for i, op in enumerate(ops) if op.kind != "adjoint"]
    recent = usable[-1 - min(tape.pick(3), len(usable) - 1)]
    if choice < len(kinds):
        kind = kinds[choice]
        if kind == "scale":
            return [Op(kind, (recent,), (SCALE,))]
        if kind == "tied":
            return [Op(kind, (recent,), (EMBEDDING,))]
        modules = (tape.pick(MODULES),) if ONE[kind] else ()
        return [Op(kind, (recent,), modules, tape.pick(2))]
    if choice == len(kinds):
        return [Op("lookup", (), (EMBEDDING,))]
    if choice == len(kinds) + 1:
        adjoint = Op("adjoint", (), (tape.pick(MODULES),))
        return [adjoint, Op("force", (len(ops),), (tape.pick(MODULES),), tape.pick(2))]
    return [Op("add" if choice % 2 else "mul", (recent, usable[tape.pick(len(usable))]))]


class Cut:
    """The border of a program's shared part, by definition.

    Attributes:
        present: Positions of the tasks that have a loss, among the program's tasks.
        bypass: Of those, the ones whose gradient does not pass the border whole.
        crossings: For each present task the operations whose outputs it reads across the border.
    """

    def __init__(self, program: Program, present: list[int]) -> None:
        self.program = program
        self.present = present
        ops = program.ops
        self.live = [False] * len(ops)
        for i, op in enumerate(ops):
            self.live[i] = bool(op.modules) or any(self.live[a] for a in op.args)
        self.masks = [0] * len(ops)
        self.parameter_masks: dict[tuple[int, int], int] = {}
        for bit, task in enumerate(present):
            for root in self._roots(task):
                self._reach(root, 1 << bit)
        self.crossings: list[set[int]] = []
        self.bypass: set[int] = set()
        for bit in range(len(present)):
            self.crossings.append(self._crossings(bit))

    def _roots(self, task: int) -> list[int]:
        roots = [self.program.tasks[task]]
        if self.program.added is not None and task == self.program.added[0]:
            roots.append(self.program.tasks[self.program.added[1]])
        return roots

    def _reach(self, at: int, mask: int) -> None:
        if not self.live[at] or self.masks[at] & mask:
            return
        self.masks[at] |= mask
        for parameter in self.program.ops[at].parameters:
            self.parameter_masks[parameter] = self.parameter_masks.get(parameter, 0) | mask
        for arg in self.program.ops[at].args:
            self._reach(arg, mask)

    @staticmethod
    def _many(mask: int) -> bool:
        return bool(mask & (mask - 1))

    def _crossings(self, bit: int) -> set[int]:
        ops, own = self.program.ops, 1 << bit
        task = self.present[bit]
        added = self.program.added or ()
        if task in added and set(added) <= set(self.present):  # one loss is a part of the other
            self.bypass.add(bit)
            return set()
        mine = [i for i in range(len(ops)) if self.masks[i] == own]
        around = self._use_shared(mine)
        pure: set[int] = set()
        if around:
            private: set[int] = set()
            for i in mine:
                own_ones = [p for p in ops[i].parameters if self.parameter_masks[p] == own]
                if own_ones or any(a in private for a in ops[i].args):
                    private.add(i)
                else:
                    pure.add(i)
            root = self.program.tasks[task]
            if not pure or root in pure:
                self.bypass.add(bit)
                return set()
            mine = self._above(root, pure)
            if self._use_shared(mine):
                self.bypass.add(bit)
                return set()
        return {
            a
            for i in mine
            for a in ops[i].args
            if self.live[a] and (a in pure or self._many(self.masks[a]))
        }

    def _use_shared(self, operations: list[int]) -> bool:
        used = {p for i in operations for p in self.program.ops[i].parameters}
        return any(self._many(self.parameter_masks[p]) for p in used)

    def _above(self, root: int, pure: set[int]) -> list[int]:
        """Return a task's own operations from its loss down to what is shared or pure."""
        found, stack = [], [root]
        while stack:
            at = stack.pop()
            if at in found:
                continue
            found.append(at)
            stack += [
                a
                for a in self.program.ops[at].args
                if self.live[a] and a not in pure and not self._many(self.masks[a])
            ]
        return found

    @property
    def connected(self) -> list[int]:
        return [b for b in range(len(self.present)) if self.crossings[b] or b in self.bypass]

    @property
    def shared(self) -> list[Tensor]:
        masks = sorted(self.parameter_masks.items())
        return [self.program.parameters[m][j] for (m, j), mask in masks if self._many(mask)]

    def head(self, bit: int) -> list[Tensor]:
        masks = sorted(self.parameter_masks.items())
        return [self.program.parameters[m][j] for (m, j), mask in masks if mask == 1 << bit]

    def sent(self, bit: int) -> dict[int, Tensor]:
        """Return a task's gradient over the border, by what it reads there."""
        program, task = self.program, self.present[bit]
        values = program.run(program.tasks)
        leaves = {a: values[a].detach().requires_grad_() for a in self.crossings[bit]}
        row = program.run([program.tasks[task]], leaves)[program.tasks[task]]
        if program.tail == "vector" and program.masked:
            mask = program.masks[task]
            loss = (row * mask).sum() / mask.sum()
        else:
            loss = row.mean()
        if program.tail == "unbind":
            loss = loss * 1.5
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return dict(zip(leaves, grads, strict=True))
