from __future__ import annotations

import pickle
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from scipy.stats import randint
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import check_estimator

from ntkmtl import weighting
from ntkmtl.bench import MultiTaskClassifier, MultiTaskEstimator, MultiTaskRegressor
from ntkmtl.bench.estimator import TargetColumn, parted

# None: every check of scikit-learn passes. It skips those of the array API where that is not set.
FAILING: dict[str, str] = {}


def estimator(**options: Any) -> MultiTaskEstimator:
    return MultiTaskEstimator(**{"random_state": 0, "max_steps": 300, **options})


def data(rows: int = 300) -> tuple[np.ndarray, pd.DataFrame]:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(rows, 4))
    y = pd.DataFrame(
        {
            "price": 1000 + 50 * X[:, 0] - 20 * X[:, 1] + generator.normal(size=rows),
            "kind": np.array(["low", "middle", "top"])[np.digitize(X[:, 2], [-0.5, 0.5])],
            "sold": X[:, 3] > 0,
        }
    )
    return X, y


@pytest.mark.parametrize("kind", [MultiTaskRegressor, MultiTaskClassifier])
def test_scikit_learns_checks(kind: type) -> None:
    """With a few steps each, as there are fifty checks of several networks."""
    small = kind(random_state=0, max_steps=200, hidden_layer_sizes=(32,))
    found = check_estimator(small, on_skip=None, on_fail=None, expected_failed_checks=FAILING)
    assert len(found) > 50
    skipped = {entry["check_name"] for entry in found if entry["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}
    assert [e for e in found if e["status"] not in ("passed", "skipped")] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MultiTaskRegressor, MultiTaskClassifier])
def test_scikit_learns_checks_at_full_length(kind: type) -> None:
    check_estimator(kind(), on_skip=None, expected_failed_checks=FAILING)


def test_mixed_targets_are_learned() -> None:
    X, y = data()
    fitted = estimator().fit(X[:200], y[:200])
    assert fitted.kinds_ == ["regression", "classification", "classification"]
    assert fitted.target_names_ == ["price", "kind", "sold"]
    said = fitted.predict(X[200:])
    assert said.shape == (100, 3)
    assert said.dtype == object
    assert {type(value) for value in said[:, 0]} == {float}
    assert set(said[:, 1]) <= {"low", "middle", "top"}
    assert {type(value) for value in said[:, 2]} == {bool}
    assert fitted.score(X[200:], y[200:]) > 0.85
    kinds, sold = fitted.predict_proba(X[200:])
    assert (kinds.shape, sold.shape) == ((100, 3), (100, 2))
    for shares, classes, column in zip((kinds, sold), fitted.classes_, (1, 2), strict=True):
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)
        assert (classes[shares.argmax(1)] == said[:, column]).all()


def test_score_is_the_mean_of_r2_and_accuracy_over_what_is_labeled() -> None:
    X, y = data()
    fitted = estimator(max_steps=20).fit(X, y)
    missing = y.astype(object)
    missing.iloc[:50, 0] = None
    missing.iloc[100:130, 1] = np.nan
    said = fitted.predict(X)
    expected = [
        r2_score(y["price"][50:], said[50:, 0].astype(float)),
        accuracy_score(y["kind"].drop(range(100, 130)), np.delete(said[:, 1], range(100, 130))),
        accuracy_score(y["sold"], said[:, 2].astype(bool)),
    ]
    assert fitted.score(X, missing) == pytest.approx(np.mean(expected), rel=1e-12)


def test_rows_without_a_label_teach_nothing() -> None:
    """What stands in the missing cells cannot matter, and rows without any label are allowed."""
    X, y = data()
    missing = y.astype(object)
    missing.iloc[:100, 0] = np.nan
    missing.iloc[50:180, 1] = None
    missing.iloc[::7, 2] = pd.NA
    missing.iloc[60:70] = None
    fitted = estimator().fit(X, missing)
    known = y["price"][100:].drop(range(60, 70), errors="ignore")
    assert fitted._targets[0].center == pytest.approx(known.mean(), rel=1e-12)
    assert fitted.score(X, y) > 0.8


def test_the_same_seed_gives_the_same_network_and_no_other_stream_moves() -> None:
    X, y = data(60)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = (estimator(max_steps=30).fit(X, y).predict(X) for _ in range(2))
    assert (one == two).all()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    other = estimator(max_steps=30, random_state=1).fit(X, y).predict(X)
    assert (one != other).any()


def test_clones_pickles_and_searches() -> None:
    X, y = data(120)
    fitted = estimator(max_steps=40, method="fairgrad", method_options={"alpha": 1.0}).fit(X, y)
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "network_")
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301
    assert (again.predict(X) == fitted.predict(X)).all()
    search = GridSearchCV(estimator(max_steps=40), {"method": ["ls", "ntkmtl"]}, cv=2).fit(X, y)
    assert search.best_params_["method"] in ("ls", "ntkmtl")


def test_pipelines_bring_categories_and_fill_missing_inputs() -> None:
    X, y = data()
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["e"] = np.where(X[:, 2] > 0, "left", "right")
    frame.iloc[::9, 0] = np.nan
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["e"]),
        (SimpleImputer(), list("abcd")),
    )
    pipeline = make_pipeline(columns, estimator())
    scores = cross_val_score(pipeline, frame, y, cv=3)
    assert scores.shape == (3,)
    assert scores.mean() > 0.7


@pytest.mark.parametrize("method", ["ls", "uw", "famo", "dwa", "ntkmtl", "nash-mtl"])
def test_methods_of_every_kind(method: str) -> None:
    X, y = data(200)
    assert estimator(method=method).fit(X, y).score(X, y) > 0.7


def test_a_weighting_is_a_method_too_and_stays_as_it_was() -> None:
    X, y = data(100)
    given = weighting.create("dwa")
    before = pickle.dumps(given.state_dict())
    fitted = estimator(method=given, max_steps=50).fit(X, y)
    assert fitted.method is given
    assert pickle.dumps(given.state_dict()) == before


def test_kinds_and_shapes() -> None:
    X, y = data(80)
    one = estimator(max_steps=10).fit(X, y["price"])
    assert one.predict(X).shape == (80,)
    assert not hasattr(one, "predict_proba")
    assert not hasattr(one, "classes_")
    whole = np.round(y[["price", "price"]].to_numpy() / 100).astype(int)
    assert estimator(max_steps=10).fit(X, whole).kinds_ == ["regression"] * 2
    kinds = estimator(max_steps=10, kinds=["regression", "classification"]).fit(X, whole)
    assert kinds.predict(X).shape == (80, 2)
    named = estimator(max_steps=10, kinds={"b": "classification"})
    assert named.fit(X, pd.DataFrame(whole, columns=["a", "b"])).kinds_ == [
        "regression",
        "classification",
    ]
    classes = MultiTaskClassifier(max_steps=10).fit(X, y[["kind", "sold"]])
    assert classes.predict(X).dtype == object
    assert (is_classifier(classes), is_regressor(classes)) == (True, False)
    assert is_regressor(MultiTaskRegressor())


def test_the_epoch_with_the_least_loss_on_rows_held_out_is_kept() -> None:
    generator = np.random.default_rng(0)
    X = generator.normal(size=(200, 20))
    noise = generator.normal(size=(200, 2))  # there is nothing to learn, only to learn by heart
    kept = MultiTaskRegressor(random_state=0, max_steps=1000).fit(X, noise)
    last = MultiTaskRegressor(random_state=0, max_steps=1000, validation_fraction=0).fit(X, noise)
    new = generator.normal(size=(500, 20)), generator.normal(size=(500, 2))
    assert kept.best_epoch_ < 20 < last.best_epoch_
    assert kept.score(*new) > last.score(*new) + 0.3


X, Y = data(40)


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({}, Y.assign(sold=None), "target sold has no label"),
        ({}, Y.assign(sold=True), "target sold must have at least two classes, found one class"),
        ({}, Y.assign(kind=["a", 1] * 20), "classes that are strings and others that are not"),
        ({}, Y.assign(price=np.inf), "Input y contains infinity"),
        ({}, Y.assign(price=pd.Timestamp("2026-01-01")), "found complex numbers or dates"),
        ({}, Y[:30], "inconsistent numbers of samples"),
        ({}, Y.set_axis(["a", "a", "b"], axis=1), "two targets have one name"),
        ({"kinds": {"rooms": "regression"}}, Y, "kinds names 'rooms', and the targets are price"),
        ({"kinds": ["regression"]}, Y, "kinds has 1 entries for 3 targets"),
        ({"kinds": "ranking"}, Y, "a kind is regression or classification. Found 'ranking'"),
        ({"kinds": {"price": "classification"}}, Y, "Unknown label type"),
        ({"kinds": {"kind": "regression"}}, Y, "could not convert string to float"),
        ({"method": "pivrg"}, Y, "pivrg learns from single-task networks"),
        ({"method": "nothing"}, Y, "nothing"),
        ({"batch_size": 0}, Y, "batch_size must be at least 1"),
        ({"validation_fraction": 1}, Y, "validation_fraction must be from 0 to below 1"),
        ({"learning_rate": 0}, Y, "learning_rate must be positive"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_words(
    options: dict[str, Any], y: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**options).fit(X, y)


@pytest.mark.parametrize("seed", range(12))
def test_a_rare_label_or_class_is_trained_on_and_not_held_out(seed: int) -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    y = np.full((200, 2), None, dtype=object)
    y[:, 1] = np.where(np.arange(200) == 7, "rare", "usual")
    y[:, 0][:2] = [5.0, 7.0]
    estimator = MultiTaskEstimator(max_steps=1, random_state=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        targets = [
            TargetColumn("number", y[:, 0].astype(float), "regression"),
            TargetColumn("class", y[:, 1], "classification"),
        ]
        aside, used = parted(200, 0.15, targets)
    assert sorted([*aside.tolist(), *used.tolist()]) == list(range(200))
    assert 25 <= len(aside) <= 30
    assert 7 in used
    assert {0, 1} & set(used.tolist())
    assert estimator.fit(X, y).n_steps_ == 1


def test_numbers_beside_strings_in_lists_stay_numbers() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = [[float(a), "high" if b > 0 else "low"] for a, b in X]
    estimator = MultiTaskEstimator("ls", max_steps=5, random_state=0).fit(X, y)
    assert estimator.kinds_ == ["regression", "classification"]
    frame = pd.DataFrame(y, columns=["a", "b"])
    assert estimator.score(X, y) == estimator.score(X, frame)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_numbers_of_any_size_are_learned_alike(scale: float) -> None:
    X = np.random.default_rng(0).normal(size=(60, 2))
    y = X @ [[1.0, 2.0], [3.0, 4.0]]
    plain = MultiTaskRegressor("ls", max_steps=20, random_state=0).fit(X, y).predict(X)
    scaled = MultiTaskRegressor("ls", max_steps=20, random_state=0).fit(X * scale, y * scale)
    np.testing.assert_allclose(scaled.predict(X * scale) / scale, plain, rtol=1e-4, atol=1e-4)


def test_scores_are_of_the_targets_that_were_fitted() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = pd.DataFrame({"a": X[:, 0], "b": X[:, 1]})
    estimator = MultiTaskRegressor("ls", max_steps=5, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match=r"the targets are a, b, in this order\. Found b, a"):
        estimator.score(X, y[["b", "a"]])
    with pytest.raises(ValueError, match="target b has no label"):
        estimator.score(X, y.assign(b=np.nan))
    with pytest.raises(ValueError, match=r"y must have 2 targets\. Found 1"):
        estimator.score(X, np.zeros(80))
    one = MultiTaskRegressor(max_steps=5, random_state=0).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        one.score(X, np.zeros(80))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_steps": 1.5}, "max_steps must be at least 1, a whole number. Found 1.5"),
        ({"max_steps": True}, "max_steps must be at least 1, a whole number. Found True"),
        ({"batch_size": "8"}, "batch_size must be at least 1, a whole number"),
        ({"hidden_layer_sizes": 64}, "hidden_layer_sizes must be a list"),
        ({"hidden_layer_sizes": (64, 0)}, "hidden_layer_sizes must be a list"),
        ({"method_options": [1]}, "method_options must be a dict"),
        ({"validation_fraction": "0.1"}, "validation_fraction must be a number"),
        ({"learning_rate": None}, "learning_rate must be a number"),
        ({"kinds": {"c": "regression"}}, "target c is regressed and holds no numbers"),
    ],
)
def test_options_of_another_type_are_refused_in_words(options: Any, said: str) -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = pd.DataFrame({"a": X[:, 0], "c": np.where(X[:, 1] > 0, "high", "low")})
    with pytest.raises(ValueError, match=said):
        MultiTaskEstimator("ls", **options).fit(X, y)
    with pytest.raises(ValueError, match=r"y is sparse: pass y\.toarray"):
        MultiTaskRegressor("ls").fit(X, csr_array(X))


def test_classes_that_pandas_declares_are_no_numbers() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    floors = pd.Series([1, 2, 3, 4] * 10, name="floors")
    plain, declared = floors.to_frame(), floors.astype("category").to_frame()
    assert MultiTaskEstimator("ls", max_steps=2).fit(X, plain).kinds_ == ["regression"]
    for y in (declared, declared["floors"]):
        fitted = MultiTaskEstimator("ls", max_steps=2).fit(X, y)
        assert fitted.kinds_ == ["classification"]
        assert set(fitted.predict(X).ravel()) <= {1, 2, 3, 4}
    asked = MultiTaskEstimator("ls", max_steps=2, kinds="regression").fit(X, declared)
    assert asked.kinds_ == ["regression"]


@pytest.mark.parametrize("number", [Decimal, Fraction])
def test_numbers_of_other_types_are_regressed(number: type) -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = pd.DataFrame({"a": [number(i) for i in range(40)], "b": X[:, 0]})
    floats = y.astype(float)
    fitted = MultiTaskEstimator("ls", max_steps=5, random_state=0).fit(X, y)
    assert fitted.kinds_ == ["regression"] * 2
    assert fitted.score(X, y) == fitted.score(X, floats)


def test_options_that_a_search_draws_may_be_numbers_of_numpy() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    small = MultiTaskRegressor("ls", max_steps=3, random_state=0)
    space = {"batch_size": randint(4, 9), "max_steps": randint(2, 4)}
    found = RandomizedSearchCV(small, space, n_iter=2, cv=2, random_state=0).fit(X, X)
    assert 4 <= found.best_params_["batch_size"] <= 8


def test_kinds_are_found_by_names_that_are_numbers() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    y = pd.DataFrame({0: X[:, 0], 1: [0, 1] * 20})
    fitted = MultiTaskEstimator("ls", max_steps=2, kinds={1: "classification"}).fit(X, y)
    assert fitted.kinds_ == ["regression", "classification"]


@pytest.mark.parametrize(
    ("y", "said"),
    [
        ([date(2026, 1, 1 + i % 20) for i in range(40)], r"Found datetime\.date.*, a date"),
        ([(1, 2), (3, 4)] * 20, r"Found \(1, 2\), a tuple"),
        ([[1], [2]] * 20, r"Found \[1\], a list"),
        ([True, 1] * 20, "found one class only, 1$"),
        ([10**400, 2] * 20, "target a is regressed and holds no numbers: int too large"),
    ],
)
def test_labels_that_are_neither_numbers_nor_classes_are_refused(y: Any, said: str) -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(ValueError, match=said):
        MultiTaskEstimator("ls", max_steps=2).fit(
            X, pd.DataFrame({"a": pd.Series(y, dtype=object)})
        )


def test_a_missing_label_that_numpy_made_a_string_is_refused() -> None:
    X = np.random.default_rng(0).normal(size=(60, 2))
    labels = ["a", np.nan, "b"] * 20
    with pytest.raises(ValueError, match="the class 'nan', which NumPy makes of NaN among strings"):
        MultiTaskClassifier("ls", max_steps=2).fit(X, np.array(labels))
    fitted = MultiTaskClassifier("ls", max_steps=2).fit(X, np.array(labels, dtype=object))
    assert fitted.classes_.tolist() == ["a", "b"]


def test_inputs_that_are_dates_are_refused() -> None:
    """Their unit may be microseconds in training and nanoseconds later."""
    X = pd.DataFrame({"a": range(40), "day": pd.date_range("2026-01-01", periods=40)})
    with pytest.raises(TypeError, match="found dates or times in day: make numbers of them"):
        MultiTaskRegressor("ls", max_steps=2).fit(X, X["a"])
    fitted = MultiTaskRegressor("ls", max_steps=2).fit(X[["a"]], X["a"])
    with pytest.raises(TypeError, match="found dates or times in X"):
        fitted.predict(X[["day"]].to_numpy())


def test_targets_without_a_column_and_tasks_in_options_are_refused() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(ValueError, match="y has no column"):
        MultiTaskRegressor("ls").fit(X, np.ones((40, 0)))
    with pytest.raises(ValueError, match="method_options cannot name tasks"):
        MultiTaskRegressor("ls", method_options={"tasks": ["a"]}).fit(X, X)


class ArrowFrame:
    """A data frame of another library: columns without pandas' ``iloc``, and Arrow's stream."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.columns, self.dtypes = list(frame.columns), [object() for _ in frame.columns]
        self.shape = frame.shape

    def __len__(self) -> int:
        return len(self.frame)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.frame, dtype=dtype)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        import pyarrow as pa

        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        return table.__arrow_c_stream__(requested_schema)


def test_frames_of_other_libraries_are_read_as_pandas_are() -> None:
    X, y = data()
    X = pd.DataFrame(X, columns=list("abcd"))
    wanted = estimator(max_steps=30).fit(X, y)
    found = estimator(max_steps=30).fit(ArrowFrame(X), ArrowFrame(y))
    assert found.target_names_ == wanted.target_names_
    assert found.kinds_ == wanted.kinds_
    assert (found.predict(ArrowFrame(X)) == wanted.predict(X)).all()
    assert found.score(ArrowFrame(X), ArrowFrame(y)) == wanted.score(X, y)
    days = X.assign(b=pd.Timestamp("2024-01-01"), c=date(2024, 1, 1))
    for given in (days, ArrowFrame(days)):
        with pytest.raises(TypeError, match="found dates or times in b"):
            estimator().fit(given, y)
        with pytest.raises(TypeError, match="found dates or times in b"):
            found.predict(given)
    with pytest.raises(TypeError, match="found dates or times in c"):
        estimator().fit(ArrowFrame(days[["a", "c"]]), y)
