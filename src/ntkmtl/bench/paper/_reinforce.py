"""Table 4 beside success rates that were measured: multi-task reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntkmtl.bench.paper._results import find_result
from ntkmtl.bench.paper._settings import PaperDifference
from ntkmtl.bench.paper._sidebyside import MEASURED, Entry, Number, SideBySide, orders
from ntkmtl.bench.paper._tables import PaperColumn, table

if TYPE_CHECKING:
    from ntkmtl.bench.reinforce import ReinforceRecipe, Success
    from ntkmtl.bench.reinforce.comparison import AgentComparison
    from ntkmtl.bench.runs import Run

PUBLISHED: dict[str, tuple[str, Any, bool]] = {
    "tasks": ("tasks", "the 10 of MT10", True),
    "simulator": ("simulator", "Meta-World V1 tasks and their rewards", False),
    "seeds": ("seeds", 10, True),
    "vector_steps": ("vector steps", 2_000_000, True),
    "goals": ("goals", "fixed", False),
    "horizon": ("horizon", 150, False),
    "scale_rewards": ("rewards over their running deviation", True, False),
    "hidden": ("hidden layers", (400, 400, 400), False),
    "encoding": ("task encoding given to the networks", "none", False),
    "temperature": ("temperature (published: as the variant says)", "published", False),
    "initial_temperature": ("initial temperature", 1.0, False),
    "batch_size": ("batch size", 1280, True),
    "sampling": ("sampling", "uniform", False),
    "capacity": ("transitions kept", 1_000_000, False),
    "random_steps": ("random vector steps", 1500, False),
    "catch_up": ("as many updates after them", True, False),
    "learning_rate": ("learning rate", 3e-4, False),
    "gamma": ("gamma", 0.99, False),
    "tau": ("tau", 0.005, False),
    "every": ("updates between two sets of weights", 1, False),
    "evaluate_every": ("vector steps between evaluations", 30_000, False),
    "evaluation_episodes": ("episodes per evaluation and task", 1, False),
    "bfloat16_products": ("matrix products of bfloat16", False, False),
    "method_options": ("settings of methods", {"famo": {"gamma": 0.01}}, False),
    "compile": ("updates compiled", False, False),
}
"""Published settings by field of a recipe: its name for people, and whether the paper says so."""

ALWAYS = (
    (
        "deviation of a new policy",
        "1, its logarithm clamped to -20..2",
        "e^-9, its logarithm -20 + 11 (tanh + 1)",
    ),
    ("initial weights", "uniform, as PyTorch's layers", "Xavier, biases 0"),
    ("heads of mh-sac", "one layer", "two layers of 400, in actor and critics"),
    ("task encoder of mtl-sac-te", "one for the actor, one for the critics", "one for both"),
    ("gradient of the temperature", "the plain mean", "that of the method in CAGrad and FairGrad"),
)
"""What differs under every recipe: setting, here, in the published code."""

_COLUMNS = (
    PaperColumn("final", "Final", higher_is_better=True),
    PaperColumn("final_iqm", "Final IQM", higher_is_better=True),
)


def success_of(comparison: AgentComparison) -> SideBySide:
    """Put Table 4 beside the success rates of a comparison's complete runs.

    The published column is compared with the maximum over time of the mean over seeds, as the
    published runs report it; the two further columns, success after the last step and its
    interquartile mean, are measured only.

    Raises:
        ValueError: No run is complete, or a file is damaged.
    """
    from ntkmtl.bench.reinforce import summarize
    from ntkmtl.bench.runs import load_runs

    recipe, asked, out = comparison.recipe, set(comparison.methods), comparison.out
    found = [one for one in summarize(out) if one.variant in asked]
    runs = [run for run in load_runs(out)[0] if run.config.method in asked]
    source = table(4)
    printed = {row.method: row for row in source.rows}
    entries = []
    for one in found:
        name = printed[one.variant].printed if one.variant in printed else one.variant
        if one.variant in printed:
            number = Number.printed(printed[one.variant].cells["success_rate"])
            entries.append(Entry(one.variant, name, "published", {"success_rate": number}))
        entries.append(Entry(one.variant, name, MEASURED, _numbers(one)))
    seeds = sorted({seed for one in found for seed in one.seeds})
    return SideBySide(
        result=find_result("table4"),
        columns=(*source.columns, *_COLUMNS),
        entries=tuple(entries),
        differences=tuple(_differences(recipe, len(seeds))),
        notes=tuple(_notes(found, recipe)),
        orders=tuple(orders(source.columns, entries)),
        runs=(_facts(recipe, runs, seeds, out),),
    )


def _numbers(one: Success) -> dict[str, Number]:
    def number(percent: float, error: float | None = None) -> Number:
        value = percent / 100
        stderr = None if error is None else error / 100
        return Number(value, stderr, f"{value:.2f}", "" if stderr is None else f"{stderr:.2f}")

    return {
        "success_rate": number(one.best, one.best_stderr),
        "final": number(one.final),
        "final_iqm": number(one.final_interquartile_mean),
    }


def _differences(recipe: ReinforceRecipe, seeds: int) -> Iterator[PaperDifference]:
    from ntkmtl.bench.reinforce.environment import MT10

    others = {
        "tasks": PUBLISHED["tasks"][1] if recipe.tasks == MT10 else ", ".join(recipe.tasks),
        "simulator": "Meta-World V3 tasks with V2 rewards: not comparable",
        "seeds": seeds,
    }
    for name, (words, published, said) in PUBLISHED.items():
        here = others[name] if name in others else getattr(recipe, name)
        if here != published:
            yield PaperDifference("mt10", words, _shown(here), _shown(published), said)
    for setting, ours, theirs in ALWAYS:
        yield PaperDifference("mt10", setting, ours, theirs, False)


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        texts = [f"{m} {k} {v}" for m, own in value.items() for k, v in own.items()]
        return ", ".join(texts) or "the methods' own"
    return " x ".join(map(str, value)) if isinstance(value, tuple) else value


def _notes(found: Sequence[Success], recipe: ReinforceRecipe) -> Iterator[str]:
    yield (
        "Not comparable: the published numbers are of Meta-World's V1 tasks, these of V3 tasks "
        "with V2 rewards, which is what the simulator offers today."
    )
    yield (
        "Measured success rate: the best evaluation over training of the mean over seeds, as "
        "published; ± is the standard error over seeds there. It is higher than what a trained "
        "agent does, which Final shows: the mean after the last step, and its interquartile mean "
        "over seeds and tasks."
    )
    for one in found:
        ends = one.interval()
        if ends is not None:
            yield (
                f"{one.variant}: final {one.final / 100:.2f}, 95 % bootstrap interval "
                f"{ends[0] / 100:.2f} to {ends[1] / 100:.2f} over {len(one.seeds)} seeds."
            )
    if recipe.reduced:
        yield f"Reduced recipe {recipe.name}: {recipe.description}."
    rows = [row.method for row in table(4).rows]
    left = [row for row in rows if row not in {one.variant for one in found}]
    if left:
        yield f"{len(left)} of {len(rows)} published rows were not run: {', '.join(left)}."


def _facts(
    recipe: ReinforceRecipe, runs: Sequence[Run], seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    hardware = dict(runs[0].config.hardware)
    seconds = sorted(run.result.wall_seconds for run in runs)
    return {
        "problem": "mt10",
        "published_problem": "mt10",
        "recipe_name": recipe.name,
        "folder": str(out),
        "stl": "trained" if any(run.config.single_task is not None for run in runs) else "none",
        "facts": {"hardware": hardware, "versions": dict(runs[0].config.versions)},
        "notes": [
            f"Recipe {recipe.name}: {recipe.vector_steps:,} vector steps, seeds "
            f"{', '.join(map(str, seeds))}",
            f"{len(runs)} runs, {seconds[0]:.0f} to {seconds[-1]:.0f} s each, on "
            f"{hardware.get('processor', 'unknown')}, {hardware.get('threads')} thread(s) a run",
        ],
    }
