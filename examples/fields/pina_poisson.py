"""A Poisson problem with PINA: ``python examples/fields/pina_poisson.py``.

PINA's solvers are Lightning modules in which a weighting object combines the losses. The weighting
here passes the separate losses to ``BalancedModule``, which replaces the backward pass. Needs
``pip install pina-mathlab`` (the package ``pina`` is another one).
"""

from __future__ import annotations

import torch
from lightning import seed_everything
from pina import Trainer
from pina.model import FeedForward
from pina.problem.zoo import Poisson2DSquareProblem
from pina.solver import PhysicsInformedSingleModelSolver
from pina.weighting import BaseWeighting

from ntkmtl import Balancer
from ntkmtl.integrations.lightning import BalancedModule


class Balanced(BaseWeighting):
    """A weighting that leaves the losses as they are, and lets the solver balance them."""

    def __init__(self) -> None:
        super().__init__(aggregator=self.combine)

    def update_weights(self, losses):
        """Store the losses of the step; all weights are 1."""
        self.losses = losses
        return dict.fromkeys(losses, 1.0)

    def combine(self, weighted):
        """Return the loss that the training step returns."""
        if not self.solver.trainer.training:
            return weighted.sum()
        losses = {name: loss.as_subclass(torch.Tensor) for name, loss in self.losses.items()}
        return self.solver.balance(losses)


class BalancedPINN(BalancedModule, PhysicsInformedSingleModelSolver):
    """PINA's solver with balanced losses.

    Args:
        problem: As for PINA's solver.
        model: As for PINA's solver.
        balancer: Weights the losses, which are named after the conditions of the problem.
    """

    training_step = PhysicsInformedSingleModelSolver.training_step

    def __init__(self, problem, model, balancer: Balancer, **options) -> None:
        super().__init__(problem, model, weighting=Balanced(), **options)
        self.balancer = balancer


def main(epochs: int = 200) -> dict[str, float]:
    """Train; return what Lightning logged last."""
    seed_everything(0)
    problem = Poisson2DSquareProblem()
    problem.discretise_domain(300, "random")
    model = FeedForward(
        len(problem.input_variables), len(problem.output_variables), layers=[20, 20]
    )
    solver = BalancedPINN(problem, model, Balancer())
    trainer = Trainer(
        solver,
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.train()
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.3g}")
