"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from ntkmtl.balance._balancer import Balancer, Losses, Source
from ntkmtl.balance._step import BalanceResult

__all__ = ["BalanceResult", "Balancer", "Losses", "Source"]
