"""The NTK of outputs: errors for wrong input, no side effects, limits of memory."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from kernel.oracle import EXACT
from kernel.output_cases import SAMPLES, full_kernel, jacobian, make_output_case
from ntkmtl.kernel import Batches, MemoryBudgetError, OutputNTKOperator, output_ntk


class _Dense:
    def __call__(self, network: Any, inputs: Any, *args: Any, **options: Any) -> Tensor:
        return output_ntk(network, inputs, *args, **options).matrix()


class _Operator:
    def __call__(self, network: Any, inputs: Any, *args: Any, **options: Any) -> Tensor:
        operator = OutputNTKOperator(network, inputs, *args, **options)
        return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


@pytest.fixture(params=[_Dense(), _Operator()], ids=["dense", "operator"])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class TestModes:
    @pytest.mark.parametrize(
        ("module", "text"),
        [
            (nn.BatchNorm1d(3), r"module 1 \(BatchNorm1d\) is in training mode.*\.eval\(\)"),
            (nn.Dropout(0.1), r"module 1 \(Dropout\) is in training mode.*\.eval\(\)"),
            (nn.RReLU(), r"module 1 \(RReLU\) is in training mode"),
            (nn.MultiheadAttention(3, 1, dropout=0.2), r"module 1 \(MultiheadAttention\)"),
            (nn.LSTM(3, 3, 2, dropout=0.2), r"module 1 \(LSTM\)"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_training_mode(self, call: Any, module: nn.Module, text: str) -> None:
        network = nn.Sequential(nn.Linear(3, 3), module).double()
        with pytest.raises(ValueError, match=text):
            call(network, _x(4, 3))

    def test_batch_norm_without_running_statistics(self, call: Any) -> None:
        norm = nn.BatchNorm1d(3, track_running_stats=False)
        network = nn.Sequential(nn.Linear(3, 3), norm).double().eval()
        with pytest.raises(ValueError, match=r"module 1 \(BatchNorm1d\).*in every mode"):
            call(network, _x(4, 3))

    def test_modules_without_a_training_mode_are_accepted(self, call: Any) -> None:
        network = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0)).double().train()
        x = _x(4, 3)
        expected = full_kernel(jacobian([network(x)], network.parameters()))
        torch.testing.assert_close(call(network, x, outputs="full"), expected, **EXACT)

    def test_a_network_that_draws(self, call: Any) -> None:
        class Noise(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + torch.randn(len(x), 1)

        with pytest.raises(ValueError, match=r"two calls .* gave different outputs"):
            call(Noise(3, 2).double(), _x(4, 3))

    @pytest.mark.parametrize("samples", [2, 5, 40])
    def test_a_network_that_mixes_samples(self, call: Any, samples: int) -> None:
        class Centered(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x - x.mean(0))

        network = Centered(3, 2).double()
        x = _x(samples, 3)
        with pytest.raises(ValueError, match="depends on the other samples of its batch"):
            call(network, x)
        # As one batch that is not taken apart, its kernel is well defined.
        expected = full_kernel(jacobian([network(x)], network.parameters()))
        found = call(network, x, outputs="full", batch_dim=None)
        torch.testing.assert_close(found, expected, **EXACT)


def test_network_and_random_states_do_not_change(call: Any) -> None:
    case = make_output_case("convolutional")
    network = case.network
    network.heads.train()  # holds no module that minds
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    state = {n: t.clone() for n, t in network.state_dict().items()}
    grads = [p.grad.clone() for p in network.parameters()]
    same = [(p, p.grad, p.requires_grad) for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    random = torch.get_rng_state()
    with torch.no_grad():
        call(network, case.inputs, "shared", outputs="projection")
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert [m.training for m in network.modules()] == modes
    for (p, grad, wanted), before in zip(same, grads, strict=True):
        assert p.grad is grad
        assert torch.equal(p.grad, before)
        assert p.requires_grad == wanted
    after = network.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[n], t) for n, t in state.items())


def test_a_module_that_counts_calls_in_a_buffer(call: Any) -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    network = Counting().double()
    call(network, _x(4, 3))
    assert network.calls == 0


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class TestInputs:
    def test_named_tuples_dicts_and_arguments(self, call: Any) -> None:
        linear = nn.Linear(3, 2).double()
        a, b = _x(4, 3), _x(4, 3)
        expected = call(linear, a * b)

        def through(take: Any) -> Any:
            class Through(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.linear = linear

                def forward(self, *inputs: Any) -> Tensor:
                    first, second = take(*inputs)
                    return self.linear(first * second)

            return Through()

        for inputs, take in [
            (Pair(a, b), lambda p: (p.first, p.second)),
            ({"x": [a, None], "y": b}, lambda d: (d["x"][0], d["y"])),
            ((a, b), lambda first, second: (first, second)),
        ]:
            found = call(through(take), inputs, chunk_size=3)
            torch.testing.assert_close(found, expected, **EXACT)

    def test_forward(self, call: Any) -> None:
        linear = nn.Linear(3, 2).double()
        x = _x(4, 3)
        found = call(linear, x, forward=lambda m, x: {"double": 2 * m(x)})
        torch.testing.assert_close(found, 4 * call(linear, x), **EXACT)

    def test_an_object_is_one_batch(self, call: Any) -> None:
        class Opaque:
            def __init__(self, x: Tensor) -> None:
                self.x = x

        linear = nn.Linear(3, 2).double()
        x = _x(4, 3)
        options = {"forward": lambda m, batch: m(batch.x)}
        expected = call(linear, x)
        torch.testing.assert_close(call(linear, Opaque(x), **options), expected, **EXACT)
        parts = Batches([Opaque(x[:3]), Opaque(x[3:])])
        torch.testing.assert_close(call(linear, parts, **options), expected, **EXACT)
        with pytest.raises(ValueError, match=r"cannot be taken apart.*Batches\("):
            call(linear, Opaque(x), chunk_size=2, **options)

    def test_graphs_have_no_vmap_over_samples(self) -> None:
        case = make_output_case("graph")
        assert output_ntk(case.network, case.inputs).method == "rows"
        with pytest.raises(ValueError, match='use method="rows" or "ntvp"'):
            output_ntk(case.network, case.inputs, method="jacobian")

    def test_a_network_that_vmap_cannot_take(self) -> None:
        case = make_output_case("recurrent")
        assert output_ntk(case.network, case.inputs, batch_dim=1).method == "rows"
        for method in ("jacobian", "ntvp"):
            with pytest.raises(ValueError, match=r'does not allow .*use method="rows"'):
                output_ntk(case.network, case.inputs, batch_dim=1, method=method)

    def test_batches_are_the_chunks(self, call: Any) -> None:
        with pytest.raises(ValueError, match="Batches are the chunks"):
            call(nn.Linear(3, 1), Batches([torch.zeros(2, 3)]), chunk_size=1)
        with pytest.raises(ValueError, match="at least one batch"):
            Batches([])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"outputs": "sum"}, "outputs must be one of full, trace, projection, found 'sum'"),
        ({"directions": 0}, "Found directions=0"),
        ({"chunk_size": 0}, "Found chunk_size=0"),
        ({"names": ["a", "b"]}, "1 outputs for 2 names"),
        ({"task_dim": 0}, "task_dim=0 is the samples' dimension"),
        ({"task_dim": 2}, "task_dim=2"),
        ({"parameters": "trunk"}, "Found 'trunk'"),
        ({"parameters": "shared"}, "Linear does not have"),
        ({"parameters": [torch.zeros(2, requires_grad=True)]}, "are not parameters of the network"),
        ({"parameters": lambda name, p: False}, "no trainable parameter is left"),
        ({"jvp": "reverse", "method": "ntvp"}, "jvp must be one of"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(call: Any, options: dict[str, Any], text: str) -> None:
    if isinstance(call, _Operator):
        options = {n: v for n, v in options.items() if n != "method"}
    with pytest.raises(ValueError, match=text):
        call(nn.Linear(3, 2).double(), _x(4, 3), **options)


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method must be one of jacobian, rows, ntvp, auto"):
        output_ntk(nn.Linear(3, 2), torch.zeros(4, 3), method="exact")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("forward", "error", "text"),
    [
        (lambda m, x: 3, TypeError, "must return a tensor"),
        (lambda m, x: [m(x), 3], TypeError, "the output of task 1 must be a tensor"),
        (lambda m, x: [m(x), m(x) > 0], TypeError, "task 1 .* found torch.bool"),
        (lambda m, x: [m(x), m(x).sum()], ValueError, r"task 1 must have shape \(B, ...\)"),
        (lambda m, x: [m(x), m(x)[1:]], ValueError, "samples along dimension 0, found 0 "),
        (lambda m, x: m(x) / 0, FloatingPointError, "the output of task 0 is not finite"),
        (lambda m, x: x, ValueError, "no output depends on any"),
        (lambda m, x: [], ValueError, "0 outputs for 0 names"),
    ],
)
def test_outputs_that_do_not_fit(call: Any, forward: Any, error: Any, text: str) -> None:
    options = {"method": "rows"} if isinstance(call, _Dense) else {}
    with pytest.raises(error, match=text):
        call(nn.Linear(3, 2).double(), _x(4, 3), forward=forward, **options)


def test_a_function_needs_a_dict(call: Any) -> None:
    with pytest.raises(ValueError, match="needs parameters as a dict"):
        call(lambda p, x: x @ p["w"], _x(4, 3))


def test_a_module_without_forward(call: Any) -> None:
    network = nn.ModuleList([nn.Linear(3, 2)]).double()
    with pytest.raises(ValueError, match="ModuleList has no forward method"):
        call(network, _x(4, 3))


class TestMemory:
    def test_the_error_says_what_is_needed_and_what_to_do(self) -> None:
        # 100 samples and 2 outputs: 200 x 200 x 8 bytes; Jacobian 200 x 8 x 8 bytes.
        network, x = nn.Linear(3, 2).double(), _x(100, 3)
        with pytest.raises(MemoryBudgetError) as caught:
            output_ntk(network, x, outputs="full", memory_budget=100_000)
        error = caught.value
        assert error.budget == 100_000
        assert error.needed > 320_000
        text = str(error)
        assert "100 samples and 1 tasks (200 rows) takes 312.50 KiB" in text
        assert "8 parameters 12.50 KiB" in text
        assert "OutputNTKOperator" in text
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (again.needed, again.budget, str(again)) == (error.needed, error.budget, text)

    def test_a_chunk_that_fits_is_named(self) -> None:
        # Kernel 800 bytes; 10 rows of 1001 parameters 80080 bytes.
        network, x = nn.Linear(1000, 1).double(), _x(10, 1000)
        with pytest.raises(MemoryBudgetError, match="chunk_size=2 fits") as caught:
            output_ntk(network, x, method="jacobian", memory_budget=40_000)
        # All at once: kernel, Jacobian, and products before they are put in place.
        assert caught.value.needed == 800 + 80_080 + 800
        expected = output_ntk(network, x).matrix()
        for options in ({"chunk_size": 2, "method": "jacobian"}, {}, {"chunk_size": 2}):
            found = output_ntk(network, x, memory_budget=40_000, **options)  # type: ignore[arg-type]
            assert found.method == "jacobian"
            torch.testing.assert_close(found.matrix(), expected, **EXACT)

    def test_the_check_comes_before_the_work(self) -> None:
        calls = []

        def forward(module: nn.Module, x: Tensor) -> Tensor:
            calls.append(len(x))
            return module(x)

        network, x = nn.Linear(3, 2).double(), _x(5000, 3)
        with pytest.raises(MemoryBudgetError):
            output_ntk(network, x, forward=forward, memory_budget=1 << 20)
        assert max(calls) <= 8


class _Cube(torch.autograd.Function):
    """Without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _Once(_Cube):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _Cube.backward(ctx, g)


class _Wrong(_Cube):
    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * tangent


def _with(function: type[torch.autograd.Function]) -> dict[str, Any]:
    return {"forward": lambda m, x: function.apply(m(x))}


class TestJVP:
    def test_double_backward_where_forward_mode_is_missing(self) -> None:
        network, x = nn.Linear(3, 2).double(), _x(4, 3)
        expected = full_kernel(jacobian([network(x) ** 3], network.parameters()))
        operator = OutputNTKOperator(network, x, outputs="full", **_with(_Cube))
        assert operator.jvp == "double-backward"
        found = operator @ torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(found, expected, **EXACT)
        rows = output_ntk(network, x, outputs="full", **_with(_Cube))
        assert rows.method == "rows"
        torch.testing.assert_close(rows.matrix(), expected, **EXACT)

    def test_a_given_way_without_support_raises(self) -> None:
        network, x = nn.Linear(3, 2).double(), _x(4, 3)
        with pytest.raises(NotImplementedError, match="jvp='forward'; use the other"):
            OutputNTKOperator(network, x, jvp="forward", **_with(_Cube))

    def test_neither(self) -> None:
        network, x = nn.Linear(3, 2).double(), _x(4, 3)
        with pytest.raises(NotImplementedError, match=r'jvp=.auto.; use method="rows"'):
            OutputNTKOperator(network, x, **_with(_Once))
        expected = full_kernel(jacobian([network(x) ** 3], network.parameters()))
        rows = output_ntk(network, x, outputs="full", **_with(_Once)).matrix()
        torch.testing.assert_close(rows, expected, **EXACT)

    def test_a_wrong_derivative_is_found(self) -> None:
        network, x = nn.Linear(3, 2).double(), _x(4, 3)
        with pytest.raises(ValueError, match=r"J v by jvp='forward' contradicts J\^T u"):
            OutputNTKOperator(network, x, **_with(_Wrong))


def test_vectors_that_do_not_fit() -> None:
    operator = OutputNTKOperator(nn.Linear(3, 2).double(), _x(SAMPLES, 3), task_dim=1)
    with pytest.raises(ValueError, match=r"shape \(12,\) or \(12, m\), found \(6,\)"):
        operator @ torch.zeros(6)
    with pytest.raises(KeyError, match="no task 2 among 2: 0, 1"):
        operator.block(2)
    block = operator.block("1")
    assert (block.shape, block.tasks, block.names) == ((6, 6), 1, ("1",))
