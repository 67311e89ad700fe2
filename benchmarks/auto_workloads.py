"""Networks with several losses that have no trunk and heads, or none to speak of, to be trained.

At scale 1 a step takes a millisecond or two, where what the Balancer does besides shows most; at
scale 4 widths or batches are larger, and a step takes some 5 to 20 milliseconds.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["WORKLOADS", "Workload"]


@dataclass
class Workload:
    """A network and its batches.

    Attributes:
        parameters: All parameters.
        losses: From a generator, which draws the batch, to k losses.
        learning_rate: Of Adam.
    """

    parameters: list[nn.Parameter]
    losses: Callable[[torch.Generator], list[Tensor]]
    learning_rate: float


# ------------------------------------------------------------------ energy and forces


def _energy(positions: Tensor) -> Tensor:
    """Lennard-Jones energy of (B, N, 3)."""
    n = positions.shape[1]
    squares = (1.2 / (torch.cdist(positions, positions) + 10 * torch.eye(n))).square()
    return (squares**3 - squares**1.5).sum(dim=(1, 2)) / 2


class _PairEnergy(nn.Module):
    """Energy from inverse distances."""

    def __init__(self, atoms: int, width: int) -> None:
        super().__init__()
        self.pairs = torch.triu_indices(atoms, atoms, 1)
        self.layers = nn.Sequential(
            nn.Linear(self.pairs.shape[1], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.last = nn.Linear(width, 1)

    def forward(self, positions: Tensor) -> Tensor:
        i, j = self.pairs
        distances = (positions[:, i] - positions[:, j]).norm(dim=-1)
        energy: Tensor = self.last(self.layers(1.0 / distances))
        return energy.squeeze(1)


def _forces(scale: int) -> Workload:
    atoms = 5
    base = torch.randn(atoms, 3) * 1.5
    positions = (base + 0.25 * torch.randn(2000, atoms, 3)).requires_grad_()
    energies = _energy(positions)
    forces = -torch.autograd.grad(energies.sum(), positions)[0]
    energies = (energies.detach() - energies.detach().mean()) / energies.detach().std()
    forces, positions = forces / forces.std(), positions.detach()
    model = _PairEnergy(atoms, 64 * scale)

    def losses(generator: torch.Generator) -> list[Tensor]:
        i = torch.randint(len(positions), (32 * scale,), generator=generator)
        place = positions[i].requires_grad_()
        energy = model(place)
        (slope,) = torch.autograd.grad(energy.sum(), place, create_graph=True)
        return [
            functional.mse_loss(energy, energies[i]),
            functional.mse_loss(-slope, forces[i]),
        ]

    return Workload(list(model.parameters()), losses, 3e-3)


# ------------------------------------------------------------------ a PINN


def _burgers(scale: int) -> Workload:
    """Burgers' equation with viscosity 0.01 / pi: residual, initial and boundary values."""
    layers: list[nn.Module] = []
    width = 32 + 32 * scale
    for inputs in (2, width):
        layers += [nn.Linear(inputs, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 1))

    def losses(generator: torch.Generator) -> list[Tensor]:
        inside = torch.rand(256 * scale, 2, generator=generator) * torch.tensor([1.0, 2.0])
        inside = (inside - torch.tensor([0.0, 1.0])).requires_grad_()
        u = model(inside)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (curvature,) = torch.autograd.grad(slope[:, 1].sum(), inside, create_graph=True)
        residual = slope[:, 0] + u[:, 0] * slope[:, 1] - 0.01 / math.pi * curvature[:, 1]
        x = 2 * torch.rand(64 * scale, 1, generator=generator) - 1
        initial = model(torch.cat([torch.zeros_like(x), x], dim=1)) + torch.sin(math.pi * x)
        t = torch.rand(64 * scale, 1, generator=generator)
        side = torch.sign(torch.rand(64 * scale, 1, generator=generator) - 0.5)
        boundary = model(torch.cat([t, side], dim=1))
        return [part.square().mean() for part in (residual, initial, boundary)]

    return Workload(list(model.parameters()), losses, 2e-3)


# ------------------------------------------------------------------ a VAE


def _discs(count: int, generator: torch.Generator) -> Tensor:
    """Pictures of 16 x 16 with one soft disc each, shape (count, 256)."""
    center = 3 + 10 * torch.rand(count, 2, 1, 1, generator=generator)
    radius = 1.5 + 3 * torch.rand(count, 1, 1, generator=generator)
    axis = torch.arange(16.0)
    away = (axis[:, None] - center[:, 0]).square() + (axis[None, :] - center[:, 1]).square()
    return torch.sigmoid(2 * (radius - away.sqrt())).flatten(1)


def _vae(scale: int) -> Workload:
    wide, narrow = 128 * scale, 64 * scale
    encoder = nn.Sequential(nn.Linear(256, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU())
    mean, log_variance = nn.Linear(narrow, 8), nn.Linear(narrow, 8)
    decoder = nn.Sequential(
        nn.Linear(8, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, 256)
    )
    model = nn.ModuleList([encoder, mean, log_variance, decoder])

    def losses(generator: torch.Generator) -> list[Tensor]:
        x = _discs(64 * scale, generator)
        h = encoder(x)
        mu, log = mean(h), log_variance(h)
        noise = torch.randn(mu.shape, generator=generator)
        output = decoder(mu + (log / 2).exp() * noise)
        reconstruction = functional.binary_cross_entropy_with_logits(
            output, x, reduction="none"
        ).sum(dim=1)
        divergence = -0.5 * (1 + log - mu.square() - log.exp()).sum(dim=1)
        return [reconstruction.mean(), divergence.mean()]

    return Workload(list(model.parameters()), losses, 1e-3)


# ------------------------------------------------------------------ a language model


def _texts() -> list[Tensor]:
    """Characters of four modules of Python's standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse.py", "doctest.py", "tarfile.py", "typing.py")
    return [
        torch.frombuffer(bytearray((folder / name).read_bytes()), dtype=torch.uint8)
        .long()
        .clamp_max(127)
        for name in names
    ]


class _LanguageModel(nn.Module):
    """A recurrent network whose embedding is its output layer as well, and a classifier."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.layers = nn.GRU(width, width, batch_first=True)
        self.classify = nn.Linear(width, classes)

    def forward(self, characters: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.layers(self.embed(characters))
        return states @ self.embed.weight.T, self.classify(states.mean(dim=1))


def _language(scale: int) -> Workload:
    texts = _texts()
    model = _LanguageModel(len(texts), 32 + 32 * scale)

    def losses(generator: torch.Generator) -> list[Tensor]:
        kinds = torch.randint(len(texts), (16 * scale,), generator=generator)
        rows = []
        for kind in kinds.tolist():
            start = int(torch.randint(len(texts[kind]) - 33, (), generator=generator))
            rows.append(texts[kind][start : start + 33])
        text = torch.stack(rows)
        following, scores = model(text[:, :-1])
        return [
            functional.cross_entropy(following.flatten(0, 1), text[:, 1:].flatten()),
            functional.cross_entropy(scores, kinds),
        ]

    return Workload(list(model.parameters()), losses, 2e-3)


# ------------------------------------------------------------------ trunk and heads


class _Heads(nn.Module):
    """A trunk and k linear heads; one output for each task."""

    def __init__(self, tasks: int, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        z = self.trunk(x)
        return tuple(head(z).squeeze(1) for head in self.heads)


def _regression(tasks: int, scale: int, *, compiled: bool) -> Workload:
    """Tasks of different scales, from a random network, with noise."""
    teacher = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, tasks)).requires_grad_(
        requires_grad=False
    )
    scales = torch.logspace(-1, 1, tasks)
    model: nn.Module = _Heads(tasks, 128 + 128 * scale)
    parameters = list(model.parameters())
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]

    def losses(generator: torch.Generator) -> list[Tensor]:
        x = torch.randn(64 * scale, 32, generator=generator)
        y = teacher(x) + 0.3 * torch.randn(64 * scale, tasks, generator=generator)
        targets = (y * scales).unbind(dim=1)
        outputs = model(x)
        return [functional.mse_loss(o, t) for o, t in zip(outputs, targets, strict=True)]

    return Workload(parameters, losses, 1e-3)


WORKLOADS: dict[str, tuple[str, Callable[[int], Workload]]] = {
    "forces": ("energy and forces", _forces),
    "burgers": ("PINN of three losses, Burgers' equation", _burgers),
    "vae": ("VAE", _vae),
    "language": ("language model with tied embedding, and classifier", _language),
    "compiled": (
        "model compiled as a whole, three tasks",
        lambda scale: _regression(3, scale, compiled=True),
    ),
    "heads": ("trunk and eight heads", lambda scale: _regression(8, scale, compiled=False)),
}
"""Title, and maker from a scale, by name."""
