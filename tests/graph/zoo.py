"""Networks of many kinds, each divided by hand at the end of the shared part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Border = Mapping[str, Tensor]


@dataclass
class Network:
    """A network with k losses.

    Attributes:
        border: The tensors at which the shared part ends, as it is made by hand.
        loss: From those tensors (or leaves in their place) and a task to the task's loss.
        tasks: Number of losses.
        shared: Parameters that two or more tasks reach.
        private: Parameters of one task alone.
        operations: What makes the tensors of the cut, by the names that autograd gives.
        bypass: Tasks that go around the representation.
    """

    border: Border
    loss: Callable[[Border, int], Tensor]
    tasks: int
    shared: Sequence[Tensor]
    private: Sequence[Tensor]
    operations: Sequence[str]
    bypass: Sequence[int] = ()
    read: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def losses(self) -> list[Tensor]:
        return [self.loss(self.border, i) for i in range(self.tasks)]

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.shared, *self.private]

    def of_border(self) -> Tensor:
        """Squared length of each task's gradient over the border, shape (k,)."""
        found = []
        for i in range(self.tasks):
            names = self.read.get(i, list(self.border))
            leaves = {n: t.detach().requires_grad_() for n, t in self.border.items() if n in names}
            grads = torch.autograd.grad(
                self.loss(leaves, i), list(leaves.values()), allow_unused=True
            )
            found.append(sum(g.abs().square().sum() for g in grads if g is not None))
        return torch.stack(found)


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def weights(*modules: nn.Module) -> list[Tensor]:
    return [p for module in modules for p in module.parameters()]


def linear(rows: int, columns: int) -> nn.Linear:
    return nn.Linear(rows, columns, dtype=torch.float64)


def error(found: Tensor, target: Tensor) -> Tensor:
    return (found - target).square().mean()


def trunk_and_heads() -> Network:
    x, y = data(6, 5), data(3, 6, 1)
    trunk, heads = linear(5, 4), [linear(4, 1) for _ in range(3)]
    return Network(
        {"z": trunk(x).tanh()},
        lambda b, i: error(heads[i](b["z"]), 10.0**i * y[i]),
        3,
        weights(trunk),
        weights(*heads),
        ["TanhBackward0"],
    )


def vae() -> Network:
    x, noise = data(6, 5), data(6, 2)
    encoder, mean, spread, decoder = linear(5, 4), linear(4, 2), linear(4, 2), linear(2, 5)
    h = encoder(x).tanh()

    def loss(b: Border, i: int) -> Tensor:
        mu, log = b["mean"], b["log variance"]
        if i == 0:
            return error(decoder(mu + (log / 2).exp() * noise), x)
        return 100 * (-0.5 * (1 + log - mu.square() - log.exp()).sum(1)).mean()

    return Network(
        {"mean": mean(h), "log variance": spread(h)},
        loss,
        2,
        weights(encoder, mean, spread),
        weights(decoder),
        ["AddmmBackward0"] * 2,
    )


def pyramid() -> Network:
    down = [nn.Conv2d(3, 4, 3, 2, 1).double(), *(nn.Conv2d(4, 4, 3, 2, 1).double() for _ in "ab")]
    sides = [nn.Conv2d(4, 4, 1).double() for _ in range(3)]
    heads = [nn.Conv2d(4, 1, 1).double() for _ in range(3)]
    c3 = down[0](data(2, 3, 16, 16)).relu()
    c4 = down[1](c3).relu()
    p5 = sides[2](down[2](c4).relu())

    def up(t: Tensor) -> Tensor:
        return nn.functional.interpolate(t, scale_factor=2)

    # The coarsest level is read by all, the middle one by two, the finest by one task.
    p4 = sides[1](c4) + up(p5)

    def loss(b: Border, i: int) -> Tensor:
        if i == 2:
            return error(heads[2](b["p5"]), torch.tensor(-0.5))
        if i == 1:
            return error(heads[1](b["p4"]), torch.tensor(3.0))
        return error(heads[0](sides[0](b["c3"]) + up(b["p4"])), torch.tensor(1.0))

    return Network(
        {"p5": p5, "p4": p4, "c3": c3},
        loss,
        3,
        weights(*down, *sides[1:]),
        weights(sides[0], *heads),
        ["AddBackward0", "ConvolutionBackward0", "ReluBackward0"],
        read={0: ("c3", "p4"), 1: ("p4",), 2: ("p5",)},
    )


def along_the_depth() -> Network:
    layers, heads = [linear(5, 5) for _ in range(3)], [linear(5, 1) for _ in range(3)]
    a = layers[0](data(6, 5)).tanh()
    b = layers[1](a).tanh()

    def loss(border: Border, i: int) -> Tensor:
        z = border["1" if i == 0 else "2"]
        z = layers[2](z).tanh() if i == 2 else z
        return error(heads[i](z), torch.tensor(float(i)))

    return Network(
        {"1": a, "2": b},
        loss,
        3,
        weights(*layers[:2]),
        weights(layers[2], *heads),
        ["TanhBackward0"] * 2,
        read={0: ("1",), 1: ("2",), 2: ("2",)},
    )


def experts() -> Network:
    x, gate, parts = data(6, 5), linear(5, 3), [linear(5, 4) for _ in range(3)]
    heads = [linear(4, 1) for _ in range(2)]
    p = gate(x).softmax(-1)
    mixture = sum(p[:, i : i + 1] * part(x) for i, part in enumerate(parts))

    def loss(b: Border, i: int) -> Tensor:
        if i == 2:
            return b["gate"].mean(0).square().sum()
        return error(heads[i](b["mixture"]), torch.tensor(1.0 + i))

    return Network(
        {"gate": p, "mixture": mixture},
        loss,
        3,
        weights(gate, *parts),
        weights(*heads),
        ["AddBackward0", "SoftmaxBackward0"],
        read={0: ("mixture",), 1: ("mixture",), 2: ("gate",)},
    )


def recurrent() -> Network:
    encoder, decoder = nn.GRU(3, 4).double(), nn.GRU(4, 4).double()
    out, classify = linear(4, 3), linear(4, 2)
    x, labels = data(5, 6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
    states, _ = encoder(x)

    def loss(b: Border, i: int) -> Tensor:
        if i == 0:
            return error(out(decoder(b["states"])[0]), x)
        return nn.functional.cross_entropy(classify(b["states"].mean(0)), labels)

    return Network(
        {"states": states},
        loss,
        2,
        weights(encoder),
        weights(decoder, out, classify),
        ["StackBackward0"],
    )


def columns_of_one_layer() -> Network:
    x, y = data(6, 5), data(6, 3)
    layer = linear(5, 3)
    return Network(
        {"logits": layer(x)},
        lambda b, i: error(b["logits"][:, i], 3.0**i * y[:, i]),
        3,
        weights(layer),
        [],
        ["AddmmBackward0"],
    )


def decoder_of_two() -> Network:
    encoder, decoder = linear(5, 4), linear(4, 4)
    heads = [linear(4, 1) for _ in range(3)]
    z = encoder(data(6, 5)).tanh()
    d = decoder(z).sigmoid()

    def loss(b: Border, i: int) -> Tensor:
        return error(heads[i](b["encoded"] if i == 2 else b["decoded"]), torch.tensor(float(i)))

    return Network(
        {"encoded": z, "decoded": d},
        loss,
        3,
        weights(encoder, decoder),
        weights(*heads),
        ["SigmoidBackward0", "TanhBackward0"],
        read={0: ("decoded",), 1: ("decoded",), 2: ("encoded",)},
    )


def two_towers() -> Network:
    users, items = linear(3, 4), linear(5, 4)
    click, convert = linear(8, 1), linear(8, 1)
    clicked = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)[:, None]
    joined = torch.cat([users(data(6, 3)).tanh(), items(data(6, 5)).tanh()], dim=1)
    binary = nn.functional.binary_cross_entropy_with_logits

    def loss(b: Border, i: int) -> Tensor:
        if i == 0:
            return binary(click(b["joined"]), clicked)
        entries = binary(convert(b["joined"]), 1 - clicked, reduction="none")
        return (entries * clicked).sum() / clicked.sum()

    return Network(
        {"joined": joined},
        loss,
        2,
        weights(users, items),
        weights(click, convert),
        ["CatBackward0"],
    )


def contrastive(projection: bool) -> Network:
    encoder, classify, project = linear(5, 4), linear(4, 2), linear(4, 3)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    first, second = encoder(data(6, 5)).tanh(), encoder(data(6, 5)).tanh()

    def loss(b: Border, i: int) -> Tensor:
        if i == 0:
            return nn.functional.cross_entropy(classify(b["first"]), labels)
        views = [b["first"], b["second"]]
        if projection:
            views = [project(v) for v in views]
        a, c = (nn.functional.normalize(v, dim=1) for v in views)
        return nn.functional.cross_entropy(a @ c.T / 0.5, torch.arange(6))

    return Network(
        {"first": first, "second": second},
        loss,
        2,
        weights(encoder),
        weights(classify, *([project] if projection else [])),
        ["TanhBackward0"] * 2 if projection else [],
        bypass=() if projection else (1,),
        read={0: ("first",)},
    )


def forces() -> Network:
    net = nn.Sequential(linear(3, 4), nn.SiLU(), linear(4, 4), nn.SiLU())
    head, position = linear(4, 1), data(5, 2, 3).requires_grad_()
    reference = data(5, 2, 3)

    def loss(b: Border, i: int) -> Tensor:
        e = head(net(position)).sum((1, 2))
        if i == 0:
            return error(e, torch.tensor(1.0))
        force = -torch.autograd.grad(e.sum(), position, create_graph=True)[0]
        return error(force, reference)

    # Each call of ``loss`` runs the network once more, as two passes over one batch would.
    made = Network({}, loss, 2, [*weights(net), head.weight], [head.bias], [], bypass=(0, 1))
    return _at_once(made, lambda: _energy_and_forces(net, head, position, reference))


def _energy_and_forces(
    net: nn.Module, head: nn.Module, position: Tensor, reference: Tensor
) -> list[Tensor]:
    e = head(net(position)).sum((1, 2))
    force = -torch.autograd.grad(e.sum(), position, create_graph=True)[0]
    return [error(e, torch.tensor(1.0)), error(force, reference)]


def _at_once(network: Network, losses: Callable[[], list[Tensor]]) -> Network:
    """Let all losses come from one pass."""
    network.losses = losses  # type: ignore[method-assign]
    return network


def pinn() -> Network:
    net = nn.Sequential(linear(2, 6), nn.Tanh(), linear(6, 6), nn.Tanh(), linear(6, 1))
    inside = data(6, 2).requires_grad_()
    edge, start = data(4, 2), data(3, 2)

    def losses() -> list[Tensor]:
        u = net(inside)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (second,) = torch.autograd.grad(slope[:, 0].sum(), inside, create_graph=True)
        residual = slope[:, 1:] + u * slope[:, :1] - 0.01 * second[:, :1]
        return [
            residual.square().mean(),
            net(edge).square().mean(),
            error(net(start), torch.sin(start[:, :1])),
        ]

    made = Network({}, lambda b, i: losses()[i], 3, weights(net), [], [], bypass=(0, 1, 2))
    return _at_once(made, losses)


def tied_embedding() -> Network:
    tokens = torch.tensor([[0, 1, 2], [3, 1, 4], [2, 2, 0]])
    embed, body = nn.Embedding(5, 4, dtype=torch.float64), linear(4, 4)
    classify = linear(4, 2)

    def losses() -> list[Tensor]:
        z = body(embed(tokens)).tanh()
        logits = z @ embed.weight.T
        next_token = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        return [
            next_token,
            nn.functional.cross_entropy(classify(z.mean(1)), torch.tensor([0, 1, 0])),
        ]

    made = Network(
        {}, lambda b, i: losses()[i], 2, weights(embed, body), weights(classify), [], bypass=(0,)
    )
    return _at_once(made, losses)


def norm_in_a_loss() -> Network:
    trunk, heads = linear(5, 4), [linear(4, 1) for _ in range(2)]
    x = data(6, 5)

    def losses() -> list[Tensor]:
        z = trunk(x).tanh()
        plain = [error(head(z), torch.tensor(2.0)) for head in heads]
        return [plain[0] + 0.1 * trunk.weight.square().sum(), plain[1]]

    made = Network(
        {}, lambda b, i: losses()[i], 2, weights(trunk), weights(*heads), [], bypass=(0,)
    )
    return _at_once(made, losses)


ZOO: dict[str, Callable[[], Network]] = {
    "trunk and heads": trunk_and_heads,
    "VAE": vae,
    "pyramid": pyramid,
    "losses along the depth": along_the_depth,
    "experts and auxiliary loss": experts,
    "recurrent encoder, decoder and classifier": recurrent,
    "columns of one layer": columns_of_one_layer,
    "decoder of two tasks": decoder_of_two,
    "two towers": two_towers,
    "contrastive with projection": lambda: contrastive(True),
    "contrastive without projection": lambda: contrastive(False),
    "energy and forces": forces,
    "PINN": pinn,
    "tied embedding": tied_embedding,
    "norm of the weights in a loss": norm_in_a_loss,
}
