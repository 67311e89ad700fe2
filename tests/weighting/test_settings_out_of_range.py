"""Settings out of range of methods that read gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ntkmtl.weighting import create


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fixed", {"weights": [1.0, -1.0]}),
        ("fixed", {"weights": [math.nan]}),
        ("imtl-l", {"tasks": 0}),
        ("imtl", {"learning_rate": 0.0}),
        ("gradnorm", {"alpha": -1.0}),
        ("gradnorm", {"learning_rate": math.inf}),
        ("go4align", {"groups": 0}),
        ("go4align", {"step_size": 0.0}),
        ("upgrad", {"regularization": -1e-4}),
        ("dualproj", {"regularization": -1.0}),
        ("gradvac", {"beta": 1.5}),
        ("pcd", {"tau": 2.0}),
        ("pcd", {"beta": 1.0}),
        ("pcd", {"epsilon": -1.0}),
        ("pcd", {"primary": -1}),
        ("cr-mogm", {"alpha": -0.1}),
        ("excess-mtl", {"step_size": 0.0}),
        ("excess-mtl", {"warmup": -1}),
    ],
)
def test_settings_out_of_range(name: str, options: dict[str, Any]) -> None:
    (setting,) = options
    with pytest.raises(ValueError, match=setting):
        create(name, **options)
