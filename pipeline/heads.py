"""The heads: linear maps of standardised features, to scores of classes or to a number, and how they are fitted.

A head is three steps: log (|S| + ε) where that helps, standardise, multiply. Penalties are stated per sample, so that a
value chosen on a part of the training samples means the same on all of them.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from scattercube.pipeline.features import BLOCK_VALUES, WIDE, row_blocks

HELD_OUT = 5  # one training sample in five chooses the penalty
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Solution:
    """A fitted affine map to scores, one a class, or to one number: ``X @ coefficients.T + intercepts``.

    (class, feature) and (class,), where one number counts as one class.
    """

    coefficients: np.ndarray
    intercepts: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head:
    """One kind of linear classifier or regressor.

    Attributes
    ----------
    title
        What people call it.
    parameter, convert
        scikit-learn's name of the penalty's parameter, and its value from the penalty per sample and the sample count.
    penalties
        The grid, from strong to weak.
    solve
        Fits ``X`` (sample, feature) and the truth about them with one penalty after the other.
    predict
        Class numbers, or the number itself, from ``X`` and a solution: (sample,).
    loss
        What is wrong with predictions, given the truth; the penalty is the one with the least on held-out samples.
    """

    title: str
    parameter: str
    convert: Callable[[float, int], float]
    penalties: tuple[float, ...]
    solve: Callable[[np.ndarray, np.ndarray, int, Sequence[float]], Iterator[Solution]]
    predict: Callable[[np.ndarray, Solution], np.ndarray]
    loss: Callable[[np.ndarray, np.ndarray], float]


def _solve_ridge(X: np.ndarray, codes: np.ndarray, n_classes: int, penalties: Sequence[float]) -> Iterator[Solution]:
    """Fit scores of ±1: what RidgeClassifier minimises with alpha = penalty · n."""
    return _least_squares(X, np.where(codes[:, None] == np.arange(n_classes), 1.0, -1.0), penalties)


def _solve_regression(X: np.ndarray, targets: np.ndarray, _: int, penalties: Sequence[float]) -> Iterator[Solution]:
    """Fit one number: what Ridge minimises with alpha = penalty · n."""
    return _least_squares(X, targets[:, None], penalties)


def _least_squares(X: np.ndarray, Y: np.ndarray, penalties: Sequence[float]) -> Iterator[Solution]:
    """Minimise mean ‖X W + b − Y‖² + penalty ‖W‖² for Y (sample, output).

    The sums are taken once, in float64 whatever the features are, and serve every penalty. None counts as smaller than
    what rounding leaves of them, or the system might have no solution.
    """
    from scipy.linalg import cho_factor, cho_solve

    n, p = X.shape
    x_mean, y_mean = X.mean(axis=0, dtype=np.float64), Y.mean(axis=0)
    gram, cross = np.zeros((p, p)), np.zeros((p, Y.shape[1]))
    for rows in row_blocks(X):
        centred = X[rows] - x_mean
        gram += centred.T @ centred
        cross += centred.T @ Y[rows]
    least = 4 * np.finfo(np.float64).eps * np.trace(gram)
    for penalty in penalties:
        system = gram.copy()
        system.flat[:: p + 1] += max(penalty * n, least)
        # Symmetric, so the transpose is the same matrix in the order that LAPACK overwrites without a copy.
        W = cho_solve(cho_factor(system.T, overwrite_a=True, check_finite=False), cross)
        yield Solution(W.T, y_mean - x_mean @ W)


def _solve_logistic(X: np.ndarray, codes: np.ndarray, n_classes: int, penalties: Sequence[float]) -> Iterator[Solution]:
    """Fit scikit-learn's LogisticRegression (multinomial, L2) by L-BFGS, each penalty starting from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="lbfgs", max_iter=MAX_ITERATIONS, warm_start=True)
    for penalty in penalties:
        model.set_params(C=LOGISTIC.convert(penalty, len(X)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(X, codes)
        notes: tuple[str, ...] = ()
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            notes = (f"L-BFGS stopped after {int(model.n_iter_[0])} iterations without reaching its tolerance",)
        present = model.classes_
        coefficients = np.zeros((n_classes, X.shape[1]))
        intercepts = np.full(n_classes, -np.inf)  # a class without training samples is never predicted
        if len(present) == 2:  # one score d for two classes: the softmax of (-d/2, d/2) is the sigmoid of d
            halves = np.array([[-0.5], [0.5]])
            coefficients[present], intercepts[present] = halves * model.coef_, halves[:, 0] * model.intercept_[0]
        else:
            coefficients[present], intercepts[present] = model.coef_, model.intercept_
        yield Solution(coefficients, intercepts, notes)


def scores(X: np.ndarray, solution: Solution) -> np.ndarray:
    """Return the decision values (sample, class) of standardised features."""
    values: np.ndarray = X @ solution.coefficients.astype(X.dtype).T + solution.intercepts
    return values


def classify(values: np.ndarray) -> np.ndarray:
    """Return the class number with the largest decision value of each sample."""
    return np.asarray(values.argmax(axis=-1))


def estimate(X: np.ndarray, solution: Solution) -> np.ndarray:
    """Return the number that a solution predicts from standardised features, (sample,) float64.

    Coefficients are large where features resemble each other, so the products are float64 whatever the features are.
    """
    values = np.empty(len(X))
    for rows in row_blocks(X):
        values[rows] = X[rows].astype(np.float64) @ solution.coefficients[0] + solution.intercepts[0]
    return values


def _predicted_class(X: np.ndarray, solution: Solution) -> np.ndarray:
    return classify(scores(X, solution))


def _n_errors(predicted: np.ndarray, codes: np.ndarray) -> float:
    return float(np.count_nonzero(predicted != codes))


def _mean_error(predicted: np.ndarray, targets: np.ndarray) -> float:
    return float(np.abs(predicted - targets).mean())


RIDGE = Head(
    title="ridge classifier",
    parameter="alpha",
    convert=lambda penalty, n: penalty * n,
    penalties=(10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    solve=_solve_ridge,
    predict=_predicted_class,
    loss=_n_errors,
)
LOGISTIC = Head(
    title="logistic regression",
    parameter="C",
    convert=lambda penalty, n: 1 / (penalty * n),
    penalties=(1.0, 1e-1, 1e-2, 1e-3, 1e-4),
    solve=_solve_logistic,
    predict=_predicted_class,
    loss=_n_errors,
)
RIDGE_REGRESSION = Head(
    title="ridge regression",
    parameter="alpha",
    convert=lambda penalty, n: penalty * n,
    penalties=(10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11),
    solve=_solve_regression,
    predict=estimate,
    loss=_mean_error,
)
HEADS = {"ridge": RIDGE, "logistic": LOGISTIC}
REGRESSORS = {"ridge": RIDGE_REGRESSION}
"""What `HEADS` are for classes, for numbers."""


@dataclass(frozen=True)
class Trained:
    """A head fitted to training samples: the solution and the parameter that was chosen, in scikit-learn's terms."""

    solution: Solution
    parameter: str
    value: float
    notes: tuple[str, ...]
    seconds: float


def hold_out(codes: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """Shuffle training samples so that a stratified fifth stands at the end; return the order and how many that is.

    A class of two to four samples gives one, a class of one sample none.
    """
    shuffled = np.random.default_rng(seed).permutation(len(codes))
    by_class = np.argsort(codes[shuffled], kind="stable")
    counts = np.bincount(codes)
    rank = np.empty(len(codes), dtype=np.intp)
    rank[by_class] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = np.where(counts < HELD_OUT, counts > 1, counts // HELD_OUT)
    held = rank < share[codes[shuffled]]
    return np.concatenate([shuffled[~held], shuffled[held]]), int(held.sum())


def train(
    names: Sequence[str],
    X: np.ndarray,
    truth: np.ndarray,
    n_classes: int,
    n_held: int,
    heads: Mapping[str, Head] = HEADS,
) -> dict[str, Trained]:
    """Fit heads to standardised ``X`` (sample, feature); the last ``n_held`` rows choose the penalty.

    The truth is class numbers, or for ``REGRESSORS`` the targets themselves.

    Where features far outnumber samples the work is done in the samples' own space, an exact rotation for these
    penalties. Each head has one thread: the numbers then do not depend on how many cores there are, and threads that
    wait for each other on busy cores would make thousands of small products ten times slower.
    """
    import sklearn.linear_model  # noqa: F401 (the limit reaches only libraries that are loaded)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(len(names)) as pool:
        Z, rotation, unit = _row_space(X)

        def train_one(name: str) -> Trained:
            head, begin = heads[name], perf_counter()
            penalty, notes = _choose(head, Z, truth, n_classes, n_held, unit)
            (solution,) = head.solve(Z, truth, n_classes, [penalty / unit**2])
            if rotation is not None:
                weights = solution.coefficients @ rotation.T
                coefficients = sum(weights[:, rows] @ X[rows].astype(np.float64) for rows in row_blocks(X))
                solution = Solution(coefficients, solution.intercepts, solution.notes)
            value, seconds = head.convert(penalty, len(Z)), perf_counter() - begin
            return Trained(solution, head.parameter, value, notes + solution.notes, seconds)

        return dict(zip(names, pool.map(train_one, names), strict=True))


def _choose(
    head: Head, Z: np.ndarray, truth: np.ndarray, n_classes: int, n_held: int, unit: float
) -> tuple[float, tuple[str, ...]]:
    """Return the penalty that does best on the held-out rows, and what is to be said about the choice."""
    n_fit = len(Z) - n_held
    if not n_held or len(np.unique(truth[:n_fit])) < 2:
        note = "too few training samples to hold some out: the penalty is the middle of the grid"
        return head.penalties[len(head.penalties) // 2], (note,)
    candidates = head.solve(Z[:n_fit], truth[:n_fit], n_classes, [one / unit**2 for one in head.penalties])
    losses = [head.loss(head.predict(Z[n_fit:], one), truth[n_fit:]) for one in candidates]
    return head.penalties[int(np.argmin(losses))], ()  # the first of equals is the strongest


def _row_space(X: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Return ``(Z, R, unit)``, Z Zᵀ = X Xᵀ / unit² and Z = X Xᵀ R, Z no wider than high; else ``(X, None, 1)``.

    It pays only where X is much wider than high: the eigenvectors cost as much as many iterations on X itself.
    ``unit`` is the standard deviation along the strongest direction: solvers stop by the size of a gradient, and
    columns of the size of one give that a meaning.
    """
    n, p = X.shape
    if p <= WIDE * n:
        return X, None, 1.0
    gram = np.zeros((n, n))
    step = max(1, BLOCK_VALUES // n)
    for start in range(0, p, step):
        columns = X[:, start : start + step].astype(np.float64)
        gram += columns @ columns.T
    energies, axes = np.linalg.eigh(gram)
    if energies[-1] <= 0:  # all samples are alike
        return np.zeros((n, 1)), np.zeros((n, 1)), 1.0
    unit = float(np.sqrt(energies[-1] / n))
    kept = energies > energies[-1] * n * np.finfo(np.float64).eps
    lengths = np.sqrt(energies[kept])
    return axes[:, kept] * (lengths / unit), axes[:, kept] / (lengths * unit), unit
