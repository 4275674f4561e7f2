"""What to compute: the transform and its parameters. A Spec's digest names the output."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from scattercube.pipeline.addresses import hide_secrets
from scattercube.pipeline.errors import SpecError, said_by


class Model(BaseModel):
    """A frozen record from a YAML file: unknown keys are refused, and values are not coerced across kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def completed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of a file with what goes without saying."""
        return values

    def to_yaml(self) -> str:
        """Return the YAML text that reads back as an equal record."""
        values = self.model_dump(mode="json", exclude_none=True)
        # PyYAML writes U+0085 as it is and reads it as a line break.
        plain = "\x85" not in json.dumps(values, ensure_ascii=False)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=plain)


M = TypeVar("M", bound=Model)


Boundary = Literal["reflect", "symmetric", "periodic", "zero", "edge"]
Precision = Annotated[Literal["float32", "float64"], Field(description="precision of the arithmetic and of the cube")]
Coverage = Annotated[
    float,
    Field(
        ge=0, le=1, description="where values are missing: coefficients that see less than this share of them are NaN"
    ),
]
Order = Annotated[int, Field(ge=0, le=6, description="largest scattering order")]


class Spec(Model):
    """Which transform turns samples into features, and its parameters: one of `SPECS`.

    The names are those of the scattering literature (and of Kymatio): Bruna and Mallat, "Invariant scattering
    convolution networks", IEEE TPAMI 35 (2013).
    """

    signal_dims: ClassVar[tuple[str, ...]]
    """The dims of the signals that it takes."""

    if TYPE_CHECKING:  # every kind has these
        transform: str
        dtype: str

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the output of this Spec."""
        return digest(self.model_dump())

    def override(self, assignments: list[str]) -> "Spec":
        """Return a copy with ``KEY=VALUE`` assignments applied; values are read as YAML (``J=3``, ``dtype=float64``).

        Raises
        ------
        SpecError
            An assignment has no ``=``, names an unknown key, or has an impossible value.
        """
        values = self.model_dump()
        for text in assignments:
            key, separator, value = text.partition("=")
            if not separator:
                raise SpecError(f"--set {text}: expected KEY=VALUE, for example --set J=3")
            values[key.strip()] = parse_yaml(value, f"--set {text}", SpecError)
        return parse_spec(values, "--set")


class TiledSpec(Spec):
    """Scattering of what may be a field: its border may be left to tiles, and values may be missing."""

    if TYPE_CHECKING:  # each kind describes these in its own terms
        J: int
        padding: str
        boundary: Boundary | tuple[Boundary, Boundary]
        min_coverage: float

    @model_validator(mode="after")
    def _boundary_has_room(self) -> Self:
        if self.boundary not in ("reflect", ("reflect", "reflect")) and self.padding != "support":
            raise ValueError(f"boundary: {self.boundary} needs padding: support, got {self.padding}")
        return self


class ImageSpec(TiledSpec):
    """Scattering of images."""

    signal_dims = ("y", "x")

    transform: Annotated[Literal["scattering2d"], Field(description="which scattering transform")] = "scattering2d"
    J: Annotated[
        int, Field(ge=1, le=12, description="log2 of the largest scale in pixels; the output stride is 2^J")
    ] = 3
    L: Annotated[int, Field(ge=1, le=64, description="number of orientations in [0°, 180°)")] = 8
    max_order: Order = 2
    padding: Annotated[
        Literal["minimal", "support", "kymatio"],
        Field(
            description="border: `minimal` for small samples, `support` for fields, `kymatio` for the peer's numbers"
        ),
    ] = "minimal"
    boundary: Annotated[
        Boundary | tuple[Boundary, Boundary],
        Field(description="what lies beyond the border, or [along y, along x]; all but `reflect` need `support`"),
    ] = "reflect"
    min_coverage: Coverage = 0.5
    dtype: Precision = "float32"


class SignalSpec(TiledSpec):
    """Scattering of signals: Andén and Mallat, "Deep scattering spectrum", IEEE TSP 62 (2014)."""

    signal_dims = ("time",)

    transform: Annotated[Literal["scattering1d"], Field(description="which scattering transform")] = "scattering1d"
    J: Annotated[int, Field(ge=0, le=24, description="log2 of the largest scale in samples")] = 8
    Q: Annotated[
        int | tuple[int, int], Field(description="wavelets per octave of the first order, or [first, others]")
    ] = (8, 1)
    T: Annotated[
        float | Literal["global"] | None,
        Field(description="scale of the average in samples; default 2^J; 0: no average; `global`: one mean"),
    ] = None
    stride: Annotated[int | None, Field(ge=1, description="samples between outputs; default the largest ≤ T")] = None
    max_order: Order = 2
    padding: Annotated[
        Literal["minimal", "support", "kymatio"],
        Field(description="border: `minimal` for samples, `support` for long ones, `kymatio` for the peer's numbers"),
    ] = "minimal"
    boundary: Annotated[Boundary, Field(description="what lies beyond the ends; all but `reflect` need `support`")] = (
        "reflect"
    )
    min_coverage: Coverage = 0.5
    dtype: Precision = "float32"


class JointSpec(Spec):
    """Joint time–frequency scattering of signals: Andén, Lostanlen and Mallat, IEEE TSP 67 (2019)."""

    signal_dims = ("time",)

    transform: Annotated[Literal["time_frequency"], Field(description="which scattering transform")] = "time_frequency"
    J: Annotated[int, Field(ge=0, le=24, description="log2 of the largest scale in samples")] = 8
    J_fr: Annotated[int, Field(ge=0, le=12, description="log2 of the largest scale across bands")] = 3
    Q: Annotated[
        int | tuple[int, int], Field(description="wavelets per octave of the first order, or [first, second]")
    ] = (8, 1)
    Q_fr: Annotated[int, Field(ge=1, description="wavelets per octave of the frequency across bands")] = 1
    T: Annotated[float | None, Field(ge=1, description="scale of the average in samples; default 2^J")] = None
    F: Annotated[float | None, Field(ge=1, description="scale of the average in bands; default 2^J_fr")] = None
    format: Annotated[
        Literal["time", "joint"], Field(description="`time`: a path a band; `joint`: bands are an axis")
    ] = "time"
    padding: Annotated[
        Literal["minimal", "kymatio"],
        Field(description="border: `minimal`, or `kymatio` for the peer's numbers"),
    ] = "minimal"
    dtype: Precision = "float32"


class VolumeSpec(Spec):
    """Solid harmonic scattering of volumes: Eickenberg, Exarchakis, Hirn and Mallat, NeurIPS (2017)."""

    signal_dims = ("z", "y", "x")

    transform: Annotated[Literal["solid_harmonic"], Field(description="which scattering transform")] = "solid_harmonic"
    J: Annotated[int, Field(ge=0, le=12, description="scales are sigma_0·2^j for j = 0 … J")] = 2
    L: Annotated[int, Field(ge=0, le=12, description="degrees are l = 0 … L")] = 3
    sigma_0: Annotated[float, Field(gt=0, description="width of the finest wavelets in voxels")] = 1.0
    integral_powers: Annotated[
        tuple[float, ...], Field(min_length=1, description="powers that are summed over all voxels")
    ] = (0.5, 1.0, 2.0)
    max_order: Order = 2
    dtype: Precision = "float32"


SPECS: dict[str, type[Spec]] = {
    "scattering2d": ImageSpec,
    "scattering1d": SignalSpec,
    "time_frequency": JointSpec,
    "solid_harmonic": VolumeSpec,
}
"""The kinds of Spec by transform; a mapping that names none is of the first."""


def _kind(given: Any) -> Any:
    return given.get("transform", next(iter(SPECS))) if isinstance(given, dict) else getattr(given, "transform", None)


AnySpec = Annotated[
    Annotated[ImageSpec, Tag("scattering2d")]
    | Annotated[SignalSpec, Tag("scattering1d")]
    | Annotated[JointSpec, Tag("time_frequency")]
    | Annotated[VolumeSpec, Tag("solid_harmonic")],
    Discriminator(_kind),
]
"""Any Spec, as a field of a record."""


def digest(value: Any) -> str:
    """Return twelve hexadecimal digits of the SHA-256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse(model: type[M], values: Any, where: str, error: type[Exception]) -> M:
    """Validate a mapping that came from a user; the error names the file, the field and what was expected there."""
    if not isinstance(values, dict):
        raise error(f"{where}: expected a mapping of keys to values, got {type(values).__name__}")
    try:
        # JSON mode: YAML has lists and strings where a model has tuples and literals.
        return model.model_validate_json(json.dumps(model.completed(values), default=str))
    except ValidationError as failure:
        raise error(f"{where}: {explain(failure, model)}") from failure
    except (TypeError, ValueError, OverflowError, RecursionError) as failure:  # a key that is no text, and the like
        raise error(f"{where}: not a plain mapping of keys to values: {said_by(failure)}") from failure


def load_yaml(path: Path, error: type[Exception]) -> Any:
    """Read a YAML file; one that is missing, too large or not YAML raises ``error``."""
    limit = 1 << 20
    try:
        if path.stat().st_size > limit:
            raise error(f"{path}: {path.stat().st_size} bytes; a description is at most {limit}")
        content = path.read_bytes()
    except OSError as failure:
        raise error(f"{path}: {failure.strerror}") from failure
    return parse_yaml(content, str(path), error)


class _PlainLoader(yaml.SafeLoader):
    """The safe loader, without aliases: a kilobyte of them stands for gigabytes, or for a value that holds itself."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            alias = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, f"*{alias.anchor} is an alias; write out what it stands for")
        return super().compose_node(parent, index)


def parse_yaml(text: str | bytes, where: str, error: type[Exception]) -> Any:
    """Return the value of a YAML text, which holds plain values only; anything else raises ``error``."""
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506  a safe loader
    except RecursionError as failure:
        raise error(f"{where}: not YAML: nested too deeply") from failure
    except Exception as failure:  # also what int, float and datetime raise on what only looks like one
        raise error(f"{where}: not YAML: {said_by(failure)}") from failure


def parse_spec(values: Any, where: str) -> Spec:
    """Validate a mapping that came from a user as the Spec of its transform. Raises SpecError, naming the field."""
    kind = _kind(values)
    if isinstance(values, dict) and kind not in SPECS:
        raise SpecError(f"{where}: transform: expected one of {', '.join(SPECS)}, got {kind!r}")
    return parse(SPECS.get(kind, Spec), values, where, SpecError)


def load_spec(path: Path) -> Spec:
    """Read a Spec from a YAML file. Raises SpecError, naming the field."""
    return parse_spec(load_yaml(path, SpecError), str(path))


def explain(failure: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with each field, in one line: the field, what was expected there, what was got."""
    lines = []
    for problem in failure.errors():
        field = ".".join(str(part) for part in problem["loc"] if part not in SPECS) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {field!r}{_known(problem['loc'], model)}")
        elif problem["type"] == "missing":
            lines.append(f"missing key {field!r}")
        elif problem["type"] == "union_tag_invalid":
            lines.append(f"{field}.transform: expected one of {', '.join(SPECS)}, got {problem['ctx']['tag']!r}")
        else:
            got = "" if isinstance(problem["input"], dict) else hide_secrets(f" (got {problem['input']!r})")
            lines.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _known(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The keys that are known where the unknown one stands; nothing where the place is not a plain nested model."""
    here: Any = model
    for part in loc[:-1]:
        if part in SPECS:
            here = SPECS[str(part)]
            continue
        field = getattr(here, "model_fields", {}).get(part)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        here = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return f"; known keys: {', '.join(here.model_fields)}" if here is not None else ""
