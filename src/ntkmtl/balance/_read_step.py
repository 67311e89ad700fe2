"""From the arguments of :meth:`ntkmtl.Balancer.backward` to a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from ntkmtl._device import read
from ntkmtl.balance._core import Core
from ntkmtl.balance._read import joint_losses, logarithms, read_loss
from ntkmtl.balance._step import Samples, Step
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.weighting._losses import logarithm

if TYPE_CHECKING:
    from torch.amp.grad_scaler import GradScaler

__all__ = ["active_scaler", "as_number", "read_step", "scaled_extra"]


def read_step(
    core: Core,
    values: Sequence[Any],
    active: GradScaler | None,
    factor: float,
    scale: float,
    extra: Tensor | None,
) -> Step | None:
    """Check the arguments of one call of ``backward`` and collect them in a :class:`Step`.

    Args:
        core: Options and state of the Balancer; its count of steps grows by one.
        values: The losses of all tasks in order, None for a task without a label.
        active: The gradient scaler, None without one.
        factor: Its scale, 1 without one.
        scale: The factor that the user passed.
        extra: The loss outside the balance.

    Returns:
        The step; None if no task has a label.

    Raises:
        TypeError: A loss or ``extra`` has a wrong type.
        ValueError: A loss or ``extra`` has a wrong shape or no gradient, or is negative where its
            logarithm is needed.
    """
    options, memory = core.options, core.memory
    assert memory.names is not None
    ranks = Ranks.current(options.process_group)
    number = memory.step
    memory.step += 1
    found = [
        (i, known)
        for i, value in enumerate(values)
        if (known := read_loss(value, memory.names[i])) is not None
    ]
    here = [i for i, _ in found]
    live = [mean for _, (mean, _) in found]
    raw, present = joint_losses(live, here, len(memory.names), ranks)
    if not present:
        return None
    slope = None
    if options.log_losses or options.requires == "losses":
        (raw,) = read(raw)
    if options.log_losses:
        raw, slope = logarithms(raw, [memory.names[i] for i in present])
        if ranks is None:
            live = [logarithm(loss) for loss in live]
        else:
            # The logarithm is taken of the mean over processes, so its gradient is divided by that
            # mean and not by each process's own loss.
            slopes = [float(slope[present.index(i)]) for i in here]
            live = [loss * each for loss, each in zip(live, slopes, strict=True)]
    scaled = live if active is None else list(active.scale(live))
    if scale != 1.0:
        scaled = [loss * scale for loss in scaled]
    return Step(
        names=memory.names,
        losses=scaled,
        raw=raw,
        present=present,
        local=list(range(len(here))) if ranks is None else [present.index(i) for i in here],
        scale=scale * factor,
        number=number,
        like=live[0],
        slope=slope,
        ranks=ranks,
        parallel=dist.is_available() and dist.is_initialized(),
        extra=scaled_extra(extra, scale * factor),
        constant=None if extra is None or extra.requires_grad else extra.detach().reshape(()),
        samples=_all_samples([samples for _, (_, samples) in found]),
        scaled=active is not None,
    )


def as_number(name: str, value: Any) -> float:
    """Return a number as a float.

    Raises:
        TypeError: The value is not a number.
    """
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, found {value!r}")
    return float(value)


def active_scaler(scaler: Any) -> GradScaler | None:
    """Return a gradient scaler that is enabled, else None.

    Raises:
        TypeError: The object is not a gradient scaler.
    """
    if scaler is None:
        return None
    if not all(hasattr(scaler, name) for name in ("is_enabled", "scale", "get_scale")):
        raise TypeError(
            f"scaler must be a gradient scaler (torch.amp.GradScaler) or None, found {scaler!r}"
        )
    active: GradScaler | None = scaler if scaler.is_enabled() else None
    return active


def scaled_extra(extra: Any, factor: float) -> Tensor | None:
    """Return the loss outside the balance times ``factor``, None if it requires no gradient.

    Raises:
        TypeError: It is not a tensor.
        ValueError: It is not a scalar, or complex.
    """
    if extra is None:
        return None
    if not isinstance(extra, Tensor):
        raise TypeError(f"extra must be a tensor or None, found {type(extra)}")
    if extra.numel() != 1:
        raise ValueError(f"extra must be a scalar, found shape {tuple(extra.shape)}")
    if extra.is_complex():
        raise ValueError("extra is complex; a loss is a real number: take its real part")
    if not extra.requires_grad:
        return None
    whole = extra.reshape(())
    return whole if factor == 1.0 else whole * factor


def _all_samples(samples: list[Samples | None]) -> list[Samples] | None:
    """Return the losses of single samples if every task has them, else None."""
    known = [s for s in samples if s is not None]
    return known if known and len(known) == len(samples) else None
