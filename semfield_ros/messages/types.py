"""Message types, their CDR bytes and their hashes, without a ROS installation.

The common messages come with rosbags; our own are read from `msg/`, `srv/` and `action/`, their only definition; a few
more that this package speaks (vision_msgs, std_srvs) stand under `definitions/`. Types are named as ROS names them:
`sensor_msgs/msg/Image`, `semfield_ros/srv/Query_Request`. Messages are plain objects with one attribute a field.
"""

from __future__ import annotations

import threading
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import rosbags.typesys.store as rosbags_store
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ..errors import ConfigError, WireError

# rosidl makes `char` an uint8 (rosidl_adapter), rosbags gives it a type of its own: service hashes would not match
rosbags_store.TIDMAP["char"] = rosbags_store.TIDMAP["uint8"]

DEFINITIONS = Path(__file__).parent / "definitions"
_OWN = "semfield_ros"
_KINDS = {".msg": "msg", ".srv": "srv", ".action": "action"}


def _own_definitions() -> Path:
    """The folder with our msg/, srv/ and action/: beside this file (pip), a source tree's root, or share/ (colcon)."""
    here = Path(__file__)
    shares = [prefix / "share" / _OWN for prefix in here.parents[3:]]
    for folder in (DEFINITIONS / _OWN, here.parents[2], *shares):
        if (folder / "msg").is_dir() and (folder / "srv").is_dir():
            return folder
    raise WireError(f"the definitions of {_OWN}'s messages are not in {DEFINITIONS / _OWN}; install the package again")


class Types:
    """A set of message types. Immutable after construction, so that all threads may share one."""

    def __init__(self, store: Stores = Stores.ROS2_JAZZY):
        self._store = get_typestore(store)
        self._hashes: dict[str, str] = {}
        self._lock = threading.Lock()
        for folder in [*sorted(f for f in DEFINITIONS.iterdir() if f.is_dir() and f.name != _OWN), _own_definitions()]:
            package = _OWN if folder == _own_definitions() else folder.name
            for suffix, kind in _KINDS.items():
                for path in sorted((folder / kind).glob(f"*{suffix}")):
                    self._add(f"{package}/{kind}/{path.stem}", path.read_text(encoding="utf-8"))

    def _add(self, name: str, text: str) -> None:
        parts = _sections(text)
        _, kind, _ = name.split("/")
        if kind == "msg":
            self._store.register(get_types_from_msg(text, name))
        elif kind == "srv":
            self._add_service(name, *parts)
        else:
            for part, body in zip(("Goal", "Result", "Feedback"), parts, strict=True):
                self._store.register(get_types_from_msg(body, f"{name}_{part}"))

    def _add_service(self, name: str, request: str, response: str) -> None:
        """A service's hash is that of a message of its request, response and event (REP-2016 and rosidl)."""
        package = name.split("/")[0]
        names = {f"{package}/msg/Zz{part}": f"{name}_{part}" for part in ("Request", "Response", "Event")}

        def renamed(node: Any) -> Any:
            if isinstance(node, str):
                return names.get(node, node)
            return type(node)(renamed(part) for part in node) if isinstance(node, (tuple, list)) else node

        def parsed(body: str) -> Any:
            return renamed(next(iter(get_types_from_msg(body, f"{package}/msg/Zz").values())))

        event = (
            "service_msgs/ServiceEventInfo info\n"
            f"{package}/ZzRequest[<=1] request\n{package}/ZzResponse[<=1] response\n"
        )
        whole = (
            f"{package}/ZzRequest request_message\n{package}/ZzResponse response_message\n"
            f"{package}/ZzEvent event_message\n"
        )
        self._store.register(
            {
                f"{name}_Request": parsed(request), f"{name}_Response": parsed(response),
                f"{name}_Event": parsed(event), name: parsed(whole),
            }
        )  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name in self._store.types

    @property
    def store(self) -> Any:
        """The rosbags typestore, for rosbags' readers and writers."""
        return self._store

    def hash(self, name: str) -> str:
        """The REP-2016 type hash, `RIHS01_...`; for a service by its own name (`std_srvs/srv/Trigger`)."""
        with self._lock:
            if name not in self._hashes:
                self._check(name)
                self._hashes[name] = self._store.hash_rihs01(name)
            return self._hashes[name]

    def fields(self, name: str) -> list[str]:
        """Field names of a type, in order."""
        self._check(name)
        return [field for field, _ in self._store.fielddefs[name][1] if field != "structure_needs_at_least_one_member"]

    def new(self, name: str, /, **values: Any) -> Any:
        """A message with the given fields; what is left out is zero, empty or false, as in ROS.

        Numbers for an array field may come as any sequence or array; they are converted where nothing is lost.

        Raises:
            ConfigError: a field the type does not have, or an array that does not fit its field.
        """
        self._check(name)
        definitions = dict(self._store.fielddefs[name][1])
        for field in values:
            if field not in definitions:
                close = get_close_matches(field, definitions, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise ConfigError(f"{name} has no field {field!r}{hint} It has: {', '.join(definitions)}")
        for field, definition in definitions.items():
            if field not in values:
                values[field] = self._default(definition)
            elif (numbers := _numbers(definition)) is not None:
                values[field] = _array(values[field], *numbers, f"{name}.{field}")
        return self._store.types[name](**values)

    def _default(self, definition: Any) -> Any:
        kind, detail = definition
        if kind is Nodetype.BASE:
            base = detail[0]
            return "" if base == "string" else False if base == "bool" else 0.0 if base.startswith("float") else 0
        if kind is Nodetype.NAME:
            return self.new(detail)
        inner, count = detail
        count = count if kind is Nodetype.ARRAY else 0
        numbers = _numbers(definition)
        return [self._default(inner) for _ in range(count)] if numbers is None else np.zeros(count, numbers[0])

    def encode(self, message: Any) -> bytes:
        """CDR bytes (little endian, with the 4-byte header) of a message.

        Raises:
            WireError: a field that does not hold what its type says.
        """
        return bytes(self.encode_buffer(message))

    def encode_buffer(self, message: Any) -> bytearray:
        """As `encode`, in a buffer that is the caller's own: a second copy of an image costs more than its encoding."""
        name = message.__msgtype__
        try:
            return cast(bytearray, self._store.serialize_cdr(message, name, little_endian=True).obj)
        except Exception as error:  # rosbags' generated encoders fail in any way on foreign values
            raise WireError(f"a field of this {name} has the wrong type: {type(error).__name__}: {error}") from error

    def decode(self, data: bytes | memoryview, name: str) -> Any:
        """The message of CDR bytes; its arrays are read-only views into `data`.

        Raises:
            WireError: bytes that are not a message of this type.
        """
        self._check(name)
        try:
            return self._store.deserialize_cdr(memoryview(data), name)
        except Exception as error:  # rosbags' generated decoders fail in any way on foreign bytes
            raise WireError(f"{len(data)} bytes are no {name}: {type(error).__name__}: {error}") from error

    def _check(self, name: str) -> None:
        if name not in self._store.types:
            close = get_close_matches(name, self._store.types, n=1)
            raise ConfigError(f"message type {name!r} is not known{f'; did you mean {close[0]}?' if close else ''}")


def _numbers(definition: Any) -> tuple[np.dtype, int | None] | None:
    """The dtype and, where it is fixed, the length of a field that is an array of numbers; None for other fields."""
    kind, detail = definition
    if kind not in (Nodetype.ARRAY, Nodetype.SEQUENCE) or detail[0][0] is not Nodetype.BASE:
        return None
    base = detail[0][1][0]
    if base == "string":
        return None
    dtype = np.dtype({"byte": "uint8", "char": "uint8"}.get(base, base))
    return dtype, detail[1] if kind is Nodetype.ARRAY else None


def _array(value: Any, dtype: np.dtype, count: int | None, field: str) -> np.ndarray:
    """One contiguous row of numbers: the encoder writes whatever bytes it is given."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = np.frombuffer(value, np.uint8)
    array = np.asarray(value)
    if array.size and not _fits(array, dtype, exactly=not isinstance(value, np.ndarray)):
        raise ConfigError(f"{field} holds {dtype}; {value!r:.60} would lose something, so convert it explicitly")
    if count is not None and array.size != count:
        raise ConfigError(f"{field} holds {count} numbers, not {array.size}")
    return np.ascontiguousarray(array, dtype).reshape(-1)


def _fits(array: np.ndarray, dtype: np.dtype, exactly: bool) -> bool:
    """Arrays must have a suitable dtype; of plain numbers the values are looked at."""
    if not exactly or array.dtype.kind not in "biuf" or dtype.kind == "f":
        return array.dtype.kind in "biuf" and np.can_cast(array.dtype, dtype, "same_kind")
    with np.errstate(invalid="ignore"):
        return bool(np.array_equal(array.astype(dtype), array))


def _sections(text: str) -> list[str]:
    """What stands between the lines `---`."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == "---":
            parts.append([])
        else:
            parts[-1].append(line)
    return ["\n".join(part) for part in parts]


@cache
def types() -> Types:
    """The types of ROS 2 Jazzy and of this package; the hashes of what we use are the same from Iron on."""
    return Types()
