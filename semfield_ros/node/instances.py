"""Instances of the running map under ids that last, worked out once a snapshot and shared by topics and services."""

from __future__ import annotations

import threading
import weakref

from ..errors import QueryError
from ..field.snapshot import Snapshot
from ..field.world import WorldSnapshot
from ..query.instances import InstanceIds, Instances


class InstanceBook:
    """Who is who. Thread-safe; a snapshot's instances are worked out by whoever asks first."""

    def __init__(self) -> None:
        self._ids = InstanceIds()
        self._of: weakref.ref[Snapshot] | None = None
        self._found: Instances | None = None
        self._lock = threading.Lock()

    def of(self, snapshot: Snapshot) -> Instances:
        """The instances of a snapshot. O(map points) the first time.

        Raises:
            QueryError: the map learns no instances, has not learnt them yet, or lies in several blocks.
        """
        if isinstance(snapshot, WorldSnapshot):
            raise QueryError("a map of several blocks tells no instances apart; leave memory.block_m unset for them")
        with self._lock:
            if self._found is None or self._of is None or self._of() is not snapshot:
                self._found, self._of = self._ids.update(snapshot), weakref.ref(snapshot)
            return self._found

    def known(self, snapshot: Snapshot) -> Instances | None:
        """The same, None where there are none."""
        try:
            return self.of(snapshot) if len(snapshot.cloud) else None
        except QueryError:
            return None

    def forget(self) -> None:
        """The map is another one: old ids mean nothing there, and are not given again."""
        with self._lock:
            next_id = self._ids.next_id
            self._ids, self._found, self._of = InstanceIds(), None, None
            self._ids.next_id = next_id
