"""Protocols: how each published system is measured, run here on its own field; `semfield eval PROTOCOL SOURCE`.

A protocol is a module of this package with a frozen dataclass `Plan`, whose docstring teaches and whose first field is
`source: Positional[str] = "simulator"`, and `run(plan, console) -> int`, which prints tables with the baselines of the
same run beside it and, where `plan.json` is set, one last line of JSON: protocol, source, metrics, classes, settings.
Only the protocol that is asked for is imported, so what it needs at its top must be light, the rest inside `run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import tyro
from rich.console import Console

from ..errors import ConfigError

PROTOCOLS: dict[str, str] = {
    "lerf": "lerf",
    "semantic": "semantic",
    "panoptic": "panoptic",
    "openmask3d": "openmask3d",
    "openscene": "openscene",
    "conceptfusion": "conceptfusion",
    "f3rm": "f3rm",
    "grasp": "grasp",
}
"""Name on the command line -> module of this package."""


def protocol(name: str) -> ModuleType:
    """The module of a protocol.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol is {name!r}; allowed: {', '.join(PROTOCOLS)}")
    return import_module(f"{__name__}.{PROTOCOLS[name]}")


def main(arguments: Sequence[str], console: Console) -> int:
    """`semfield eval` with these arguments; returns the exit code."""
    if arguments and not arguments[0].startswith("-"):
        chosen = protocol(arguments[0])
        plan = tyro.cli(chosen.Plan, args=arguments[1:], prog=f"semfield eval {arguments[0]}")
        code: int = chosen.run(plan, console)
        return code
    # asked for help: every Plan tells of itself
    plans = {name: protocol(name).Plan for name in PROTOCOLS}
    tyro.extras.subcommand_cli_from_dict(
        plans, args=list(arguments), prog="semfield eval",
        description="Evaluate as published systems are, beside baselines of the same run: `semfield eval NAME --help`.",
    )  # fmt: skip
    raise AssertionError("a plan without a name cannot be run")
