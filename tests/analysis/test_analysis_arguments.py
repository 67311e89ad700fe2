"""Wrong arguments of functions of kernels and their eigenvalues are errors in words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ntkmtl import ExtendedNTK
from ntkmtl.analysis import Recorder, group_tasks
from ntkmtl.analysis.kernels import (
    condition_number,
    effective_rank,
    extended_spectrum,
    imbalance,
    numerical_rank,
    participation_ratio,
    task_spectra,
)

OF_EIGENVALUES = [
    condition_number,
    effective_rank,
    imbalance,
    numerical_rank,
    participation_ratio,
]


@pytest.mark.parametrize("function", OF_EIGENVALUES)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "must be a tensor of real numbers"),
        (torch.tensor([1j]), TypeError, "must be a tensor of real numbers"),
        (torch.zeros(0), ValueError, r"found \(0,\)"),
        (torch.tensor(1.0), ValueError, r"found \(\)"),
    ],
)
def test_eigenvalues(function: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(value)


@pytest.mark.parametrize("function", [task_spectra, extended_spectrum])
def test_kernels(function: Any) -> None:
    with pytest.raises(TypeError, match=r"must be an ntkmtl\.ExtendedNTK"):
        function(torch.eye(2))
    with pytest.raises(ValueError, match="NaN or infinity"):
        function(ExtendedNTK(torch.full((2, 3, 2, 3), math.nan)))


def test_groups() -> None:
    with pytest.raises(TypeError, match=r"as kernel\.affinity\(\) is"):
        group_tasks([[1.0, 0.0], [0.0, 1.0]])  # type: ignore[arg-type]
    for groups in (1.5, True, "2"):
        with pytest.raises(TypeError, match="groups must be a whole number"):
            group_tasks(torch.eye(3), groups)  # type: ignore[arg-type]


def test_recorders() -> None:
    for options in ({"every": "2"}, {"every": None}, {"every": True}, {"minibatches": 1.5}):
        with pytest.raises(TypeError, match="must be a whole number"):
            Recorder(**options)
    with pytest.raises(TypeError, match="a state of a Recorder is a dict"):
        Recorder().load_state_dict(None)  # type: ignore[arg-type]
