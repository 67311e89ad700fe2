"""What weightings that are named after the NTK compute, beside the kernel itself.

    python benchmarks/ntk_weightings.py

On a physics-informed problem at its initialization: the paper's weights from the traces of the
residuals' kernels (Wang, Yu, Perdikaris 2022), exact and by probes, those of this library's
methods, and, where PINA is installed, those of its ``NeuralTangentKernelWeighting``. What
PhysicsNeMo and PaddleScience compute was read in their public source and is computed here in code
of our own. All are scaled to a mean of 1, since only ratios matter.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor

from ntkmtl import Balancer
from ntkmtl.analysis import residual_ntk
from ntkmtl.bench import problems
from ntkmtl.weighting import create


def pina_weights(model: torch.nn.Module, losses: dict[str, Tensor]) -> Tensor:
    """Return what PINA's weighting makes of the losses, without its memory (``alpha=0.0``)."""
    from pina.weighting import NeuralTangentKernelWeighting

    weighting = NeuralTangentKernelWeighting(alpha=0.0)
    weighting._solver = SimpleNamespace(model=model)  # what Trainer sets
    return torch.stack(list(weighting.update_weights(losses).values())).detach()


def gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    """Return the gradient of a loss as one vector, zero where the loss does not reach."""
    found = torch.autograd.grad(
        loss, list(model.parameters()), retain_graph=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in found])


def physicsnemo_weights(model: torch.nn.Module, losses: dict[str, Tensor]) -> Tensor:
    """Return sum_j n_j / n_i, with n_i the norm of the gradient of the square root of loss i."""
    norms = torch.stack([gradient(model, loss.sqrt()).norm() for loss in losses.values()])
    weights: Tensor = norms.sum() / norms
    return weights


def paddlescience_weights(model: torch.nn.Module, losses: dict[str, Tensor]) -> Tensor:
    """Return sum_j n_j / n_i, with n_i the norm of the sum of the gradients of losses 1 to i.

    Gradients are not cleared between the backward passes of the losses, so they add up.
    """
    gradients = torch.stack([gradient(model, loss) for loss in losses.values()])
    norms = gradients.cumsum(0).norm(dim=1)
    weights: Tensor = norms.sum() / norms
    return weights


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="pinn-burgers")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    problem = problems.create(args.problem)
    model = problem.model()
    batch = problem.batch("train", torch.arange(problem.recipe.batch_size))

    def residuals() -> dict[str, Tensor]:
        return dict(zip(problem.tasks, model.predict(batch), strict=True))

    def losses() -> dict[str, Tensor]:
        return {name: r.square().mean() for name, r in residuals().items()}

    parameters = list(model.parameters())
    exact = residual_ntk(residuals(), parameters)
    rows = {
        "traces of the residuals' kernels, exact": exact.weights(),
        "the same, 16 probes": residual_ntk(residuals(), parameters, probes=16).weights(),
    }
    for method in ("pinn-ntk", "lra", "ntkmtl"):
        weighting = create(method, **({"alpha": 0.0} if method == "lra" else {}))
        rows[f"`{method}`"] = Balancer(weighting).backward(losses()).weights
    if find_spec("pina") is not None:
        rows["PINA's `NeuralTangentKernelWeighting`"] = pina_weights(model, losses())
    rows["PhysicsNeMo's `NTK` (read, not run)"] = physicsnemo_weights(model, losses())
    rows["PaddleScience's `NTK` (read, not run)"] = paddlescience_weights(model, losses())
    print(f"| weights | {' | '.join(problem.tasks)} |")
    print(f"| --- |{' ---: |' * len(problem.tasks)}")
    for name, weights in rows.items():
        relative = (weights / weights.mean()).tolist()
        print(f"| {name} | {' | '.join(f'{w:.3f}' for w in relative)} |")


if __name__ == "__main__":
    main()
