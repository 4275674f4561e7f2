"""The CUDA engine's source, as one text for each choice of constants: what it includes stands where it is included."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


def cuda_source(constants: Mapping[str, Any], *names: str) -> str:
    """Return files of this folder, one after the other, behind a #define for each constant."""
    head = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    return head + "".join(map(_text, names))


@cache
def _text(name: str) -> str:
    text = (_FOLDER / name).read_text(encoding="utf-8")
    included = re.sub(r'^#include "(.+)"\n', lambda found: _text(found[1]), text, flags=re.MULTILINE)
    return included.replace("#pragma once\n", "")
