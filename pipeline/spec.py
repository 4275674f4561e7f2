"""What to compute: the transform and its parameters. A Spec's digest names the output."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scattercube.pipeline.errors import SpecError


class Model(BaseModel):
    """A frozen record from a YAML file: unknown keys are refused, and values are not coerced across kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def to_yaml(self) -> str:
        """Return the YAML text that reads back as an equal record."""
        values = self.model_dump(mode="json", exclude_none=True)
        # PyYAML writes U+0085 as it is and reads it as a line break.
        plain = "\x85" not in json.dumps(values, ensure_ascii=False)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=plain)


M = TypeVar("M", bound=Model)


class Spec(Model):
    """The transform that turns samples into features.

    The names are those of the scattering literature (and of Kymatio): Bruna and Mallat, "Invariant scattering
    convolution networks", IEEE TPAMI 35 (2013).
    """

    transform: Annotated[Literal["scattering2d"], Field(description="which scattering transform")] = "scattering2d"
    J: Annotated[
        int, Field(ge=1, le=12, description="log2 of the largest scale in pixels; the output stride is 2^J")
    ] = 3
    L: Annotated[int, Field(ge=1, le=64, description="number of orientations in [0°, 180°)")] = 8
    max_order: Annotated[int, Field(ge=0, le=6, description="largest scattering order")] = 2
    padding: Annotated[
        Literal["minimal", "support", "kymatio"],
        Field(
            description="border: `minimal` for small samples, `support` for fields, `kymatio` for the peer's numbers"
        ),
    ] = "minimal"
    dtype: Annotated[
        Literal["float32", "float64"], Field(description="precision of the arithmetic and of the cube")
    ] = "float32"

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name the output of this Spec."""
        return digest(self.model_dump())

    def override(self, assignments: list[str]) -> Self:
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
            try:
                values[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as failure:
                raise SpecError(f"--set {text}: the value is not YAML: {' '.join(str(failure).split())}") from failure
        return parse(type(self), values, "--set", SpecError)


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
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as failure:
        raise error(f"{where}: {explain(failure, model)}") from failure
    except (TypeError, ValueError, RecursionError) as failure:  # a key that is no text, an alias of itself
        raise error(f"{where}: not a plain mapping of keys to values: {failure}") from failure


def load_yaml(path: Path, error: type[Exception]) -> Any:
    """Read a YAML file with the safe loader; a file that is missing, too large or not YAML raises ``error``."""
    limit = 1 << 20
    try:
        if path.stat().st_size > limit:
            raise error(f"{path}: {path.stat().st_size} bytes; a description is at most {limit}")
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise error(f"{path}: {failure.strerror}") from failure
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as failure:
        raise error(f"{path}: not YAML: {failure}") from failure


def load_spec(path: Path) -> Spec:
    """Read a Spec from a YAML file. Raises SpecError, naming the field."""
    return parse(Spec, load_yaml(path, SpecError), str(path), SpecError)


def explain(failure: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with each field, in one line: the field, what was expected there, what was got."""
    lines = []
    for problem in failure.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "(top level)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {field!r}{_known(problem['loc'], model)}")
        elif problem["type"] == "missing":
            lines.append(f"missing key {field!r}")
        else:
            got = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
            lines.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(lines)


def _known(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The keys that are known where the unknown one stands; nothing where the place is not a plain nested model."""
    here: Any = model
    for part in loc[:-1]:
        field = getattr(here, "model_fields", {}).get(part)
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        here = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return f"; known keys: {', '.join(here.model_fields)}" if here is not None else ""
