"""Which samples a head is fitted on and which it is scored on: the split that a cube carries, else folds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scattercube.pipeline.heads import hold_out
from scattercube.pipeline.store import OK

if TYPE_CHECKING:
    import xarray as xr

    from scattercube.pipeline.catalog import FitOptions


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
    codes, classes
        The class number of each row, and the labels by number.
    parts
        One for a given split, one a fold otherwise.
    n_held
        How many rows at the end of the matrix choose the penalty of the head that is saved, after folds.
    kind, notes
        ``split`` or ``folds``, and what a reader of the scores should know.
    """

    samples: np.ndarray
    codes: np.ndarray
    classes: tuple[str, ...]
    parts: tuple[Part, ...]
    n_held: int
    kind: str
    notes: tuple[str, ...]

    @property
    def tested(self) -> np.ndarray:
        """The rows that are scored, ascending."""
        rows = np.arange(len(self.codes))
        return np.sort(np.concatenate([rows[part.test] for part in self.parts]))


def choose_protocol(cube: "xr.Dataset", options: "FitOptions") -> Protocol | str:
    """Decide which samples are used and how: the split that the cube carries, else stratified folds.

    Where there are no two classes to tell apart, say why instead.
    """
    n = cube.sizes["sample"]
    labels = cube["label"].values.astype(object) if "label" in cube.coords else np.full(n, "", dtype=object)
    split = cube["split"].values.astype(object) if "split" in cube.coords else np.full(n, "", dtype=object)
    usable = (cube["status"].values == OK) & (labels != "") & (split != "unused")
    if not usable.any():
        return "no usable sample has a label"
    kind = "split" if {"train", "test"} <= set(split[usable]) else "folds"
    notes = []
    if kind == "split" and (split[usable] == "").any():
        notes.append(
            f"{np.sum(split[usable] == '')} labelled samples belong to neither part of the split and are not used"
        )
        usable &= split != ""
    if kind == "folds":
        names, counts = np.unique(labels[usable], return_counts=True)
        for name, count in zip(names[counts < 2], counts[counts < 2], strict=True):
            notes.append(f"class {name!r} has {count} sample and is left out: folds need two")
            usable &= labels != name
    samples = np.flatnonzero(usable)
    names, codes = np.unique(labels[samples], return_inverse=True)
    training = split[samples] == "train" if kind == "split" else np.ones(len(samples), dtype=bool)
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
        images = _images(cube)[samples]
        folds, said = _folds(codes, images, names, options)
        notes += said
        parts = []
        for fold, test in folds:
            inside, held = hold_out(codes[fold], options.seed)
            parts.append(Part(fold[inside], held, test))
    return Protocol(samples, codes, tuple(map(str, names)), tuple(parts), n_held, kind, tuple(notes))


def _images(cube: "xr.Dataset") -> np.ndarray:
    """Name the image of every sample; a sample that is no patch is an image of its own."""
    ids = cube["sample_id"].values.astype(object)
    if "y0" not in cube.coords:
        return ids
    return np.array([name.rpartition("@")[0] for name in ids.tolist()], dtype=object)


def _folds(
    codes: np.ndarray, images: np.ndarray, names: np.ndarray, options: "FitOptions"
) -> tuple[Iterable[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Cut the samples into stratified folds that keep the patches of an image together, where there are images enough.

    Neighbouring patches resemble each other: with one to fit on and one to test, a score says too much.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    notes = []
    counts, kind = np.bincount(codes), "samples"
    grouped = len(set(images)) < len(images)
    if grouped:
        by_class = np.array([len(set(images[codes == code])) for code in range(len(names))])
        if by_class.min() >= 2:
            counts, kind = by_class, "images"
        else:
            grouped = False
            alone = names[by_class.argmin()]
            notes.append(f"folds part the patches of an image, because class {alone!r} has one image only: use a split")
    n_folds = min(options.folds, int(counts.min()))
    if n_folds < options.folds:
        notes.append(
            f"{n_folds} folds instead of {options.folds}: class {names[counts.argmin()]!r} has {n_folds} {kind}"
        )
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(n_folds, shuffle=True, random_state=options.seed)
    return splitter.split(codes, codes, images if grouped else None), notes
