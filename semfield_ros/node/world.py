"""World: the little that inputs, outputs and services of the node share. Thread-safe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from ..config import SemfieldConfig
from ..frame import Frame
from ..objects import Object
from ..objects.planned import failures
from .instances import InstanceBook


class World:
    """What the node knows besides its map.

    Attributes:
        vocabulary: classes of the labelled cloud. prompts: what the relevancy cloud shows. Tuples are swapped whole.
        class_names: of label images by id, as their LabelInfo has them; swapped whole. instances: who is who.
        paused: whether frames are refused. last_error: the newest error or rejection in words, '' = none.
    """

    def __init__(self, vocabulary: tuple[str, ...] = (), prompts: tuple[str, ...] = ()):
        self.vocabulary = vocabulary
        self.prompts = prompts
        self.class_names: dict[int, str] = {}
        self.instances = InstanceBook()
        self.paused = False
        self.last_error = ""
        self._lock = threading.Lock()
        self._frames: dict[str, Frame] = {}
        self._newest = ""
        self._counts: Counter[str] = Counter()
        self._planner: Counter[str] = Counter()

    def saw(self, frame: Frame) -> None:
        """Remember the last frame of its camera."""
        with self._lock:
            self._frames[frame.camera_name] = frame
            self._newest = frame.camera_name

    def last_frame(self, camera_name: str = "") -> Frame | None:
        """The last frame of a camera ('' = of any); None before the first."""
        with self._lock:
            return self._frames.get(camera_name or self._newest)

    def count(self, reason: str, by: int = 1, error: str = "") -> None:
        """Count frames that came in and were not used, by reason."""
        with self._lock:
            self._counts[reason] += by
            if error:
                self.last_error = error

    def counts(self) -> dict[str, int]:
        """A copy of the counts by reason."""
        with self._lock:
            return dict(self._counts)

    def planned(self, things: Iterable[Object]) -> None:
        """Count what these objects say against the planner of grasps itself."""
        found: Counter[str] = Counter()
        for thing in things:
            found.update(failures(thing.rejected))
        with self._lock:
            self._planner.update(found)

    def planner_failures(self) -> dict[str, int]:
        """How often the planner of grasps failed, by what was wrong."""
        with self._lock:
            return dict(self._planner)

    def forget_map(self) -> None:
        """After a reset: no last frame, no instances."""
        with self._lock:
            self._frames.clear()
        self.instances.forget()


def class_names(config: SemfieldConfig, world: World) -> dict[int, str]:
    """Names of classes by id, from 1: as configured, else as whoever sends label images calls them."""
    configured = config.heads.class_names
    return dict(enumerate(configured, 1)) if configured else dict(world.class_names)
