"""What is said of a run while it is trained: epoch, loss, and the best validation so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.metrics import delta_m

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ntkmtl.bench.runs import Epoch, RunMetric

__all__ = ["progress_words"]


def progress_words(
    history: Sequence[Epoch], metrics: Sequence[RunMetric], epochs: int, split: str
) -> str:
    """Return where a run stands, in a few words.

    The loss is the sum over the tasks of the last epoch's mean losses. Of several metrics the mean
    relative change since the first epoch is told, in percent and negative where they have become
    better; it is left out where a metric of the first epoch is not positive.

    Args:
        history: The epochs so far, at least one.
        metrics: What the network is judged by.
        epochs: Number of epochs of the run.
        split: On which split the metrics of ``history`` are.

    Example:
        >>> from ntkmtl.bench.runs import Epoch, RunMetric
        >>> metrics = [RunMetric("a", task="a"), RunMetric("b", task="b")]
        >>> history = [
        ...     Epoch(0, (2.0, 3.0), (4.0, 8.0), 0.1, 1.0, 0.1),
        ...     Epoch(1, (1.0, 0.5), (2.0, 4.0), 0.1, 1.0, 0.1),
        ...     Epoch(2, (0.9, 0.4), (3.0, 4.0), 0.1, 1.0, 0.1),
        ... ]
        >>> progress_words(history, metrics, 5, "val")
        'epoch 3/5, loss 1.3, val -37.5 %, best -50.0 % in epoch 2'
        >>> progress_words([Epoch(0, (2.0,), (4.0,), 0.1, 1.0, 0.1)], metrics[:1], 5, "val")
        'epoch 1/5, loss 2, val 4, best 4 in epoch 1'
    """
    losses = [loss for loss in history[-1].train_losses if loss is not None]
    words = [f"epoch {len(history)}/{epochs}"]
    words += [f"loss {sum(losses):.3g}"] if losses else []
    first = history[0].val
    if len(metrics) == 1:
        values = [epoch.val[0] for epoch in history]
        shown = [f"{value:.3g}" for value in values]
        best = (max if metrics[0].higher_is_better else min)(values)
    elif min(first, default=0.0) > 0:
        higher = [metric.higher_is_better for metric in metrics]
        values = delta_m([epoch.val for epoch in history], first, higher).tolist()
        shown = [f"{value:.1f} %" for value in values]
        best = min(values)
    else:
        return ", ".join(words)
    at = values.index(best)
    return ", ".join([*words, f"{split} {shown[-1]}", f"best {shown[at]} in epoch {at + 1}"])
