"""Nested inputs: which containers are traversed and rebuilt."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch

from ntkmtl.kernel._chunks import batch_size, cut
from ntkmtl.kernel._nested import leaves_of, map_leaves


class Pair(NamedTuple):
    first: Any
    second: Any


class SubclassOfDict(dict[str, Any]):
    pass


@pytest.mark.parametrize(
    "nested",
    [
        (1, 2),
        [1, [2]],
        {"b": 1, "a": (2,)},
        OrderedDict(b=1, a=2),
        defaultdict(list, b=1, a=2),
        Pair(1, {"c": 2}),
    ],
    ids=lambda nested: type(nested).__name__,
)
def test_containers_keep_their_class_and_their_order(nested: Any) -> None:
    assert list(leaves_of(nested)) == [1, 2]
    same = map_leaves(lambda leaf: leaf, nested)
    assert type(same) is type(nested)
    assert same == nested
    assert same is not nested
    assert list(leaves_of(map_leaves(lambda leaf: 10 * leaf, nested))) == [10, 20]


def test_objects_of_other_classes_are_entries() -> None:
    batch = SubclassOfDict(x=torch.ones(3))
    assert list(leaves_of([batch, torch.Size([2])])) == [batch, torch.Size([2])]
    assert batch_size((batch,), 0) is None


def test_constants_stay_when_samples_are_cut() -> None:
    inputs = (Pair(torch.arange(3), [torch.arange(6).view(3, 2)]), {"size": torch.Size([4, 4])})
    assert batch_size(inputs, 0) == 3
    pair, constants = cut(inputs, 0, 1, 3)
    assert pair.first.tolist() == [1, 2]
    assert pair.second[0].tolist() == [[2, 3], [4, 5]]
    assert constants == {"size": torch.Size([4, 4])}
