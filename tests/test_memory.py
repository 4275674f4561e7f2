"""What is said of memory before anything is built: never less than what the built transform says, and close to it."""

import tracemalloc

import pytest

from scattercube.kernels import HarmonicScattering3D, Scattering1D, Scattering2D, TimeFrequencyScattering
from scattercube.kernels.engine.library import active_engine

MOST = 2.6  # times what a built transform says, where little is computed; mostly it is within a few percent

TRANSFORMS = [
    (Scattering2D, {"J": 3, "shape": (64, 64)}),
    (Scattering2D, {"J": 3, "shape": (97, 1030), "max_order": 1}),
    (Scattering2D, {"J": 4, "shape": (200, 300), "L": 4, "dtype": "float64"}),
    (Scattering2D, {"J": 3, "shape": (200, 300), "L": 4, "max_order": 3}),
    (Scattering2D, {"J": 3, "shape": (200, 300), "padding": "kymatio"}),
    (Scattering2D, {"J": 2, "shape": (130, 130), "padding": "support"}),
    (Scattering2D, {"J": 3, "shape": (200, 300), "wavelet": "meyer"}),
    (Scattering2D, {"J": 3, "shape": (206, 206), "padding": "kymatio", "L": 4}),  # 13·17: no engine has it
    (Scattering1D, {"J": 6, "shape": 1000}),
    (Scattering1D, {"J": 8, "shape": 2**16}),
    (Scattering1D, {"J": 6, "shape": 2**14, "Q": (16, 2), "dtype": "float64"}),
    (Scattering1D, {"J": 6, "shape": 2**14, "Q": 2, "max_order": 3}),
    (Scattering1D, {"J": 6, "shape": 2**14, "T": 0}),
    (Scattering1D, {"J": 6, "shape": 2**14, "T": "global"}),
    (Scattering1D, {"J": 6, "shape": 2**14, "T": 2**13, "stride": 4}),
    (Scattering1D, {"J": 6, "shape": 2**14, "T": 2**7 - 1}),
    (Scattering1D, {"J": 6, "shape": 2**14, "wavelet": "meyer"}),
    (Scattering1D, {"J": 6, "shape": 2**14, "padding": "kymatio"}),
    (Scattering1D, {"J": 6, "shape": 17 * 2**10, "padding": "periodic"}),
    (TimeFrequencyScattering, {"J": 8, "J_fr": 3, "shape": 2**14}),
    (TimeFrequencyScattering, {"J": 8, "J_fr": 5, "shape": 2**14, "Q": 16, "format": "joint", "dtype": "float64"}),
    (HarmonicScattering3D, {"J": 2, "shape": (24, 32, 40)}),
    (HarmonicScattering3D, {"J": 2, "shape": (48, 24, 32), "L": 5, "max_order": 3}),
    (HarmonicScattering3D, {"J": 1, "shape": (17, 34, 16), "L": 1, "dtype": "float64"}),
    (HarmonicScattering3D, {"J": 1, "shape": (40, 40, 40), "max_order": 1, "sigma_0": 3.0}),
]


@pytest.mark.parametrize(("kind", "parameters"), TRANSFORMS)
def test_foreseen_memory_is_no_less_than_that_of_the_built_transform(kind, parameters):
    S = kind(**parameters)
    for batch in (1, 20):
        assert S.nbytes(batch) <= S.foreseen_nbytes(batch) <= MOST * S.nbytes(batch)


@pytest.mark.parametrize(("kind", "parameters"), TRANSFORMS)
def test_filters_take_what_was_foreseen(kind, parameters):
    S = kind(**parameters)
    tracemalloc.start()
    try:
        foreseen = S.filter_nbytes
        assert tracemalloc.get_traced_memory()[1] < 1 << 20, "nothing is made for it"
    finally:
        tracemalloc.stop()
    assert foreseen > 0
    if kind in (Scattering1D, Scattering2D):
        boxes = sum(box.weights.nbytes for bank in S._banks.values() for box in bank.boxes)
        lows = sum(constant.host.nbytes for low in S._lowpasses for constant in low.constants)
        assert 2 * (boxes + lows) <= foreseen <= MOST * 2 * (boxes + lows)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        (Scattering2D, {"J": 3, "shape": (200_000, 200_000)}),
        (Scattering2D, {"J": 3, "shape": (10, 2**40)}),
        (Scattering1D, {"J": 8, "shape": 2**40}),
        (Scattering1D, {"J": 8, "shape": 2**40, "padding": "kymatio"}),
        (TimeFrequencyScattering, {"J": 8, "J_fr": 3, "shape": 2**40}),
        (HarmonicScattering3D, {"J": 2, "shape": (10_000, 10_000, 10_000)}),
    ],
)
def test_no_size_is_too_large_to_be_foreseen(kind, parameters):
    tracemalloc.start()
    try:
        S = kind(**parameters)
        assert S.foreseen_nbytes(1) + S.filter_nbytes > 1 << 40
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(active_engine() == "portable", reason="without an engine the primitives say it themselves")
def test_without_an_engine_the_primitives_are_foreseen(monkeypatch):
    monkeypatch.setattr("scattercube.kernels.fused_tables.active_engine", lambda: "portable")
    monkeypatch.setattr("scattercube.kernels.fused_volumes.active_engine", lambda: "portable")
    for kind, parameters in TRANSFORMS:
        S = kind(**parameters)
        assert S._fused is None
        assert S.nbytes(3) <= S.foreseen_nbytes(3) <= MOST * S.nbytes(3)
