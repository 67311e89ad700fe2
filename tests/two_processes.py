"""Two processes for the tests of what several do together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run(work: Callable[..., None], *args: Any) -> None:
    """Call ``work(rank, *args)`` in two new processes and wait for both.

    Raises:
        ProcessRaisedException: The work of one raised an error.
    """
    mp.spawn(_main, args=(work, args), nprocs=2, join=True)


def _main(rank: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    work(rank, *args)
    # gloo's threads outlive a group that DDP or FSDP has used, and one that still holds a tensor
    # while the interpreter goes down ends the process by SIGABRT, though all is done: torch waits
    # for none of them. So the interpreter does not go down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
