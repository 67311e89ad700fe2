"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from ntkmtl.balance._balancer import Balancer
from ntkmtl.balance._explain import Explanation, SharedTensor
from ntkmtl.balance._options import Source
from ntkmtl.balance._read import Losses
from ntkmtl.balance._step import BalanceResult

__all__ = ["BalanceResult", "Balancer", "Explanation", "Losses", "SharedTensor", "Source"]
