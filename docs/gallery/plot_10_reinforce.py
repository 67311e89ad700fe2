"""
Reinforcement learning
======================

An actor and a critic on one trunk: the policy gradient and the value error reach it together, and
the factor between them is one more thing to tune. The environment is a cart with a pole, sixty-four
at a time, in twenty lines of torch. An entropy bonus stays outside the balance (``extra=``).
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from ntkmtl import Balancer

CARTS, STEPS = 64, 32


def push(state, right):
    """Move the carts for a fiftieth of a second; return the new states and who fell."""
    x, v, angle, spin = state.unbind(1)
    force = 20 * right - 10
    sine, cosine = angle.sin(), angle.cos()
    drive = (force + 0.05 * spin.square() * sine) / 1.1
    turn = (9.8 * sine - cosine * drive) / (0.5 * (4 / 3 - 0.1 * cosine.square() / 1.1))
    slide = drive - 0.05 * turn * cosine / 1.1
    state = torch.stack(
        [x + 0.02 * v, v + 0.02 * slide, angle + 0.02 * spin, spin + 0.02 * turn], dim=1
    )
    return state, (state[:, 0].abs() > 2.4) | (state[:, 2].abs() > 0.21)


class ActorCritic(nn.Module):
    """A trunk, logits of the two pushes, and the value of a state."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, state):
        """Return a distribution over pushes, and values."""
        z = self.trunk(state)
        return torch.distributions.Categorical(logits=self.actor(z)), self.critic(z)[:, 0]


def rollout(model, state, age):
    """Play on for some steps; return what was seen, and the lengths of the games that ended."""
    seen, ended = [], []
    for _ in range(STEPS):
        with torch.no_grad():
            action = model(state)[0].sample()
        after, fell = push(state, action)
        age = age + 1
        over = fell | (age >= 500)
        ended += age[over].tolist()
        seen.append((state, action, fell, over, after))
        fresh = 0.1 * torch.rand(CARTS, 4) - 0.05
        state = torch.where(over[:, None], fresh, after)
        age = torch.where(over, 0, age)
    return seen, state, age, ended


def returns(model, seen, discount=0.99):
    """Return discounted rewards of 1 per step, continued by the critic's values."""
    with torch.no_grad():
        total = model(seen[-1][4])[1]
        back = []
        for _, _, fell, over, after in reversed(seen):
            value = torch.where(over, model(after)[1], total)
            total = 1 + discount * torch.where(fell, 0.0, value)
            back.append(total)
    return torch.stack(back[::-1]).flatten()


def train(balancer, updates=150):
    """Train with a balancer, or with the plain sum if there is none."""
    torch.manual_seed(0)
    model = ActorCritic()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    state, age = 0.1 * torch.rand(CARTS, 4) - 0.05, torch.zeros(CARTS)
    lengths, length = [], 0.0
    for _ in range(updates):
        seen, state, age, ended = rollout(model, state, age)
        goal = returns(model, seen)
        policy, value = model(torch.cat([step[0] for step in seen]))
        advantage = (goal - value).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        chosen = policy.log_prob(torch.cat([step[1] for step in seen]))
        losses = {"actor": -(chosen * advantage).mean(), "critic": (value - goal).square().mean()}
        bonus = -0.01 * policy.entropy().mean()
        optimizer.zero_grad()
        if balancer is None:
            (sum(losses.values()) + bonus).backward()
        else:
            balancer.backward(losses, extra=bonus)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if ended:
            length = sum(ended) / len(ended)
        lengths.append(length)
    return torch.tensor(lengths)


runs = {"plain sum": train(None), "Balancer()": train(Balancer())}

# %%
# Mean length of the games that ended in each update (the aim is 500), smoothed over ten. One seed
# shows what such a run looks like, not which of the two is better.

figure, axis = plt.subplots(figsize=(7, 3.4))
for label, lengths in runs.items():
    axis.plot(lengths.unfold(0, 10, 1).mean(-1), label=label)
axis.set(xlabel="update", ylabel="steps before the pole falls")
axis.legend()
figure.tight_layout()
