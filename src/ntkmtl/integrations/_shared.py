"""Functions that several integrations use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ntkmtl.balance import Balancer, BalanceResult
from ntkmtl.balance._read import Losses, in_order, read_loss, task_names

__all__ = ["holding", "record_of", "require_balancer", "require_same_sum"]


def record_of(balancer: Balancer, losses: Losses, result: BalanceResult) -> dict[str, Tensor]:
    """Return the values of a step to log: each task's loss and weight, and eigenvalue if known.

    Args:
        balancer: The Balancer, for the names of the tasks.
        losses: The losses passed to its ``backward``.
        result: The result of its ``backward``.

    Returns:
        Detached scalars with keys such as ``"loss/size"``, ``"weight/size"`` and
        ``"eigenvalue/size"``, for the tasks with labels in this batch; empty for a step that the
        scaler skips.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> losses, balancer = {"a": x.sum(), "b": None}, Balancer("ls")
        >>> record_of(balancer, losses, balancer.backward(losses))
        {'loss/a': tensor(2.), 'weight/a': tensor(1.)}
    """
    if result.skipped:
        return {}
    names = balancer.tasks or task_names(losses)[0]
    found: dict[str, Tensor] = {}
    for i, (name, loss) in enumerate(zip(names, in_order(losses, names), strict=True)):
        known = read_loss(loss, name, needs_gradient=False)
        if known is None:
            continue
        found[f"loss/{name}"] = known[0].detach()
        found[f"weight/{name}"] = result.weights[i]
        if result.eigenvalues is not None:
            found[f"eigenvalue/{name}"] = result.eigenvalues[i]
    return found


@contextmanager
def holding(balancer: Balancer) -> Iterator[None]:
    """Hold the weights within the block if the method allows it; see :meth:`Balancer.hold`."""
    if balancer.can_hold:
        with balancer.hold():
            yield
    else:
        yield


def require_same_sum(loss: Tensor, total: Tensor, factors: int, remedy: str) -> None:
    """Check that the loss that a framework differentiates is the sum of the losses.

    The balanced pass starts from the losses themselves. So a term added to their sum, or a factor,
    would be ignored silently.

    Args:
        loss: The loss that the framework passes to its backward pass.
        total: The sum of the losses.
        factors: Number of multiplications and divisions that the framework itself applies.
        remedy: What to do, for the error message.

    Raises:
        ValueError: There are other operations between the two.
    """
    node, end, found = loss.grad_fn, total.grad_fn, 0
    if end is None:  # the total is a leaf, so there is no node to look for
        return
    while node is not end:
        parents = [] if node is None else [n for n, _ in node.next_functions if n is not None]
        found += node is not None and node.name().startswith(("Mul", "Div"))
        if len(parents) != 1 or found > factors:
            raise ValueError(
                "the loss to run the backward pass of is not the sum of the losses that was kept "
                f"for it, and what was added to the sum or made of it would be lost; {remedy}"
            )
        node = parents[0]


def require_balancer(found: object, where: str) -> Balancer:
    """Return the argument if it is a Balancer.

    Raises:
        TypeError: It is not a Balancer.
    """
    if not isinstance(found, Balancer):
        raise TypeError(f"{where} must be an ntkmtl.Balancer, found {type(found)}")
    return found
