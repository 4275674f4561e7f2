"""How exact tiles are, and coefficients around missing values; the tables of docs/exactness.md.

    uv run python tests/benchmarks/exactness.py            # prints
    uv run python tests/benchmarks/exactness.py --write    # and brings the page up to date

Real masks are those of the catalogue's entries; where their archives are not under the data root, their rows are left
out, and said.
"""

import argparse
import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xarray as xr

import scattercube
from scattercube.kernels import Scattering1D, Scattering2D
from scattercube.kernels.missing import Missing
from scattercube.pipeline.catalog import data_root
from scattercube.pipeline.spec import ImageSpec, SignalSpec

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
BINS = ((1.0, np.inf), (0.95, 1.0), (0.8, 0.95), (0.5, 0.8), (0.3, 0.5))


def red_noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Noise with a spectrum that falls as 1/f, of mean 10 and standard deviation 1."""
    rng = np.random.default_rng(seed)
    k = np.sqrt(sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    x = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape)) / np.maximum(k, 1 / max(shape))).real
    return 10 + x / x.std()


def tiles() -> Iterator[str]:
    """Tiled against whole, by place: the border of the field, seams between tiles, and the rest."""
    yield "| signal | dtype | boundary | interior | seams | border | worst path |"
    yield "|---|---|---|---|---|---|---|"
    for dtype in ("float32", "float64"):
        for boundary in ("reflect", "symmetric", "periodic", "zero", "edge"):
            spec: ImageSpec | SignalSpec = ImageSpec(J=3, padding="support", boundary=boundary, dtype=dtype)
            x = np.random.default_rng(0).standard_normal((768, 640)).astype(dtype)
            yield _tile_row("768×640, J=3, L=8, in 3×2 tiles", x, spec, {"y": 256, "x": 320})
        for boundary in ("reflect", "zero"):
            spec = SignalSpec(J=8, Q=(8, 1), padding="support", boundary=boundary, dtype=dtype)
            x = np.random.default_rng(0).standard_normal(1 << 17).astype(dtype)
            yield _tile_row("2^17, J=8, Q=8, in 8 tiles", x, spec, {"time": 1 << 14})


def _tile_row(name: str, x: np.ndarray, spec: ImageSpec | SignalSpec, chunks: dict[str, int]) -> str:
    array = xr.DataArray(x, dims=spec.signal_dims)
    whole = scattercube.scatter(array, spec)
    lazy = scattercube.scatter(array.chunk(chunks), spec)
    difference = lazy["scattering"].compute() - whole["scattering"]
    places = {place: np.zeros(whole["scattering"].shape[1:], bool) for place in ("seams", "border")}
    for axis, dim in enumerate(spec.signal_dims):
        border = whole[f"{dim}_border"].values
        seam = np.zeros_like(border)
        for edge in np.cumsum(lazy["scattering"].chunks[axis + 1])[:-1].tolist():
            seam[max(0, edge - 2) : edge + 2] = True
        for place, marked in (("border", border), ("seams", seam)):
            along = [-1 if other == dim else 1 for other in spec.signal_dims]
            places[place] |= marked.reshape(along)
    interior = ~(places["seams"] | places["border"])
    values = whole["scattering"].values
    figures = [_relative(difference.values[:, where], values[:, where]) for where in (interior, *places.values())]
    worst = max(_relative(d, v) for d, v in zip(difference.values, values, strict=True))
    return f"| {name} | {spec.dtype} | {spec.boundary} | " + " | ".join(f"{f:.1e}" for f in (*figures, worst)) + " |"


def _relative(difference: np.ndarray, values: np.ndarray) -> float:
    return float(np.linalg.norm(difference) / np.linalg.norm(values))


def gaps() -> Iterator[str]:
    """Errors around gaps, by coverage and order."""
    names = " | ".join("1" if most == np.inf else f"{least} to {most}" for least, most in BINS)
    yield f"| what is missing | order | {names} |"
    yield "|---|---|" + "---|" * len(BINS)
    for name, x, valid, J in masks():
        kind = Scattering2D if x.ndim == 2 else Scattering1D
        S = kind(J, x.shape, padding="periodic", dtype="float64")
        missing = Missing(S)
        features, coverage = missing(missing.fill(np.where(valid, x, np.nan))[None], valid[None])
        plain = S(x)
        for order in (0, 1, 2):
            rows = S.paths.columns["order"] == order
            cells = []
            for least, most in BINS:
                some = rows.reshape(-1, *(1,) * x.ndim) & (coverage[0] >= least) & (coverage[0] < most)
                if not some.any():
                    cells.append("–")
                    continue
                error = (features[0] - plain)[some]
                scale = plain[rows].std() if order == 0 else plain[some].mean()
                rms, bias = np.sqrt(np.mean(error**2)) / scale, error.mean() / scale
                cells.append(f"{rms:.1e}" if most == np.inf else f"{100 * rms:.1f} %, {100 * bias:+.1f} %")
            yield f"| {name if order == 0 else ''} | {order} | " + " | ".join(cells) + " |"


def masks() -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """Fields that are known everywhere, and masks to hide some of them."""
    x = red_noise((512, 512), seed=3)
    rng = np.random.default_rng(1)
    valid = np.ones(x.shape, bool)
    rows, columns = np.indices(x.shape)
    for _ in range(60):
        (y0, x0), r = rng.integers(0, 512, 2), rng.integers(2, 12)
        valid &= (rows - y0) ** 2 + (columns - x0) ** 2 > r**2
    yield "disks of 2 to 12 px, J=3", x, valid, 3
    valid = np.ones(x.shape, bool)
    valid[:, 200:330] = False
    yield "a strip of 130 px, J=3", x, valid, 3
    yield "3 % of all pixels, J=3", x, rng.random(x.shape) >= 0.03, 3
    signal = red_noise((1 << 15,), seed=5)
    valid = np.ones(signal.shape, bool)
    for start in rng.integers(0, 1 << 15, 20).tolist():
        valid[start : start + rng.integers(20, 900)] = False
    yield "dropouts of 20 to 900 samples, J=6", signal, valid, 6
    yield from _real_masks()


def _real_masks() -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """Masks of the sky and of a camera, on noise of the same shape: what lies behind them is known then."""
    from scattercube.pipeline.sources import load_entry, read, scan

    for name, entry in (
        ("sky mask of wmap", "wmap"),
        ("flagged pixels of legacysurvey-cutouts", "legacysurvey-cutouts"),
    ):
        try:
            listing = scan(load_entry(entry, data_root()), data_root())
        except Exception as failure:
            print(f"{name}: left out: {failure}")
            continue
        best: np.ndarray | None = None
        rows = {column: values[:200] for column, values in listing.columns.items()}
        for sample in read(load_entry(entry, data_root()), data_root(), rows):
            if isinstance(sample, np.ndarray):
                valid = np.isfinite(sample.reshape(-1, *sample.shape[-2:])[0])
                share = valid.mean()
                if 0.5 < share < 1 and (best is None or abs(share - 0.85) < abs(best.mean() - 0.85)):
                    best = valid
        if best is None:
            print(f"{name}: no sample has gaps and values")
            continue
        size = [n // 8 * 8 for n in best.shape]
        best = best[: size[0], : size[1]]
        yield f"{name} ({100 * (1 - best.mean()):.0f} % of {size[0]}×{size[1]}), J=3", red_noise(best.shape, 7), best, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="bring docs/exactness.md up to date")
    given = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8") if given.write else ""
    for name, rows in (("tiles", tiles), ("gaps", gaps)):
        table = "\n".join(rows())
        print(table, end="\n\n", flush=True)
        if given.write:
            before, _, rest = text.partition(f"<!-- {name} -->\n")
            _, _, after = rest.partition("<!-- end -->")
            stamp = f"Measured {datetime.date.today().isoformat()}."
            text = f"{before}<!-- {name} -->\n{table}\n\n{stamp}\n<!-- end -->{after}"
    if given.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
