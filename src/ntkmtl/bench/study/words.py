"""The judgement of a study in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from ntkmtl.bench.report._words import count
from ntkmtl.bench.study.inference import Ranking
from ntkmtl.bench.study.judgement import Overall, ProblemJudgement
from ntkmtl.bench.study.plan import REFERENCE

__all__ = ["sentences"]

FEW_SEEDS, FEW_SOURCES = 6, 5
"""With fewer seeds or sources, sentences say that results are uncertain."""


def sentences(
    problems: Sequence[ProblemJudgement], overall: Sequence[Overall], ranking: Ranking | None
) -> list[str]:
    """Return the judgement, one sentence or two each."""
    sources = sorted({problem.source for problem in problems})
    found = [
        f"{count(len(problems), 'problem')} from {count(len(sources), 'source')} of data: "
        f"{', '.join(problem.problem for problem in problems)}. Tuned methods are compared with "
        "the tuned plain sum of the losses, paired by seed, by 95 % intervals."
    ]
    others = [o for o in overall if o.method != REFERENCE and o.difference is not None]
    same = [o for o in others if o.difference and not o.difference.excludes_zero]
    better = [o for o in others if o.difference and o.difference.high < 0]
    worse = [o for o in others if o.difference and o.difference.low > 0]
    if same:
        found.append(
            f"Cannot be distinguished from the plain sum here: {_listed(same, len(problems))}."
        )
    for side, entries in (("Better", better), ("Worse", worse)):
        sure = [o for o in entries if o.seeds >= FEW_SEEDS]
        few = [o for o in entries if o.seeds < FEW_SEEDS]
        if sure:
            found.append(f"{side} than the plain sum here: {_listed(sure, len(problems))}.")
        if few:
            found.append(
                f"{side} than the plain sum in these runs, with too few seeds to count on it: "
                f"{_listed(few, len(problems))}."
            )
    found += [
        f"{entry.method} is not judged on {', '.join(entry.diverged)}: a tuned run of it, or of "
        f"{REFERENCE}, diverged."
        for entry in overall
        if entry.diverged
    ]
    untuned = [o.method for o in overall if not o.problems]
    if untuned:
        found.append(f"Not tuned, so not judged: {', '.join(untuned)}.")
    return [*found, *_limits(len(sources), others, ranking)]


def _limits(sources: int, others: Sequence[Overall], ranking: Ranking | None) -> list[str]:
    found = []
    seeds = min((o.seeds for o in others), default=0)
    if others and seeds < FEW_SEEDS:
        found.append(
            f"With {count(seeds, 'seed')} intervals are too narrow: take {FEW_SEEDS} or more "
            "before you call a method a winner."
        )
    if sources < FEW_SOURCES:
        found.append(
            f"With {count(sources, 'source')} of data this says little about other problems."
        )
    if ranking is None:
        found.append(
            "Ranks are not tested: that takes three problems or more, and three methods tuned on "
            "all of them."
        )
    else:
        verdict = "differ" if ranking.p_value < 0.05 else "cannot be distinguished"
        found.append(
            f"By ranks over {ranking.problems} problems, the {len(ranking.methods)} methods of "
            f"the diagram {verdict} (Friedman's test, p = {ranking.p_value:.2g})."
        )
    return found


def _listed(entries: Sequence[Overall], problems: int) -> str:
    return "; ".join(_with_cost(entry, problems) for entry in entries)


def _with_cost(entry: Overall, problems: int) -> str:
    difference = entry.difference
    assert difference is not None
    words = (
        f"{entry.method} ({difference.mean:+.1f} points of Δm, from {difference.low:+.1f} to "
        f"{difference.high:+.1f}"
    )
    if entry.problems < problems:
        words += f", on {entry.problems} of {problems} problems"
    if entry.step_ratio:
        words += f"; a step takes {entry.step_ratio:.2f} times as long"
    if entry.tuning_ratio:
        words += f", its search {entry.tuning_ratio:.2f} times"
    return words + ")"
