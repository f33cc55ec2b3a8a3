"""ROS names: what is allowed, how they become absolute, and remappings."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import WireError

_TOKEN = r"[A-Za-z_][A-Za-z0-9_]*"
_NAME = re.compile(rf"(~|(~/|/)?{_TOKEN}(/{_TOKEN})*)\Z")
_NODE = re.compile(rf"{_TOKEN}\Z")
_NAMESPACE = re.compile(rf"(/{_TOKEN})*\Z")
_RULES = "letters, digits and '_' between single '/', no part starting with a digit, '~/' or '/' only in front"


def node_name(name: str, namespace: str = "") -> str:
    """The absolute name `/namespace/name` of a node.

    Raises:
        WireError: a name or namespace that ROS does not allow.
    """
    if not _NODE.match(name) or len(name) > 255:
        raise WireError(f"{name!r} is no node name; use letters, digits and '_', not starting with a digit")
    space = namespace.strip("/")
    space = f"/{space}" if space else ""
    if not _NAMESPACE.match(space):
        raise WireError(f"{namespace!r} is no namespace; use {_RULES}")
    return f"{space}/{name}"


def expand(name: str, node: str) -> str:
    """The absolute form of a topic or service name as seen by the node with that absolute name.

    Raises:
        WireError: a name that ROS does not allow.
    """
    if not _NAME.match(name):
        raise WireError(f"{name!r} is no topic or service name; use {_RULES}")
    if name.startswith("~"):
        return node + name[1:]
    return name if name.startswith("/") else f"{node.rpartition('/')[0]}/{name}"


def remapped(name: str, node: str, remappings: Mapping[str, str]) -> str:
    """`expand`, then the remapping whose left side expands to the same name, applied once as ROS does."""
    absolute = expand(name, node)
    for source, target in remappings.items():
        if expand(source, node) == absolute:
            return expand(target, node)
    return absolute
