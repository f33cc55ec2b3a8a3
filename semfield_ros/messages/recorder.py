"""BagRecorder: messages of any thread into a bag of rosbag2, on a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import Any, Literal

from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError

from ..errors import ConfigError, SemfieldError
from .types import Types, types

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
VERSION: Literal[8] = 8
"""Of metadata.yaml: what every ROS 2 from Humble on reads."""

_Data = bytes | bytearray | memoryview
_Entry = tuple[str, str, memoryview, int, bool]
"""Topic, type, data, stamp_ns, latched."""


class BagRecorder:
    """Records CDR bytes; `record` only queues. The bag is complete after `close`, and torn without it.

    Args:
        path: a folder that does not exist yet.
        max_waiting_mb: bytes that may wait for the disk; what does not fit is dropped.

    Attributes:
        recorded, dropped, failed: messages written; dropped because the disk was too slow or recording has ended;
            refused as unusable. last_error: why recording ended, or the newest one was refused.

    Raises:
        ConfigError: the path exists or cannot be made, or the storage is not known.
    """

    def __init__(
        self,
        path: str | Path,
        storage: Literal["mcap", "sqlite3"] = "mcap",
        *,
        max_waiting_mb: float = 256.0,
        known: Types | None = None,
    ):
        self.path = Path(path).expanduser()
        if storage not in STORAGES or max_waiting_mb <= 0:
            raise ConfigError(f"storage is {storage!r}, max_waiting_mb {max_waiting_mb}; allowed: mcap, sqlite3, > 0")
        self.recorded = self.dropped = self.failed = 0
        self.last_error = ""
        self._types, self._storage, self._max_bytes = known or types(), STORAGES[storage], int(max_waiting_mb * 2**20)
        self._queue: deque[_Entry] = deque()
        self._bytes, self._closing, self._ended = 0, False, False
        self._changed = threading.Condition()
        self._opened = threading.Event()
        # sqlite3 connections belong to the thread that made them.
        self._thread = threading.Thread(target=self._run, name="bag-recorder", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._ended:
            raise ConfigError(f"cannot record to {self.path}: {self.last_error} Choose another folder, or remove it")

    @property
    def waiting(self) -> int:
        """Messages that wait to be written."""
        return len(self._queue)

    def record(self, topic: str, type: str, data: _Data, stamp_ns: int, *, latched: bool = False) -> bool:
        """Queue a message; False where it had to be dropped. Safe from any thread.

        Args:
            topic: absolute. type: such as sensor_msgs/msg/Image. data: its CDR bytes. stamp_ns: when it was received.
            latched: the topic is transient local, so that a player of the bag offers it likewise.
        """
        with self._changed:
            if self._closing or self._ended or self._bytes + len(data) > self._max_bytes:
                self.dropped += 1
                return False
            # A view may be into memory that its owner reuses.
            kept = bytes(data) if isinstance(data, memoryview) else data
            self._queue.append((topic, type, memoryview(kept), stamp_ns, latched))
            self._bytes += len(data)
            self._changed.notify()
            return True

    def close(self) -> None:
        """Write what waits and complete the bag. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> BagRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            with Writer(self.path, version=VERSION, storage_plugin=self._storage) as bag:
                self._opened.set()
                connections: dict[tuple[str, str], Any] = {}
                while (entry := self._next()) is not None:
                    self._write(bag, connections, *entry)
        except Exception as error:  # a full disk, a broken database: recording ends, the node goes on
            self.last_error = self.last_error or str(error)
        finally:
            with self._changed:
                self._ended = True
                self.dropped += len(self._queue)
                self._queue.clear()
            self._opened.set()

    def _next(self) -> _Entry | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            entry = self._queue.popleft()
            self._bytes -= len(entry[2])
            return entry

    def _write(
        self, bag: Writer, connections: dict[tuple[str, str], Any], topic: str, kind: str, data: memoryview,
        stamp_ns: int, latched: bool,
    ) -> None:  # fmt: skip
        try:
            if (topic, kind) not in connections:
                connections[topic, kind] = bag.add_connection(
                    topic, kind, typestore=self._types.store, rihs01=self._types.hash(kind),
                    msgdef=self._types.store.generate_msgdef(kind, ros_version=2)[0],
                    offered_qos_profiles=[_LATCHED] if latched else [],
                )  # fmt: skip
            bag.write(connections[topic, kind], stamp_ns, data)
            self.recorded += 1
        except Exception as error:
            self.failed += 1
            self.last_error = f"{topic}: {error}"
            if not isinstance(error, (WriterError, SemfieldError)):
                raise


_FOREVER = QosTime(9223372036, 854775807)
_LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _FOREVER, _FOREVER,
    QosLiveliness.AUTOMATIC, _FOREVER, False,
)  # fmt: skip
