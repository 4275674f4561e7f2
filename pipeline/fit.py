"""Third stage: fit heads to a feature cube, and score them beside statistics of the signals and beside chance."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.errors import PlanError, StoreError
from scattercube.pipeline.features import (
    N_STATISTICS,
    Layout,
    Scaling,
    flatten,
    matrix,
    pixel_statistics,
    refuse_what_does_not_fit,
    sample_blocks,
    statistics_name,
    thin,
)
from scattercube.pipeline.fitted import FittedHead, check_layout, is_whole, load_head
from scattercube.pipeline.heads import HEADS, Trained, train
from scattercube.pipeline.places import Places
from scattercube.pipeline.protocol import Protocol, choose_protocol
from scattercube.pipeline.scoring import Task
from scattercube.pipeline.spec import digest
from scattercube.pipeline.stores.files import files_at, read_file, replace_file
from scattercube.pipeline.stores.opening import open_cube

if TYPE_CHECKING:
    import xarray as xr

    from scattercube.pipeline.catalog import FitOptions

FORMAT = 2


@dataclass(frozen=True)
class FitResult:
    """What ``fit`` did.

    Attributes
    ----------
    fresh
        False where the heads of the same inputs were there already, and no work was done.
    scores
        The content of ``scores.json``; None where there is nothing to fit.
    inputs
        Digest of the cube's content and of the options: what names the scores.
    nothing
        Why there is nothing to fit; empty where there is.
    """

    fresh: bool
    inputs: str
    scores: dict[str, Any] | None
    nothing: str = ""


def fit(places: Places, options: "FitOptions", input_digest: str) -> FitResult:
    """Fit and score the heads of ``options`` on the cube, and write ``scores.json`` and ``heads/<name>/``.

    ``input_digest`` names the content of the cube: where it and the options are those of the scores that are there,
    nothing is done.

    Raises
    ------
    PlanError
        The feature matrix does not fit into memory, a head is unknown, or none of them does what is asked.
    StoreError
        The cube is not there, damaged, or not made from the chunk store beside it.
    """
    unknown = [name for name in options.heads if name not in HEADS]
    if unknown:
        raise PlanError(f"fit.heads: unknown head {unknown[0]!r}; known heads: {', '.join(HEADS)}")
    inputs = digest([FORMAT, input_digest, list(options.heads), options.folds, options.seed])
    held = json.loads(read_file(places.scores) or b"{}")
    if held.get("input_digest") == inputs and all(is_whole(_head(places, name)) for name in held.get("heads", ())):
        return _result(held, fresh=False)
    document: dict[str, Any] = {"format": FORMAT, "input_digest": inputs}
    files_at(places.heads).clear()
    cube = open_cube(places.cube)
    protocol = choose_protocol(cube, options)
    document |= {"nothing": protocol} if isinstance(protocol, str) else _fit(places, cube, protocol, options)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    replace_file(places.scores, text.encode())
    return _result(json.loads(text), fresh=True)


def apply(head_folder: str | Path, cube_place: str | Path) -> "xr.Dataset":
    """Classify every sample of a cube with a saved head, or predict its number; both by their path or URL.

    Returns
    -------
    A Dataset with ``predicted_label`` (sample), empty where a sample is not ok, and ``decision`` (sample, class); or
    ``predicted_target`` (sample) float64, NaN where a sample is not ok. With them the cube's own coordinates of its
    samples.

    Raises
    ------
    PlanError
        The cube's features are not those that the head was fitted on; the message names the difference.
    StoreError
        The head or the cube is not there or damaged.
    """
    import xarray as xr

    head, cube = load_head(head_folder), open_cube(cube_place)
    check_layout(head, cube, str(cube_place))
    features = cube["scattering"]
    coords = {name: coord for name, coord in cube.coords.items() if coord.dims == ("sample",)}
    attrs = {"title": cube.attrs.get("title", ""), "head": json.dumps(dict(head.origin), ensure_ascii=False)}
    if head.regresses:
        numbers = np.concatenate([head.estimate(features[rows].values) for rows in sample_blocks(features)])
        about = {"long_name": f"number that {head.name} predicts"} | ({"units": head.unit} if head.unit else {})
        return xr.Dataset({"predicted_target": ("sample", numbers, about)}, coords=coords, attrs=attrs)
    labels = np.full(features.sizes["sample"], "", dtype=object)
    decision = np.full((len(labels), len(head.classes)), np.nan, np.float32)
    for rows in sample_blocks(features):
        labels[rows], decision[rows] = head.predict(features[rows].values)
    return xr.Dataset(
        {
            "predicted_label": ("sample", labels, {"long_name": f"class with the largest decision value, {head.name}"}),
            "decision": (("sample", "class"), decision, {"long_name": f"decision value, {head.name}", "units": "1"}),
        },
        coords=coords | {"class": np.array(head.classes, dtype=object)},
        attrs=attrs,
    )


def _result(document: dict[str, Any], *, fresh: bool) -> FitResult:
    nothing = document.get("nothing", "")
    return FitResult(fresh, document["input_digest"], None if nothing else document, nothing)


def _head(places: Places, name: str) -> str:
    return f"{places.heads}/{name}"


def _fit(places: Places, cube: "xr.Dataset", protocol: Protocol, options: "FitOptions") -> dict[str, Any]:
    """Fit, save and score heads on the features; score the same heads on simple statistics of the signals."""
    begin, chunks, layout, task = perf_counter(), open_cube(places.chunks), Layout.of(cube), Task.of(protocol)
    names = [name for name in options.heads if name in task.heads]
    if not names:
        raise PlanError(f"fit.heads: {', '.join(options.heads)} cannot predict a number; {', '.join(task.heads)} can")
    notes = [*protocol.notes]
    notes += [f"the head {name} tells classes and is left out" for name in options.heads if name not in task.heads]
    refuse_what_does_not_fit(len(protocol.samples), layout.n_features, copies=protocol.kind == "folds")
    if not np.array_equal(cube["sample_id"].values, chunks["sample_id"].values):
        raise StoreError(f"{places.cube}: its samples are not those of {places.chunks}; remove the cube and run again")

    X = matrix(cube["scattering"], protocol.samples, layout.n_features, flatten)
    seconds = {"read": perf_counter() - begin}
    groups = layout.groups if task.logs else np.full(layout.n_features, -1)
    heads, scaling, refit = _evaluate(X, groups, protocol, names, refit=True)
    seconds |= {name: sum(one["seconds"]) for name, one in heads.items()}
    del X
    origin = {
        "entry_digest": cube.attrs.get("entry_digest", ""),
        "spec_digest": layout.spec_digest,
        "fitted_on": "the training part of the split"
        if protocol.kind == "split"
        else f"all {'samples with a target' if protocol.regresses else 'labelled samples'}, after scoring by folds",
    }
    unit = str(cube["target"].attrs.get("units", "")) if protocol.regresses else ""
    for name, trained in refit.items():
        head = FittedHead(
            name=name,
            classes=protocol.classes,
            solution=trained.solution,
            scaling=scaling,
            layout=layout,
            origin={**origin, "parameter": trained.parameter, "value": trained.value, "notes": trained.notes},
            unit=unit,
        )
        head.save(_head(places, name))

    begin_baseline = perf_counter()
    whole, signal = chunks["signal"], thin(chunks["signal"])
    if signal.size < whole.size:
        step = -(-whole.shape[-1] // signal.shape[-1])
        notes.append(f"{statistics_name(signal)} are of one value in {step} along each axis, because samples are large")
    n_statistics = N_STATISTICS * signal.sizes.get("channel", 1)
    n_axes = signal.ndim - 1 - ("channel" in signal.dims)
    statistics = matrix(signal, protocol.samples, n_statistics, partial(pixel_statistics, n_axes=n_axes))
    no_logs = np.full(n_statistics, -1)
    baseline, _, _ = _evaluate(statistics, no_logs, protocol, names, refit=False)
    seconds["baseline"] = perf_counter() - begin_baseline
    seconds["total"] = perf_counter() - begin

    document: dict[str, Any] = {
        "task": task.name,
        "classes": protocol.classes,
        "unit": unit,
        "n_features": layout.n_features,
        "statistics": statistics_name(signal),
        "protocol": {
            "kind": protocol.kind,
            "n_samples": len(protocol.truth),
            "n_test": len(protocol.tested),
            "n_folds": len(protocol.parts) if protocol.kind == "folds" else 0,
            "seed": options.seed,
            "notes": notes,
        },
        "heads": {name: {key: value for key, value in one.items() if key != "seconds"} for name, one in heads.items()},
        "baseline": {
            name: {key: value for key, value in one.items() if key != "seconds"} for name, one in baseline.items()
        },
        "chance": task.guess(protocol),
    }
    return document | {"summary": task.summary(document), "seconds": seconds}


def _evaluate(
    X: np.ndarray, groups: np.ndarray, protocol: Protocol, names: Sequence[str], *, refit: bool
) -> tuple[dict[str, dict[str, Any]], Scaling, dict[str, Trained]]:
    """Score heads on raw features ``X``, which is overwritten; return scores, and scaling and heads of the last fit.

    With folds and ``refit`` the last fit is one more, on all rows.
    """
    task, n_classes = Task.of(protocol), len(protocol.classes)
    predicted = {name: np.full(len(X), -1, protocol.truth.dtype) for name in names}
    history: list[dict[str, Trained]] = []

    def fit_part(rows: slice | np.ndarray, n_held: int) -> Scaling:
        inside = X[rows]
        scaling = Scaling.measure(inside, groups)
        history.append(train(names, scaling.apply(inside), protocol.truth[rows], n_classes, n_held, task.heads))
        return scaling

    for part in protocol.parts:
        scaling = fit_part(part.train, part.n_held)
        outside = scaling.apply(X[part.test])
        for name, trained in history[-1].items():
            predicted[name][part.test] = task.heads[name].predict(outside, trained.solution)
    if refit and protocol.kind == "folds":
        scaling = fit_part(slice(None), protocol.n_held)

    results = {}
    for name in names:
        results[name] = task.score(protocol, predicted[name])
        ran = [trained[name] for trained in history]
        results[name] |= {
            "title": task.heads[name].title,
            "parameter": ran[0].parameter,
            "values": [one.value for one in ran[: len(protocol.parts)]],
            "notes": sorted({note for one in ran for note in one.notes}),
            "seconds": [one.seconds for one in ran],
        }
        if protocol.kind == "folds":
            figure, of = task.fold_figure
            found = [of(protocol.truth[part.test], predicted[name][part.test]) for part in protocol.parts]
            results[name]["folds"] = {
                figure: found,
                "mean": float(np.mean(found)),
                "std": float(np.std(found, ddof=1)),
            }
    return results, scaling, history[-1]
