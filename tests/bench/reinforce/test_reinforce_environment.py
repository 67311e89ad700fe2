"""Meta-World behind its wrapper: experts, determinism, goals, horizon, reward scaling."""

from __future__ import annotations

import sys

import gymnasium
import metaworld  # noqa: F401  (registers its worlds)
import numpy as np
import pytest
import torch
from torch import Tensor

from ntkmtl.bench.reinforce import MetaWorld, expert
from ntkmtl.bench.reinforce.environment import MT10, RewardScale
from ntkmtl.errors import MissingExtraError

PAIR = ("reach", "drawer-close")


def rollout(world: MetaWorld, episodes: int, seed: int = 0) -> Tensor:
    """Return all that is seen under random actions, one row per step."""
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(episodes):
        rows.append(world.reset().flatten())
        ended = False
        while not ended:
            step = world.step(2 * torch.rand(len(world.tasks), 4, generator=draws) - 1)
            rows += [step.next_observations.flatten(), step.rewards, step.successes.float()]
            ended = step.ended
    return torch.cat(rows)


def successes(tasks: tuple[str, ...], goals: range, horizon: int, seed: int = 0) -> list[float]:
    world = MetaWorld(tasks, seed=seed, horizon=horizon)
    policies = [expert(task) for task in tasks]
    solved = torch.zeros(len(tasks))
    for goal in goals:
        seen = world.reset(goal)
        ended = False
        while not ended:
            actions = torch.stack([act(row) for act, row in zip(policies, seen, strict=True)])
            step = world.step(actions)
            seen, ended = step.next_observations, step.ended
        solved += step.successes
    return (solved / len(goals)).tolist()


def test_experts_solve_two_tasks() -> None:
    assert successes(PAIR, range(2), 100) == [1.0, 1.0]


@pytest.mark.slow
def test_experts_solve_mt10() -> None:
    # Seed 2: the script of door-open fails at 3 or 4 of any seed's 50 goals, in the bare simulator
    # as well; those of this seed are not among its first ten.
    found = dict(zip(MT10, successes(MT10, range(10), 500, seed=2), strict=True))
    peg = found.pop("peg-insert-side")
    assert found == dict.fromkeys(found, 1.0)
    assert peg >= 0.8


@pytest.mark.slow
def test_the_door_script_solves_most_goals_of_another_seed() -> None:
    assert successes(("door-open",), range(50), 150)[0] == pytest.approx(0.92)


def test_same_seed_same_rollout_bit_for_bit_whatever_ran_before() -> None:
    settings = {"seed": 0, "goals": "random", "horizon": 12, "scale_rewards": True}
    one, two = MetaWorld(PAIR, **settings), MetaWorld(PAIR, **settings)
    # Another history of the simulators, not of the goals.
    two.reset(7)
    for _ in range(12):
        two.step(torch.ones(2, 4))
    state = one.state_dict()
    two.load_state_dict(state)
    first = rollout(one, 3)
    assert torch.equal(first, rollout(two, 3))
    assert not torch.equal(first, rollout(MetaWorld(PAIR, **{**settings, "order_seed": 1}), 3))


def test_goals_are_fixed_or_random_and_seed_zero_counts() -> None:
    fixed = MetaWorld(PAIR, seed=0, horizon=5)
    assert torch.equal(fixed.reset(), fixed.reset())
    assert torch.equal(fixed.reset(), fixed.reset(0))
    assert not torch.equal(fixed.reset(), fixed.reset(1))
    assert torch.equal(fixed.reset(3), MetaWorld(PAIR, seed=0).reset(3))
    assert not torch.equal(fixed.reset(3), MetaWorld(PAIR, seed=1).reset(3))
    loose = MetaWorld(PAIR, seed=0, goals="random", goal_count=2, horizon=5)
    seen = {tuple(loose.reset()[0].tolist()) for _ in range(20)}
    assert len(seen) == 2
    assert seen == {tuple(fixed.reset(goal)[0].tolist()) for goal in (0, 1)}


def test_steps_are_those_of_the_benchmarks_own_vector_of_environments() -> None:
    theirs = gymnasium.make_vec(
        "Meta-World/custom-mt-envs",
        vector_strategy="sync",
        envs_list=["reach-v3", "drawer-close-v3"],
        seed=5,
        use_one_hot=True,
        max_episode_steps=4,
        reward_function_version="v2",
    )
    ours = MetaWorld(PAIR, seed=5, horizon=4)
    # Theirs draw from the goals of seeds 5 and 6; ours are given the same goals here.
    ours._goals = [list(env.get_wrapper_attr("tasks")) for env in theirs.envs]
    seen, _ = theirs.reset()
    chosen = []
    for goals, ours_env, row in zip(ours._goals, ours._made, seen, strict=True):
        for number, goal in enumerate(goals):
            ours_env.set_task(goal)
            # Their vector may hand out float32.
            if np.array_equal(ours_env.reset()[0].astype(np.float32), row[:39].astype(np.float32)):
                chosen.append(number)
                break
    assert len(chosen) == 2
    for goals, number in zip(ours._goals, chosen, strict=True):
        goals.insert(0, goals[number])
    first = ours.reset(0)
    assert torch.equal(first, torch.from_numpy(seen[:, :39]).float())
    draws = np.random.default_rng(0)
    for number in range(4):
        actions = draws.uniform(-1, 1, (2, 4)).astype(np.float32)
        after, rewards, _, truncated, info = theirs.step(actions)
        step = ours.step(torch.from_numpy(actions))
        assert step.ended == (number == 3) == bool(truncated.all())
        # On the last step, theirs return what the next episode begins with.
        last = np.stack(info["final_obs"]) if step.ended else after
        found = torch.from_numpy(last[:, :39].astype(np.float64)).float()
        assert torch.equal(step.next_observations, found)
        assert torch.equal(step.rewards, torch.from_numpy(rewards).float())
    theirs.close()


def test_success_is_kept_once_it_happened_and_the_clock_ends_episodes() -> None:
    world = MetaWorld(("reach",), seed=0, horizon=90)
    act = expert("reach")
    seen = world.reset()
    history = []
    for number in range(90):
        # Once solved, go away again.
        solved = bool(history and history[-1])
        action = torch.tensor([-1.0, -1.0, 1.0, 0.0]) if solved else act(seen[0])
        step = world.step(action[None])
        seen = step.next_observations
        history.append(bool(step.successes[0]))
        assert step.ended == (number == 89)
    assert history[-1]
    assert history == sorted(history)
    with pytest.raises(RuntimeError, match=r"no episode is running: call reset\(\)"):
        world.step(torch.zeros(1, 4))


def test_rewards_are_divided_by_their_running_deviation() -> None:
    plain, scaled = (MetaWorld(PAIR, horizon=20, scale_rewards=s) for s in (False, True))
    mean, variance = np.zeros(2), np.ones(2)
    plain.reset()
    scaled.reset()
    for number in range(20):
        actions = torch.full((2, 4), 0.1 * (number % 5))
        raw, found = plain.step(actions), scaled.step(actions)
        assert torch.equal(raw.rewards, found.raw_rewards)
        values = raw.rewards.double().numpy()
        mean = 0.999 * mean + 0.001 * values
        variance = 0.999 * variance + 0.001 * (values - mean) ** 2
        wanted = torch.from_numpy(values / (np.sqrt(variance) + 1e-8))
        torch.testing.assert_close(found.rewards.double(), wanted, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="differ in scale_rewards"):
        plain.load_state_dict(scaled.state_dict())


def test_the_running_deviation_of_steady_noise_is_its_own() -> None:
    scale, draws = RewardScale(1), torch.Generator().manual_seed(0)
    found = [scale(5 + 3 * torch.randn(1, generator=draws)) for _ in range(12_000)]
    tail = torch.stack(found[-4000:])
    assert float(tail.std()) == pytest.approx(1, rel=0.15)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'rech'; did you mean 'reach'"):
        MetaWorld(("rech",))
    with pytest.raises(ValueError, match="different names"):
        MetaWorld(("reach", "reach-v3"))
    with pytest.raises(ValueError, match=r"horizon must be in 1..500, found 501"):
        MetaWorld(PAIR, horizon=501)
    world = MetaWorld(("reach",), horizon=5)
    world.reset()
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 4\), found \(4,\)"):
        world.step(torch.zeros(4))
    with pytest.raises(ValueError, match="actions must be finite"):
        world.step(torch.full((1, 4), torch.nan))
    with pytest.raises(RuntimeError, match="saved between two episodes"):
        world.state_dict()
    with pytest.raises(RuntimeError, match="has no pictures"):
        world.render()


def test_without_the_extra_the_line_that_installs_it_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ntkmtl\[rl\]'"):
        MetaWorld(("reach",))
