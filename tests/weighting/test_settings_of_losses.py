"""Settings out of range of methods that read losses."""

from __future__ import annotations

import pytest

from ntkmtl.weighting import create


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dwa", {"temperature": 0.0}),
        ("famo", {"learning_rate": -1.0}),
        ("famo", {"gamma": float("nan")}),
        ("stch", {"mu": 0.0}),
        ("stch", {"warmup": -1}),
        ("uw", {"tasks": 0}),
        ("ntkmtl", {"exponent": -0.5}),
        ("cagrad", {"c": -0.1}),
        ("fairgrad", {"alpha": 0.0}),
        ("aligned-mtl", {"scale_mode": "max"}),
    ],
)
def test_settings_out_of_range(name: str, options: dict[str, float]) -> None:
    (setting,) = options
    with pytest.raises(ValueError, match=setting):
        create(name, **options)
