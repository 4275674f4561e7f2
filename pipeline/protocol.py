"""Which samples a head is fitted on and which it is scored on: the split that a cube carries, else folds.

Where the cube has a coordinate ``target`` heads predict that number, else they tell the classes of ``label``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scattercube.pipeline.features import FIELD_FEATURES
from scattercube.pipeline.heads import hold_out
from scattercube.pipeline.stores.protocol import OK, PARTIAL

if TYPE_CHECKING:
    import xarray as xr

    from scattercube.pipeline.catalog import FitOptions

PIECE = re.compile(r"(?P<item>.+)@-?\d+(,-?\d+)*")  # of an item, named by where it starts


@dataclass(frozen=True)
class Part:
    """One evaluation: rows of the matrix to fit on (the last ``n_held`` choose the penalty) and rows to score on.

    Slices where the matrix may be standardised in place, index arrays where a copy must be taken.
    """

    train: slice | np.ndarray
    n_held: int
    test: slice | np.ndarray


@dataclass(frozen=True)
class Protocol:
    """How the samples are used.

    Attributes
    ----------
    samples
        The sample of the cube that each row of the matrix holds.
    truth, classes
        The class number of each row (int64), and the labels by number; or the target of each row (float64), and none.
    parts
        One for a given split, one a fold otherwise.
    n_held
        How many rows at the end of the matrix choose the penalty of the head that is saved, after folds.
    kind, notes
        ``split`` or ``folds``, and what a reader of the scores should know.
    """

    samples: np.ndarray
    truth: np.ndarray
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    n_held: int
    kind: str
    notes: tuple[str, ...]

    @property
    def regresses(self) -> bool:
        """Whether the truth is numbers to predict, not classes."""
        return not self.classes

    @property
    def tested(self) -> np.ndarray:
        """The rows that are scored, ascending."""
        rows = np.arange(len(self.truth))
        return np.sort(np.concatenate([rows[part.test] for part in self.parts]))


def choose_protocol(cube: "xr.Dataset", options: "FitOptions") -> Protocol | str:
    """Decide which samples are used and how: the split that the cube carries, else folds, of classes stratified.

    Where there are no two classes to tell apart, or no two numbers to predict, say why instead.
    """
    n, regresses = cube.sizes["sample"], "target" in cube.coords
    if n == 1:
        return "the cube holds one sample, and heads are fitted to many"
    n_features = cube["scattering"].size // n
    if n_features > FIELD_FEATURES:
        return f"a sample is a field of {n_features:,} coefficients; cut it into patches or segments to fit heads"
    labels = cube["label"].values.astype(object) if "label" in cube.coords else np.full(n, "", dtype=object)
    targets = cube["target"].values.astype(np.float64) if regresses else np.zeros(n)
    split = cube["split"].values.astype(object) if "split" in cube.coords else np.full(n, "", dtype=object)
    status, wanted = cube["status"].values, (np.isfinite(targets) if regresses else labels != "") & (split != "unused")
    usable, n_partial = wanted & (status == OK), int(np.sum(wanted & (status == PARTIAL)))
    what, notes = "samples with a target" if regresses else "labelled samples", []
    if n_partial:
        why = "values are missing in them, and coefficients that see too little are NaN"
        notes.append(f"{n_partial} {what} are partial and not used: {why}")
    if not usable.any():
        return "; ".join([f"no usable sample has a {'target' if regresses else 'label'}", *notes])
    kind = "split" if {"train", "test"} <= set(split[usable]) else "folds"
    if kind == "split" and (split[usable] == "").any():
        notes.append(f"{np.sum(split[usable] == '')} {what} belong to neither part of the split and are not used")
        usable &= split != ""
    if kind == "folds" and not regresses:
        names, counts = np.unique(labels[usable], return_counts=True)
        for name, count in zip(names[counts < 2], counts[counts < 2], strict=True):
            notes.append(f"class {name!r} has {count} sample and is left out: folds need two")
            usable &= labels != name
    samples = np.flatnonzero(usable)
    training = split[samples] == "train" if kind == "split" else np.ones(len(samples), dtype=bool)
    if regresses:  # numbers are one stratum
        names, codes = np.array([""]), np.zeros(len(samples), np.intp)
        if len(set(targets[samples[training]])) < 2:
            return f"the {training.sum()} samples to fit do not have two different targets"
    else:
        names, codes = np.unique(labels[samples], return_inverse=True)
        if len(set(codes[training])) < 2:
            only = f"only the class {names[codes[training]][0]!r}" if training.any() and len(names) else "no class"
            return f"{only} has enough samples to be fitted, and a classifier needs two"
    unseen = sorted(set(names) - set(names[codes[training]]))
    if unseen:
        notes.append(
            f"no training sample has the label {', '.join(map(repr, unseen))}: all of its test samples count as errors"
        )

    order, n_held = hold_out(codes[training], options.seed)
    rows = np.concatenate([np.flatnonzero(training)[order], np.flatnonzero(~training)])
    samples, codes = samples[rows], codes[rows]
    if kind == "split":
        n_train = int(training.sum())
        parts = [Part(slice(0, n_train), n_held, slice(n_train, len(codes)))]
    else:
        words = ("patches", "an image") if "y0" in cube.coords else ("segments", "a recording")
        folds, said = _folds(codes, _items(cube)[samples], names, options, words)
        notes += said
        parts = []
        for fold, test in folds:
            inside, held = hold_out(codes[fold], options.seed)
            parts.append(Part(fold[inside], held, test))
    truth, classes = (targets[samples], ()) if regresses else (codes, tuple(map(str, names)))
    return Protocol(samples, truth, classes, tuple(parts), n_held, kind, tuple(notes))


def _items(cube: "xr.Dataset") -> np.ndarray:
    """Name the image or recording that every sample is cut from; one that is whole is an item of its own."""
    ids = cube["sample_id"].values.tolist()
    return np.array([piece["item"] if (piece := PIECE.fullmatch(name)) else name for name in ids], dtype=object)


def _folds(
    codes: np.ndarray, items: np.ndarray, names: np.ndarray, options: "FitOptions", words: tuple[str, str]
) -> tuple[Iterable[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Cut the samples into stratified folds that keep the pieces of an item together, where there are items enough.

    Neighbouring pieces resemble each other: with one to fit on and one to test, a score says too much. ``words`` are
    what pieces and an item are called.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    notes = []
    counts, kind = np.bincount(codes), "samples"
    (pieces, item), grouped = words, len(set(items)) < len(items)
    if grouped:
        by_class = np.array([len(set(items[codes == code])) for code in range(len(names))])
        if by_class.min() >= 2:
            counts, kind = by_class, f"{item.split()[1]}s"
        else:
            grouped = False
            alone = _said(names, int(by_class.argmin()))
            notes.append(f"folds part the {pieces} of {item}, because {alone} one {item.split()[1]} only: use a split")
    n_folds = min(options.folds, int(counts.min()))
    if n_folds < options.folds:
        short = _said(names, int(counts.argmin()))
        notes.append(f"{n_folds} folds instead of {options.folds}: {short} {n_folds} {kind}")
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(n_folds, shuffle=True, random_state=options.seed)
    return splitter.split(codes, codes, items if grouped else None), notes


def _said(names: np.ndarray, code: int) -> str:
    """Begin a sentence about what a class has, or all samples where numbers are predicted."""
    return f"class {names[code]!r} has" if names[code] else "the archive has"
