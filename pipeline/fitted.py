"""Heads after the fit: saved as arrays and JSON, loaded without executing anything, applied by plain NumPy."""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.features import Layout, Scaling, row_blocks
from scattercube.pipeline.heads import Solution, classify, estimate, scores
from scattercube.pipeline.stores.files import files_at

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
NUMBERS, DOCUMENT = "head.npz", "head.json"


@dataclass(frozen=True)
class FittedHead:
    """A head that can be applied: all that ``predict`` needs, and where it comes from.

    Attributes
    ----------
    name
        A key of ``HEADS``.
    classes
        The labels, in the order of the scores; none where the head predicts a number.
    origin
        Provenance: the parameter and its value, the samples it was fitted on, digests, notes.
    unit
        Of the number that it predicts.
    """

    name: str
    classes: tuple[str, ...]
    solution: Solution
    scaling: Scaling
    layout: Layout
    origin: Mapping[str, Any]
    unit: str = ""

    @property
    def regresses(self) -> bool:
        """Whether it predicts a number: `estimate`, not `predict`."""
        return not self.classes

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classify raw scattering features (sample, *layout.shape) or (sample, feature).

        Returns
        -------
        labels
            (sample,) objects; the empty string where a feature is not finite.
        scores
            (sample, class) float32 decision values, the largest of which is the label's.
        """
        values = np.empty((len(features), len(self.classes)), np.float32)
        for rows, block in self._standardised(features):
            values[rows] = scores(block, self.solution)
        labels = np.array(self.classes, dtype=object)[classify(values)]
        labels[np.isnan(values).any(axis=1)] = ""
        return labels, values

    def estimate(self, features: np.ndarray) -> np.ndarray:
        """Predict a number from raw features as in `predict`: (sample,) float64, NaN where a feature is not finite."""
        values = np.empty(len(features))
        for rows, block in self._standardised(features):
            values[rows] = estimate(block, self.solution)
        return values

    def _standardised(self, features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        flat = features.reshape(len(features), -1)
        if flat.shape[1] != self.layout.n_features:
            raise ValueError(f"features are {features.shape[1:]} a sample; this head was fitted on {self.layout.shape}")
        for rows in row_blocks(flat):
            yield rows, self.scaling.apply(flat[rows].astype(np.float32, copy=True))

    def save(self, folder: str) -> None:
        """Write ``head.npz`` (numbers) and then ``head.json`` (everything else) into a folder, by its path or URL."""
        arrays = {name: getattr(self.solution, name) for name in ("coefficients", "intercepts")}
        arrays |= {part.name: getattr(self.scaling, part.name) for part in fields(self.scaling)}
        numbers = io.BytesIO()
        np.savez(numbers, allow_pickle=False, **arrays)
        document = {
            "format": FORMAT,
            "name": self.name,
            "classes": self.classes,
            "unit": self.unit,
            "origin": dict(self.origin),
            "layout": asdict(self.layout),
        }
        files = files_at(folder)
        files.write(NUMBERS, numbers.getvalue())
        files.write(DOCUMENT, json.dumps(document, indent=1, ensure_ascii=False).encode())


def is_whole(folder: str) -> bool:
    """Whether a head was saved in a folder, by its path or URL, and not only a part of it."""
    files = files_at(folder)
    return all(files.size(name) is not None for name in (NUMBERS, DOCUMENT))


def load_head(folder: str | Path) -> FittedHead:
    """Read a head that ``FittedHead.save`` wrote, by its path or URL. Nothing in the files is executed.

    Raises
    ------
    StoreError
        A file is missing, damaged, holds Python objects, or the arrays do not fit each other.
    """
    files = files_at(str(folder))
    text, numbers = (files.read(name) for name in (DOCUMENT, NUMBERS))
    try:
        if text is None or numbers is None:
            raise ValueError(f"{NUMBERS if text else DOCUMENT} is absent")
        document = json.loads(text)
        with np.load(io.BytesIO(numbers), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        layout = document["layout"]
        layout = Layout(**{**layout, "dims": tuple(layout["dims"]), "shape": tuple(layout["shape"])})
        classes = tuple(document["classes"])
        solution = Solution(arrays.pop("coefficients"), arrays.pop("intercepts"))
        scaling, origin, unit = Scaling(**arrays), document["origin"], document.get("unit", "")
        head = FittedHead(document["name"], classes, solution, scaling, layout, origin, unit)
        expected = (len(classes) or 1, layout.n_features)
        if solution.coefficients.shape != expected or solution.intercepts.shape != expected[:1]:
            raise ValueError(f"coefficients {solution.coefficients.shape}, expected {expected}")
        if any(getattr(head.scaling, part.name).shape != expected[1:] for part in fields(head.scaling)):
            raise ValueError(f"the standardisation is not of {expected[1]} features")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as failure:
        raise StoreError(f"{folder}: no usable head there: {failure}; run `scattercube fit` to make one") from failure
    return head


def check_layout(head: FittedHead, cube: "xr.Dataset", what: str) -> None:
    """Raise PlanError, naming the difference, when a cube's features are not those that a head was fitted on."""
    difference = head.layout.difference(Layout.of(cube))
    if difference:
        raise PlanError(
            f"{what}: the head {head.name!r} does not fit this cube: {difference}; extract with the head's Spec"
        )
