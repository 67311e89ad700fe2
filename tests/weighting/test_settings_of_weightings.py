"""Settings out of range of methods that keep a history."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ntkmtl.weighting import create


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("modo", "gamma", 0.0),
        ("modo", "rho", -0.1),
        ("sdmgrad", "lambda_", -1.0),
        ("sdmgrad", "learning_rate", 0.0),
        ("sdmgrad", "momentum", 1.0),
        ("sdmgrad", "iterations", 0),
        ("moco", "beta", 1.5),
        ("moco", "beta", 0.0),
        ("moco", "beta_sigma", -1.0),
        ("moco", "gamma", math.inf),
        ("moco", "gamma_sigma", -0.5),
        ("moco", "rho", -1.0),
        ("moco", "simplex", "sparsemax"),
        ("db-mtl", "beta", 1.0),
        ("db-mtl", "beta", math.nan),
        ("db-mtl", "beta_sigma", -1.0),
        ("pivrg", "bound", 1.0),
        ("pivrg", "min_temperature", 0.0),
        ("famo", "min_loss", math.nan),
        ("famo", "min_loss", -math.inf),
        ("ldc-mtl", "penalty", -0.1),
        ("ldc-mtl", "tau", "two"),
        ("ldc-mtl", "tasks", 0),
    ],
)
def test_settings_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be.*Found"):
        create(name, **{option: value})
