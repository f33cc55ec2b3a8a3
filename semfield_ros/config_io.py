"""The configuration as YAML and back: generated from the dataclasses, every line explained by their docstrings."""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import yaml

from .config import SemfieldConfig
from .errors import ConfigError

T = TypeVar("T")


def to_yaml(config: Any) -> str:
    """Every setting with its meaning, allowed values and value, as YAML that `from_yaml` reads back."""
    return "\n".join(_lines(config, indent="")) + "\n"


@overload
def from_yaml(path: str | Path) -> SemfieldConfig: ...
@overload
def from_yaml(path: str | Path, base: T) -> T: ...


def from_yaml(path: str | Path, base: Any = None) -> Any:
    """Read a YAML file; settings it leaves out keep their defaults, or those of `base`, a configuration dataclass.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is of the wrong type or out of range.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    try:
        return from_dict({} if data is None else data, SemfieldConfig() if base is None else base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


@overload
def from_dict(data: Mapping[str, Any]) -> SemfieldConfig: ...
@overload
def from_dict(data: Mapping[str, Any], base: T) -> T: ...


def from_dict(data: Mapping[str, Any], base: Any = None) -> Any:
    """A configuration from nested mappings; settings left out keep their defaults, or those of `base`.

    Raises:
        ConfigError: names the setting (`memory.voxel_size_m`), its value and what is allowed.
    """
    return _replaced(SemfieldConfig() if base is None else base, data, "")


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a configuration dataclass, by field name; fields without one are left out."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for field, after in zip(body.body, body.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            if isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                docs[field.target.id] = " ".join(after.value.value.split())
    return docs


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-2 for a string; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _lines(config: Any, indent: str) -> list[str]:
    hints, docs = get_type_hints(type(config)), field_docs(type(config))
    lines = []
    for field in fields(config):
        value = getattr(config, field.name)
        hint = hints[field.name]
        choices = f"One of: {', '.join(get_args(hint))}." if get_origin(hint) is Literal else ""
        if is_dataclass(value):
            summary = (inspect.getdoc(type(value)) or "").split("\n\n")[0]
            lines += ["", *_comment(" ".join(summary.split()), indent), f"{indent}{field.name}:"]
            lines += _lines(value, indent + "  ")
        else:
            lines += _comment(" ".join(filter(None, [docs.get(field.name, ""), choices])), indent)
            lines.append(f"{indent}{field.name}: {_inline(value)}")
    return lines


def _comment(text: str, indent: str) -> list[str]:
    text = re.sub(r"\bNone\b", "null", text)
    return textwrap.wrap(text, width=116, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _inline(value: Any) -> str:
    """A scalar or tuple on one line."""
    if isinstance(value, tuple):
        return "[" + ", ".join(_inline(item) for item in value) + "]"
    # What needs no quotes by itself may need them in a list (PyYAML writes [?], and cannot read it): plain words only.
    quote = isinstance(value, str) and not re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII)
    return yaml.safe_dump([value], default_flow_style=True, default_style='"' if quote else None, width=math.inf)[1:-2]


def _replaced(base: T, data: Any, where: str) -> T:
    """`base`, a dataclass, with the settings `data` names."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {data!r}; allowed: a mapping of settings")
    hints = get_type_hints(type(base))
    values = {}
    for key, value in data.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            close = get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ConfigError(f"{name} is not a setting{hint} Allowed: {', '.join(hints)}")
        # A nested section starts from its own default here, which may differ from its type's (field.feature_grid).
        default = getattr(base, key)
        values[key] = _replaced(default, value, name) if is_dataclass(default) else _value(hints[key], value, name)
    try:
        return replace(base, **values)  # type: ignore[type-var]  # a TypeVar cannot say "dataclass instance"
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _value(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotated type `kind`; YAML lists become tuples, whole numbers pass for floats."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and type(None) in args:
            return None
        (kind,) = [arg for arg in args if arg is not type(None)]
        return _value(kind, value, name)
    if origin is Literal and value in args:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        if args[-1] is Ellipsis:
            return tuple(_value(args[0], item, f"{name}[{i}]") for i, item in enumerate(value))
        if len(value) == len(args):
            return tuple(_value(arg, item, f"{name}[{i}]") for i, (arg, item) in enumerate(zip(args, value)))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and is_number and math.isfinite(value):
        return float(value)
    if kind in (int, bool, str) and type(value) is kind:
        return value
    raise ConfigError(f"{name} is {value!r}; allowed: {_allowed(kind)}")


def _allowed(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list of {_allowed(args[0])}" if args[-1] is Ellipsis else f"a list of {len(args)} entries"
    return {float: "a finite number", int: "a whole number", bool: "true or false", str: "text"}[kind]


if __name__ == "__main__":
    print(to_yaml(SemfieldConfig()), end="")
