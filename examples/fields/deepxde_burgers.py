"""Burgers' equation with DeepXDE's PyTorch backend: ``python examples/fields/deepxde_burgers.py``.

DeepXDE sums the losses inside its own training step, so a subclass of its model replaces that step.
Within ``hold()`` the weights stay the same while L-BFGS evaluates the losses several times. Needs
``pip install deepxde``.
"""

from __future__ import annotations

import os

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import numpy as np
import torch

from ntkmtl import Balancer


class BalancedModel(dde.Model):
    """A model of DeepXDE whose losses are balanced.

    Args:
        data: As for ``dde.Model``.
        net: As for ``dde.Model``.
        balancer: Weights the losses. They have no names in DeepXDE: the first is that of the
            equation, then come the conditions in the order of the problem.
    """

    def __init__(self, data, net, balancer: Balancer) -> None:
        super().__init__(data, net)
        self.balancer = balancer

    def compile(self, *args, **kwargs) -> None:
        """Compile the model, and put a balanced step in place of DeepXDE's."""
        super().compile(*args, **kwargs)
        self.train_step = self.balanced_step

    def balanced_step(self, inputs, targets, auxiliary_vars) -> None:
        """Take a step; ``outputs_losses_train`` returns the losses as one tensor."""

        def closure():
            _, losses = self.outputs_losses_train(inputs, targets, auxiliary_vars)
            self.opt.zero_grad()
            return self.balancer.backward(list(losses.unbind())).total

        with self.balancer.hold():
            self.opt.step(closure)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()


def equation(x, u):
    """Return the residual of Burgers' equation at x, columns x and t."""
    slope_x = dde.grad.jacobian(u, x, i=0, j=0)
    slope_t = dde.grad.jacobian(u, x, i=0, j=1)
    bend = dde.grad.hessian(u, x, i=0, j=0)
    return slope_t + u * slope_x - 0.01 / np.pi * bend


def problem():
    """Return the equation with its conditions."""
    domain = dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))
    sides = dde.icbc.DirichletBC(domain, lambda x: 0, lambda _, on_boundary: on_boundary)
    start = dde.icbc.IC(
        domain, lambda x: -np.sin(np.pi * x[:, :1]), lambda _, on_initial: on_initial
    )
    return dde.data.TimePDE(
        domain, equation, [sides, start], num_domain=300, num_boundary=40, num_initial=60
    )


def main(adam: int = 200, lbfgs: bool = True) -> dde.model.TrainState:
    """Train with Adam, then with L-BFGS; return DeepXDE's record of the training."""
    dde.config.set_random_seed(0)
    torch.set_default_dtype(torch.float32)
    net = dde.nn.FNN([2, 20, 20, 20, 1], "tanh", "Glorot normal")
    model = BalancedModel(problem(), net, Balancer())
    model.compile("adam", lr=1e-3, verbose=0)
    model.train(iterations=adam, display_every=100)
    if lbfgs:
        # DeepXDE runs these 1,000 iterations as one step, in which the weights stay the same.
        dde.optimizers.set_LBFGS_options(maxiter=1000)
        model.compile("L-BFGS", verbose=0)
        model.train()
    return model.train_state


if __name__ == "__main__":
    state = main()
    for name, loss in zip(("equation", "sides", "start"), state.loss_train, strict=True):
        print(f"{name}: {loss:.3g}")
