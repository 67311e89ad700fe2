"""The dense NTK of outputs against gradients computed one at a time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernel.oracle import EXACT, flat_gradient
from kernel.output_cases import (
    NETWORKS,
    SAMPLES,
    OutputCase,
    full_kernel,
    graph_batch,
    jacobian,
    make_output_case,
    trace_block,
)
from ntkmtl.bench import problems
from ntkmtl.kernel import Batches, OutputNTK, OutputNTKOperator, extended_ntk, output_ntk


def _methods(name: str) -> list[str]:
    # A joined batch of graphs has no samples to run vmap over, and a GRU's steps write in place.
    return {"graph": ["rows", "ntvp"], "recurrent": ["rows"]}.get(
        name, ["jacobian", "rows", "ntvp"]
    )


WAYS = [(name, way) for name in NETWORKS for way in _methods(name)]


def _rows(case: OutputCase) -> list[list[list[Tensor]]]:
    return jacobian(case.outputs(), case.network.parameters())


def _by_operator(case: OutputCase, **options: Any) -> Tensor:
    operator = OutputNTKOperator(case.network, case.inputs, **case.options, **options)
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize(("name", "method"), WAYS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_full_and_trace(name: str, method: Any, sizes: tuple[int, ...]) -> None:
    case = make_output_case(name, sizes)
    rows = _rows(case)
    full = output_ntk(case.network, case.inputs, outputs="full", method=method, **case.options)
    assert full.method == method
    assert full.names == ("t0", "t1", "t2")
    torch.testing.assert_close(full.matrix(), full_kernel(rows), **EXACT)
    c = sizes[0]
    assert full.values.shape == (3, SAMPLES, c, 3, SAMPLES, c)
    trace = output_ntk(case.network, case.inputs, method=method, **case.options)
    assert trace.values.shape == (3, SAMPLES, 3, SAMPLES)
    for i, j in itertools.product(range(3), range(3)):
        expected = trace_block(rows, i, j)
        torch.testing.assert_close(trace.block(i, j), expected, **EXACT)
        torch.testing.assert_close(trace.values[i, :, j], expected, **EXACT)
        torch.testing.assert_close(full.trace().block(i, j), expected, **EXACT)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("jvp", ["forward", "double-backward"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 3)], ids=str)
def test_operator(name: str, jvp: Any, sizes: tuple[int, ...]) -> None:
    case = make_output_case(name, sizes)
    rows = _rows(case)
    found = _by_operator(case, outputs="full", jvp=jvp)
    torch.testing.assert_close(found, full_kernel(rows), **EXACT)
    operator = OutputNTKOperator(case.network, case.inputs, jvp=jvp, **case.options)
    assert operator.jvp == jvp
    for i in range(3):
        block = operator.block(i) @ torch.eye(SAMPLES, dtype=torch.float64)
        torch.testing.assert_close(block, trace_block(rows, i, i), **EXACT)


def test_operator_of_a_trace() -> None:
    case = make_output_case(sizes=(2, 2, 2))
    expected = output_ntk(case.network, case.inputs, method="rows").matrix()
    torch.testing.assert_close(_by_operator(case), expected, **EXACT)


@pytest.mark.parametrize("method", ["jacobian", "rows", "ntvp"])
def test_tasks_of_different_sizes(method: Any) -> None:
    case = make_output_case(sizes=(2, 1, 3))
    rows = _rows(case)
    full = output_ntk(case.network, case.inputs, outputs="full", method=method)
    torch.testing.assert_close(full.matrix(), full_kernel(rows), **EXACT)
    assert full.block("t0", "t2").shape == (SAMPLES, 2, SAMPLES, 3)
    u, a, v, b = 4, 1, 2, 2
    entry = (rows[0][u][a] * rows[2][v][b]).sum()
    torch.testing.assert_close(full.block("t0", "t2")[u, a, v, b], entry, **EXACT)
    with pytest.raises(ValueError, match=r"tasks have \(2, 1, 3\) components"):
        _ = full.values
    trace = output_ntk(case.network, case.inputs, method=method)
    assert not trace.has_all_blocks
    for i in range(3):
        torch.testing.assert_close(trace.block(i, i), trace_block(rows, i, i), **EXACT)
        torch.testing.assert_close(full.trace().block(i, i), trace_block(rows, i, i), **EXACT)
    with pytest.raises(ValueError, match="diagonal blocks only"):
        trace.block(0, 1)
    operator = OutputNTKOperator(case.network, case.inputs)
    with pytest.raises(ValueError, match="diagonal blocks only"):
        operator @ torch.zeros(operator.shape[0])


@pytest.mark.parametrize(("name", "method"), [w for w in WAYS if w[0] != "graph"])
@pytest.mark.parametrize("chunk_size", [1, 4, 6])
def test_chunks(name: str, method: Any, chunk_size: int) -> None:
    case = make_output_case(name, (1, 2))
    for outputs in ("full", "trace"):
        options = {"outputs": outputs, "method": method, **case.options}
        whole = output_ntk(case.network, case.inputs, **options)
        parts = output_ntk(case.network, case.inputs, chunk_size=chunk_size, **options)
        for i in range(2):
            torch.testing.assert_close(parts.block(i, i), whole.block(i, i), **EXACT)
    full = (
        whole
        if outputs == "full"
        else output_ntk(case.network, case.inputs, outputs="full", **case.options)
    )
    found = _by_operator(case, outputs="full", chunk_size=chunk_size)
    torch.testing.assert_close(found, full.matrix(), **EXACT)


@pytest.mark.parametrize("method", ["rows", "ntvp", "operator"])
def test_batches_of_graphs(method: Any) -> None:
    # The same graphs as one batch, and as three.
    case = make_output_case("graph")
    nodes, _, graph = case.inputs
    expected = output_ntk(case.network, case.inputs, method="rows").matrix()
    sizes, batches, start = [1, 2, 3, 1, 2, 3], [], 0
    for part in ([1, 2], [3], [1, 2, 3]):
        batch = graph_batch(part)
        stop = start + sum(part)
        batches.append((nodes[start:stop], *batch[1:]))
        start = stop
    assert start == len(graph) == sum(sizes)
    case.inputs = Batches(batches)
    if method == "operator":
        found = _by_operator(case)
    else:
        found = output_ntk(case.network, case.inputs, method=method).matrix()
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("method", ["jacobian", "rows", "ntvp"])
def test_streamed_jacobians(method: Any) -> None:
    # A budget of kernel and two chunks: Jacobians are computed again for each pair.
    case = make_output_case(sizes=(2, 2))
    whole = output_ntk(case.network, case.inputs, method="rows")
    p = sum(p.numel() for p in case.network.parameters())
    budget = 8 * (144 + 2 * 2 * 4 * p + 2 * 2 * 4) if method != "ntvp" else 1 << 20
    found = output_ntk(case.network, case.inputs, method=method, chunk_size=2, memory_budget=budget)
    torch.testing.assert_close(found.matrix(), whole.matrix(), **EXACT)
    automatic = output_ntk(case.network, case.inputs, memory_budget=budget)
    torch.testing.assert_close(automatic.matrix(), whole.matrix(), **EXACT)


def test_qm9_mini() -> None:
    problem = problems.create("qm9-mini")
    torch.manual_seed(0)
    model = problem.model(problem.tasks[:3]).double()
    batch = problem.batch("train", torch.arange(5))
    inputs = type(batch)(*(part.double() for part in batch))
    outputs = model.predict(model.represent(inputs))
    expected = full_kernel(jacobian(outputs, model.parameters()))
    names = problem.tasks[:3]
    for method in ("jacobian", "rows", "ntvp"):
        found = output_ntk(model, inputs, method=method, names=names)
        torch.testing.assert_close(found.matrix(), expected, **EXACT)
        assert found.names == names
    operator = OutputNTKOperator(model, inputs, chunk_size=2)
    assert operator.jvp == "forward"
    eye = torch.eye(15, dtype=torch.float64)
    torch.testing.assert_close(operator @ eye, expected, **EXACT)
    shared = output_ntk(model, inputs, "shared").matrix()
    expected = full_kernel(jacobian(outputs, model.shared_parameters()))
    torch.testing.assert_close(shared, expected, **EXACT)


def test_linear_network_by_hand() -> None:
    # f_i(x) = w_i x + b_i: K_ii = x x' + 1, and nothing between the tasks.
    x = torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)
    kernel = output_ntk(nn.Linear(1, 2).double(), x, task_dim=1)
    block = torch.tensor([[2.0, 3.0, 0.0], [3.0, 5.0, -1.0], [0.0, -1.0, 2.0]])
    torch.testing.assert_close(kernel.matrix(), torch.block_diag(block, block).double())
    one = output_ntk(nn.Linear(1, 2).double(), x)
    assert (one.tasks, one.components) == (1, (2,))
    torch.testing.assert_close(one.matrix(), 2 * block.double())


class TestParameters:
    def test_shared_list_filter_and_frozen(self) -> None:
        case = make_output_case()
        network = case.network
        trunk = list(network.trunk.parameters())
        expected = full_kernel(jacobian(case.outputs(), trunk))
        for chosen in ("shared", trunk, lambda name, _: name.startswith("trunk.")):
            found = output_ntk(network, case.inputs, chosen).matrix()
            torch.testing.assert_close(found, expected, **EXACT)
        network.heads.requires_grad_(False)
        for chosen in (None, "all", list(network.parameters())):
            found = output_ntk(network, case.inputs, chosen).matrix()
            torch.testing.assert_close(found, expected, **EXACT)

    @pytest.mark.parametrize("method", ["jacobian", "rows", "ntvp"])
    def test_tied_parameters_count_once(self, method: Any) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(3, 3).double()
        network = nn.Sequential(layer, nn.Tanh(), layer)
        x = torch.randn(4, 3, dtype=torch.float64)
        weight, bias = layer.weight, layer.bias
        expected = full_kernel(jacobian([network(x)], [weight, bias]))
        found = output_ntk(network, x, outputs="full", method=method).matrix()
        torch.testing.assert_close(found, expected, **EXACT)
        # Two parameters apart would give another kernel.
        apart = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3).double())
        apart[2].load_state_dict(layer.state_dict())
        assert not torch.allclose(output_ntk(apart, x, outputs="full").matrix(), expected)

    def test_a_function(self) -> None:
        case = make_output_case()
        network = case.network

        def function(parameters: dict[str, Tensor], x: Tensor) -> list[Tensor]:
            return list(torch.func.functional_call(network, parameters, (x,)).values())

        chosen = {n: p for n, p in network.named_parameters() if n.startswith("heads.")}
        expected = full_kernel(jacobian(case.outputs(), chosen.values()))
        for method in ("jacobian", "rows", "ntvp"):
            found = output_ntk(function, case.inputs, chosen, method=method).matrix()
            torch.testing.assert_close(found, expected, **EXACT)

    def test_unused_ones_add_nothing(self) -> None:
        case = make_output_case()
        expected = output_ntk(case.network, case.inputs, method="rows").matrix()
        case.network.spare = nn.Linear(2, 2).double()
        for method in ("jacobian", "rows", "ntvp"):
            found = output_ntk(case.network, case.inputs, method=method).matrix()
            torch.testing.assert_close(found, expected, **EXACT)
        torch.testing.assert_close(_by_operator(case), expected, **EXACT)


class TestProjection:
    def test_equals_the_projected_network(self) -> None:
        case = make_output_case(sizes=(3, 3))
        found = output_ntk(
            case.network, case.inputs, outputs="projection", directions=2, seed=4, method="rows"
        )
        assert found.components == (2, 2)
        torch.manual_seed(0)
        directions = (
            torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
            / 2**0.5
        )
        outputs = [o @ directions for o in case.outputs()]
        expected = full_kernel(jacobian(outputs, case.network.parameters()))
        torch.testing.assert_close(found.matrix(), expected, **EXACT)
        for method in ("jacobian", "ntvp"):
            other = output_ntk(
                case.network,
                case.inputs,
                outputs="projection",
                directions=2,
                seed=4,
                method=method,
            )
            torch.testing.assert_close(other.matrix(), expected, **EXACT)
        operator = _by_operator(case, outputs="projection", directions=2, seed=4)
        torch.testing.assert_close(operator, expected, **EXACT)

    def test_its_trace_estimates_the_trace(self) -> None:
        case = make_output_case(sizes=(3, 3))
        expected = output_ntk(case.network, case.inputs).matrix()
        many = [
            output_ntk(
                case.network,
                case.inputs,
                outputs="projection",
                directions=8,
                seed=seed,
                check=False,
            ).trace()
            for seed in range(60)
        ]
        mean = torch.stack([m.matrix() for m in many]).mean(0)
        # 480 directions: standard error about sqrt(2 / 480) = 0.065 of the size.
        assert (mean - expected).norm() < 0.2 * expected.norm()


class TestExtended:
    @pytest.mark.parametrize("minibatches", [None, 2, 4])
    def test_losses_by_the_chain_rule(self, minibatches: int | None) -> None:
        case = make_output_case(sizes=(2, 1, 3))
        targets = [torch.randn_like(o) for o in case.outputs()]
        outputs = [o.detach().requires_grad_() for o in case.outputs()]
        rows = [
            ((o - t) ** 2).sum(1) * (i + 1)
            for i, (o, t) in enumerate(zip(outputs, targets, strict=True))
        ]
        gradients = [
            torch.autograd.grad(row.sum(), o)[0] for row, o in zip(rows, outputs, strict=True)
        ]
        kernel = output_ntk(case.network, case.inputs, outputs="full")
        found = kernel.extended(gradients, minibatches=minibatches)
        losses = [
            ((o - t) ** 2).sum(1) * (i + 1)
            for i, (o, t) in enumerate(zip(case.outputs(), targets, strict=True))
        ]
        n = SAMPLES if minibatches is None else minibatches
        expected = extended_ntk(losses, parameters=case.network.parameters(), minibatches=n)
        torch.testing.assert_close(found.values, expected.values, **EXACT)
        torch.testing.assert_close(found.gramian(), expected.gramian(), **EXACT)

    def test_kernels_of_outputs(self) -> None:
        case = make_output_case(sizes=(2, 2))
        for outputs in ("full", "trace"):
            kernel = output_ntk(case.network, case.inputs, outputs=outputs)
            found = kernel.extended()
            expected = kernel.max_eigenvalues()
            torch.testing.assert_close(found.max_eigenvalues(), expected, **EXACT)
            for i, j in itertools.product(range(2), range(2)):
                torch.testing.assert_close(found.block(i, j), kernel.block_matrix(i, j))

    def test_what_does_not_fit(self) -> None:
        case = make_output_case(sizes=(2, 1))
        kernel = output_ntk(case.network, case.inputs, outputs="full")
        with pytest.raises(ValueError, match="equally many rows"):
            kernel.extended()
        with pytest.raises(ValueError, match='ask for outputs="full"'):
            kernel.trace().extended([torch.zeros(SAMPLES, 2), torch.zeros(SAMPLES, 1)])
        with pytest.raises(ValueError, match=r"must have 2 numbers for each of 6.*\(6, 1\)"):
            kernel.extended([torch.zeros(SAMPLES, 1), torch.zeros(SAMPLES, 1)])
        with pytest.raises(ValueError, match="give loss_gradients"):
            kernel.extended(minibatches=2)


def test_eigenvalues() -> None:
    case = make_output_case()
    rows = _rows(case)
    kernel = output_ntk(case.network, case.inputs)
    expected = [torch.linalg.eigvalsh(trace_block(rows, i, i))[-1] for i in range(3)]
    torch.testing.assert_close(kernel.max_eigenvalues(), torch.stack(expected), **EXACT)
    whole = torch.linalg.svdvals(torch.stack([g for t in rows for s in t for g in s])).square()
    torch.testing.assert_close(kernel.eigenvalues()[:9], whole[:9], rtol=1e-9, atol=1e-10)


def test_shapes_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="not both"):
        OutputNTK(samples=1, components=(1,), names=("a",))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), found \(3, 3\)"):
        OutputNTK(torch.eye(3), samples=2, components=(1,), names=("a",))
    with pytest.raises(ValueError, match="2 components for 1 names"):
        OutputNTK(torch.eye(2), samples=1, components=(1, 1), names=("a",))
    with pytest.raises(ValueError, match="blocks are for the trace form"):
        OutputNTK(
            blocks=torch.zeros(1, 2, 2), samples=2, components=(1,), names=("a",), outputs="full"
        )
    kernel = OutputNTK(torch.eye(2), samples=1, components=(1, 1), names=("a", "b"))
    with pytest.raises(KeyError, match="no task 'c' among 2: a, b"):
        kernel.block("c", "a")


class Complex(nn.Module):
    """A network with complex parameters, or with pairs of real ones in their place."""

    def __init__(self, pairs: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(5, 4, 2, dtype=torch.float64)
        self.weight = nn.Parameter(weight if pairs else torch.view_as_complex(weight))
        self.head = nn.Linear(4, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return self.head((x.to(weight.dtype) @ weight).abs())


@pytest.mark.parametrize("method", ["auto", "jacobian", "rows", "ntvp"])
def test_a_complex_parameter_is_two_real_ones(method: Any) -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    kernel, expected = (output_ntk(Complex(pairs), x, method=method) for pairs in (False, True))
    torch.testing.assert_close(kernel.matrix(), expected.matrix(), **EXACT)
    vector = torch.randn(6, dtype=torch.float64)
    product = OutputNTKOperator(Complex(False), x) @ vector
    torch.testing.assert_close(product, expected.matrix() @ vector, **EXACT)


def test_float32() -> None:
    case = make_output_case()
    expected = output_ntk(case.network, case.inputs).matrix()
    found = output_ntk(case.network.float(), case.inputs.float()).matrix()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_oracle_itself() -> None:
    # d/dw of w x is x: flat_gradient is what all the others lean on.
    w = torch.tensor([2.0], requires_grad=True)
    assert flat_gradient((w * 3.0).sum(), [w]).tolist() == [3.0]
