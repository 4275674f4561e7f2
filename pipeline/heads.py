"""The heads: linear classifiers on standardised features, saved as arrays and JSON, applied by plain NumPy.

A head is three steps: log (|S| + ε) where a path allows it, standardise, multiply. Penalties are stated per sample,
so that a value chosen on a part of the training samples means the same on all of them.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.features import BLOCK_VALUES, WIDE, Layout, Scaling, row_blocks

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
HELD_OUT = 5  # one training sample in five chooses the penalty
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Solution:
    """A fitted affine map to one score a class: ``X @ coefficients.T + intercepts``, (class, feature) and (class,)."""

    coefficients: np.ndarray
    intercepts: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head:
    """One kind of linear classifier.

    Attributes
    ----------
    title
        What people call it.
    parameter, convert
        scikit-learn's name of the penalty's parameter, and its value from the penalty per sample and the sample count.
    penalties
        The grid, from strong to weak.
    solve
        Fits ``X`` (sample, feature) and class numbers with one penalty after the other.
    """

    title: str
    parameter: str
    convert: Callable[[float, int], float]
    penalties: tuple[float, ...]
    solve: Callable[[np.ndarray, np.ndarray, int, Sequence[float]], Iterator[Solution]]


def _solve_ridge(X: np.ndarray, codes: np.ndarray, n_classes: int, penalties: Sequence[float]) -> Iterator[Solution]:
    """Minimise mean ‖X W + b − Y‖² + penalty ‖W‖² with Y = ±1: what RidgeClassifier minimises with alpha = penalty · n.

    The sums are taken once, in float64 whatever the features are, and serve every penalty.
    """
    from scipy.linalg import cho_factor, cho_solve

    n, p = X.shape
    Y = np.where(codes[:, None] == np.arange(n_classes), 1.0, -1.0)
    x_mean, y_mean = X.mean(axis=0, dtype=np.float64), Y.mean(axis=0)
    gram, cross = np.zeros((p, p)), np.zeros((p, n_classes))
    for rows in row_blocks(X):
        centred = X[rows] - x_mean
        gram += centred.T @ centred
        cross += centred.T @ Y[rows]
    for penalty in penalties:
        system = gram.copy()
        system.flat[:: p + 1] += penalty * n
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


RIDGE = Head(
    title="ridge classifier",
    parameter="alpha",
    convert=lambda penalty, n: penalty * n,
    penalties=(10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
    solve=_solve_ridge,
)
LOGISTIC = Head(
    title="logistic regression",
    parameter="C",
    convert=lambda penalty, n: 1 / (penalty * n),
    penalties=(1.0, 1e-1, 1e-2, 1e-3, 1e-4),
    solve=_solve_logistic,
)
HEADS = {"ridge": RIDGE, "logistic": LOGISTIC}


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


def train(names: Sequence[str], X: np.ndarray, codes: np.ndarray, n_classes: int, n_held: int) -> dict[str, Trained]:
    """Fit heads to standardised ``X`` (sample, feature) and class numbers; the last ``n_held`` rows choose the penalty.

    Where features far outnumber samples the work is done in the samples' own space, an exact rotation for these
    penalties. Each head has one thread: the numbers then do not depend on how many cores there are, and threads that
    wait for each other on busy cores would make thousands of small products ten times slower.
    """
    import sklearn.linear_model  # noqa: F401 (the limit reaches only libraries that are loaded)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), ThreadPoolExecutor(len(names)) as pool:
        Z, rotation, unit = _row_space(X)

        def train_one(name: str) -> Trained:
            head, begin = HEADS[name], perf_counter()
            penalty, notes = _choose(head, Z, codes, n_classes, n_held, unit)
            (solution,) = head.solve(Z, codes, n_classes, [penalty / unit**2])
            if rotation is not None:
                weights = (solution.coefficients @ rotation.T).astype(X.dtype)
                solution = Solution(weights @ X, solution.intercepts, solution.notes)
            value, seconds = head.convert(penalty, len(Z)), perf_counter() - begin
            return Trained(solution, head.parameter, value, notes + solution.notes, seconds)

        return dict(zip(names, pool.map(train_one, names), strict=True))


def _choose(
    head: Head, Z: np.ndarray, codes: np.ndarray, n_classes: int, n_held: int, unit: float
) -> tuple[float, tuple[str, ...]]:
    """Return the penalty that does best on the held-out rows, and what is to be said about the choice."""
    n_fit = len(Z) - n_held
    if not n_held or len(np.unique(codes[:n_fit])) < 2:
        note = "too few training samples to hold some out: the penalty is the middle of the grid"
        return head.penalties[len(head.penalties) // 2], (note,)
    candidates = head.solve(Z[:n_fit], codes[:n_fit], n_classes, [one / unit**2 for one in head.penalties])
    hits = [np.sum(classify(scores(Z[n_fit:], one)) == codes[n_fit:]) for one in candidates]
    return head.penalties[int(np.argmax(hits))], ()  # the first of equals is the strongest


def scores(X: np.ndarray, solution: Solution) -> np.ndarray:
    """Return the decision values (sample, class) of standardised features."""
    values: np.ndarray = X @ solution.coefficients.astype(X.dtype).T + solution.intercepts
    return values


def classify(values: np.ndarray) -> np.ndarray:
    """Return the class number with the largest decision value of each sample."""
    return np.asarray(values.argmax(axis=-1))


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


@dataclass(frozen=True)
class FittedHead:
    """A head that can be applied: all that ``predict`` needs, and where it comes from.

    Attributes
    ----------
    name
        A key of ``HEADS``.
    classes
        The labels, in the order of the scores.
    origin
        Provenance: the parameter and its value, the samples it was fitted on, digests, notes.
    """

    name: str
    classes: tuple[str, ...]
    solution: Solution
    scaling: Scaling
    layout: Layout
    origin: Mapping[str, Any]

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classify raw scattering features (sample, *layout.shape) or (sample, feature).

        Returns
        -------
        labels
            (sample,) objects; the empty string where a feature is not finite.
        scores
            (sample, class) float32 decision values, the largest of which is the label's.
        """
        flat = features.reshape(len(features), -1)
        if flat.shape[1] != self.layout.n_features:
            raise ValueError(f"features are {features.shape[1:]} a sample; this head was fitted on {self.layout.shape}")
        values = np.empty((len(flat), len(self.classes)), np.float32)
        for rows in row_blocks(flat):
            block = self.scaling.apply(flat[rows].astype(np.float32, copy=True))
            values[rows] = scores(block, self.solution)
        labels = np.array(self.classes, dtype=object)[classify(values)]
        labels[np.isnan(values).any(axis=1)] = ""
        return labels, values

    def save(self, folder: Path) -> None:
        """Write ``head.npz`` (numbers) and then ``head.json`` (everything else) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self.solution, name) for name in ("coefficients", "intercepts")}
        arrays |= {part.name: getattr(self.scaling, part.name) for part in fields(self.scaling)}
        np.savez(folder / "head.npz", allow_pickle=False, **arrays)
        document = {
            "format": FORMAT,
            "name": self.name,
            "classes": self.classes,
            "origin": dict(self.origin),
            "layout": asdict(self.layout),
        }
        (folder / "head.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def load_head(folder: Path) -> FittedHead:
    """Read a head that ``FittedHead.save`` wrote. Nothing in the files is executed.

    Raises
    ------
    StoreError
        A file is missing, damaged, holds Python objects, or the arrays do not fit each other.
    """
    try:
        document = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        with (folder / "head.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        layout = document["layout"]
        layout = Layout(**{**layout, "dims": tuple(layout["dims"]), "shape": tuple(layout["shape"])})
        classes = tuple(document["classes"])
        solution = Solution(arrays.pop("coefficients"), arrays.pop("intercepts"))
        head = FittedHead(document["name"], classes, solution, Scaling(**arrays), layout, document["origin"])
        expected = (len(classes), layout.n_features)
        if solution.coefficients.shape != expected or solution.intercepts.shape != expected[:1]:
            raise ValueError(f"coefficients {solution.coefficients.shape}, expected {expected}")
        if any(getattr(head.scaling, part.name).shape != expected[1:] for part in fields(head.scaling)):
            raise ValueError(f"the standardisation is not of {expected[1]} features")
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as failure:
        raise StoreError(f"{folder}: no usable head there: {failure}; run `scattercube fit` to make one") from failure
    return head


def check_layout(head: FittedHead, cube: "xr.Dataset", what: str) -> None:
    """Raise PlanError, naming the difference, when a cube's features are not those that a head was fitted on."""
    difference = head.layout.difference(Layout.of(cube))
    if difference:
        raise PlanError(
            f"{what}: the head {head.name!r} does not fit this cube: {difference}; extract with the head's Spec"
        )
