from __future__ import annotations

import torch

from ntkmtl.bench.problems.base import batches


def test_batches_are_those_of_the_generator_whatever_the_default_device() -> None:
    expected = list(batches(10, 3, torch.Generator().manual_seed(0)))
    with torch.device("meta"):
        found = list(batches(10, 3, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found, expected)
