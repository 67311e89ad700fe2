"""Where and in which precision the tests of kernels and of the Balancer compute.

``NTKMTL_TEST_DEVICE=cuda NTKMTL_TEST_DTYPE=float32 pytest tests/kernel/test_kernel_oracle.py
tests/kernel/test_kernel_extended.py tests/balance/test_balancer_contracts.py`` runs those there.
Without the two all compute in float64 on the CPU, where results are equal to rounding.
"""

from __future__ import annotations

import os
from typing import Any

import torch

__all__ = ["DEVICE", "DTYPE", "EXACT"]

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
_name = os.environ.get("NTKMTL_TEST_DTYPE", "float64")
if _name not in _DTYPES:
    raise ValueError(f"NTKMTL_TEST_DTYPE must be one of {sorted(_DTYPES)}, found {_name!r}")

DEVICE = torch.device(os.environ.get("NTKMTL_TEST_DEVICE", "cpu"))
DTYPE = _DTYPES[_name]
EXACT: dict[str, Any] = (
    {"rtol": 1e-9, "atol": 1e-14}
    if torch.float64 == DTYPE
    else {"rtol": 5e-3, "atol": 1e-4, "check_dtype": False}
)
"""What two ways to the same number may differ by."""
if DEVICE.type != "cpu":
    EXACT["check_device"] = False
