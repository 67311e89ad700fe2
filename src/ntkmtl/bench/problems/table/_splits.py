"""Which rows are trained on, validated on and tested on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ntkmtl.bench.problems._supervised import SPLITS
from ntkmtl.bench.problems.base import Split
from ntkmtl.bench.problems.table._columns import Target, Typed
from ntkmtl.bench.problems.table._options import Shares
from ntkmtl.bench.problems.table._raw import Array, TableError

TRAIN, VAL, TEST = 0, 1, 2


def split_rows(path: Path, typed: Typed, kept: Array, shares: Shares) -> dict[Split, Array]:
    """Return the positions of each split's rows.

    Raises:
        TableError: A split has too few rows.
    """
    if typed.keys is None:
        sides = _at_random(typed.targets, kept, shares)
    elif typed.by == "split":
        sides = typed.keys[kept]
    elif typed.by == "group":
        sides = _by_group(typed.keys[kept], [t for t in typed.targets if t.classes], kept, shares)
    else:
        sides = _by_time(typed.keys[kept], shares)
    found = {split: kept[sides == number] for number, split in enumerate(SPLITS)}
    for split, places in found.items():
        if not len(places):
            raise TableError(
                f"{path}: the split {split} gets no row that has a label{_together(typed, kept)}."
            )
    if len(found["train"]) < 8:
        raise TableError(
            f"{path}: {len(found['train'])} rows are left to train on; at least 8 are needed."
        )
    return found


def _together(typed: Typed, kept: Array) -> str:
    """Return why a split is empty where rows stay together, ``""`` where they do not."""
    if typed.keys is None or typed.by == "split":
        return ""
    counts = np.unique(typed.keys[kept], return_counts=True)[1]
    return (
        f": rows of one {typed.by} stay together, and of {len(counts):,} in all the most frequent "
        f"has {counts.max():,} of the {len(kept):,} labeled rows"
    )


def _by_time(times: Array, shares: Shares) -> Array:
    """Split in the order of time; rows of the same time stay together."""
    ordered = np.sort(times, kind="stable")
    val, test = shares.rows(len(times))
    first_test = ordered[len(times) - test]
    first_val = ordered[max(0, len(times) - test - val)]
    sides = np.full(len(times), TRAIN)
    sides[times >= first_val] = VAL
    sides[times >= first_test] = TEST
    return sides


def _by_group(groups: Array, targets: Sequence[Target], kept: Array, shares: Shares) -> Array:
    """Split by whole groups; take the best of 20 draws.

    It is the one whose sides lack the fewest classes. A draw that leaves less than half of what was
    asked for to train on counts as lacking them all: one large group may have gone to testing.
    """
    best, fewest = None, 0
    val, test = shares.rows(len(groups))
    enough = (len(groups) - val - test) / 2
    for draw in range(20):
        random = np.random.default_rng([shares.seed, draw])
        sides = _groups_shared(groups, random, shares)
        lacking = sum(
            len(set(np.unique(t.values[kept])) - {-1}) * 3
            - sum(len(set(np.unique(t.values[kept][sides == s])) - {-1}) for s in range(3))
            for t in targets
        )
        lacking += 1_000_000 * bool((sides == TRAIN).sum() < enough)
        if best is None or lacking < fewest:
            best, fewest = sides, lacking
        if not fewest:
            break
    assert best is not None
    return best


def _groups_shared(groups: Array, random: np.random.Generator, shares: Shares) -> Array:
    sizes = np.bincount(groups)
    val, test = shares.rows(len(groups))
    wanted = np.array([len(groups) - val - test, val, test], dtype=float)
    held, side_of = np.zeros(3), np.zeros(len(sizes), dtype=int)
    for group in random.permutation(np.flatnonzero(sizes)):
        # Each side gets one group before any gets a second one.
        side = int(np.argmin(held / wanted))
        side_of[group] = side
        held[side] += sizes[group]
    sides: Array = side_of[groups]
    return sides


def _at_random(targets: Iterable[Target], kept: Array, shares: Shares) -> Array:
    """Split at random, and then see to it that each side has some of each class."""
    random = np.random.default_rng(shares.seed)
    order = random.permutation(len(kept))
    val, test = shares.rows(len(kept))
    sides = np.full(len(kept), TRAIN)
    sides[order[:test]] = TEST
    sides[order[test : test + val]] = VAL
    classes = []
    for target in targets:
        if target.classes:
            codes = target.values[kept]
            counts = np.bincount(codes[codes >= 0], minlength=len(target.classes))
            classes += [(int(n), codes == code) for code, n in enumerate(counts) if n]
    classes.sort(key=lambda found: found[0])
    # With all rows of a rare class where they are, there may be no place left for the next class.
    best = _with_classes(sides, classes, random, shares, hold_all=True)
    fewest = _lacking(best, classes)
    for _ in range(20):
        if not fewest:
            break
        other = _with_classes(sides, classes, random, shares, hold_all=False)
        if (lacking := _lacking(other, classes)) < fewest:
            best, fewest = other, lacking
    return best


def _with_classes(
    sides: Array,
    classes: Sequence[tuple[int, Array]],
    random: np.random.Generator,
    shares: Shares,
    hold_all: bool,
) -> Array:
    """Return sides on which each has some of each class, as far as rows allow."""
    sides = sides.copy()
    held = np.zeros(len(sides), dtype=bool)
    for count, members in classes:
        _share_class(sides, members, count, held, random, shares, hold_all)
    return sides


def _lacking(sides: Array, classes: Sequence[tuple[int, Array]]) -> int:
    """Return how many times a class of three rows or more has none on a side."""
    return sum(
        not (members & (sides == side)).any()
        for count, members in classes
        if count >= 3
        for side in range(3)
    )


def _share_class(
    sides: Array,
    members: Array,
    count: int,
    held: Array,
    random: np.random.Generator,
    shares: Shares,
    hold_all: bool,
) -> None:
    """Swap rows until each side has about its share of a class, and at least one if there are 3.

    The sides are changed in place. ``members`` are the ``count`` rows of the class, ``held`` the
    rows that rarer classes need where they are, to which those of this class are added: all, or as
    many as each side needs.
    """
    needed = np.zeros(3, dtype=int)
    needed[TEST] = max(1, int(shares.test * count)) if count >= 2 else 0
    needed[VAL] = max(1, int(shares.val * count)) if count >= 3 else 0
    needed[TRAIN] = 1
    for side in (TEST, VAL, TRAIN):
        while (members & (sides == side)).sum() < needed[side]:
            spare = [s for s in range(3) if (members & (sides == s)).sum() > needed[s]]
            givers = np.flatnonzero(members & np.isin(sides, spare) & (sides != side) & ~held)
            takers = np.flatnonzero(~members & (sides == side) & ~held)
            if not len(givers) or not len(takers):
                break
            giver, taker = random.choice(givers), random.choice(takers)
            sides[giver], sides[taker] = side, sides[giver]
    if count >= 10 / min(shares.val, shares.test):
        return
    if hold_all:
        held |= members
        return
    for side in (TEST, VAL, TRAIN):
        own = np.flatnonzero(members & (sides == side))
        # Those that are held already first.
        held[own[np.argsort(~held[own], kind="stable")][: needed[side]]] = True
