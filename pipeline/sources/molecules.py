"""Reader of molecules: XYZ files, one molecule each, that become grids of charge densities.

A molecule with charges Z_k at the positions r_k becomes ρ(u) = Σ_k Z_k g(u − r_k), g a Gaussian whose integral is 1.
The charges are those of the nuclei, of the valence electrons, or the difference: Hirn, Mallat and Poilvert, "Wavelet
scattering regression of quantum chemical energies", Multiscale Model. Simul. 15 (2017); Eickenberg, Exarchakis, Hirn,
Mallat and Thiry, "Solid harmonic wavelet scattering for predictions of molecule properties", J. Chem. Phys. 148 (2018).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, pi, sqrt
from typing import NoReturn

import numpy as np

from scattercube.pipeline.catalog import Entry
from scattercube.pipeline.errors import RecordError
from scattercube.pipeline.policies import MARGIN, Channel, Molecules
from scattercube.pipeline.sources.archives.archive import Archive
from scattercube.pipeline.sources.reader import Columns, Layout, Window

suffixes = (".xyz", ".xyz.gz")
single = suffixes
offsets = ()

MAX_ATOMS = 20_000
_MAX_NBYTES = 8 << 20  # of a file: 400 bytes an atom
_BLOCK_VALUES = 1 << 20  # atoms are added up in blocks whose planes have about this many values
_REACH = 6  # of a Gaussian in widths: what is beyond is below 2e-8 of the peak, and float32 does not see it beside it
_ROUNDING = 1e-9  # in Å or voxels: a molecule that fits exactly fits
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NOBLE = (0, 2, 10, 18, 36, 54, 86)
_PERIODS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr
Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
_SYMBOLS = tuple(_PERIODS.split())
ATOMIC_NUMBERS = {symbol: number for number, symbol in enumerate(_SYMBOLS, start=1)}


@dataclass(frozen=True)
class Molecule:
    """What an XYZ file holds.

    Attributes
    ----------
    numbers
        (atom,) int64, the atomic number of each atom.
    positions
        (atom, 3) float64: x, y, z in Å.
    """

    numbers: np.ndarray
    positions: np.ndarray

    @property
    def formula(self) -> str:
        """Hill's formula: carbon, hydrogen, then by the alphabet; without carbon all by the alphabet."""
        counts = {_SYMBOLS[number - 1]: n for number, n in zip(*map(list, np.unique_counts(self.numbers)), strict=True)}
        first = [symbol for symbol in ("C", "H") if "C" in counts and symbol in counts]
        order = first + sorted(counts.keys() - set(first))
        return "".join(symbol + (str(counts[symbol]) if counts[symbol] > 1 else "") for symbol in order)


def header(entry: Entry, archive: Archive, name: str) -> Molecule:
    """Return the molecule itself, which is a few hundred bytes. Raises RecordError."""
    return load(archive, name)


def layout(entry: Entry, header: Molecule) -> Layout:
    """Return what samples look like: ([channel,] z, y, x) float32, electrons per Å³."""
    options = _options(entry)
    many = len(options.channels) > 1
    return Layout(
        dims=(*(("channel",) if many else ()), "z", "y", "x"),
        shape=(*((len(options.channels),) if many else ()), *options.size),
        dtype=np.dtype(np.float32),
        channels=options.channels if many else (),
        spacing=(options.spacing,) * 3,
        units=("angstrom",) * 3,
    )


def needs_header(entry: Entry, name: str) -> bool:
    """The number of atoms and the formula are metadata."""
    return True


def samples(entry: Entry, header: Molecule | None) -> Columns:
    """List the one sample of a member: ``n_atoms`` (int64) and ``formula``; 0 and empty where it cannot be read."""
    return {
        "item": np.zeros(1, np.int64),
        "n_atoms": np.array([len(header.numbers) if header else 0], np.int64),
        "formula": np.array([header.formula if header else ""], dtype=object),
    }


def read(
    entry: Entry, archive: Archive, name: str, layout: Layout, rows: Mapping[str, np.ndarray], window: Window
) -> Iterator[np.ndarray | RecordError]:
    """Yield the window of the density of a member, once for each row."""
    for item in rows["item"].tolist():
        try:
            if item:
                raise RecordError("missing", f"{name}: item {item}; it has 1")
            found = density(load(archive, name), _options(entry), name, window)
        except RecordError as failure:
            yield failure
        else:
            yield found if layout.channels else found[0]


def density(molecule: Molecule, options: Molecules, name: str, window: Window | None = None) -> np.ndarray:
    """Return the charge density of a molecule, or a window of it: (channel, z, y, x) float32, in e/Å³.

    The middle of the nuclei's bounding box is the middle of the grid. The box is periodic: what a Gaussian has beyond a
    face comes in at the other. A channel's sum times the volume of a voxel is its charge, to 1e-4.

    Parameters
    ----------
    name
        The member, for messages.

    Raises
    ------
    RecordError
        ``wrong-shape``: the molecule does not fit; ``unreadable``: a charge is not defined.
    """
    positions = turned(molecule.positions) if options.orientation == "principal" else molecule.positions
    low, high = positions.min(axis=0), positions.max(axis=0)
    box = np.array(options.size) * options.spacing
    extent, free = (high - low)[::-1], box - 2 * MARGIN * options.width
    if (extent > free + _ROUNDING).any():
        needed = np.ceil((extent + 2 * MARGIN * options.width) / options.spacing - _ROUNDING).astype(int)
        raise RecordError(
            "wrong-shape",
            f"{name}: the nuclei span {_lengths(extent)} Å (z, y, x); of the box of {_lengths(box)} Å "
            f"{_lengths(free)} are for them, inside a margin of {MARGIN} widths; set molecules.size to at least "
            f"{needed.tolist()}, or another spacing",
        )
    window = window or tuple(slice(0, size) for size in options.size)
    weights = np.stack([_charges(molecule.numbers, channel, name) for channel in options.channels])
    centred = (positions - (low + high) / 2)[:, ::-1]
    z, y, x = (_profiles(*axis, options) for axis in zip(centred.T, options.size, window, strict=True))
    total = np.zeros((len(options.channels) * z.shape[1], y.shape[1] * x.shape[1]), np.float32)
    step = max(1, _BLOCK_VALUES // max(1, total.shape[1]))
    for start in range(0, len(z), step):
        some = slice(start, start + step)
        columns = (weights[:, some, None] * z[some]).transpose(0, 2, 1).reshape(len(total), -1)
        planes = (y[some, :, None] * x[some, None, :]).reshape(-1, total.shape[1])
        total += columns.astype(np.float32) @ planes.astype(np.float32)
    return total.reshape(len(options.channels), z.shape[1], y.shape[1], x.shape[1])


def turned(positions: np.ndarray) -> np.ndarray:
    """Turn positions (atom, 3) so that their variance is largest along x and least along z: a rotation, no reflection.

    The axes x and y point to the side on which the nuclei reach farther.
    """
    centred = positions - positions.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    along = centred @ axes
    axes = axes * np.where(along.max(axis=0) + along.min(axis=0) < 0, -1, 1)
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    found: np.ndarray = centred @ axes
    return found


def _profiles(centres: np.ndarray, size: int, part: slice, options: Molecules) -> np.ndarray:
    """Gaussians of integral 1 along a periodic axis, (atom, voxel) float64 in 1/Å."""
    places = (np.arange(size)[part] - (size - 1) / 2) * options.spacing
    box, width = size * options.spacing, options.width
    total = np.zeros((len(centres), len(places)))
    for image in (-box, 0.0, box):
        away = (places - centres[:, None] + image) / width
        total += np.where(np.abs(away) < _REACH, np.exp(-0.5 * np.square(away)), 0.0)
    return total / (sqrt(2 * pi) * width)


def _charges(numbers: np.ndarray, channel: Channel, name: str) -> np.ndarray:
    """Return the charge of each atom in a channel, (atom,) float64. Raises RecordError where it is not defined."""
    if channel == "full":
        return numbers.astype(np.float64)
    kinds, which = np.unique(numbers, return_inverse=True)
    valence = np.array([n_valence(int(number)) or 0 for number in kinds])
    if not valence.all():
        symbol = _SYMBOLS[int(kinds[valence == 0][0]) - 1]
        raise RecordError(
            "unreadable",
            f"{name}: {symbol} has d or f electrons of which no convention says whether they are valence electrons; "
            "write molecules.channels: [full], or leave the file out",
        )
    return np.asarray((valence if channel == "valence" else kinds - valence)[which], np.float64)


def n_valence(number: int) -> int | None:
    """Return how many electrons are outside the noble gas before and outside filled d and f shells.

    None for elements whose d or f shell is open or just closed: the transition metals, lanthanides and actinides.
    """
    inside = max(gas for gas in _NOBLE if gas < number)
    outside = number - inside
    filled = {0: 0, 2: 0, 10: 0, 18: 10, 36: 10, 54: 24, 86: 24}[inside]
    if outside <= 2:
        return outside
    return outside - filled if outside > filled + 2 else None


def load(archive: Archive, name: str) -> Molecule:
    """Read and check an XYZ file: number of atoms, a line of comment, then a symbol and x, y, z in Å for each atom.

    More columns are ignored. Raises RecordError: unreadable, non-finite or too-large, or what the archive raises.
    """
    with archive.open(name) as stream:
        content = stream.read(_MAX_NBYTES + 1)
    if len(content) > _MAX_NBYTES:
        raise RecordError("too-large", f"{name}: more than {_MAX_NBYTES} bytes, the limit; it allows {MAX_ATOMS} atoms")
    return parse_xyz(content, name)


def parse_xyz(content: bytes, name: str) -> Molecule:
    """Parse and check an XYZ file; see `load`."""
    lines = content.decode("utf-8", errors="replace").replace("\r\n", "\n").split("\n")
    first = lines[0].strip()
    if not re.fullmatch(r"\d{1,9}", first, re.ASCII):
        _refuse(name, 1, f"expected the number of atoms, got {first[:40]!r}")
    n_atoms = int(first)
    if n_atoms > MAX_ATOMS:
        raise RecordError("too-large", f"{name}: promises {n_atoms} atoms; the limit is {MAX_ATOMS}")
    rows, rest = lines[2 : 2 + n_atoms], lines[2 + n_atoms :]
    n_there = sum(1 for row in rows if row.strip())
    if not n_atoms or n_there < n_atoms:
        promised = f"promises {n_atoms} atoms, has {n_there}"
        raise RecordError("unreadable", f"{name}: {promised}; is it complete?" if n_atoms else f"{name}: {promised}")
    extra = next((index for index, line in enumerate(rest) if line.strip()), None)
    if extra is not None:
        _refuse(name, 3 + n_atoms + extra, f"more follows the {n_atoms} atoms; a file must hold one molecule")
    numbers, positions = np.empty(n_atoms, np.int64), np.empty((n_atoms, 3))
    for index, row in enumerate(rows):
        symbol, *values = row.split()
        if (number := ATOMIC_NUMBERS.get(symbol)) is None:
            meant = symbol.capitalize()
            remedy = f"; write {meant}, if that is meant" if meant in ATOMIC_NUMBERS else ""
            _refuse(name, 3 + index, f"no element has the symbol {symbol[:40]!r}{remedy}")
        if len(values) < 3:
            _refuse(name, 3 + index, f"expected a symbol and three coordinates, got {row.strip()[:80]!r}")
        numbers[index] = number
        positions[index] = [_coordinate(value, name, 3 + index) for value in values[:3]]
    if not content.endswith((b"\n", b"\r")):
        _refuse_a_cut_number(rows, name)
    return Molecule(numbers, positions)


def _coordinate(text: str, name: str, line: int) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else None
    if number is None and text.lower().lstrip("+-") not in ("nan", "inf", "infinity"):
        _refuse(name, line, f"{text[:40]!r} is no number")
    if number is None or not -inf < number < inf:
        raise RecordError("non-finite", f"{name}, line {line}: the coordinate {text[:40]} is not finite")
    return number


def _refuse_a_cut_number(rows: list[str], name: str) -> None:
    """Refuse a file that ends inside its last number: no other sign of that is left than a number too short."""
    decimals = [len(value.partition(".")[2]) for row in rows for value in row.split()[1:]]
    if len(set(decimals[:-1])) == 1 and decimals[-1] < decimals[0]:
        there, expected = decimals[-1], decimals[0]
        why = f"ends within a number: {there} decimals, all others have {expected}; is it complete?"
        _refuse(name, 2 + len(rows), why)


def _refuse(name: str, line: int, why: str) -> NoReturn:
    raise RecordError("unreadable", f"{name}, line {line}: {why}")


def _lengths(values: np.ndarray) -> str:
    return "×".join(f"{value:.2f}" for value in values)


def _options(entry: Entry) -> Molecules:
    assert entry.molecules is not None, "the entry's validator asks for it"
    return entry.molecules
