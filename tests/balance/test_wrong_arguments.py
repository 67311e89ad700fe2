"""Wrong arguments: the message says what was wrong, found and expected."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ntkmtl import Balancer, Probe
from ntkmtl.weighting import create

TRUNK = nn.Linear(3, 4)


class Own:
    """No weighting."""


WRONG: list[tuple[str, dict[str, Any], str]] = [
    # Flags that are strings or numbers.
    (
        "ntkmtl",
        {"weight_heads": "False"},
        "weight_heads must be True, False or None, found 'False'",
    ),
    ("ntkmtl", {"weight_heads": 0}, "weight_heads must be True, False or None, found 0"),
    ("ntkmtl", {"hooked": "no"}, "hooked must be True, False or None, found 'no'"),
    ("ntkmtl", {"hooked": 1}, "hooked must be True, False or None, found 1"),
    ("ntkmtl", {"log_losses": "true"}, "log_losses must be True, False or None, found 'true'"),
    ("ntkmtl-auto", {"corrected": "yes"}, "corrected must be True, False or None, found 'yes'"),
    ("ls", {"weight_heads": False}, "reads losses only and weighs whole losses"),
    # Whole numbers.
    ("ntkmtl", {"minibatches": 2.0}, "minibatches must be a whole number of at least 1, found 2.0"),
    ("ntkmtl", {"minibatches": 0}, "minibatches must be a whole number of at least 1, found 0"),
    ("ntkmtl", {"minibatches": True}, "minibatches must be a whole number"),
    ("ntkmtl", {"minibatches": "4"}, "minibatches must be a whole number of at least 1, found '4'"),
    ("ntkmtl", {"every": 0}, "every must be a whole number of at least 1, found 0"),
    ("ntkmtl", {"every": 1.5}, "every must be a whole number of at least 1, found 1.5"),
    ("ntkmtl", {"every": None}, "every must be a whole number of at least 1, found None"),
    ("ntkmtl", {"batch_dim": 1.5}, "batch_dim must be a whole number, found 1.5"),
    ("ntkmtl", {"batch_dim": True}, "batch_dim must be a whole number, found True"),
    ("ntkmtl", {"batch_dim": "1"}, "batch_dim must be a whole number, found '1'"),
    ("ntkmtl", {"memory_budget": "x"}, "memory_budget must be a whole number"),
    (
        "ntkmtl",
        {"memory_budget": -1},
        "memory_budget must be a whole number of at least 0, found -1",
    ),
    ("ntkmtl", {"memory_budget": 1e9}, "memory_budget must be a whole number"),
    # Numbers.
    ("ntkmtl", {"ema": 1.0}, r"ema must be in \[0, 1\), found 1.0"),
    ("ntkmtl", {"ema": "0.5"}, "ema must be a number, found '0.5'"),
    ("ntkmtl", {"ema": math.nan}, r"ema must be in \[0, 1\), found nan"),
    ("ntkmtl", {"ema": None}, "ema must be a number, found None"),
    ("ntkmtl", {"budget": math.inf}, "budget must be above 1.*found inf"),
    ("ntkmtl", {"budget": math.nan}, "budget must be above 1.*found nan"),
    ("ntkmtl", {"budget": 1.0}, "budget must be above 1.*found 1.0"),
    ("ntkmtl", {"budget": "2"}, "budget must be a number, found '2'"),
    ("ntkmtl", {"budget": True}, "budget must be a number, found True"),
    # Names out of a list.
    ("ntkmtl", {"source": "exakt"}, "source must be one of .*'exact'.*found 'exakt'"),
    ("ntkmtl", {"source": 1}, "source must be one of .*found 1"),
    ("ntkmtl", {"source": ["exact"]}, r"source must be one of .*found \['exact'\]"),
    ("ntkmtl-sr", {"pooling": "mean"}, "pooling must be one of .*found 'mean'"),
    ("ntkmtl-sr", {"pooling": True}, "pooling must be one of .*found True"),
    ("ntkmtl", {"preset": "paper"}, "preset must be 'published' or None, found 'paper'"),
    ("ntkmtl", {"preset": True}, "preset must be 'published' or None, found True"),
    ("ntkmtl", {"length": "long"}, "length must be 'method', 'plain', 'unit' or a positive number"),
    ("ntkmtl", {"length": 0}, "length must be positive and finite, found 0"),
    ("ntkmtl", {"length": -1.0}, "length must be positive and finite, found -1.0"),
    ("ntkmtl", {"length": math.nan}, "length must be positive and finite, found nan"),
    ("ntkmtl", {"length": None}, "length must be .*found None"),
    ("ntkmtl", {"length": True}, "length must be .*found True"),
    ("ntkmtl", {"length": [1.0]}, r"length must be .*found \[1.0\]"),
    # Tasks.
    ("ntkmtl", {"tasks": True}, "tasks must be a number or a sequence of names, found True"),
    ("ntkmtl", {"tasks": 3.0}, "tasks must be a whole number of at least 1, found 3.0"),
    ("ntkmtl", {"tasks": -1}, "tasks must be a whole number of at least 1, found -1"),
    ("ntkmtl", {"tasks": 0}, "tasks must be a whole number of at least 1, found 0"),
    ("ntkmtl", {"tasks": "depth"}, "tasks must be a number or a sequence of names, found 'depth'"),
    ("ntkmtl", {"tasks": []}, r"tasks must be one or more different names, found \[\]"),
    ("ntkmtl", {"tasks": ["a", "a"]}, r"tasks must be one or more different names"),
    ("ntkmtl", {"tasks": [1, 2]}, "names of tasks must be strings"),
    # Parameters and modules.
    ("ntkmtl", {"shared": TRUNK}, r"found the module Linear; pass its parameters\(\)"),
    ("ntkmtl", {"shared": TRUNK.named_parameters()}, "named_parameters"),
    ("ntkmtl", {"shared": dict(TRUNK.named_parameters())}, "shared must be a list of parameters"),
    ("ntkmtl", {"shared": TRUNK.weight}, "shared must be a list of parameters, found"),
    ("ntkmtl", {"shared": ["weight"]}, "shared must be a list of parameters"),
    ("ntkmtl", {"shared": "trunk"}, "shared must be a list of parameters"),
    ("ntkmtl", {"shared": []}, "shared holds no parameter that requires a gradient"),
    ("ntkmtl", {"shared": [torch.ones(2)]}, "shared holds no parameter that requires a gradient"),
    ("ntkmtl", {"shared": 3}, "shared must be a list of parameters, found"),
    ("ntkmtl-auto", {"trunk": "trunk"}, "trunk must be a module or a Probe, found"),
    ("ntkmtl-auto", {"probe": TRUNK}, "probe must be a ntkmtl.Probe, found"),
    ("ntkmtl-auto", {"trunk": TRUNK.parameters()}, "trunk must be a module or a Probe, found"),
    (
        "ntkmtl-auto",
        {"probe": Probe(TRUNK), "trunk": TRUNK},
        "give trunk and corrected to the Probe",
    ),
    ("ntkmtl", {"trunk": TRUNK}, "trunk belongs to source='probe' or 'auto'"),
    ("ntkmtl", {"source": "probe"}, "give the module that makes the features"),
    ("ntkmtl", {"record": 1}, "record must be a ntkmtl.analysis.Recorder or None, found 1"),
    ("ntkmtl", {"record": print}, "record must be a ntkmtl.analysis.Recorder or None"),
    ("ntkmtl", {"process_group": "gloo"}, "process_group must be a torch.distributed.ProcessGroup"),
    ("ntkmtl-tk", {"last_layer": "fc"}, "last_layer must be"),
    ("ntkmtl", {"last_layer": TRUNK}, "last_layer belongs to pooling='kernel'"),
    ("ntkmtl-tk", {"last_layer": nn.Linear(2, 2, dtype=torch.cfloat)}, "has complex weights"),
    # Priorities.
    ("ntkmtl", {"priorities": "a"}, "priorities must be a dict .*found 'a'"),
    ("ntkmtl", {"priorities": 2.0}, "priorities must be a dict .*found 2.0"),
    ("ntkmtl", {"priorities": {"a": "2"}}, "priorities must be a number, found '2'"),
    ("ntkmtl", {"priorities": {"a": 0.0}}, "priorities must be positive and finite, found 0.0"),
    ("ntkmtl", {"priorities": [1, -1]}, "priorities must be positive and finite, found -1"),
    ("ntkmtl", {"priorities": [math.inf, 1]}, "priorities must be positive and finite, found inf"),
    ("ntkmtl", {"priorities": {"c": 1.0}, "tasks": ["a", "b"]}, r"unknown tasks \['c'\]"),
    ("ntkmtl", {"priorities": [1.0], "tasks": 2}, "found 1 priorities for 2 tasks"),
    ("ntkmtl", {"priorities": [], "tasks": 2}, "found 0 priorities for 2 tasks"),
    # Methods and their settings.
    ("NTKMTL", {}, "unknown method|no method|NTKMTL"),
    ("", {}, "method"),
    (None, {}, "method must be a name or a Weighting"),
    (5, {}, "method must be a name or a Weighting"),
    (Own(), {}, "method must be a name or a Weighting"),
    (Own, {}, "method must be a name or a Weighting"),
    (type(create("ls")), {}, r"found the class LinearScalarization; make one"),
    (create("ntkmtl"), {"exponent": 0.3}, "given when it is made"),
    ("ntkmtl", {"published": 1}, "published must be True or False"),
    ("mgda", {"normalize": True}, "mgda has no option 'normalize'"),
    ("ntkmtl", {"exponents": 0.3}, "exponent"),
    ("ntkmtl", {"minibatch": 4}, "did you mean 'minibatches'"),
    ("ntkmtl", {"weight_head": True}, "did you mean 'weight_heads'"),
    ("ntkmtl", {"prioritys": [1]}, "did you mean 'priorities'"),
    ("ntkmtl", {"exponent": "x"}, "exponent"),
    ("ntkmtl", {"exponent": math.nan}, "exponent"),
    ("ntkmtl", {"exponent": None}, "exponent"),
    ("famo", {"every": 2, "gamma": "x"}, "gamma"),
]


@pytest.mark.parametrize(("method", "options", "words"), WRONG)
def test_options_of_the_wrong_kind(method: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as info:
        Balancer(method, **options)
    assert "\n" not in str(info.value)


def step(losses: Any = None, **options: Any) -> Tensor:
    x = torch.ones(2, requires_grad=True)
    given = [x.sum(), 2 * x.square().sum()] if losses is None else losses(x)
    try:
        Balancer("ntkmtl-auto", **options.pop("balancer", {})).backward(given, **options)
    finally:
        assert x.grad is None
    return x


class FakeScaler:
    """No gradient scaler."""


LOSSES: list[tuple[Any, str]] = [
    (lambda x: None, "losses must be a sequence or a dict of k losses"),
    (lambda x: [], "losses is empty"),
    (lambda x: {}, "losses is empty"),
    (lambda x: x.sum(), "found one scalar. Pass the losses before they are added up"),
    (lambda x: 3.0, "losses must be a sequence or a dict of k losses"),
    (lambda x: "ab", "losses must be a sequence or a dict of k losses"),
    (lambda x: [1.0, 2.0], "the loss of task 0 must be a tensor or None, found"),
    (lambda x: [x.sum(), 2.0], "the loss of task 1 must be a tensor or None, found"),
    (lambda x: [x.sum().item(), x.sum()], "the loss of task 0 must be a tensor or None, found"),
    (lambda x: [x.sum(), [x.sum()]], "the loss of task 1 must be a tensor or None, found"),
    (lambda x: np.ones(2), "the loss of task 0 must be a tensor or None, found"),
    (lambda x: {1: x.sum(), 2: x.sum()}, "names of tasks must be strings"),
    (lambda x: [x.sum(), x.outer(x)], r"shape \(2, 2\); take its mean over all but the samples"),
    (lambda x: [x.sum(), (x, x, x)], r"pair \(values, mask\)"),
    (lambda x: [x.sum(), (x, None)], r"pair \(values, mask\)"),
    (lambda x: [x.sum(), (x, torch.ones(3))], r"must have one shape \(B,\)"),
    (lambda x: [x.sum(), (x.sum(), torch.ones(()))], r"must have one shape \(B,\)"),
    (lambda x: [x.sum(), (x, torch.tensor([0.5, 1.0]))], "numbers other than 0 and 1"),
    (lambda x: [x.sum(), (x, torch.tensor([math.nan, 1.0]))], "numbers other than 0 and 1"),
    (lambda x: [x.sum(), torch.complex(x, x).sum()], "a loss is a real number"),
    (lambda x: [x.sum(), x.detach().sum()], "the loss of task 1 does not require a gradient"),
    (lambda x: [x.sum(), torch.ones((), dtype=torch.int64)], "task 1 does not require a gradient"),
]


@pytest.mark.parametrize(("losses", "words"), LOSSES)
def test_losses_of_the_wrong_kind(losses: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        step(losses, balancer={"tasks": None})


ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0}, "scale must be positive and finite, found 0"),
    ({"scale": -1.0}, "scale must be positive and finite, found -1.0"),
    ({"scale": math.nan}, "scale must be positive and finite, found nan"),
    ({"scale": math.inf}, "scale must be positive and finite, found inf"),
    ({"scale": "0.5"}, "scale must be a number, found '0.5'"),
    ({"scale": True}, "scale must be a number, found True"),
    ({"scale": None}, "scale must be a number, found None"),
    ({"scale": [1.0]}, r"scale must be a number, found \[1.0\]"),
    ({"counts": [[1, 1], [1, 1]]}, "counts must be a tensor of shape"),
    ({"counts": torch.ones(3)}, r"counts must have shape \(2, B\)"),
    ({"counts": torch.ones(3, 2)}, r"counts must have shape \(2, B\)"),
    ({"scaler": True}, "scaler must be a gradient scaler"),
    ({"scaler": 2.0}, "scaler must be a gradient scaler"),
    ({"scaler": FakeScaler()}, "scaler must be a gradient scaler"),
    ({"features": "z"}, "features"),
    ({"features": 3}, "features"),
    ({"features": [torch.ones(2, requires_grad=True)]}, "features"),
    ({"features": ()}, "features"),
    ({"features": torch.ones(2)}, "features do not require a gradient"),
    ({"features": torch.ones(2, requires_grad=True)}, "no loss depends on the features"),
]


@pytest.mark.parametrize(("options", "words"), ARGUMENTS)
def test_arguments_of_backward_of_the_wrong_kind(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as info:
        step(**options)
    assert "\n" not in str(info.value)


def test_the_number_of_losses_must_not_change() -> None:
    x = torch.ones(2, requires_grad=True)
    balancer = Balancer()
    balancer.backward([x.sum(), 2 * x.sum()])
    with pytest.raises(ValueError, match="found 3 losses for 2 tasks; give None"):
        balancer.backward([x.sum()] * 3)
    with pytest.raises(ValueError, match=r"losses of unknown tasks \['depth'\]"):
        balancer.backward({"depth": x.sum()})


def test_losses_of_no_samples_are_no_label() -> None:
    x = torch.ones(2, requires_grad=True)
    for empty in (x[:0], (x, torch.zeros(2, dtype=torch.bool)), None):
        out = Balancer("ls", tasks=2).backward([x.sum(), empty])
        assert out.weights.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("losses", [None, 3.0, [], [1.0, 2.0], "ab"])
def test_losses_after_the_step_of_the_wrong_kind(losses: Any) -> None:
    x = torch.ones(2, requires_grad=True)
    balancer = Balancer("famo")
    balancer.backward([x.sum(), 2 * x.sum()])
    for given in (losses, lambda: losses):
        with pytest.raises((TypeError, ValueError), match="loss"):
            balancer.after_step(given)


@pytest.mark.parametrize("state", [None, {}, 3, [], {"json": 1}, {"json": torch.ones(3)}])
def test_objects_that_are_not_states(state: Any) -> None:
    balancer = Balancer()
    with pytest.raises((ValueError, TypeError), match="state"):
        balancer.load_state_dict(state)
