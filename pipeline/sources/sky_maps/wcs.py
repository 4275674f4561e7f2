r"""Where pixels lie on the sky: the keywords of a header that say so, kept as text, and what astropy makes of them.

A text holds FITS cards, one a line, of the two axes of an image. ``WCS(Header.fromstring(text, sep="\n"))`` is what
astropy makes of it. Greisen and Calabretta, A&A 395 (2002), 1061 and 1077, describe the keywords.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from scattercube.pipeline.sources.sky_maps.fits_headers import parsing

if TYPE_CHECKING:
    from astropy.wcs import WCS

_CARD = re.compile(
    r"(CTYPE|CRVAL|CRPIX|CUNIT)[12]|(PV|PS)[12]_\d+|LONPOLE|LATPOLE|RADESYS|RADECSYS|EQUINOX|EPOCH|DATE-OBS|MJD-OBS"
    r"|DSUN_OBS|HGL[NT]_OBS|RSUN_REF|(A|B|AP|BP)_(ORDER|\d_\d)"
)
_MIXED = re.compile(r"(PC|CD)([12]_(?![12]$)\d+|(?![12]_)\d+_[12])")  # terms that tie these two axes to others
_WORD = re.compile(r"CTYPE[12]|CUNIT[12]|RADE(C)?SYS|DATE-OBS|PS[12]_\d+")
_SIP = re.compile(r"(AP?|BP?)_(\d)_(\d)")


def text_of(header: Any) -> str:
    """Return the cards of a header that say where the first two axes lie on the sky; nothing where none do.

    What stands in tables of the file (CPDIS, D2IMDIS: corrections of less than a pixel) is left out, and so are the
    polynomials of SIP where CTYPE does not end in -SIP: images that were resampled often keep those of before.
    """
    try:
        if any(_number_in(header, key) for key in header if _MIXED.fullmatch(key)):
            return ""
        found = {
            key: str(header[key]) if _WORD.fullmatch(key) else _number_in(header, key)
            for key in header
            if _CARD.fullmatch(key)
        }
        if not {"CTYPE1", "CTYPE2", "CRVAL1", "CRVAL2"} <= set(found):
            return ""
        if not str(found["CTYPE1"]).strip().endswith("-SIP"):
            found = {key: value for key, value in found.items() if not key.startswith(("A_", "B_", "AP_", "BP_"))}
        text = text_from({"CRPIX1": 0.0, "CRPIX2": 0.0} | found | _matrix(header))
    except ValueError:  # wcslib would take a text for 0
        return ""
    return text if _parsed(text) is not None else ""


def _number_in(header: Any, key: str, default: float = 0.0) -> float:
    """A keyword's number; ValueError where it is none."""
    value = header.get(key, default)
    return value if isinstance(value, int) else float(value)


def _matrix(header: Any) -> dict[str, float]:
    """Return the matrix from pixels to the plane of the projection, in whichever of its forms it is given.

    Always as CD: wcslib applies the polynomials of TPV to pixels, not to degrees, where there is CDELT.
    """
    forms = {"PC": np.eye(2), "CD": np.zeros((2, 2))}
    given: dict[str, Any] = {}
    for kind, matrix in forms.items():
        for i, j in ((i, j) for i in range(2) for j in range(2)):
            for key in (f"{kind}{i + 1}_{j + 1}", f"{kind}00{i + 1}00{j + 1}"):
                if key in header:
                    matrix[i, j] = _number_in(header, key)
                    given[kind] = matrix
    delta = np.array([_number_in(header, f"CDELT{axis}", 1.0) for axis in "12"])
    if "PC" in given:
        whole = delta[:, None] * given["PC"]
    elif "CD" in given:
        whole = given["CD"]
    else:  # Calabretta and Greisen, equation 189
        angle = np.deg2rad(_number_in(header, "CROTA2", _number_in(header, "CROTA1")))
        whole = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * delta
    return {f"CD{i + 1}_{j + 1}": float(whole[i, j]) for i in range(2) for j in range(2)}


def text_from(values: dict[str, Any]) -> str:
    """Return cards of these values as text."""
    quoted = {key: _quoted(value) if isinstance(value, str) else _number(value) for key, value in values.items()}
    return _lines({"WCSAXES": "2"} | quoted)


def regrid(text: str, offset: tuple[float, float], step: tuple[float, float] = (1, 1)) -> str:
    """Return the text of a grid whose point i lies at ``offset + step · i`` of the old one, in pixels, along y and x.

    So the features of a sample, which lie ``stride`` pixels apart from its pixel ``first``, have the text
    ``regrid(wcs, (first, first), (stride, stride))``.
    """
    lines = dict(line.split("= ", 1) for line in text.splitlines())
    values = {key.strip(): value.strip() for key, value in lines.items()}
    for axis, start, size in zip("21", offset, step, strict=True):
        values[f"CRPIX{axis}"] = _number((float(values[f"CRPIX{axis}"]) - 1 - start) / size + 1)
        if size == 1:
            continue
        for row in "12":
            values[f"CD{row}_{axis}"] = _number(float(values[f"CD{row}_{axis}"]) * size)
        for key in list(values):
            if term := _SIP.fullmatch(key):  # a polynomial in pixels, whose value is in pixels of one of the axes
                power = int(term[2] if axis == "1" else term[3]) - (term[1].startswith("A") == (axis == "1"))
                values[key] = _number(float(values[key]) * size**power)
    return _lines(values)


def world(text: str, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return longitude and latitude of pixels counted from 0, in degrees of the text's own frame; NaN where none."""
    wcs = _parsed(text) if text else None
    if wcs is None:
        return np.full(len(y), np.nan), np.full(len(y), np.nan)
    with parsing("ignore"):
        found = wcs.all_pix2world(x, y, 0)
    return found[wcs.wcs.lng], found[wcs.wcs.lat]


def positions(text: str, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension and declination (ICRS, degrees) of pixels counted from 0; NaN where they have none."""
    frame = _frame(text) if text else None
    if frame is None:
        return np.full(len(y), np.nan), np.full(len(y), np.nan)
    return to_icrs(*world(text, y, x), frame)


def find(text: str, shape: tuple[int, int], ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return which positions (ICRS, degrees) lie in an image, and their pixels y and x, counted from 0.

    A projection may map other parts of the sky to an image as well: what does not come back is elsewhere.
    """
    nothing = np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    wcs = _parsed(text) if text else None
    frame = _frame(text) if wcs is not None else None
    if wcs is None or frame is None:
        return nothing
    from astropy.coordinates import SkyCoord

    with parsing("ignore"):
        there = SkyCoord(ra, dec, unit="deg").transform_to(frame)
        longitude, latitude = there.spherical.lon.deg, there.spherical.lat.deg
    near = np.flatnonzero(_near(wcs, shape, longitude, latitude))
    if not len(near):
        return nothing
    with parsing("ignore"):
        sphere = (longitude[near], latitude[near]) if wcs.wcs.lng == 0 else (latitude[near], longitude[near])
        x, y = wcs.all_world2pix(*sphere, 0, quiet=True)
        again = wcs.all_pix2world(x, y, 0)
    off = _apart(again[wcs.wcs.lng], again[wcs.wcs.lat], longitude[near], latitude[near])
    inside = (x >= -0.5) & (y >= -0.5) & (x < shape[1] - 0.5) & (y < shape[0] - 0.5)
    with np.errstate(invalid="ignore"):
        good = inside & (off < pixel_scale(text) / 3600 / 10)
    return near[good], y[good], x[good]


def pixel_scale(text: str) -> float:
    """Return the side of a square of a pixel's area at the reference point, in arcseconds; NaN without a text."""
    wcs = _parsed(text) if text else None
    if wcs is None:
        return float("nan")
    from astropy.wcs.utils import proj_plane_pixel_area

    return float(np.sqrt(proj_plane_pixel_area(wcs)) * 3600)


@lru_cache(maxsize=64)
def _parsed(text: str) -> "WCS | None":
    """What astropy makes of a text; None where that is not two axes on a sphere."""
    from astropy.io.fits import Header
    from astropy.wcs import WCS

    try:
        with parsing("ignore"):  # astropy says which keywords it takes in another way than they stand
            wcs = WCS(Header.fromstring(text, sep="\n"))
            return wcs if wcs.has_celestial and wcs.naxis == 2 else None
    except Exception:  # what is no valid description says nothing; the list of what wcslib raises has no end
        return None


@lru_cache(maxsize=64)
def _frame(text: str) -> Any:
    """The astropy frame of a text; None for the Sun's and other planets', which have no right ascension."""
    from astropy.wcs.utils import wcs_to_celestial_frame

    try:
        with parsing("ignore"):
            frame = wcs_to_celestial_frame(_parsed(text))
    except Exception:
        return None
    return frame if frame.name in ("icrs", "fk5", "fk4", "galactic") else None


def to_icrs(longitude: np.ndarray, latitude: np.ndarray, frame: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return right ascension and declination of positions in an astropy frame; all in degrees, NaN stays."""
    from astropy.coordinates import SkyCoord

    there = np.isfinite(longitude) & np.isfinite(latitude)
    ra, dec = np.full(len(there), np.nan), np.full(len(there), np.nan)
    if there.any():
        with parsing("ignore"):
            icrs = SkyCoord(longitude[there], latitude[there], unit="deg", frame=frame).icrs
        ra[there], dec[there] = icrs.ra.deg, icrs.dec.deg
    return ra, dec


def _near(wcs: Any, shape: tuple[int, int], longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Which positions are within a circle around the image; all, where it covers a large part of the sphere."""
    height, width = shape
    y = np.array([(height - 1) / 2, 0, 0, height - 1, height - 1])
    x = np.array([(width - 1) / 2, 0, width - 1, 0, width - 1])
    with parsing("ignore"):
        sphere = wcs.all_pix2world(x, y, 0)
    lon, lat = sphere[wcs.wcs.lng], sphere[wcs.wcs.lat]
    radius = _apart(lon[1:], lat[1:], lon[0], lat[0]).max()
    if not radius < 30:
        return np.asarray(np.isfinite(longitude))
    return np.asarray(_apart(longitude, latitude, lon[0], lat[0]) < 1.2 * radius + 1e-3)


def _apart(lon1: Any, lat1: Any, lon2: Any, lat2: Any) -> np.ndarray:
    """The angle between positions, in degrees; all in degrees."""
    lon1, lat1, lon2, lat2 = (np.deg2rad(angle) for angle in (lon1, lat1, lon2, lat2))
    haversine = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return np.asarray(np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(haversine, 0, 1)))))


def _lines(values: dict[str, str]) -> str:
    """Cards in fixed format: texts to the left, numbers to the right; FITS Standard, section 4.2."""
    return "\n".join(
        f"{key:<8}= {value}" if value.startswith("'") else f"{key:<8}= {value:>20}" for key, value in values.items()
    )


def _quoted(value: str) -> str:
    return "'{:<8}'".format(value.replace("'", "''"))


def _number(value: float) -> str:
    return repr(value if isinstance(value, int) else float(value)).upper()
