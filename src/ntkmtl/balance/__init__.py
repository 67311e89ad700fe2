"""The Balancer: the one call that a training loop makes instead of ``sum(losses).backward()``."""

from ntkmtl.balance._advise import RULES, Advice, Rule, Situation, advise
from ntkmtl.balance._balancer import Balancer
from ntkmtl.balance._explain import Explanation, SharedTensor
from ntkmtl.balance._options import Source
from ntkmtl.balance._read import Losses
from ntkmtl.balance._step import BalanceResult

__all__ = [
    "RULES",
    "Advice",
    "BalanceResult",
    "Balancer",
    "Explanation",
    "Losses",
    "Rule",
    "SharedTensor",
    "Situation",
    "Source",
    "advise",
]
