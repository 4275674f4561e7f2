"""Fourth stage: one self-contained page about a run, from the stores, the journals, the scores and the run file."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from scattercube.pipeline import charts
from scattercube.pipeline.places import Places
from scattercube.pipeline.plan import in_words
from scattercube.pipeline.store import ABSENT, OK, QUARANTINED, Store, open_cube, replace_file

if TYPE_CHECKING:
    import xarray as xr

EXAMPLE_CLASSES, EXAMPLES_EACH, EXAMPLES_UNLABELLED = 6, 3, 9
CURVES, CURVE_SAMPLES = len(charts.COLOURS), 48  # classes in one drawing, and samples of each behind its curve
MATRIX_CLASSES = 30  # beyond, a list of confusions says more than a matrix
BAD_ROWS, CONFUSED_PAIRS = 20, 20
DARKEST = 1e-3  # the disks' colours end here, relative to the largest coefficient


def report(places: Places) -> Path:
    """Write the page and return its path.

    Every section stands alone: without labels, without a fit, without a first order or without a usable sample, those
    that have nothing to show say why.

    Raises
    ------
    StoreError
        A store is not there or damaged, or the page cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    cube, chunks = open_cube(places.cube), open_cube(places.chunks)
    journals = {"ingest": Store(places.chunks).events(), "extract": Store(places.cube).events()}
    run, fitted = _json(places.run_file), _json(places.fit / "scores.json")
    scores = fitted if "heads" in fitted else None
    ok = np.flatnonzero(cube["status"].values == OK)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page.filters |= {"nbytes": in_words, "percent": _percent, "figure": _figure}
    html = page.get_template("report.html.j2").render(
        title=cube.attrs.get("title") or places.entry_name,
        places=places,
        attrs=cube.attrs,
        entry=yaml.safe_load(cube.attrs.get("entry", "")) or {},
        counts=_counts(cube, places),
        sizes={str(name): size for name, size in cube["scattering"].sizes.items()},
        selection=_selection(cube),
        examples=_examples(cube, chunks, ok),
        filters=_filters(cube),
        energies=_energies(cube, ok),
        scores=scores,
        best=_best(scores) if scores else None,
        nothing=fitted.get("nothing", "no head has been fitted to this cube yet"),
        bad=_bad([*journals["ingest"], *journals["extract"]]),
        stages=[_stage(name, events) for name, events in journals.items() if events],
        run=run,
        versions=json.loads(cube.attrs.get("versions", "{}")),
        checksums=json.dumps(json.loads(cube.attrs.get("input_checksums", "{}")), indent=1, ensure_ascii=False),
        matrix_classes=MATRIX_CLASSES,
    )
    places.page.parent.mkdir(parents=True, exist_ok=True)
    replace_file(places.page, html.encode())
    return places.page


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _counts(cube: "xr.Dataset", places: Places) -> dict[str, int]:
    status = cube["status"].values
    states = {"ok": OK, "quarantined": QUARANTINED, "absent": ABSENT}
    stored = sum(file.stat().st_size for file in places.cube.rglob("*") if file.is_file())
    return {name: int(np.sum(status == code)) for name, code in states.items()} | {
        "samples": len(status),
        "nbytes": int(cube["scattering"].nbytes),
        "stored_nbytes": stored,
    }


def _selection(cube: "xr.Dataset") -> str:
    """The line of Python that selects by physics, for the highest of the orders 2 and 1 that the cube has."""
    order = min(2, int(cube["order"].values.max()))
    if order == 0:
        return "smooth = cube.scattering.isel(path=cube.order.values == 0)"
    scale = np.max(cube[f"scale{order}"].values[cube["order"].values == order])
    return (
        f"coarse = cube.scattering.isel(path=((cube.order == {order}) & (cube.scale{order} >= {scale:g})).values)"
        f"  # {scale:g} px and above"
    )


def _classes(cube: "xr.Dataset", ok: np.ndarray) -> dict[str, np.ndarray]:
    """The usable samples of each label, by label; all of them under the empty label where there are none."""
    labels = cube["label"].values[ok].astype(object) if "label" in cube.coords else np.full(len(ok), "", dtype=object)
    found = {str(label): ok[labels == label] for label in np.unique(labels) if label}
    return found or ({"": ok} if len(ok) else {})


def _spread(samples: np.ndarray, most: int) -> np.ndarray:
    return np.asarray(samples[np.unique(np.linspace(0, len(samples) - 1, min(len(samples), most)).round().astype(int))])


def _columns(cube: "xr.Dataset") -> dict[str, np.ndarray]:
    return {str(name): coord.values for name, coord in cube.coords.items() if coord.dims == ("path",)}


def _examples(cube: "xr.Dataset", chunks: "xr.Dataset", ok: np.ndarray) -> dict[str, Any]:
    """A few samples of each class as picture and disks, on colour scales that all of them share."""
    classes = _classes(cube, ok)
    most = EXAMPLES_EACH if any(classes) else EXAMPLES_UNLABELLED
    shown = {label: _spread(samples, most) for label, samples in list(classes.items())[:EXAMPLE_CLASSES]}
    if not shown:
        return {"groups": []}
    rows = np.unique(np.concatenate(list(shown.values())))
    signal = chunks["signal"][rows].values
    features = cube["scattering"][rows]
    values = features.mean([dim for dim in features.dims if dim not in ("sample", "path")], dtype=np.float64).values
    columns = _columns(cube)
    limits = (0.0, 255.0) if signal.dtype == np.uint8 else tuple(np.percentile(signal, (0.5, 99.5)).tolist())

    disks: list[dict[str, Any]] = []
    for order in range(1, min(2, int(columns["order"].max())) + 1):
        disk = charts.Disk(columns, _J(cube))
        ends = _limits(values[:, columns["order"] == order])
        pictures = [disk.draw(one, disk.paths(order), ends) for one in values]
        disks.append({"order": order, "limits": ends, "pictures": pictures})
    ids = cube["sample_id"].values[rows]
    place = {int(row): index for index, row in enumerate(rows)}
    groups = [
        {
            "label": label,
            "n": len(classes[label]),
            "samples": [
                {
                    "id": str(ids[place[row]]),
                    "picture": charts.photograph(signal[place[row]], (limits[0], limits[1])),
                    "disks": [one["pictures"][place[row]] for one in disks],
                }
                for row in samples.tolist()
            ],
        }
        for label, samples in shown.items()
    ]
    return {
        "groups": groups,
        "n_classes": len(classes),
        "limits": limits,
        "disks": [{"order": one["order"], "limits": one["limits"]} for one in disks],
        "bar": charts.colour_bar(),
        "channels": signal.shape[1] if signal.ndim == 4 else 0,
    }


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The ends of a logarithmic colour scale: the largest value, and the smallest that is not negligible beside it."""
    high = float(values.max(initial=0.0))
    if high <= 0:
        return (DARKEST, 1.0)
    visible = values[values >= DARKEST * high]
    return (float(visible.min()), high)


def _J(cube: "xr.Dataset") -> int:
    return int(yaml.safe_load(cube.attrs["spec"])["J"])


def _filters(cube: "xr.Dataset") -> str:
    """The drawing of the filter bank; empty where the cube has no wavelets."""
    columns = _columns(cube)
    first = columns["order"] == 1
    if not first.any():
        return ""
    return charts.filter_bank(_J(cube), columns["theta1"][first & (columns["j1"] == 0)])


def _energies(cube: "xr.Dataset", ok: np.ndarray) -> dict[str, Any] | None:
    """First-order energies of the most frequent classes, and what the page says about them; None without any."""
    columns = _columns(cube)
    first = np.flatnonzero(columns["order"] == 1)
    classes = _classes(cube, ok)
    if not len(first) or not classes:
        return None
    first = first[np.lexsort((columns["theta1"][first], columns["j1"][first]))]
    thetas, scales = (np.unique(columns[name][first]) for name in ("theta1", "scale1"))
    frequent = sorted(classes, key=lambda label: -len(classes[label]))[:CURVES]
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    legend: list[dict[str, str]] = []
    for label in sorted(frequent):
        S1 = cube["scattering"].isel(sample=_spread(classes[label], CURVE_SAMPLES), path=first).astype(np.float64)
        mean = (
            (S1.astype(np.float64) ** 2)
            .mean([dim for dim in S1.dims if dim not in ("sample", "path")])
            .transpose("sample", "path")
        )
        energy = mean.values.reshape(-1, len(scales), len(thetas))
        by_theta = energy.mean(axis=0).sum(axis=0)
        if by_theta.sum() > 0:
            drawn.append((np.percentile(energy.sum(axis=2), (25, 50, 75), axis=0), by_theta / by_theta.mean()))
            dash = ",".join(map(str, charts.DASHES[len(legend)]))
            legend.append({"label": label, "colour": charts.COLOURS[len(legend)], "dash": dash})
    if not drawn:
        return None
    return {
        "svg": charts.energies(scales, thetas, drawn),
        "legend": legend,
        "n_classes": len(classes),
        "n_each": CURVE_SAMPLES,
        "bands": len(drawn) <= charts.BANDS,
    }


def _best(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The head with the highest accuracy, its confusion matrix by rows, and its most frequent confusions."""
    name = max(scores["heads"], key=lambda one: scores["heads"][one]["accuracy"])
    head, classes = scores["heads"][name], scores["classes"]
    matrix = np.array(head["confusion"])
    wrong = matrix - np.diag(np.diag(matrix))
    pairs = [divmod(int(flat), len(classes)) for flat in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED_PAIRS]]
    return {
        "name": name,
        "head": head,
        "rows": [
            {"label": label, "counts": counts, "shares": [count / max(1, sum(counts)) for count in counts]}
            for label, counts in zip(classes, matrix.tolist(), strict=True)
        ],
        "pairs": [(classes[true], classes[said], int(wrong[true, said])) for true, said in pairs if wrong[true, said]],
    }


def _bad(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [row for event in events for row in event["bad"]]
    return {"n": len(rows), "reasons": Counter(row["reason"] for row in rows).most_common(), "rows": rows[:BAD_ROWS]}


def _stage(name: str, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the journal of a stage, whatever run wrote it."""
    parts = {part: sum(event[f"{part}_s"] for event in events) for part in ("read", "compute", "write")}
    total = {part: sum(event[part] for event in events) for part in ("n_samples", "nbytes_in", "nbytes_out")}
    busy = max(sum(parts.values()), 1e-9)
    return {
        "name": name,
        "n_keys": len(events),
        "parts": parts,
        "shares": {part: seconds / busy for part, seconds in parts.items()},
        "peak_nbytes": max((event.get("peak_nbytes", 0) for event in events), default=0),
        "retried": sum(event["attempt"] > 1 for event in events),
        "samples_per_s": total["n_samples"] / busy,
        "nbytes_in_per_s": total["nbytes_in"] / busy,
        "nbytes_out_per_s": total["nbytes_out"] / busy,
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _figure(value: float) -> str:
    """At least three significant figures; whole numbers and what exceeds a thousand in full, in groups of three."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"
