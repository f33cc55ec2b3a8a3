"""A configuration as flat, named, typed, documented and ranged parameters, and back. Pure: no middleware.

Names are paths (`memory.voxel_size_m`). ROS parameters have no None: a number that may be None is NaN then, a tuple the
empty list, and the descriptions say so.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..config import Between, Live
from ..config_io import field_docs
from ..errors import ConfigError

Config = TypeVar("Config")
Kind = Literal["bool", "int", "float", "str", "float[]", "str[]"]
Value = bool | int | float | str | list[float] | list[str]

_KINDS: dict[type, Kind] = {bool: "bool", int: "int", float: "float", str: "str"}
_WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a finite number", "str": "text",
    "float[]": "a list of numbers", "str[]": "a list of texts",
}  # fmt: skip


@dataclass(frozen=True)
class Parameter:
    """One setting, as ROS sees it."""

    name: str
    kind: Kind
    default: Value
    """Its value in the configuration it was made from."""
    description: str
    range: Between | None
    """What is allowed, both ends included; checked by `apply` and told to ROS."""
    choices: tuple[str, ...]
    live: bool
    """May change while the node runs; the others are read when it starts."""
    nullable: bool
    """NaN or the empty list stand for None."""
    length: int | None
    """Entries a list must have; None = any number."""

    @property
    def constraints(self) -> str:
        """What is allowed besides the range, in words."""
        parts = [f"One of: {', '.join(self.choices)}." if self.choices else ""]
        if self.nullable and self.range:
            parts.append(f"nan, or {_span(self.range)}.")
        if self.length is not None:
            parts.append(f"{self.length} entries{' or none' if self.nullable else ''}.")
        return " ".join(filter(None, parts))


def flatten(config: Any) -> list[Parameter]:
    """The settings of a configuration dataclass in the order they are written, those of its sections last."""
    kind: Any = type(config)
    hints, docs = get_type_hints(kind, include_extras=True), _docs(kind)
    own, nested = [], []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            nested += [replace(p, name=f"{field.name}.{p.name}") for p in flatten(value)]
        else:
            own.append(_parameter(field.name, hints[field.name], value, docs.get(field.name, "")))
    return own + nested


@cache
def _docs(kind: Any) -> dict[str, str]:
    """The docstrings under the fields of a dataclass and of what it derives from."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docs.update(field_docs(base) if "__dataclass_fields__" in vars(base) else {})
    return docs


def values_of(config: Any) -> dict[str, Value]:
    """Parameter values by name."""
    return {parameter.name: parameter.default for parameter in flatten(config)}


def apply(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with some parameters changed; whole numbers pass for floats, NaN and [] for None.

    Raises:
        ConfigError: a name that is no parameter, a value of the wrong kind, outside the range, not among the choices,
            or refused by the dataclass; names the parameter.
    """
    parameters = {parameter.name: parameter for parameter in flatten(config)}
    accepted = {}
    for name, value in values.items():
        if name not in parameters:
            close = get_close_matches(name, parameters, n=1)
            raise ConfigError(f"{name} is not a parameter{f'; did you mean {close[0]}?' if close else ''}")
        accepted[name] = _accept(parameters[name], value)
    return _replaced(config, accepted, "")


def to_ros_yaml(config: Any, node: str = "/**") -> str:
    """A ROS parameter file of every setting with its meaning."""
    lines = [f"{node}:", "  ros__parameters:"]
    lines += _yaml_lines(config, "    ")
    return "\n".join(lines) + "\n"


def _parameter(name: str, hint: Any, value: Any, doc: str) -> Parameter:
    marks: Sequence[Any] = ()
    if get_origin(hint) is Annotated:
        hint, *marks = get_args(hint)
    nullable = False
    if get_origin(hint) in (Union, UnionType):
        (hint,) = [arg for arg in get_args(hint) if arg is not type(None)]
        nullable = True
    origin, args = get_origin(hint), get_args(hint)
    length = None
    if origin is tuple:
        kind: Kind = "str[]" if args[0] is str else "float[]"
        length = None if args[-1] is Ellipsis else len(args)
    else:
        kind = "str" if origin is Literal else _KINDS[hint]
    return Parameter(
        name=name,
        kind=kind,
        default=_to_ros(kind, value),
        description=re.sub(r"\bNone\b", "empty" if kind.endswith("[]") else "nan", doc),
        range=next((mark for mark in marks if isinstance(mark, Between)), None),
        choices=args if origin is Literal else (),
        live=any(isinstance(mark, Live) for mark in marks),
        nullable=nullable,
        length=length,
    )


def _to_ros(kind: Kind, value: Any) -> Value:
    """ROS tells 8 from 8.0, Python code that makes a configuration need not."""
    if kind.endswith("[]"):
        return [float(item) if kind == "float[]" else item for item in value or ()]
    return math.nan if value is None else float(value) if kind == "float" else value


def _accept(parameter: Parameter, value: Any) -> Any:
    """The field's value of a parameter's value."""
    name, kind = parameter.name, parameter.kind
    if kind.endswith("[]") and value is None:  # what ROS makes of [] in a parameter file
        value = []
    if kind.endswith("[]") and isinstance(value, Sequence) and not isinstance(value, str):
        # [""] is how a list is emptied where the middleware cannot tell what [] is a list of.
        items = [] if list(value) == [""] and parameter.default == [] else list(value)
        if parameter.nullable and not items:
            return None
        if parameter.length in (None, len(items)):
            return tuple(_scalar(kind.removesuffix("[]"), item, f"{name}[{i}]") for i, item in enumerate(items))
        raise ConfigError(f"{name} is {value!r}; allowed: {parameter.length} entries")
    if kind.endswith("[]"):
        raise ConfigError(f"{name} is {value!r}; allowed: {_WORDS[kind]}")
    if parameter.nullable and (value is None or (isinstance(value, float) and math.isnan(value))):
        return None
    accepted = _scalar(kind, value, name)
    if parameter.choices and accepted not in parameter.choices:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(parameter.choices)}")
    if parameter.range and not parameter.range.low <= accepted <= parameter.range.high:
        raise ConfigError(f"{name} is {value!r}; allowed: {_span(parameter.range)}")
    return accepted


def _scalar(kind: str, value: Any, name: str) -> Any:
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind != "float" and type(value) is {"bool": bool, "int": int, "str": str}[kind]:
        return value
    raise ConfigError(f"{name} is {value!r}; allowed: {_WORDS[kind]}")


def _replaced(config: Any, accepted: Mapping[str, Any], where: str) -> Any:
    """`config` with accepted values set, section by section, so that each is checked as a whole."""
    own: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in accepted.items():
        first, _, rest = name.partition(".")
        if rest:
            sections.setdefault(first, {})[rest] = value
        else:
            own[first] = value
    for section, inner in sections.items():
        own[section] = _replaced(getattr(config, section), inner, f"{where}{section}.")
    try:
        return replace(config, **own)
    except ConfigError as error:
        # What a section refuses starts with the field's name; what a deeper section refused is named already.
        raise (error if not where or str(error).startswith(where) else ConfigError(f"{where}{error}")) from error


def _span(between: Between) -> str:
    return f"{between.low:.12g} to {between.high:.12g}"


def _yaml_lines(config: Any, indent: str) -> list[str]:
    lines = []
    own = {p.name: p for p in flatten(config) if "." not in p.name}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            summary = (inspect.getdoc(type(value)) or "").split("\n\n")[0]
            lines += ["", *_comment(" ".join(summary.split()), indent), f"{indent}{field.name}:"]
            lines += _yaml_lines(value, indent + "  ")
            continue
        parameter = own[field.name]
        span = [_span(parameter.range)] if parameter.range and not parameter.nullable else []
        marks = ", ".join(span + ["live"] * parameter.live)
        about = [parameter.description, parameter.constraints, f"({marks})" if marks else ""]
        lines += _comment(" ".join(filter(None, about)), indent)
        lines += _list_lines(f"{indent}{field.name}: {_inline(parameter)}", indent + "  ")
    return lines


def _list_lines(line: str, indent: str) -> list[str]:
    """A line, broken between the texts of a list where it is too long."""
    lines = [""]
    for item in line.split('", "'):
        joint = '", "' if lines != [""] else ""
        if len(lines[-1]) + len(joint + item) > 116:
            lines[-1] += '",'
            lines.append(f'{indent}"{item}')
        else:
            lines[-1] += joint + item
    return lines


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, width=118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _inline(parameter: Parameter) -> str:
    """A value on one line; text is quoted, so that `no` and `1` stay text."""
    quote = '"' if parameter.kind.startswith("str") else None
    text = yaml.safe_dump([parameter.default], default_flow_style=True, default_style=quote, width=math.inf)
    return text.strip()[1:-1]
