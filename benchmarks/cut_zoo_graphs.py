"""Networks of many kinds with several losses, small enough for thousands of them a minute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GRAPHS", "Graph"]


@dataclass
class Graph:
    """A network and its losses on one batch.

    Attributes:
        parameters: Those that are trained.
        losses: Runs the network on the batch and returns k losses.
    """

    parameters: list[nn.Parameter]
    losses: Callable[[], list[Tensor]]


Maker = Callable[[], Graph]
GRAPHS: dict[str, Maker] = {}
B = 16


def graph(name: str) -> Callable[[Maker], Maker]:
    """Enter a maker under a name."""

    def enter(maker: Maker) -> Maker:
        GRAPHS[name] = maker
        return maker

    return enter


def _all(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers)


mse = functional.mse_loss
bce = functional.binary_cross_entropy_with_logits
ce = functional.cross_entropy


def _labels(count: int = B) -> Tensor:
    return (torch.rand(count, 1) < 0.3).float()


@graph("trunk and three heads")
def _trunk() -> Graph:
    trunk, heads = _mlp(10, 32, 32), nn.ModuleList(nn.Linear(32, 1) for _ in range(3))
    x, y = torch.randn(B, 10), torch.randn(3, B, 1) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1)

    def losses() -> list[Tensor]:
        z = trunk(x)
        return [mse(head(z), t) for head, t in zip(heads, y, strict=True)]

    return Graph(_all(trunk, heads), losses)


@graph("one layer, three columns")
def _columns() -> Graph:
    trunk, last = _mlp(10, 32), nn.Linear(32, 3)
    x, y = torch.randn(B, 10), torch.randn(B, 3) * torch.tensor([1.0, 10.0, 0.1])

    def losses() -> list[Tensor]:
        return list((last(trunk(x)) - y).square().mean(dim=0))

    return Graph(_all(trunk, last), losses)


def _vae(beta: float) -> Graph:
    encoder, mean, log = nn.Linear(10, 32), nn.Linear(32, 4), nn.Linear(32, 4)
    decoder, x, noise = _mlp(4, 32, 10), torch.randn(B, 10), torch.randn(B, 4)

    def losses() -> list[Tensor]:
        h = encoder(x).tanh()
        mu, s = mean(h), log(h)
        reconstruction = (decoder(mu + (s / 2).exp() * noise) - x).square().sum(dim=1).mean()
        divergence = -0.5 * (1 + s - mu.square() - s.exp()).sum(dim=1).mean()
        return [reconstruction, beta * divergence]

    return Graph(_all(encoder, mean, log, decoder), losses)


graph("VAE")(lambda: _vae(1.0))
graph("VAE, KL x 100")(lambda: _vae(100.0))


@graph("feature pyramid, three levels")
def _pyramid() -> Graph:
    c3, c4, c5 = (nn.Conv2d(i, 8, 3, 2, 1) for i in (3, 8, 8))
    laterals = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
    heads = nn.ModuleList(nn.Conv2d(8, 1, 1) for _ in range(3))
    x = torch.randn(4, 3, 32, 32)
    y = torch.randn(3)

    def losses() -> list[Tensor]:
        f3 = c3(x).relu()
        f4 = c4(f3).relu()
        p5 = laterals[2](c5(f4).relu())
        p4 = laterals[1](f4) + functional.interpolate(p5, scale_factor=2)
        p3 = laterals[0](f3) + functional.interpolate(p4, scale_factor=2)
        return [
            (head(p) - t).square().mean() for head, p, t in zip(heads, (p3, p4, p5), y, strict=True)
        ]

    return Graph(_all(c3, c4, c5, laterals, heads), losses)


@graph("U-Net with deep supervision")
def _unet() -> Graph:
    d1, d2, d3 = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(12, 16, 3, 2, 1)
    u2, u1 = nn.Conv2d(28, 12, 3, 1, 1), nn.Conv2d(20, 8, 3, 1, 1)
    heads = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in (16, 12, 8))
    x, y = torch.randn(4, 1, 16, 16), (torch.rand(4, 1, 16, 16) < 0.3).float()

    def losses() -> list[Tensor]:
        a = d1(x).relu()
        b = d2(a).relu()
        c = d3(b).relu()
        e = u2(torch.cat([functional.interpolate(c, scale_factor=2), b], dim=1)).relu()
        f = u1(torch.cat([functional.interpolate(e, scale_factor=2), a], dim=1)).relu()
        return [
            bce(head(h), functional.avg_pool2d(y, 16 // h.shape[-1]))
            for head, h in zip(heads, (c, e, f), strict=True)
        ]

    return Graph(_all(d1, d2, d3, u2, u1, heads), losses)


@graph("shared encoder, two decoders with skips")
def _two_decoders() -> Graph:
    c1, c2 = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
    ups = nn.ModuleList(nn.Conv2d(24, 8, 3, 1, 1) for _ in range(2))
    segment, depth = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 1, 1)
    x, classes = torch.randn(4, 3, 16, 16), torch.randint(5, (4, 16, 16))
    depths = torch.rand(4, 1, 16, 16) * 5

    def losses() -> list[Tensor]:
        a = c1(x).relu()
        b = c2(a).relu()
        both = [
            up(torch.cat([functional.interpolate(b, scale_factor=2), a], dim=1)).tanh()
            for up in ups
        ]
        return [ce(segment(both[0]), classes), (depth(both[1]) - depths).abs().mean()]

    return Graph(_all(c1, c2, ups, segment, depth), losses)


@graph("three losses along the depth")
def _depth() -> Graph:
    layers = nn.ModuleList(nn.Linear(10 if i == 0 else 24, 24) for i in range(3))
    heads = nn.ModuleList(nn.Linear(24, 1) for _ in range(3))
    x, y = torch.randn(B, 10), torch.randn(3, B, 1)

    def losses() -> list[Tensor]:
        h, found = x, []
        for layer, head, t in zip(layers, heads, y, strict=True):
            h = layer(h).tanh()
            found.append(mse(head(h), t))
        return found

    return Graph(_all(layers, heads), losses)


@graph("multi-exit network, four exits")
def _exits() -> Graph:
    convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, 1, 1) for i in range(4))
    heads = nn.ModuleList(nn.Linear(8, 5) for _ in range(4))
    x, y = torch.randn(B, 3, 8, 8), torch.randint(5, (B,))

    def losses() -> list[Tensor]:
        h, found = x, []
        for conv, head in zip(convs, heads, strict=True):
            h = conv(h).relu()
            found.append(ce(head(h.mean(dim=(2, 3))), y))
        return found

    return Graph(_all(convs, heads), losses)


@graph("mixture of experts with load balancing")
def _experts() -> Graph:
    gate, experts = nn.Linear(10, 4), nn.ModuleList(nn.Linear(10, 8) for _ in range(4))
    heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    x, y = torch.randn(B, 10), torch.randn(2, B, 1) * torch.tensor([1.0, 3.0]).view(2, 1, 1)

    def losses() -> list[Tensor]:
        p = gate(x).softmax(dim=1)
        mix = torch.stack([e(x).relu() for e in experts], dim=1).mul(p[:, :, None]).sum(dim=1)
        found = [mse(head(mix), t) for head, t in zip(heads, y, strict=True)]
        return [*found, p.mean(dim=0).square().sum()]

    return Graph(_all(gate, experts, heads), losses)


@graph("multi-gate mixture of experts")
def _mmoe() -> Graph:
    experts = nn.ModuleList(_mlp(10, 16) for _ in range(4))
    gates = nn.ModuleList(nn.Linear(10, 4) for _ in range(3))
    towers = nn.ModuleList(nn.Linear(16, 1) for _ in range(3))
    x, y = torch.randn(B, 10), torch.randn(3, B, 1)

    def losses() -> list[Tensor]:
        h = torch.stack([e(x) for e in experts], dim=1)
        found = []
        for gate, tower, t in zip(gates, towers, y, strict=True):
            mix = (h * gate(x).softmax(dim=1)[:, :, None]).sum(dim=1)
            found.append(mse(tower(mix), t))
        return found

    return Graph(_all(experts, gates, towers), losses)


@graph("GRU encoder, decoder and classifier")
def _gru() -> Graph:
    encoder, decoder = nn.GRU(6, 16, batch_first=True), nn.GRU(6, 16, batch_first=True)
    out, classify = nn.Linear(16, 6), nn.Linear(16, 3)
    x, y = torch.randn(B, 7, 6), torch.randint(3, (B,))

    def losses() -> list[Tensor]:
        states, last = encoder(x)
        back, _ = decoder(torch.zeros_like(x), last)
        return [mse(out(back), x), ce(classify(states.mean(dim=1)), y)]

    return Graph(_all(encoder, decoder, out, classify), losses)


@graph("speech: CTC and attention decoder")
def _speech() -> Graph:
    encoder = nn.GRU(8, 16, batch_first=True, bidirectional=True)
    ctc, embed = nn.Linear(32, 6), nn.Embedding(6, 32)
    attend, out = nn.MultiheadAttention(32, 2, batch_first=True), nn.Linear(32, 6)
    x, y = torch.randn(8, 20, 8), torch.randint(1, 6, (8, 5))
    lengths, targets = torch.full((8,), 20), torch.full((8,), 5)

    def losses() -> list[Tensor]:
        h, _ = encoder(x)
        logits = ctc(h).log_softmax(dim=2).transpose(0, 1)
        query = embed(functional.pad(y[:, :-1], (1, 0)))
        context, _ = attend(query, h, h)
        return [
            functional.ctc_loss(logits, y, lengths, targets),
            ce(out(context + query).flatten(0, 1), y.flatten()),
        ]

    return Graph(_all(encoder, ctc, embed, attend, out), losses)


def _encoder(width: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@graph("transformer: tokens and sentence")
def _transformer() -> Graph:
    embed, encoder = nn.Embedding(30, 16), _encoder(16)
    tag, classify = nn.Linear(16, 5), nn.Linear(16, 2)
    x, tags, y = torch.randint(30, (8, 6)), torch.randint(5, (8, 6)), torch.randint(2, (8,))

    def losses() -> list[Tensor]:
        h = encoder(embed(x))
        return [ce(tag(h).flatten(0, 1), tags.flatten()), ce(classify(h[:, 0]), y)]

    return Graph(_all(embed, encoder, tag, classify), losses)


@graph("masked language model, tied embedding, and classifier")
def _tied() -> Graph:
    embed, encoder, classify = nn.Embedding(30, 16), _encoder(16), nn.Linear(16, 2)
    x, y = torch.randint(30, (8, 6)), torch.randint(2, (8,))

    def losses() -> list[Tensor]:
        h = encoder(embed(x))
        words = h @ embed.weight.T
        return [ce(words.flatten(0, 1), x.flatten()), ce(classify(h[:, 0]), y)]

    return Graph(_all(embed, encoder, classify), losses)


@graph("decoder shared by two of three")
def _partly() -> Graph:
    encoder, decoder = _mlp(10, 32), _mlp(32, 24)
    heads = nn.ModuleList(nn.Linear(w, 1) for w in (24, 24, 32))
    x, y = torch.randn(B, 10), torch.randn(3, B, 1) * torch.tensor([0.3, 3.0, 1.0]).view(3, 1, 1)

    def losses() -> list[Tensor]:
        z = encoder(x)
        d = decoder(z)
        return [mse(head(h), t) for head, h, t in zip(heads, (d, d, z), y, strict=True)]

    return Graph(_all(encoder, decoder, heads), losses)


@graph("tree: four tasks in two groups")
def _tree() -> Graph:
    root, branches = _mlp(10, 32), nn.ModuleList(_mlp(32, 24) for _ in range(2))
    heads = nn.ModuleList(nn.Linear(24, 1) for _ in range(4))
    x, scales = torch.randn(B, 10), torch.tensor([0.3, 1.0, 3.0, 1.0]).view(4, 1, 1)
    y = torch.randn(4, B, 1) * scales

    def losses() -> list[Tensor]:
        z = root(x)
        below = [branch(z) for branch in branches for _ in range(2)]
        return [mse(head(h), t) for head, h, t in zip(heads, below, y, strict=True)]

    return Graph(_all(root, branches, heads), losses)


@graph("text: three tasks at three layers, each fed to the next")
def _hierarchy() -> Graph:
    embed = nn.Embedding(30, 12)
    layers = nn.ModuleList(nn.GRU(w, 12, batch_first=True) for w in (12, 29, 29))
    heads = nn.ModuleList(nn.Linear(12, 5) for _ in range(3))
    x, y = torch.randint(30, (8, 7)), torch.randint(5, (3, 8, 7))

    def losses() -> list[Tensor]:
        words = embed(x)
        h, found = words, []
        for layer, head, t in zip(layers, heads, y, strict=True):
            states, _ = layer(h)
            scores = head(states)
            found.append(ce(scores.flatten(0, 1), t.flatten()))
            h = torch.cat([words, states, scores.softmax(dim=2)], dim=2)
        return found

    return Graph(_all(embed, layers, heads), losses)


@graph("one head after each of three decoder layers (DETR)")
def _detr() -> Graph:
    encoder, queries = nn.Linear(8, 16), nn.Parameter(torch.randn(1, 5, 16))
    layers = nn.ModuleList(
        nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(3)
    )
    head, x, y = nn.Linear(16, 4), torch.randn(8, 6, 8), torch.randn(8, 5, 4)

    def losses() -> list[Tensor]:
        memory, h, found = encoder(x).relu(), queries.expand(8, -1, -1), []
        for layer in layers:
            h = layer(h, memory)
            found.append(functional.smooth_l1_loss(head(h), y))
        return found

    return Graph([*_all(encoder, layers, head), queries], losses)


@graph("classifier with two auxiliary classifiers (Inception)")
def _inception() -> Graph:
    convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, 1, 1) for i in range(5))
    aux = nn.ModuleList(_mlp(8 * 16, 16) for _ in range(2))
    heads = nn.ModuleList(nn.Linear(w, 5) for w in (16, 16, 8))
    x, y = torch.randn(B, 3, 8, 8), torch.randint(5, (B,))

    def losses() -> list[Tensor]:
        h = x
        below: list[Tensor] = []
        for i, conv in enumerate(convs):
            h = conv(h).relu()
            if i in (1, 3):
                small = functional.adaptive_avg_pool2d(h, 4).flatten(1)
                below.append(aux[len(below)](small))
        below.append(h.mean(dim=(2, 3)))
        scales = (0.3, 0.3, 1.0)
        return [s * ce(head(z), y) for s, head, z in zip(scales, heads, below, strict=True)]

    return Graph(_all(convs, aux, heads), losses)


@graph("recommender, two towers: click and masked conversion")
def _recommender() -> Graph:
    users, items = nn.Embedding(20, 8), nn.Embedding(20, 8)
    a, b = _mlp(8, 16), _mlp(8, 16)
    click, convert = _mlp(32, 8), _mlp(32, 8)
    out = nn.ModuleList(nn.Linear(8, 1) for _ in range(2))
    u, i = torch.randint(20, (32,)), torch.randint(20, (32,))
    clicked, bought = (torch.rand(32, 1) < 0.5).float(), (torch.rand(32, 1) < 0.3).float()

    def losses() -> list[Tensor]:
        z = torch.cat([a(users(u)), b(items(i))], dim=1)
        second = bce(out[1](convert(z)), bought, reduction="none")
        return [bce(out[0](click(z)), clicked), (second * clicked).sum() / clicked.sum()]

    return Graph(_all(users, items, a, b, click, convert, out), losses)


@graph("Siamese: both views in one pass, and classifier")
def _siamese() -> Graph:
    trunk, project, classify = _mlp(10, 32), nn.Linear(32, 8), nn.Linear(32, 3)
    x, y = torch.randn(B, 10), torch.randint(3, (B,))
    views = torch.cat([x, x + 0.1 * torch.randn(B, 10)])

    def losses() -> list[Tensor]:
        z = trunk(views)
        a, b = functional.normalize(project(z), dim=1).chunk(2)
        return [ce(a @ b.T / 0.2, torch.arange(B)), ce(classify(z[:B]), y)]

    return Graph(_all(trunk, project, classify), losses)


@graph("contrastive: the second view in a pass of its own")
def _contrastive() -> Graph:
    trunk, project, classify = _mlp(10, 32), nn.Linear(32, 8), nn.Linear(32, 3)
    x, y = torch.randn(B, 10), torch.randint(3, (B,))
    other = x + 0.1 * torch.randn(B, 10)

    def losses() -> list[Tensor]:
        z = trunk(x)
        a = functional.normalize(project(z), dim=1)
        b = functional.normalize(project(trunk(other)), dim=1)
        return [ce(a @ b.T / 0.2, torch.arange(B)), ce(classify(z), y)]

    return Graph(_all(trunk, project, classify), losses)


@graph("teacher and student, auxiliary head")
def _teacher() -> Graph:
    teacher = _mlp(10, 32, 16).requires_grad_(requires_grad=False)
    low, high = _mlp(10, 16), _mlp(16, 16)
    hint, aux, last = nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(16, 3)
    x, y = torch.randn(B, 10), torch.randint(3, (B,))

    def losses() -> list[Tensor]:
        a = low(x)
        h = high(a)
        return [ce(last(h), y), mse(hint(h), teacher(x)), ce(aux(a), y)]

    return Graph(_all(low, high, hint, aux, last), losses)


@graph("graph network: readouts of nodes, edges and graph")
def _gnn() -> Graph:
    first, second = nn.Linear(6, 16), nn.Linear(16, 16)
    node, edge, whole = nn.Linear(16, 1), nn.Linear(32, 1), nn.Linear(16, 1)
    x = torch.randn(8, 5, 6)
    near = (torch.rand(8, 5, 5) < 0.5).float() + torch.eye(5)
    near = near / near.sum(dim=2, keepdim=True)
    a, b, c = torch.randn(8, 5, 1), torch.randn(8, 4, 1), torch.randn(8, 1)

    def losses() -> list[Tensor]:
        h = near @ first(x).relu()
        h = near @ second(h).relu()
        pairs = torch.cat([h[:, :-1], h[:, 1:]], dim=2)
        return [mse(node(h), a), mse(edge(pairs), b), mse(whole(h.sum(dim=1)), c)]

    return Graph(_all(first, second, node, edge, whole), losses)


@graph("LoRA on a frozen trunk, three heads")
def _lora() -> Graph:
    frozen = nn.ModuleList([nn.Linear(10, 32), nn.Linear(32, 32)]).requires_grad_(
        requires_grad=False
    )
    down = nn.ModuleList([nn.Linear(10, 2, bias=False), nn.Linear(32, 2, bias=False)])
    up = nn.ModuleList([nn.Linear(2, 32, bias=False) for _ in range(2)])
    heads = nn.ModuleList(nn.Linear(32, 1) for _ in range(3))
    x, y = torch.randn(B, 10), torch.randn(3, B, 1) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1)

    def losses() -> list[Tensor]:
        h = x
        for layer, a, b in zip(frozen, down, up, strict=True):
            h = (layer(h) + b(a(h))).relu()
        return [mse(head(h), t) for head, t in zip(heads, y, strict=True)]

    return Graph(_all(down, up, heads), losses)


@graph("cross-stitch columns")
def _stitch() -> Graph:
    lower = nn.ModuleList(nn.Linear(10, 16) for _ in range(2))
    upper = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
    mix = nn.Parameter(torch.tensor([[0.8, 0.2], [0.3, 0.7]]))
    heads = nn.ModuleList(nn.Linear(16, 1) for _ in range(2))
    x, y = torch.randn(B, 10), torch.randn(2, B, 1) * torch.tensor([1.0, 4.0]).view(2, 1, 1)

    def losses() -> list[Tensor]:
        one, two = (layer(x).relu() for layer in lower)
        a = upper[0](mix[0, 0] * one + mix[0, 1] * two).relu()
        b = upper[1](mix[1, 0] * one + mix[1, 1] * two).relu()
        return [mse(head(h), t) for head, h, t in zip(heads, (a, b), y, strict=True)]

    return Graph([*_all(lower, upper, heads), mix], losses)


@graph("attention per task at two levels (MTAN)")
def _mtan() -> Graph:
    first, second = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
    ones = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
    twos = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(3))
    heads = nn.ModuleList(nn.Conv2d(8, 1, 1) for _ in range(3))
    x, y = torch.randn(4, 3, 12, 12), torch.randn(3, 4, 1, 12, 12)

    def losses() -> list[Tensor]:
        a = first(x).relu()
        b = second(a).relu()
        found = []
        for one, two, head, t in zip(ones, twos, heads, y, strict=True):
            own = one(a).sigmoid() * a
            own = two(torch.cat([own, b], dim=1)).sigmoid() * b
            found.append(mse(head(own), t))
        return found

    return Graph(_all(first, second, ones, twos, heads), losses)


@graph("actor and critic with entropy bonus")
def _actor() -> Graph:
    trunk, policy, value = _mlp(8, 32, 32, act=nn.Tanh), nn.Linear(32, 4), nn.Linear(32, 1)
    x, actions = torch.randn(32, 8), torch.randint(4, (32,))
    advantage, returns = torch.randn(32), 3 * torch.randn(32, 1)

    def losses() -> list[Tensor]:
        z = trunk(x)
        logs = policy(z).log_softmax(dim=1)
        taken = logs[torch.arange(32), actions]
        entropy = -(logs.exp() * logs).sum(dim=1)
        return [-(advantage * taken).mean(), mse(value(z), returns), -0.01 * entropy.mean()]

    return Graph(_all(trunk, policy, value), losses)


@graph("detector: proposals, classes and boxes")
def _detector() -> Graph:
    c1, c2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
    proposal, region = nn.Conv2d(16, 5, 1), nn.Linear(16 * 4, 24)
    classify, box = nn.Linear(24, 4), nn.Linear(24, 4)
    x = torch.randn(4, 3, 32, 32)
    object_, offsets = (torch.rand(4, 1, 8, 8) < 0.2).float(), torch.randn(4, 4, 8, 8)
    kinds, places = torch.randint(4, (16,)), torch.randn(16, 4)

    def losses() -> list[Tensor]:
        h = c2(c1(x).relu()).relu()
        p = proposal(h)
        crops = torch.cat([h[:, :, i : i + 2, i : i + 2].flatten(1) for i in range(0, 8, 2)])
        r = region(crops).relu()
        return [
            bce(p[:, :1], object_),
            functional.smooth_l1_loss(p[:, 1:], offsets),
            ce(classify(r), kinds),
            functional.smooth_l1_loss(box(r), places),
        ]

    return Graph(_all(c1, c2, proposal, region, classify, box), losses)


@graph("image generator: pixels, frozen features, frozen critic")
def _generator() -> Graph:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 3, 3, 1, 1),
    )
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
    critic = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 1))
    features.requires_grad_(requires_grad=False)
    critic.requires_grad_(requires_grad=False)
    x = torch.randn(4, 3, 16, 16)
    y = x + 0.3 * torch.randn(4, 3, 16, 16)

    def losses() -> list[Tensor]:
        made = net(x)
        score = critic(made)
        return [
            (made - y).abs().mean(),
            mse(features(made), features(y)),
            bce(score, torch.ones_like(score)),
        ]

    return Graph(_all(net), losses)


@graph("energy and forces")
def _forces() -> Graph:
    net, head = _mlp(3, 16, 16, act=nn.SiLU), nn.Linear(16, 1)
    place, target = torch.randn(8, 5, 3, requires_grad=True), torch.randn(8, 5, 3)

    def losses() -> list[Tensor]:
        energy = head(net(place)).sum(dim=(1, 2))
        (slope,) = torch.autograd.grad(energy.sum(), place, create_graph=True)
        return [mse(energy, torch.ones(8)), mse(-slope, target)]

    return Graph(_all(net, head), losses)


@graph("PINN: residual, initial and boundary values")
def _pinn() -> Graph:
    net = nn.Sequential(_mlp(2, 24, 24, act=nn.Tanh), nn.Linear(24, 1))
    inside, start, side = torch.rand(32, 2, requires_grad=True), torch.rand(8, 2), torch.rand(8, 2)

    def losses() -> list[Tensor]:
        u = net(inside)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (curve,) = torch.autograd.grad(slope[:, 1].sum(), inside, create_graph=True)
        residual = slope[:, 0] + u[:, 0] * slope[:, 1] - 0.01 / math.pi * curve[:, 1]
        initial = net(start * torch.tensor([0.0, 1.0])) + torch.sin(math.pi * start[:, 1:])
        return [residual.square().mean(), initial.square().mean(), net(side).square().mean()]

    return Graph(_all(net), losses)


@graph("weight decay inside one loss")
def _decay() -> Graph:
    trunk, heads = _mlp(10, 32), nn.ModuleList(nn.Linear(32, 1) for _ in range(2))
    x, y = torch.randn(B, 10), torch.randn(2, B, 1)

    def losses() -> list[Tensor]:
        z: Any = trunk(x)
        decay: Any = sum(p.square().sum() for p in trunk.parameters())
        return [mse(heads[0](z), y[0]) + 0.01 * decay, mse(heads[1](z), y[1])]

    return Graph(_all(trunk, heads), losses)
