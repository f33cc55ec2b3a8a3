"""Grippers that are known by name: their dimensions, as YAML files beside this module, or anybody's own file."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

from ..errors import ConfigError

FOLDER = Path(__file__).parent
OPTIONAL = ("min_width_m", "friction", "clearance_m", "palm_width_m", "palm_breadth_m")
REQUIRED = ("max_width_m", "finger_length_m", "finger_thickness_m", "finger_breadth_m", "palm_depth_m")


def names() -> tuple[str, ...]:
    """All grippers that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@lru_cache(maxsize=32)
def dimensions(model: str) -> tuple[tuple[str, float], ...]:
    """Settings of `GripperConfig` that a gripper's file gives, as (name, value) pairs.

    Args:
        model: a name, or the path of a YAML file with the same keys, at the top or under `gripper:`.

    Raises:
        ConfigError: no such gripper or file, a key that is missing or unknown, or a value that is no finite number.
    """
    import yaml

    path = FOLDER / f"{model}.yaml" if model in names() else Path(model).expanduser()
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        known = f"{', '.join(names())}, or the path of a YAML file"
        raise ConfigError(f"gripper.model is {model!r}; allowed: {known} ({type(error).__name__})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"gripper file {path.name} is not YAML: {error}") from error
    data = data.get("gripper", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise ConfigError(f"gripper file {path.name} holds {type(data).__name__}; expected keys {', '.join(REQUIRED)}")
    missing, unknown = set(REQUIRED) - set(data), set(data) - {*REQUIRED, *OPTIONAL}
    if missing or unknown:
        wrong = [*(f"{key} is missing" for key in sorted(missing)), *(f"{key} is unknown" for key in sorted(unknown))]
        raise ConfigError(f"gripper file {path.name}: {', '.join(wrong)}; keys: {', '.join((*REQUIRED, *OPTIONAL))}")
    for key, value in data.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"gripper file {path.name}: {key} is {value!r}; allowed: a finite number")
    return tuple((key, float(value)) for key, value in data.items())
