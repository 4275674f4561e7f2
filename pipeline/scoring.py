"""What fitted heads are worth: accuracies and confusions of classes, errors of numbers, and what chance would reach."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scattercube.pipeline.heads import HEADS, REGRESSORS, Head
from scattercube.pipeline.protocol import Protocol

MOST_PAIRS = 2000  # of truth and prediction that are kept for a drawing


@dataclass(frozen=True)
class Task:
    """How heads are scored that tell classes, or that predict numbers.

    Attributes
    ----------
    name
        ``classification`` or ``regression``.
    heads
        What can be fitted, by name.
    logs
        Whether logarithms are taken of coefficients. Classes differ by factors; energies, say, add up as sums over
        voxels do.
    score
        Figures from the protocol and a prediction of each row, NaN or -1 where there is none.
    fold_figure
        The name of the figure that is given by fold, and the figure from truth and prediction.
    guess
        What is reached without features: always the most frequent class, or the mean.
    summary
        One sentence from the whole document of scores.
    """

    name: str
    heads: Mapping[str, Head]
    logs: bool
    score: Callable[[Protocol, np.ndarray], dict[str, Any]]
    fold_figure: tuple[str, Callable[[np.ndarray, np.ndarray], float]]
    guess: Callable[[Protocol], dict[str, Any]]
    summary: Callable[[Mapping[str, Any]], str]

    @staticmethod
    def of(protocol: Protocol) -> "Task":
        """Return the task that a protocol is about."""
        return REGRESSION if protocol.regresses else CLASSIFICATION


def score(true: np.ndarray, predicted: np.ndarray, rows: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Compare class numbers on some rows: accuracies, per-class figures, and the confusion matrix (true, predicted).

    ``error_se`` is the binomial standard error of the error rate. A class that is never predicted has precision 0.
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (true[rows], predicted[rows]), 1)
    hits, support, claimed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(claimed, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    error = 1 - hits.sum() / len(rows)
    return {
        "accuracy": float(1 - error),
        "error_rate": float(error),
        "error_se": float(np.sqrt(error * (1 - error) / len(rows))),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "per_class": [
            {"label": label, "precision": p, "recall": r, "f1": f, "support": n}
            for label, p, r, f, n in zip(
                classes, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True
            )
        ],
        "confusion": confusion.tolist(),
    }


def errors(true: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Compare numbers: mean absolute error and its standard error, root mean square, R², the largest; in their unit.

    ``r2`` is the share of the variance that is predicted, None where there is no variance.
    """
    wrong = np.abs(predicted - true)
    variance = float(np.mean((true - true.mean()) ** 2))
    square = float(np.mean(wrong**2))
    return {
        "mae": float(wrong.mean()),
        "mae_se": float(wrong.std() / np.sqrt(len(wrong))),
        "rmse": float(np.sqrt(square)),
        "r2": 1 - square / variance if variance > 0 else None,
        "largest": float(wrong.max()),
    }


def _score_numbers(protocol: Protocol, predicted: np.ndarray) -> dict[str, Any]:
    rows = protocol.tested
    true, found = protocol.truth[rows], predicted[rows]
    shown = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_PAIRS)).round().astype(int))
    pairs = [[float(f"{value:.6g}") for value in values[shown].tolist()] for values in (true, found)]
    return errors(true, found) | {"pairs": pairs}


def _chance(protocol: Protocol) -> dict[str, Any]:
    tested = protocol.truth[protocol.tested]
    majority = int(np.bincount(protocol.truth[protocol.parts[0].train]).argmax())
    return {"label": protocol.classes[majority], "accuracy": float(np.mean(tested == majority))}


def _mean(protocol: Protocol) -> dict[str, Any]:
    predicted = np.full(len(protocol.truth), np.nan)
    for part in protocol.parts:
        predicted[part.test] = protocol.truth[part.train].mean()
    rows, first = protocol.tested, protocol.truth[protocol.parts[0].train]
    return {"value": float(first.mean())} | errors(protocol.truth[rows], predicted[rows])


def _how(protocol: Mapping[str, Any]) -> str:
    folds = f"by {protocol['n_folds']}-fold cross-validation of" if protocol["kind"] == "folds" else "on"
    return f"{folds} {protocol['n_test']} samples"


def _summarise_classes(document: Mapping[str, Any]) -> str:
    """Every head, the same heads on statistics of the values, and chance."""
    heads = ", ".join(
        f"{one['title']} {100 * one['accuracy']:.1f} ± {100 * one['error_se']:.1f} %"
        for one in document["heads"].values()
    )
    pixels = max(one["accuracy"] for one in document["baseline"].values())
    chance = document["chance"]["accuracy"]
    return (
        f"Accuracy {_how(document['protocol'])} of {len(document['classes'])} classes: {heads}; "
        f"the same heads on {document['statistics']} at best {100 * pixels:.1f} %, chance {100 * chance:.1f} %."
    )


def _summarise_numbers(document: Mapping[str, Any]) -> str:
    """Every head, the same heads on statistics of the values, and the mean."""
    unit = f" {document['unit']}" if document["unit"] else ""
    heads = ", ".join(
        f"{one['title']} {one['mae']:.3g} ± {one['mae_se']:.2g}{unit}" for one in document["heads"].values()
    )
    simple = min(one["mae"] for one in document["baseline"].values())
    mean = document["chance"]["mae"]
    return (
        f"Mean absolute error {_how(document['protocol'])}: {heads}; "
        f"the same on {document['statistics']} {simple:.3g}{unit}, by the mean alone {mean:.3g}{unit}."
    )


CLASSIFICATION = Task(
    name="classification",
    heads=HEADS,
    logs=True,
    score=lambda protocol, predicted: score(protocol.truth, predicted, protocol.tested, protocol.classes),
    fold_figure=("accuracy", lambda true, predicted: float(np.mean(predicted == true))),
    guess=_chance,
    summary=_summarise_classes,
)
REGRESSION = Task(
    name="regression",
    heads=REGRESSORS,
    logs=False,
    score=_score_numbers,
    fold_figure=("mae", lambda true, predicted: float(np.abs(predicted - true).mean())),
    guess=_mean,
    summary=_summarise_numbers,
)
