"""Calls of the autograd engine, and adding gradients to ``.grad``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkmtl.graph import _ops, _sinks
from ntkmtl.graph._walk import Edge, edge_of, node_of

__all__ = [
    "accumulate",
    "add_to_grad",
    "adds_up",
    "as_real",
    "averages_several_passes",
    "differentiate",
    "has_hooks",
    "has_late_hooks",
    "leaves",
    "objective_gradients",
    "plain_backward",
    "read_parameters",
    "trainable",
    "unretained",
    "vjp",
]


def differentiate(
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    cotangents: Sequence[Tensor] | None,
    *,
    retain: bool,
    create: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of outputs with respect to inputs, None for inputs not reached.

    ``DistributedDataParallel`` may add a node behind a model's outputs that schedules the averaging
    of gradients. That node is not run here, only in the pass that fills ``.grad``. For the same
    reason hooks of leaves are not called.

    Args:
        outputs: Tensors or edges to start from.
        inputs: Tensors or edges to differentiate with respect to.
        cotangents: Gradients with respect to ``outputs``; None for scalars, whose cotangent is 1.
        retain: Keep the graph.
        create: Return gradients that can themselves be differentiated.

    Raises:
        RuntimeError: Autograd cannot differentiate the graph this way. The message says what to
            change if the cause is known.
    """
    hooks = [h for t in inputs if (h := getattr(t, "_backward_hooks", None)) and t.is_leaf]
    if hooks:
        with _silenced(hooks):
            return differentiate(outputs, inputs, cotangents, retain=retain, create=create)
    try:
        if _sinks.may_exist() and any(_sinks.delaying_sinks(_edge(o))[0] for o in outputs):
            return _past_sinks(outputs, inputs, cotangents, create)
        return torch.autograd.grad(
            list(outputs),
            list(inputs),
            grad_outputs=None if cotangents is None else list(cotangents),
            retain_graph=retain,
            create_graph=create,
            allow_unused=True,
        )
    except RuntimeError as error:
        if (advice := _advice(str(error))) is not None:
            raise RuntimeError(advice) from error
        raise


@contextlib.contextmanager
def _silenced(hooks: Sequence[dict[int, Any]]) -> Iterator[None]:
    """Take hooks out of the dicts in which torch looks for them, and put them back."""
    kept = [dict(known) for known in hooks]
    try:
        for known in hooks:
            known.clear()
        yield
    finally:
        for known, before in zip(hooks, kept, strict=True):
            known.update(before)


def _edge(tensor: Any) -> Edge:
    return (tensor.node, tensor.output_nr) if isinstance(tensor, GradientEdge) else edge_of(tensor)


def _past_sinks(
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    cotangents: Sequence[Tensor] | None,
    create: bool,
) -> tuple[Tensor | None, ...]:
    """Differentiate in stages from one DDP sink to the next, without running the sinks.

    Needed in the first step under ``static_graph=True`` only.

    Raises:
        ValueError: One loss reaches an input both through a sink and around it.
    """
    wanted = [_edge(tensor) for tensor in inputs]
    total: list[Tensor | None] = [None] * len(inputs)
    seeds = [torch.ones_like(o) for o in outputs] if cotangents is None else cotangents
    stack = list(zip(outputs, seeds, strict=True))
    while stack:
        output, seed = stack.pop()
        met, above = _sinks.delaying_sinks(_edge(output))
        lower = _sinks.reached(met)
        here = [j for j, edge in enumerate(wanted) if edge in met or edge[0] in above]
        if not here and not met:
            continue
        if any(wanted[j][0] in lower for j in here if wanted[j] not in met):
            raise ValueError(
                "a loss reaches shared parameters both through the outputs of a model that is "
                "wrapped in DistributedDataParallel(static_graph=True) and around them; make that "
                "part of the loss inside the model's forward method, or leave static_graph out"
            )
        found = torch.autograd.grad(
            [output],
            [*(inputs[j] for j in here), *(GradientEdge(*edge) for edge in met)],
            grad_outputs=[seed],
            retain_graph=True,
            create_graph=create,
            allow_unused=True,
        )
        for j, gradient in zip(here, found[: len(here)], strict=True):
            if gradient is not None:
                before = total[j]
                total[j] = gradient if before is None else before + gradient
        for edge, gradient in zip(map(_sinks.passed_on, met), found[len(here) :], strict=True):
            if gradient is not None and edge[0] is not None:
                stack.append((GradientEdge(*edge), gradient))
    return tuple(total)


def _advice(message: str) -> str | None:
    if "donated buffer" in message:
        return (
            "a part of the model was compiled for a single backward pass: make the Balancer before "
            "the first forward pass, or call torch.compiler.reset() after making it; a method that "
            "reads losses only does without"
        )
    if "_will_engine_execute_node" in message:
        return (
            "a hook of register_multi_grad_hook waits for gradients of parameters and of tensors "
            "between layers, which a pass that takes single gradients cannot serve: register one "
            "hook for the parameters and another for the tensors"
        )
    if "heckpoint" in message and ("incompatible" in message or "not compatible" in message):
        return (
            "the network uses reentrant checkpoints, through which single gradients cannot be had; "
            "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    if "does not currently support create_graph=True" in message or (
        "double backward" in message and "ompile" in message
    ):
        return (
            "the compiled model refuses the double backward pass of losses that hold input "
            "derivatives; compile a function that takes them by torch.func.grad inside, or do not "
            "compile it"
        )
    return None


def plain_backward(
    losses: Sequence[Tensor],
    weights: Sequence[float],
    inputs: Sequence[Tensor] | None = None,
    retain: bool = False,
) -> None:
    """Run one ordinary backward pass of the weighted sum, with all hooks."""
    if inputs is None and len({(loss.dtype, loss.device) for loss in losses}) == 1:
        whole = torch.stack(list(losses))  # one root is faster: the engine checks each root
        torch.autograd.backward(whole, whole.new_tensor(weights), retain_graph=retain)
        return
    torch.autograd.backward(
        list(losses),
        [torch.full_like(loss, w) for loss, w in zip(losses, weights, strict=True)],
        retain_graph=retain,
        inputs=None if inputs is None else list(inputs),
    )


def leaves(
    roots: Iterable[Tensor | GradientEdge], stop: Iterable[Tensor] = ()
) -> tuple[dict[Tensor, None], set[tuple[Any, int]]]:
    """Walk the graph from some tensors down to its leaves.

    Args:
        roots: Tensors or edges to start from.
        stop: Tensors at which the walk stops.

    Returns:
        The leaf tensors found that require a gradient, in a stable order; the edges of ``stop``
        found.
    """
    barriers = {_sinks.through(edge_of(t)) for t in stop}
    met: set[tuple[Any, int]] = set()
    seen: set[Any] = set()
    found: dict[Tensor, None] = {}
    parallel = _sinks.may_exist()
    starts = [_sinks.through(_edge(root)) for root in roots]
    stack = [node for node, _ in starts if node is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        children = _sinks.below(node) if parallel else node.next_functions
        for edge in children:
            if edge in barriers:
                met.add(edge)
            elif edge[0] is not None:
                stack.append(edge[0])
        variable = None if children else getattr(node, "variable", None)
        # Force fields switch requires_grad off again at the positions once forces are computed.
        if variable is not None and variable.requires_grad:
            found[variable] = None
    return found, met


def adds_up(roots: Iterable[Tensor]) -> bool:
    """Whether summing the losses' gradients can replace one backward pass of their sum.

    False where gradients are sparse (an embedding with ``sparse=True``), and where a custom
    function's backward pass may be nonlinear (clipping, say).
    """
    seen: set[Any] = set()
    stack = [node_of(root) for root in roots]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if getattr(node, "_saved_sparse", False):
            return False
        if _ops.is_opaque(node) and _ops.operation(node) != _ops.COMPILED:
            return False
        stack += [child for child, _ in node.next_functions if child is not None]
    return True


@contextlib.contextmanager
def unretained(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the ``.grad`` of tensors with ``retain_grad()``, which a kernel pass would fill."""
    retained = [(t, t.grad) for t in tensors if t.retains_grad]
    try:
        yield
    finally:
        for tensor, gradient in retained:
            tensor.grad = gradient


def objective_gradients(objective: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate an objective of gradients with respect to a head's parameters.

    Parameters that it does not depend on have gradient zero. This happens where the head is linear
    in them and the loss is linear in the head's output.
    """
    if not objective.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    grads = differentiate([objective], parameters, None, retain=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]


def vjp(
    outputs: Sequence[Tensor | GradientEdge],
    parameters: Sequence[Tensor],
    cotangents: Sequence[Tensor] | None,
    *,
    retain: bool = True,
) -> Tensor:
    """Return a vector-Jacobian product with respect to parameters as one flat vector.

    Args:
        outputs: Where to start: scalars, or tensors or edges of the cut with ``cotangents``.
        parameters: With respect to what; the gradient is zero for those that are not reached.
        cotangents: Gradients with respect to ``outputs``, None for scalars.
        retain: Keep the graph.

    Returns:
        Shape (P,), P the number of entries of all parameters, a complex one counted twice.
    """
    grads = differentiate(outputs, parameters, cotangents, retain=retain)
    return torch.cat([_flat(p, g) for p, g in zip(parameters, grads, strict=True)])


def _flat(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """Return a gradient as one vector of real numbers; a complex entry is two."""
    if gradient is None:
        gradient = torch.zeros_like(parameter)
    elif gradient.layout is not torch.strided:
        gradient = gradient.to_dense()
    return as_real(gradient).reshape(-1)


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as a real one with a last dimension of 2; a real one as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def averages_several_passes(losses: Iterable[Tensor]) -> bool:
    """Whether ``DistributedDataParallel`` averages ``.grad`` also where several passes fill it.

    It does with ``find_unused_parameters=True``, which shows in the graph.
    """
    return _sinks.passes_one(map(edge_of, losses))


def add_to_grad(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add gradients to ``.grad``. They may become ``.grad``, so no two may share memory.

    Hooks of parameters are called as in a backward pass, in a single process.
    """
    hooked: list[tuple[Tensor, Tensor]] = []
    parallel = _sinks.may_exist()  # a backward pass would start DDP's averaging
    for parameter, gradient in pairs:
        if not parallel and has_hooks(parameter):
            hooked.append((parameter, gradient))
        elif (present := parameter.grad) is not None:
            if present.layout is gradient.layout or present.layout is torch.strided:
                present.add_(gradient)
            else:
                parameter.grad = gradient + present  # a sparse tensor takes no dense one
        else:
            same = gradient.dtype == parameter.dtype
            parameter.grad = gradient if same else gradient.to(parameter.dtype)
    if hooked:
        torch.autograd.backward([p for p, _ in hooked], [g for _, g in hooked])


def accumulate(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Add gradients to ``.grad`` as a backward pass does, in which each hook runs once.

    Ten times dearer than :func:`add_to_grad`.
    """
    known = [(p, g if g.dtype == p.dtype else g.to(p.dtype)) for p, g in pairs]
    if known:
        torch.autograd.backward([p for p, _ in known], [g for _, g in known])


def has_hooks(parameter: Tensor) -> bool:
    """Whether DDP, FSDP or the user registered hooks on this parameter's gradient."""
    return bool(
        getattr(parameter, "_backward_hooks", None)
        or getattr(parameter, "_post_accumulate_grad_hooks", None)
    )


def has_late_hooks(parameter: Tensor) -> bool:
    """Whether hooks run on this parameter once its ``.grad`` is filled."""
    return bool(getattr(parameter, "_post_accumulate_grad_hooks", None))


def read_parameters(given: Any, name: str) -> list[Tensor]:
    """Return the parameters that a user names, each once, frozen ones too.

    Args:
        given: As the user gave them.
        name: Name of the argument, for errors.

    Raises:
        TypeError: They are not a collection of parameters.
        ValueError: None of them requires a gradient.
    """
    if isinstance(given, nn.Module):
        raise TypeError(
            f"{name} must be a list of parameters, found the module {type(given).__name__}; pass "
            f"its parameters(): {name}=model.trunk.parameters()"
        )
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(f"{name} must be a list of parameters, found {type(given)}")
    values = list(given)
    for value in values:
        if isinstance(value, tuple):
            raise TypeError(
                f"{name} must be a list of parameters, found pairs of name and parameter; pass "
                "parameters() instead of named_parameters()"
            )
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a list of parameters, found {type(value)} in it")
    if not trainable(values):
        raise ValueError(f"{name} holds no parameter that requires a gradient")
    return list({id(p): p for p in values}.values())


def trainable(parameters: Iterable[Tensor]) -> list[nn.Parameter | Tensor]:
    """Keep each parameter that requires a gradient once, in order."""
    return list({id(p): p for p in parameters if p.requires_grad}.values())
