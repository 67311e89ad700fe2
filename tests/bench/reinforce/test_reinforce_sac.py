"""Losses, gradients and weights of multi-task SAC against obvious computations."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from reinforce_toys import random_batch
from torch import Tensor

from ntkmtl import weighting
from ntkmtl.bench.reinforce import MultiTaskSAC, ReplayBatch
from ntkmtl.bench.reinforce.networks import squash
from ntkmtl.bench.reinforce.sac import unsuited
from ntkmtl.kernel import ExtendedNTK

SMALL: dict[str, Any] = {"observation": 5, "action": 2, "hidden": (16, 16)}
GRAMIAN = [s.name for s in weighting.specs() if s.requires == "gramian" and not unsuited(s.name)]
# Those whose weights are a function of this one Gramian: no draw, no memory, no other input.
PLAIN = [
    "mgda",
    "cagrad",
    "imtl-g",
    "aligned-mtl",
    "fairgrad",
    "nash-mtl",
    "upgrad",
    "dualproj",
    "config",
]


def double(agent: MultiTaskSAC) -> MultiTaskSAC:
    """Compute in float64. The optimizers keep their parameters, whose data is replaced."""
    for network in (agent.actor, agent.critic, agent.target):
        network.double()
    agent.log_temperature.data = agent.log_temperature.data.double()
    return agent


def as_double(batch: ReplayBatch) -> ReplayBatch:
    return ReplayBatch(
        batch.observations.double(),
        batch.actions.double(),
        batch.rewards.double(),
        batch.next_observations.double(),
        batch.sizes,
    )


class Naive:
    """The losses of an agent, row by row and critic by critic, from the agent's own parameters."""

    def __init__(self, agent: MultiTaskSAC, batch: ReplayBatch) -> None:
        self.agent = copy.deepcopy(agent)
        self.batch = batch
        self.tasks = [t for t, n in enumerate(batch.sizes) for _ in range(n)]
        shape = batch.actions.shape
        noise = copy.deepcopy(agent._noise)
        draw = torch.Generator()
        draw.set_state(noise.get_state())
        self.fresh, self.drawn = (torch.randn(shape, generator=draw) for _ in range(2))

    def told(self, row: Tensor, task: int) -> Tensor:
        if self.agent.actor.encoder.encoding == "none":
            return row
        if self.agent.actor.encoder.encoding == "learned":
            raise AssertionError
        code = torch.zeros(self.agent.tasks, dtype=row.dtype)
        code[task] = 1.0
        return torch.cat([row, code])

    def policy(self, seen: Tensor, task: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        actor = self.agent.actor
        x = self.told(seen, task)
        for layer in actor.trunk:
            x = layer(x)
        head = actor.heads[task if len(actor.heads) > 1 else 0]
        mean, log_deviation = head(x).chunk(2)
        normal = torch.distributions.Normal(mean, log_deviation.clamp(-20, 2).exp())
        u = mean + normal.stddev * noise
        density = normal.log_prob(u).sum() - (1 - u.tanh().square()).log().sum()
        return u.tanh(), density

    def values(self, network: Any, seen: Tensor, action: Tensor, task: int) -> list[Tensor]:
        found = []
        for j in range(2):
            x = self.told(torch.cat([seen, action]), task)
            for layer in network.trunk:
                plain = not hasattr(layer, "weight")
                x = x.relu() if plain else x @ layer.weight[j] + layer.bias[j, 0]
            head = network.heads[task if len(network.heads) > 1 else 0]
            found.append((x @ head.weight[j] + head.bias[j, 0])[0])
        return found

    def alpha(self, task: int) -> Tensor:
        log = self.agent.log_temperature
        return log[task if len(log) > 1 else 0].detach().exp()

    def means(self, terms: list[Tensor]) -> list[Tensor]:
        return [
            torch.stack([x for x, t in zip(terms, self.tasks, strict=True) if t == task]).mean()
            for task in range(self.agent.tasks)
            if self.batch.sizes[task]
        ]

    def critic_losses(self) -> list[Tensor]:
        b, terms = self.batch, []
        for row, task in enumerate(self.tasks):
            with torch.no_grad():
                action, density = self.policy(b.next_observations[row], task, self.fresh[row])
                target = self.values(self.agent.target, b.next_observations[row], action, task)
                y = b.rewards[row] + 0.99 * (min(target) - self.alpha(task) * density)
            own = self.values(self.agent.critic, b.observations[row], b.actions[row], task)
            terms.append((own[0] - y) ** 2 + (own[1] - y) ** 2)
        return self.means(terms)

    def actor_losses(self, critic: Any) -> list[Tensor]:
        """``critic``: the actor is judged by critics that have moved already."""
        terms = []
        for row, task in enumerate(self.tasks):
            seen = self.batch.observations[row]
            action, density = self.policy(seen, task, self.drawn[row])
            terms.append(
                self.alpha(task) * density - torch.minimum(*self.values(critic, seen, action, task))
            )
        return self.means(terms)

    def rows(self, losses: list[Tensor], network: Any) -> Tensor:
        """Return the k gradients with respect to a network's parameters, on one graph."""
        parameters = list(network.parameters())
        found = []
        for loss in losses:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            found.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).flatten()
                        for p, g in zip(parameters, grads, strict=True)
                    ]
                )
            )
        return torch.stack(found)


def flat_grad(network: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def made(method: str, sizes: tuple[int, ...] = (6, 6, 6), **more: Any) -> tuple[Any, Any, Any]:
    batch = as_double(random_batch(sizes))
    agent = double(MultiTaskSAC(len(sizes), **{**SMALL, "method": method, **more}))
    naive = Naive(agent, batch)
    return agent, batch, naive


@pytest.mark.parametrize("sizes", [(6, 6, 6), (3, 9, 1)])
@pytest.mark.parametrize("heads", ["shared", "multi"])
@pytest.mark.parametrize("temperature", ["shared", "per-task"])
@pytest.mark.parametrize("encoding", ["none", "one-hot"])
def test_losses_are_those_of_the_definition(
    sizes: tuple[int, ...], heads: str, temperature: str, encoding: str
) -> None:
    agent, batch, naive = made(
        "ls",
        sizes,
        heads=heads,
        encoding=encoding,
        temperature=temperature,
        initial_temperature=0.3,
    )
    critic = torch.stack(naive.critic_losses())
    found = agent.update(batch)
    torch.testing.assert_close(found.critic_losses, critic.detach(), rtol=1e-9, atol=0)
    actor = torch.stack(naive.actor_losses(agent.critic))
    torch.testing.assert_close(found.actor_losses, actor.detach(), rtol=1e-9, atol=0)


def test_squashed_probabilities_hold_far_from_zero() -> None:
    output = torch.tensor([[12.0, -20.0, 0.0, 0.0]])
    _, found = squash(output, torch.zeros(1, 2))
    # log(1 - tanh(u)^2) is log(4) - 2|u| for large |u|: float32 has no digit left of 1 - tanh^2.
    expected = -math.log(2 * math.pi) - (math.log(4) - 24) - (math.log(4) - 40)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("slicing", [False, True])
@pytest.mark.parametrize("encoding", ["none", "one-hot"])
@pytest.mark.parametrize("sizes", [(6, 6, 6), (3, 9, 1)])
def test_ntkmtl_update_is_the_closed_form(
    slicing: bool, encoding: str, sizes: tuple[int, ...]
) -> None:
    agent, batch, naive = made("ntkmtl", sizes, encoding=encoding)
    agent.always_slice = slicing
    g = naive.rows(naive.critic_losses(), naive.agent.critic)
    found = agent.update(batch)
    norms = g.norm(dim=1)
    expected = norms.square().mean().sqrt() * (g / norms[:, None]).sum(dim=0)
    torch.testing.assert_close(flat_grad(agent.critic), expected, rtol=1e-9, atol=1e-12)
    weights = (norms.square().mean() / norms.square()).sqrt()
    torch.testing.assert_close(found.critic_weights.double(), weights, rtol=1e-6, atol=0)
    assert found.critic_eigenvalues is not None
    torch.testing.assert_close(found.critic_eigenvalues.double(), norms.square(), rtol=1e-6, atol=0)
    # The scales of the rewards are 1, 10 and 100: weights that were all alike would prove nothing.
    assert float(weights.max() / weights.min()) > 3

    a = naive.rows(naive.actor_losses(agent.critic), naive.agent.actor)
    lengths = a.norm(dim=1)
    expected = lengths.square().mean().sqrt() * (a / lengths[:, None]).sum(dim=0)
    torch.testing.assert_close(flat_grad(agent.actor), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", GRAMIAN)
def test_every_gramian_method_makes_the_weighted_sum_of_the_oracles_gradients(method: str) -> None:
    agent, batch, naive = made(method)
    g = naive.rows(naive.critic_losses(), naive.agent.critic)
    found = agent.update(batch)
    if method in PLAIN:
        wanted = weighting.create(method)(ExtendedNTK((g @ g.T)[:, None, :, None]))
        torch.testing.assert_close(found.critic_weights.double(), wanted, rtol=1e-4, atol=1e-6)
    # What is reported has float32's digits; .grad is to be the sum with these weights.
    expected = found.critic_weights.double() @ g
    error = (flat_grad(agent.critic) - expected).norm() / expected.norm()
    assert float(error) < 1e-6
    if "actor" in agent.balance:
        a = naive.rows(naive.actor_losses(agent.critic), naive.agent.actor)
        expected = found.actor_weights.double() @ a
        error = (flat_grad(agent.actor) - expected).norm() / expected.norm()
        assert float(error) < 1e-6
    else:
        assert found.actor_weights.tolist() == [1.0, 1.0, 1.0]


def test_the_methods_with_a_named_oracle_are_there() -> None:
    assert set(PLAIN) <= set(GRAMIAN)
    assert {"pcgrad", "gradvac"} <= set(GRAMIAN)


@pytest.mark.parametrize("method", ["moco", "graddrop", "excess-mtl"])
def test_methods_of_entries_combine_the_oracles_gradients(method: str) -> None:
    agent, batch, naive = made(method)
    losses = naive.critic_losses()
    g = naive.rows(losses, naive.agent.critic)
    twin = weighting.create(method)
    twin.prepare(3, torch.device("cpu"))
    torch.manual_seed(5)
    expected, weights = twin.combine(g, torch.stack(losses).detach(), torch.arange(3))
    torch.manual_seed(5)
    found = agent.update(batch)
    torch.testing.assert_close(flat_grad(agent.critic), expected, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(found.critic_weights.double(), weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("encoding", ["one-hot", "learned"])
def test_slices_equal_gradients_of_one_retained_graph(encoding: str) -> None:
    batch = random_batch()
    agent = MultiTaskSAC(3, **SMALL, encoding=encoding, method="ntkmtl")
    agent.always_slice = True
    twin = copy.deepcopy(agent)
    from ntkmtl.bench.reinforce.replay import TaskView

    view = TaskView(batch.sizes, torch.device("cpu"))
    alpha = twin._alpha(view.index)
    fresh = twin._draw(batch.actions.shape)
    losses = twin.critic_losses(batch, view, twin._targets(batch, view, alpha, fresh))
    parameters = list(twin.critic.parameters())
    rows = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(v, parameters, retain_graph=True)])
            for v in losses
            if v is not None
        ]
    )
    found = agent.update(batch)
    expected = found.critic_weights @ rows
    error = (flat_grad(agent.critic) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-6


def test_multi_head_ntkmtl_balances_the_trunk_and_leaves_heads_their_own_gradients() -> None:
    agent, batch, naive = made("ntkmtl", heads="multi")
    critic = naive.agent.critic
    g = naive.rows(naive.critic_losses(), critic)
    shared = sum(p.numel() for p in critic.shared_parameters())
    found = agent.update(batch)
    trunk = g[:, :shared]
    norms = trunk.norm(dim=1)
    grad = flat_grad(agent.critic)
    expected = norms.square().mean().sqrt() * (trunk / norms[:, None]).sum(dim=0)
    torch.testing.assert_close(grad[:shared], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad[shared:], g[:, shared:].sum(dim=0), rtol=1e-9, atol=1e-12)
    assert float(found.critic_weights.std()) > 0.1


def test_ntkmtl_sr_reads_the_features_of_each_tasks_own_rows() -> None:
    agent, batch, naive = made(
        "ntkmtl-sr", heads="multi", method_options={"minibatches": 2, "pooling": "pooled"}
    )
    critic = naive.agent.critic
    index = torch.tensor(naive.tasks)
    z = critic.represent(batch.observations, batch.actions, index)
    # Losses of the same numbers, this time from features that can be differentiated by.
    losses = []
    for task in range(3):
        own = [r for r in range(18) if naive.tasks[r] == task]
        with torch.no_grad():
            ys = []
            for r in own:
                action, density = naive.policy(batch.next_observations[r], task, naive.fresh[r])
                value = min(
                    naive.values(naive.agent.target, batch.next_observations[r], action, task)
                )
                ys.append(batch.rewards[r] + 0.99 * (value - naive.alpha(task) * density))
        q = critic.head(z[:, own], task).squeeze(-1)
        losses.append((q - torch.stack(ys)).square().sum(dim=0).mean())
    eigenvalues = []
    for task, loss in enumerate(losses):
        grad = torch.autograd.grad(loss, z, retain_graph=True)[0]
        own = [r for r in range(18) if naive.tasks[r] == task]
        # Eq. 17: a mini-batch's gradient is the mean over its samples of that of its mean loss.
        halves = torch.stack([grad[:, own[:3]].sum(1).flatten(), grad[:, own[3:]].sum(1).flatten()])
        halves = halves * 2
        eigenvalues.append(torch.linalg.eigvalsh(halves @ halves.T)[-1])
    eigenvalues = torch.stack(eigenvalues)
    wanted = (eigenvalues.mean() / eigenvalues).sqrt()
    g = naive.rows(naive.critic_losses(), critic)
    found = agent.update(batch)
    torch.testing.assert_close(found.critic_weights.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(flat_grad(agent.critic), wanted @ g, rtol=1e-6, atol=1e-9)


def test_weights_are_kept_for_every_updates_and_the_gradient_follows_them() -> None:
    agent = double(MultiTaskSAC(3, **SMALL, method="ntkmtl", every=3))
    seen = []
    for number in range(7):
        batch = as_double(random_batch(seed=number))
        naive = Naive(agent, batch)
        g = naive.rows(naive.critic_losses(), naive.agent.critic)
        found = agent.update(batch)
        seen.append(found.critic_weights)
        expected = found.critic_weights.double() @ g
        torch.testing.assert_close(flat_grad(agent.critic), expected, rtol=1e-5, atol=1e-8)
        assert (found.critic_eigenvalues is None) == (number % 3 > 0)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[5])
    assert not torch.equal(seen[5], seen[6])


@pytest.mark.parametrize("temperature", ["shared", "per-task"])
def test_the_temperature_descends_along_the_plain_mean(temperature: str) -> None:
    agent, batch, naive = made("ntkmtl", temperature=temperature, initial_temperature=0.5)
    densities = torch.stack(
        [
            naive.policy(batch.observations[r], t, naive.drawn[r])[1]
            for r, t in enumerate(naive.tasks)
        ]
    ).detach()
    agent.update(batch)
    # d/dlog(alpha) of alpha * (-log pi - H), H = -2 for two actions, over all 18 rows.
    terms = 0.5 * (-densities + 2.0)
    expected = (
        terms.mean().reshape(1) if temperature == "shared" else terms.view(3, 6).sum(dim=1) / 18
    )
    assert agent.log_temperature.grad is not None
    torch.testing.assert_close(agent.log_temperature.grad, expected, rtol=1e-7, atol=0)
    assert agent.target_entropy == -2.0
    assert MultiTaskSAC(2).target_entropy == -4.0


def test_target_critics_move_by_tau_toward_the_critics() -> None:
    agent, batch, _ = made("ls", tau=0.1)
    before = [p.clone() for p in agent.target.parameters()]
    agent.update(batch)
    for old, new, own in zip(
        before, agent.target.parameters(), agent.critic.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * own.detach(), rtol=1e-12, atol=1e-15)
        assert not new.requires_grad


def test_the_protocols_numbers_are_the_defaults() -> None:
    agent = MultiTaskSAC(10)
    assert (agent.gamma, agent.tau) == (0.99, 0.005)
    assert [p.shape for p in agent.actor.trunk.parameters()][::2] == [
        (400, 49),
        (400, 400),
        (400, 400),
    ]
    assert {g["lr"] for o in agent._optimizers.values() for g in o.param_groups} == {3e-4}
    assert agent.log_temperature.tolist() == [0.0]


def test_a_task_without_rows_has_no_say() -> None:
    agent, batch, _ = made("ntkmtl", (6, 0, 6))
    found = agent.update(batch)
    assert found.critic_losses.isnan().tolist() == [False, True, False]
    assert found.critic_weights[1] == 0
    pair, same, _ = made("ntkmtl", (6, 6))
    assert float(found.critic_weights[[0, 2]].sum()) > 0
    assert pair.update(same).critic_weights.shape == (2,)


def test_famo_weighs_the_critics_alone_and_sees_the_losses_after_the_step() -> None:
    agent, batch, naive = made("famo")
    losses = torch.stack(naive.critic_losses()).detach()
    found = agent.update(batch)
    share = 1 / (losses + 1e-8)
    torch.testing.assert_close(
        found.critic_weights.double(), share / share.sum(), rtol=1e-6, atol=0
    )
    assert found.actor_weights.tolist() == [1.0, 1.0, 1.0]
    logits = agent.critic_balancer.state_dict()["weighting.logits"]
    assert float(logits.abs().max()) > 0
    # After the step the same batch was looked at again, so nothing is left to be looked at.
    assert agent.critic_balancer.state_dict()["weighting.before"].isnan().all()


@pytest.mark.parametrize(
    ("method", "heads", "sizes"),
    [
        ("ls", "shared", [(6, 6, 6), (3, 9, 6)]),
        ("ntkmtl", "shared", [(6, 6, 6)]),
        ("famo", "multi", [(6, 6, 6)]),
    ],
)
def test_compiled_updates_are_the_same(
    method: str, heads: Any, sizes: list[tuple[int, ...]]
) -> None:
    eager, compiled = (
        MultiTaskSAC(3, **SMALL, heads=heads, method=method, every=2, compile=compile)
        for compile in (False, True)
    )
    assert compiled._critic_rows is not eager._critic_rows
    for step in range(6):
        batch = random_batch(sizes[step % len(sizes)], seed=step)
        found, expected = compiled.update(batch), eager.update(batch)
        torch.testing.assert_close(found.critic_losses, expected.critic_losses)
        torch.testing.assert_close(found.actor_losses, expected.actor_losses)
        torch.testing.assert_close(found.critic_weights, expected.critic_weights)
    for a, b in zip(compiled.actor.parameters(), eager.actor.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_acting_is_the_squashed_mean_or_a_draw() -> None:
    agent = MultiTaskSAC(3, **SMALL, heads="multi")
    seen = torch.randn(3, 5)
    calm = agent.act(seen, deterministic=True)
    for task in range(3):
        x = torch.cat([seen[task], torch.eye(3)[task]])
        mean = agent.actor.heads[task](agent.actor.trunk(x)).chunk(2)[0]
        torch.testing.assert_close(calm[task], mean.detach().tanh())
    assert torch.equal(calm, agent.act(seen, deterministic=True))
    assert not torch.equal(agent.act(seen), agent.act(seen))


@pytest.mark.parametrize("method", ["ls", "ntkmtl", "moco", "famo", "pcgrad", "ntkmtl-sr", "uw"])
def test_a_saved_agent_goes_on_bit_for_bit(method: str) -> None:
    settings = {**SMALL, "method": method, "heads": "multi" if method == "ntkmtl-sr" else "shared"}
    one = MultiTaskSAC(3, **settings)
    for number in range(3):
        one.update(random_batch(seed=number))
    two = MultiTaskSAC(3, **settings, seed=9)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for agent in (one, two):
        torch.manual_seed(3)
        for number in range(3, 6):
            agent.update(random_batch(seed=number))
    for p, q in zip(one.critic.parameters(), two.critic.parameters(), strict=True):
        assert torch.equal(p, q)
    seen = torch.zeros(3, 5)
    assert torch.equal(one.act(seen), two.act(seen))


def test_a_state_with_other_temperatures_is_refused() -> None:
    agent = MultiTaskSAC(3, **SMALL, temperature="per-task")
    state = copy.deepcopy(MultiTaskSAC(3, **SMALL, temperature="shared").state_dict())
    before = copy.deepcopy(agent.actor.state_dict())
    with pytest.raises(ValueError, match=r"of shape \(1,\), this agent of shape \(3,\)"):
        agent.load_state_dict(state)
    assert all(torch.equal(v, before[name]) for name, v in agent.actor.state_dict().items())


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(ValueError, match="consmtl does not suit multi-task SAC: it needs heads"):
        MultiTaskSAC(3, **SMALL, method="consmtl")
    with pytest.raises(ValueError, match="one head; set heads='multi'"):
        MultiTaskSAC(3, **SMALL, method="ntkmtl-sr")
    with pytest.raises(ValueError, match=r"tau must be in \(0, 1\], found 0"):
        MultiTaskSAC(3, **SMALL, tau=0)
    with pytest.raises(ValueError, match="unknown method"):
        MultiTaskSAC(3, **SMALL, method="sgd")


def test_a_broken_batch_changes_nothing_of_the_network_that_it_breaks() -> None:
    agent = MultiTaskSAC(3, **SMALL, method="ntkmtl")
    batch = random_batch()
    batch.rewards[7] = math.nan
    before = [p.detach().clone() for p in agent.critic.parameters()]
    with pytest.raises(FloatingPointError, match="the loss of task 1 is nan"):
        agent.update(batch)
    assert all(torch.equal(p, q) for p, q in zip(before, agent.critic.parameters(), strict=True))
