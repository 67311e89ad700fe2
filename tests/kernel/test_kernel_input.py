"""Error messages of kernels for wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernel import oracle
from kernel.oracle import make_case
from ntkmtl import Balancer, Probe, branch, extended_ntk
from ntkmtl.kernel import minibatch_sizes


class _Call:
    """The same call by :func:`extended_ntk` and by the Balancer."""

    def __init__(self, through_balancer: bool) -> None:
        self.through_balancer = through_balancer

    def __call__(self, losses: Any, features: Any, **options: Any) -> Any:
        if not self.through_balancer:
            return extended_ntk(losses, features, **options)
        counts = options.pop("counts", None)
        options.setdefault("minibatches", 1)
        return Balancer("ntkmtl-sr", **options).backward(losses, features, counts=counts)


@pytest.fixture(params=[False, True], ids=["extended_ntk", "balancer"])
def call(request: pytest.FixtureRequest) -> _Call:
    return _Call(request.param)


@pytest.mark.parametrize("minibatches", [8, 0, -1])
def test_more_minibatches_than_samples(call: _Call, minibatches: int) -> None:
    case = make_case()
    z = case.features()
    with pytest.raises(ValueError, match=f"{minibatches}"):
        call(case.losses(z), z, minibatches=minibatches)


def test_per_sample_losses_with_more_minibatches_than_samples() -> None:
    case = make_case()
    per_sample = case.per_sample(case.features())
    with pytest.raises(ValueError, match="minibatches=8 for a batch of 7"):
        extended_ntk(list(per_sample), parameters=case.shared, minibatches=8)


def test_features_that_no_loss_depends_on(call: _Call) -> None:
    case = make_case()
    z = case.features()
    other = case.features()
    with pytest.raises(ValueError, match="no loss depends on the features"):
        call(case.losses(z), other)


def test_features_beside_the_path_to_the_losses(call: _Call) -> None:
    # Both halves come from one operation, but the heads read only one of them.
    case = make_case()
    read, unread = nn.Linear(4, 10).double()(*case.inputs).chunk(2, dim=1)
    with pytest.raises(ValueError, match="no loss depends on the features"):
        call(case.losses(read), unread)


@pytest.mark.integration
def test_features_of_a_model_compiled_in_one_piece(call: _Call) -> None:
    # z and the outputs come from one node of the graph: no loss is made from z any more.
    case = make_case()

    def model(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = case.trunk(x)
        return z, [head(z) for head in case.heads]

    z, outputs = torch.compile(model, backend="aot_eager")(*case.inputs)
    with pytest.raises(ValueError, match="no loss depends on the features"):
        call([output.square().mean() for output in outputs], z)


def test_detached_features(call: _Call) -> None:
    case = make_case()
    z = case.features()
    with pytest.raises(ValueError, match="do not require a gradient"):
        call(case.losses(z), z.detach())
    with pytest.raises(ValueError, match="do not require a gradient"):
        branch(z.detach(), 2)


@pytest.mark.parametrize("shape", [(7,), (3, 6), (2, 7), (1, 7), (4, 7), (3, 7, 1)])
def test_counts_of_a_wrong_shape(call: _Call, shape: tuple[int, ...]) -> None:
    case = make_case()
    z = case.features()
    with pytest.raises(ValueError, match="counts must have shape"):
        call(case.losses(z), z, counts=torch.ones(shape), minibatches=2)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_counts_that_are_negative_or_not_finite(call: _Call, value: float) -> None:
    case = make_case()
    z = case.features()
    counts = torch.ones(oracle.TASKS, oracle.BATCH)
    counts[1, 2] = value
    with pytest.raises(ValueError, match="finite and not negative"):
        call(case.losses(z), z, counts=counts)


def test_losses_that_are_not_scalars(call: _Call) -> None:
    case = make_case()
    z = case.features()
    with pytest.raises(ValueError, match=r"task 1 must be a scalar.*found shape \(7, 1\)"):
        call([case.losses(z)[0], case.per_sample(z)[1][:, None], case.losses(z)[2]], z)


def test_features_per_task_that_do_not_fit(call: _Call) -> None:
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    with pytest.raises(ValueError, match="2 tensors for 3 tasks"):
        call(losses, [z, z])
    with pytest.raises(ValueError, match="one tensor per task"):
        call(dict(zip("abc", losses, strict=True)), {"a": z, "b": z, "d": z})
    with pytest.raises(ValueError, match="empty"):
        call(losses, ())
    with pytest.raises(TypeError, match="features must be"):
        call(losses, 3.0)
    with pytest.raises(TypeError, match="features must be tensors"):
        call(losses, (z, None))
    with pytest.raises(ValueError, match="agree in the size"):
        call(losses, (z, z[:3]))
    with pytest.raises(ValueError, match="batch_dim=2 does not exist"):
        call(losses, z, batch_dim=2)


def test_one_representation_per_task_that_others_read_too(call: _Call) -> None:
    case = make_case()
    z = [case.features() for _ in range(3)]
    losses = case.losses([z[0] + z[1], z[1], z[2]])
    with pytest.raises(ValueError, match="task 0 also depends on the features of task 1"):
        call(losses, z)


def test_pooling_by_an_unknown_name(call: _Call) -> None:
    case = make_case()
    z = case.features()
    with pytest.raises(ValueError, match=r"pooling must be one of .*found 'mean'"):
        call(case.losses(z), z, pooling="mean")


def test_a_path_around_the_features_is_an_error() -> None:
    case = make_case()
    hidden = case.trunk[:2](*case.inputs)
    z = case.trunk[2](hidden)
    losses = case.losses(z + hidden[:, :5])
    expected = extended_ntk(losses, parameters=case.shared)
    try:
        found = extended_ntk(losses, z, case.shared)
    except ValueError as error:
        assert "around" in str(error)  # noqa: PT017 - either is right: numbers or an error
    else:
        torch.testing.assert_close(found.values, expected.values, **oracle.EXACT)


def test_nested_features_are_not_counted_twice() -> None:
    case = make_case()
    hidden = case.trunk[:2](*case.inputs)
    z = case.trunk[2](hidden)
    losses = case.losses(z + hidden[:, :5])
    expected = extended_ntk(losses, parameters=case.shared)
    try:
        found = extended_ntk(losses, (hidden, z), case.shared)
    except ValueError as error:
        assert "made from another" in str(error)  # noqa: PT017 - see above
    else:
        torch.testing.assert_close(found.values, expected.values, **oracle.EXACT)


def test_extended_ntk_needs_features_or_parameters() -> None:
    case = make_case()
    z = case.features()
    with pytest.raises(ValueError, match="give features, parameters, or both"):
        extended_ntk(case.losses(z))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        extended_ntk(case.losses(z), parameters=frozen.parameters())
    with pytest.raises(ValueError, match=r"per-sample losses of shape \(B,\)"):
        extended_ntk(case.losses(z), parameters=case.shared, minibatches=2)


def test_frozen_trunk() -> None:
    case = make_case()
    case.trunk.requires_grad_(False)
    z = case.features().requires_grad_()
    losses = case.losses(z)
    assert extended_ntk(losses, z).max_eigenvalues().min() > 0
    out = Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=z)
    assert out.weights.isfinite().all()
    assert all(p.grad is None for p in case.shared)
    assert all(p.grad is not None for p in case.heads.parameters())


@pytest.mark.parametrize("batch", range(1, 12))
def test_minibatch_sizes(batch: int) -> None:
    for n in range(1, batch + 1):
        assert list(minibatch_sizes(batch, n)) == oracle.sizes(batch, n)
        chunks = torch.arange(batch).chunk(n)
        assert list(minibatch_sizes(batch, n, published=True)) == [len(c) for c in chunks]


def test_branch() -> None:
    case = make_case()
    z = case.features()
    views = branch(z, 3)
    assert len(views) == len(list(views)) == 3
    assert all(torch.equal(view, z) and view.data_ptr() == z.data_ptr() for view in views)
    assert repr(views) == "Branches(k=3, shape=(7, 5))"
    with pytest.raises(ValueError, match="at least 1, found 0"):
        branch(z, 0)


def test_parameters_above_the_features_count_too() -> None:
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    everything = [*case.shared, *case.heads.parameters()]
    expected = extended_ntk(losses, parameters=everything).values
    torch.testing.assert_close(
        extended_ntk(losses, features=z, parameters=everything).values, expected
    )
    heads = list(case.heads.parameters())
    torch.testing.assert_close(
        extended_ntk(losses, features=z, parameters=heads).values,
        extended_ntk(losses, parameters=heads).values,
    )
    with pytest.raises(ValueError, match="above the features, in the heads"):
        extended_ntk(losses, features=z, parameters=everything, minibatches=2)


def test_options_that_do_not_apply() -> None:
    case = make_case()
    z = case.features()
    losses = case.losses(z)
    with pytest.raises(ValueError, match="counts tells the labels of the samples"):
        extended_ntk(losses, parameters=case.shared, counts=torch.ones(7, 7))
    for features in (None, z):
        with pytest.raises(ValueError, match="pooling='blockwise' says how rows"):
            extended_ntk(losses, features, case.shared, pooling="blockwise")


def test_blockwise_kernels_of_several_features_know_that_they_are_diagonal() -> None:
    torch.manual_seed(0)
    x, trunks = torch.randn(6, 3), [nn.Linear(3, 4), nn.Linear(3, 5)]
    features = tuple(trunk(x) for trunk in trunks)
    losses = [(features[0].sum(1) * features[1].sum(1) - i).square().mean() for i in range(2)]
    kernel = extended_ntk(losses, features, minibatches=2, pooling="blockwise")
    assert kernel.is_diagonal
    assert not extended_ntk(losses, features, minibatches=2).is_diagonal
    own = {"a": trunks[0](x), "b": trunks[0](x)}
    apart = {name: z.square().mean() for name, z in own.items()}
    assert extended_ntk(apart, own, minibatches=2, pooling="blockwise").is_diagonal
    balancer = Balancer("modo", source="representation", pooling="blockwise", minibatches=2)
    with pytest.raises(ValueError, match="pooling='blockwise' takes as zero"):
        balancer.backward(losses, features)


@pytest.mark.parametrize("options", [{"pooling": p} for p in ("pooled", "blockwise", "kernel")])
def test_features_of_one_number_per_sample(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x, trunk = torch.randn(6, 3, dtype=torch.float64), nn.Linear(3, 1).double()
    found = []
    for flat in (True, False):
        z = trunk(x)[:, 0] if flat else trunk(x)
        losses = [(z.reshape(6) * (i + 1) - i).square().mean() for i in range(2)]
        found.append(extended_ntk(losses, z, minibatches=2, **options).values)
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0.0)


def test_a_probe_of_features_of_one_number_per_sample() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64)
    trunk = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double()
    found = []
    for source in ("probe", "exact"):
        options = {"probe": Probe(trunk, 400, corrected=False)} if source == "probe" else {}
        balancer = Balancer("ntkmtl", source=source, minibatches=2, **options)
        z = trunk(x)
        losses = [(z * (i + 1) - i).square().mean() for i in range(2)]
        found.append(balancer.backward(losses, features=z).eigenvalues)
    torch.testing.assert_close(found[0], found[1], rtol=0.2, atol=0.0)
