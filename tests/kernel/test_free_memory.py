"""An error is raised where the gradients of all tasks do not fit in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ntkmtl import Balancer
from ntkmtl.kernel import _free_memory


def network() -> tuple[nn.Module, list[torch.Tensor]]:
    trunk = nn.Linear(1024, 1024, device="cpu")
    heads = nn.Linear(1024, 80, device="cpu")
    outputs = heads(trunk(torch.randn(2, 1024, device="cpu")).tanh())
    return trunk, [outputs[:, i].square().mean() for i in range(80)]


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # 80 gradients of a million entries are 0.31 GiB.
    monkeypatch.setattr(_free_memory, "free_bytes", lambda device: 300 << 20)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("method", ["nash-mtl", "graddrop"])
def test_a_method_that_reads_all_gradients_is_refused(method: str) -> None:
    trunk, losses = network()
    with pytest.raises(ValueError, match=r"gradients of all 80 tasks at once: 0\.3 GiB"):
        Balancer(method).backward(losses)
    assert all(p.grad is None for p in trunk.parameters())


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("method", ["ls", "ntkmtl", "ntkmtl-auto"])
def test_a_method_that_reads_eigenvalues_holds_one_gradient_at_a_time(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = 0
    empty = torch.Tensor.new_empty

    def spy(self: torch.Tensor, *shape: int, **kwargs: object) -> torch.Tensor:
        nonlocal largest
        found = empty(self, *shape, **kwargs)  # type: ignore[call-overload]
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(torch.Tensor, "new_empty", spy)
    trunk, losses = network()
    out = Balancer(method).backward(losses)
    assert out.weights.shape == (80,)
    assert largest < 80 * sum(p.numel() for p in trunk.parameters())


def test_free_memory_is_known_on_linux() -> None:
    found = _free_memory.free_bytes(torch.device("cpu"))
    assert found is None or found > 0
    assert _free_memory.free_bytes(torch.device("meta")) is None
