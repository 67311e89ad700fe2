"""Search: the same search for the settings of every method, by Optuna.

* :func:`tune` searches each method with as many trials, then trains it with the best settings.
* :func:`search_settings` does the search alone.
* :func:`parameters_of` says what is searched of a method.
* :func:`read_tuning` reads what a search found; it needs neither torch nor Optuna.

The names are loaded on first use, so that reading does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkmtl.bench.search.parameters import Parameter, parameters_of
    from ntkmtl.bench.search.records import Trial, Tuning, read_tuning
    from ntkmtl.bench.search.tuning import Search, search_settings, tune

_HOMES = {
    "Parameter": "parameters",
    "parameters_of": "parameters",
    "Trial": "records",
    "Tuning": "records",
    "read_tuning": "records",
    "Search": "tuning",
    "search_settings": "tuning",
    "tune": "tuning",
}

__all__ = [
    "Parameter",
    "Search",
    "Trial",
    "Tuning",
    "parameters_of",
    "read_tuning",
    "search_settings",
    "tune",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(f"ntkmtl.bench.search.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ntkmtl.bench.search' has no attribute {name!r}")
