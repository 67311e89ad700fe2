from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ntkmtl.metrics import delta_m, mean_rank

# Positive and few, so that ties are common; near enough that sums do not cancel to noise.
_POSITIVE = st.sampled_from([0.01, 0.5, 1.0, 2.0, 3.0, 7.5, 100.0])
_UNITS = st.sampled_from([1e-6, 0.3, 1.0, 1000.0, 1e6])

# The first call of an operation can take longer than any deadline.
_property = settings(deadline=None, derandomize=True)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[bool]]:
    methods = draw(st.integers(1, 6))
    size = draw(st.integers(1, 5))
    row = st.lists(_POSITIVE, min_size=size, max_size=size)
    values = draw(st.lists(row, min_size=methods, max_size=methods))
    higher = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return _double(values), _double(draw(row)), higher


def _double(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("higher", [True, [True, False]])
def test_the_default_device_does_not_matter(higher: bool | list[bool]) -> None:
    values, baseline = [[1.0, 2.0], [3.0, 1.0]], [2.0, 4.0]
    drop, rank = delta_m(values, baseline, higher), mean_rank(values, higher)
    with torch.device("meta"):
        again = delta_m(values, baseline, higher), mean_rank(values, higher, ties="average")
    assert [one.device.type for one in again] == ["cpu", "cpu"]
    torch.testing.assert_close(again, (drop, rank))


class TestDeltaM:
    def test_by_hand(self) -> None:
        # (-(5 - 4) / 4 + (3 - 2) / 2 + (10 - 8) / 8) / 3 = (-1/4 + 1/2 + 1/4) / 3 = 1/6
        assert float(delta_m([5, 3, 10], [4, 2, 8], [True, False, False])) == pytest.approx(100 / 6)

    def test_by_hand_all_higher(self) -> None:
        # (-(6 - 4) / 4 - (5 - 10) / 10) / 2 = (-1/2 + 1/2) / 2
        assert float(delta_m([6, 5], [4, 10], True)) == 0.0

    def test_negative_says_better(self) -> None:
        assert delta_m([[1.0], [2.0], [4.0]], [2.0], False).tolist() == [-50.0, 0.0, 100.0]
        assert delta_m([[1.0], [2.0], [4.0]], [2.0], True).tolist() == [50.0, 0.0, -100.0]

    def test_negative_baseline_follows_the_formula(self) -> None:
        assert float(delta_m([-1.0], [-2.0], False)) == -50.0

    def test_single_method_gives_a_scalar(self) -> None:
        result = delta_m([1.0, 2.0], [1.0, 1.0], False)
        assert result.shape == ()
        assert result.dtype == torch.float64

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3), (0, 3)])
    def test_shape(self, shape: tuple[int, ...]) -> None:
        assert delta_m(torch.ones(shape), torch.ones(3), False).shape == shape[:-1]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
    def test_works_in_float64(self, dtype: torch.dtype) -> None:
        result = delta_m(torch.tensor([3], dtype=dtype), torch.tensor([7], dtype=dtype), False)
        assert result.dtype == torch.float64
        assert float(result) == pytest.approx(100 * (3 - 7) / 7, rel=1e-14)

    def test_python_floats_keep_their_precision(self) -> None:
        assert float(delta_m([0.1], [0.3], False)) == pytest.approx(-200 / 3, rel=1e-14)

    def test_cut_off_from_autograd(self) -> None:
        values = torch.ones(2, requires_grad=True)
        assert not delta_m(values, [1.0, 1.0], False).requires_grad

    def test_inputs_are_left_alone(self) -> None:
        values, baseline = _double([[3.0, 4.0]]), _double([1.0, 2.0])
        delta_m(values, baseline, [True, False])
        assert values.tolist() == [[3.0, 4.0]]
        assert baseline.tolist() == [1.0, 2.0]

    @_property
    @given(_problems())
    def test_baseline_has_no_drop(self, problem: tuple[Tensor, Tensor, list[bool]]) -> None:
        _, baseline, higher = problem
        assert float(delta_m(baseline, baseline, higher)) == 0.0

    @_property
    @given(_problems(), st.randoms(use_true_random=False))
    def test_metrics_may_be_permuted(
        self, problem: tuple[Tensor, Tensor, list[bool]], random: Any
    ) -> None:
        values, baseline, higher = problem
        order = list(range(len(higher)))
        random.shuffle(order)
        permuted = delta_m(values[:, order], baseline[order], [higher[i] for i in order])
        torch.testing.assert_close(permuted, delta_m(values, baseline, higher))

    @_property
    @given(_problems(), st.lists(_UNITS, min_size=5, max_size=5))
    def test_units_do_not_matter(
        self, problem: tuple[Tensor, Tensor, list[bool]], units: list[float]
    ) -> None:
        values, baseline, higher = problem
        scale = _double(units)[: len(higher)]
        scaled = delta_m(values * scale, baseline * scale, higher)
        torch.testing.assert_close(scaled, delta_m(values, baseline, higher), rtol=1e-9, atol=1e-6)

    @_property
    @given(_problems())
    def test_each_method_by_itself(self, problem: tuple[Tensor, Tensor, list[bool]]) -> None:
        values, baseline, higher = problem
        alone = torch.stack([delta_m(row, baseline, higher) for row in values])
        torch.testing.assert_close(alone, delta_m(values, baseline, higher))

    @_property
    @given(_problems())
    def test_other_direction_other_sign(self, problem: tuple[Tensor, Tensor, list[bool]]) -> None:
        values, baseline, higher = problem
        flipped = delta_m(values, baseline, [not up for up in higher])
        torch.testing.assert_close(flipped, -delta_m(values, baseline, higher))

    @pytest.mark.parametrize(
        ("values", "baseline", "higher", "error", "message"),
        [
            ([1.0, 2.0], [1.0], False, ValueError, r"\(\.\.\., 1\).*Found shape \(2,\)"),
            (1.0, [1.0], False, ValueError, r"values must have shape.*Found shape \(\)"),
            ([1.0], 1.0, False, ValueError, r"baseline must have shape \(S,\).*Found shape \(\)"),
            ([[1.0]], [[1.0]], False, ValueError, r"baseline.*Found shape \(1, 1\)"),
            ([], [], False, ValueError, r"baseline.*Found shape \(0,\)"),
            ([1.0, 2.0], [1.0, 0.0], False, ValueError, "Found 0 for metric 1; leave"),
            ([1.0, float("nan")], [1.0, 1.0], False, ValueError, r"values.*NaN at index \(1,\)"),
            ([1.0, 1.0], [float("nan"), 1.0], False, ValueError, r"baseline.*NaN at index \(0,\)"),
            ([[1.0], [float("inf")]], [1.0], False, ValueError, r"Found inf at index \(1, 0\)"),
            ([1.0], [float("-inf")], False, ValueError, r"baseline.*Found -inf at index \(0,\)"),
            ([1.0, 2.0], [1.0, 2.0], [True], ValueError, r"each of the 2.*Found shape \(1,\)"),
            ([1.0, 2.0], [1.0, 2.0], [1, 0], TypeError, r"True, False.*Found \[1, 0\]"),
            ([1.0], [1.0], "yes", TypeError, "True, False.*Found 'yes'"),
            ([[1.0, 2.0], [3.0]], [1.0, 2.0], False, TypeError, "values must be numbers.*list"),
            (None, [1.0], False, TypeError, "values must be numbers.*NoneType"),
            ([1.0], "1", False, TypeError, "baseline must be numbers.*str"),
            (torch.tensor([1j]), [1.0], False, TypeError, "values must be real.*complex64"),
        ],
    )
    def test_bad_input(
        self, values: Any, baseline: Any, higher: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            delta_m(values, baseline, higher)


class TestMeanRank:
    def test_by_hand(self) -> None:
        values = [[1, 30], [2, 20], [3, 10]]
        assert mean_rank(values, False).tolist() == [2.0, 2.0, 2.0]
        assert mean_rank(values, [False, True]).tolist() == [1.0, 2.0, 3.0]
        assert mean_rank(values, [True, False]).tolist() == [3.0, 2.0, 1.0]

    def test_ties_are_averaged(self) -> None:
        # Ranks 1, 2.5, 2.5, 4 and 2, 2, 2, 4.
        values = [[1, 5], [2, 5], [2, 5], [3, 6]]
        assert mean_rank(values, False).tolist() == [1.5, 2.25, 2.25, 4.0]

    def test_ties_as_published(self) -> None:
        # Ranks 1, 2, 2, 4 where lower is better; 2, 4, 4, 1 where higher is.
        values = [[1, 6], [2, 5], [2, 5], [3, 7]]
        result = mean_rank(values, [False, True], ties="published")
        assert result.tolist() == [1.5, 3.0, 3.0, 2.5]

    def test_infinite_values_rank_last_or_first(self) -> None:
        inf = float("inf")
        assert mean_rank([[inf], [1.0], [-inf]], False).tolist() == [3.0, 2.0, 1.0]

    def test_works_in_float64(self) -> None:
        # Equal in float32.
        assert mean_rank([[1.0], [1.0 + 1e-12]], False).tolist() == [1.0, 2.0]
        assert mean_rank(torch.ones(1, 1), False).dtype == torch.float64

    @_property
    @given(
        _problems(), st.randoms(use_true_random=False), st.sampled_from(["average", "published"])
    )
    def test_methods_may_be_permuted(
        self, problem: tuple[Tensor, Tensor, list[bool]], random: Any, ties: Any
    ) -> None:
        values, _, higher = problem
        order = list(range(len(values)))
        random.shuffle(order)
        permuted = mean_rank(values[order], higher, ties=ties)
        torch.testing.assert_close(permuted, mean_rank(values, higher, ties=ties)[order])

    @_property
    @given(_problems(), st.randoms(use_true_random=False))
    def test_metrics_may_be_permuted(
        self, problem: tuple[Tensor, Tensor, list[bool]], random: Any
    ) -> None:
        values, _, higher = problem
        order = list(range(len(higher)))
        random.shuffle(order)
        permuted = mean_rank(values[:, order], [higher[i] for i in order])
        torch.testing.assert_close(permuted, mean_rank(values, higher))

    @_property
    @given(_problems(), st.sampled_from(["average", "published"]))
    def test_only_the_order_counts(
        self, problem: tuple[Tensor, Tensor, list[bool]], ties: Any
    ) -> None:
        values, _, higher = problem
        expected = mean_rank(values, higher, ties=ties)
        torch.testing.assert_close(mean_rank(3 * values + 1, higher, ties=ties), expected)
        torch.testing.assert_close(mean_rank(values.log(), higher, ties=ties), expected)

    @_property
    @given(_problems())
    def test_averaged_ranks_keep_their_sum(
        self, problem: tuple[Tensor, Tensor, list[bool]]
    ) -> None:
        values, _, higher = problem
        methods = len(values)
        ranks = mean_rank(values, higher)
        assert float(ranks.sum()) == pytest.approx(methods * (methods + 1) / 2)
        assert 1 <= float(ranks.min()) <= float(ranks.max()) <= methods

    @_property
    @given(_problems())
    def test_direction_is_a_sign(self, problem: tuple[Tensor, Tensor, list[bool]]) -> None:
        values, _, higher = problem
        flipped = mean_rank(-values, [not up for up in higher])
        torch.testing.assert_close(flipped, mean_rank(values, higher))

    @_property
    @given(_problems())
    def test_ways_of_ranking_agree_without_ties(
        self, problem: tuple[Tensor, Tensor, list[bool]]
    ) -> None:
        values, _, higher = problem
        distinct = values + torch.arange(len(values))[:, None] * 1e-9
        torch.testing.assert_close(
            mean_rank(distinct, higher), mean_rank(distinct, higher, ties="published")
        )

    def test_equal_methods_are_level(self) -> None:
        assert mean_rank([[1.0, 2.0]] * 3, [True, False]).tolist() == [2.0, 2.0, 2.0]

    @pytest.mark.parametrize(
        ("values", "higher", "error", "message"),
        [
            ([1.0, 2.0], False, ValueError, r"\(methods, S\).*Found shape \(2,\)"),
            ([[]], False, ValueError, r"\(methods, S\).*Found shape \(1, 0\)"),
            ([[1.0, 2.0]], [True], ValueError, r"each of the 2 metrics.*Found shape \(1,\)"),
            ([[1.0], [float("nan")]], False, ValueError, r"NaN at index \(1, 0\)"),
            ([["a"]], False, TypeError, "values must be numbers"),
        ],
    )
    def test_bad_input(
        self, values: Any, higher: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            mean_rank(values, higher)

    def test_unknown_ties(self) -> None:
        with pytest.raises(ValueError, match=r"one of average, published\. Found ties='min'"):
            mean_rank([[1.0]], False, ties="min")  # type: ignore[arg-type]


class TestInputs:
    def test_lists_of_tensors(self) -> None:
        rows = [torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])]
        scalars = [torch.tensor(1.0), torch.tensor(2.0)]
        assert delta_m(rows, scalars, False).tolist() == [50.0, 50.0]
        assert mean_rank(rows, False).tolist() == [1.5, 1.5]

    def test_directions_as_tensor(self) -> None:
        higher = torch.tensor([True, False])
        assert float(delta_m([2.0, 2.0], [1.0, 1.0], higher)) == 0.0
        assert mean_rank([[1.0, 1.0]], torch.tensor(True)).tolist() == [1.0]

    def test_numpy(self) -> None:
        np = pytest.importorskip("numpy")
        values = np.array([[1.0, 4.0], [2.0, 2.0]])
        # As np.load and pandas hand them out.
        values.flags.writeable = False
        higher = np.array([True, False])
        higher.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert delta_m(values, np.array([1, 2]), higher).tolist() == [50.0, -50.0]
            assert mean_rank(values, higher).tolist() == [2.0, 1.0]
            assert mean_rank(list(values), np.bool_(False)).tolist() == [1.5, 1.5]
            assert mean_rank(values.astype("f4"), False).tolist() == [1.5, 1.5]
            backward = np.array([2, 1])[::-1], higher[::-1][::-1]
            assert delta_m(values, *backward).tolist() == [50.0, -50.0]


def test_tables_of_pandas_are_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([[75.0, 0.5], [25.0, 0.125]], columns=["accuracy", "error"])
    # An index that does not begin at 0, as that of rows which were picked.
    baseline = pandas.Series([50.0, 0.25], index=[7, 9])
    higher = pandas.Series([True, False], index=[7, 9])
    assert delta_m(table, baseline, higher).tolist() == [25.0, 0.0]
    assert mean_rank(table, higher).tolist() == [1.5, 1.5]


def test_names_of_metrics_in_another_order_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame([[75.0, 0.5], [25.0, 0.125]], columns=["accuracy", "error"])
    baseline = pandas.Series({"accuracy": 50.0, "error": 0.25})
    higher = pandas.Series({"accuracy": True, "error": False})
    assert delta_m(table, baseline, higher).tolist() == [25.0, 0.0]
    assert delta_m(table.loc[0], baseline, higher).tolist() == 25.0
    for wrong in ({"baseline": baseline[::-1]}, {"higher_is_better": higher[::-1]}):
        with pytest.raises(ValueError, match=r"one order.*Found \['accuracy', 'error'\] and"):
            delta_m(**{"values": table, "baseline": baseline, "higher_is_better": higher, **wrong})
    with pytest.raises(ValueError, match=r"values and higher_is_better must name"):
        mean_rank(table, higher[::-1])
    rows = [table.loc[0], table.loc[1][::-1]]
    with pytest.raises(ValueError, match=r"values and values must name"):
        mean_rank(rows, False)


def test_masked_numbers_are_refused() -> None:
    numpy = pytest.importorskip("numpy")
    whole = numpy.ma.array([[1.0, 2.0], [2.0, 100.0]])
    assert delta_m(whole, [1.0, 2.0], False).tolist() == [0.0, 2500.0]
    whole[1, 1] = numpy.ma.masked
    for call in (lambda: delta_m(whole, [1.0, 2.0], False), lambda: mean_rank(whole, False)):
        with pytest.raises(TypeError, match="some of its numbers are masked"):
            call()


def test_sparse_tensors_are_numbers() -> None:
    assert delta_m(torch.eye(2).to_sparse(), [1.0, 1.0], False).tolist() == [-50.0, -50.0]
