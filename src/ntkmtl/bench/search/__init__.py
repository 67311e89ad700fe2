"""Search: the same search for the settings of every method, by Optuna.

* :func:`tune` searches each method with as many trials, then trains it with the best settings.
* :func:`search_settings` does the search alone.
* :func:`parameters_of` says what is searched of a method.
* :func:`read_tuning` reads what a search found; it needs neither torch nor Optuna.

The names are loaded on first use, so that reading does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ntkmtl.loading import on_first_use

if TYPE_CHECKING:
    from ntkmtl.bench.search.parameters import Parameter, parameters_of
    from ntkmtl.bench.search.records import Trial, Tuning, read_tuning
    from ntkmtl.bench.search.tuning import Search, search_settings, tune

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

__getattr__, __dir__ = on_first_use(
    __name__,
    {
        ".parameters": ("Parameter", "parameters_of"),
        ".records": ("Trial", "Tuning", "read_tuning"),
        ".tuning": ("Search", "search_settings", "tune"),
    },
)
