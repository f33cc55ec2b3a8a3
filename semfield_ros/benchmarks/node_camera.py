"""The camera of `semfield bench node`: a process of its own, as a driver would be.

`python -m semfield_ros.benchmarks.node_camera SHOTS.npz` publishes prepared frames at a steady rate, to and fro, so
that the motion has no jumps. It obeys lines on its standard input (`go`, `stop`; the end of the input ends it) and
tells what it did on its standard output, a line of JSON a frame. Frames are decoded, enlarged and made messages before
the first one is sent: what a frame costs while it plays is a stamp and the wire.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import Positional

from ..frame import Frame, resized
from ..geometry import Camera
from ..messages.poses import time_of
from ..messages.stream import frame_messages
from ..node.commands import WireConfig, open_bus, until_interrupted
from ..wire.bus import Publisher, QoS

WIDTH, HEIGHT = 640, 480
JOINED = WireConfig(mode="join")
Messages = Mapping[str, tuple[str, Any]]


def write_shots(path: Path, frames: Sequence[Frame]) -> None:
    """Keep frames of one camera, without labels, for `read_shots`."""
    camera = frames[0].camera
    np.savez(
        path, rgb=np.stack([f.rgb for f in frames]), depth_m=np.stack([f.depth_m for f in frames]),
        poses=np.stack([f.T_world_camera for f in frames]),
        camera=np.array([camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy]),
    )  # fmt: skip


def read_shots(path: Path, width: int = WIDTH, height: int = HEIGHT) -> list[Messages]:
    """The messages of each frame by topic, at that size; see `messages.stream.frame_messages`."""
    with np.load(path) as kept:
        w, h, fx, fy, cx, cy = kept["camera"].tolist()
        camera = Camera(int(w), int(h), fx, fy, cx, cy)
        parts = zip(kept["rgb"], kept["depth_m"], kept["poses"])
        frames = (Frame(0.0, camera, T, rgb, depth_m) for rgb, depth_m, T in parts)
        return [frame_messages(resized(frame, width, height)) for frame in frames]


def stamp(messages: Messages, stamp_ns: int) -> None:
    """Set the stamp of all messages of a frame."""
    time_message = time_of(stamp_ns)
    for _, message in messages.values():
        for part in getattr(message, "transforms", (message,)):
            part.header.stamp = time_message


def to_and_fro(count: int) -> Iterator[int]:
    """0 1 2 ... count-1 ... 2 1 0 1 ... without end."""
    return itertools.cycle([*range(count), *range(count - 2, 0, -1)])


@dataclass
class Played:
    """What a camera did: frames sent, and exposures left out because the one before was late."""

    sent: int = 0
    missed: int = 0


def play(
    shots: Sequence[Messages], publishers: Mapping[str, Publisher], rate_hz: float, going: threading.Event,
    done: Callable[[], bool], report: Callable[[Played], None],
) -> Played:  # fmt: skip
    """Publish at a steady rate while `going` is set. An exposure that cannot be sent in time is left out and counted,
    as a camera does; nothing is sent in a burst afterwards."""
    played, order, due_s = Played(), to_and_fro(len(shots)), time.monotonic()
    while not done():
        if not going.is_set():
            going.wait(0.05)
            due_s = time.monotonic()
            continue
        wait_s = due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, 0.05))
            continue
        messages = shots[next(order)]
        stamp(messages, time.time_ns())
        for topic, (_, message) in messages.items():
            publishers[topic].publish(message)
        played.sent += 1
        report(played)
        due_s += 1 / rate_hz
        late = int(max(0.0, time.monotonic() - due_s) * rate_hz)
        played.missed += late
        due_s += late / rate_hz
    return played


def _tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main(shots: Positional[Path], wire: WireConfig = JOINED, rate_hz: float = 30.0) -> None:
    """Be a camera.

    Args:
        shots: what `write_shots` wrote.
        rate_hz: frames a second.
    """
    messages = read_shots(shots)
    bus = open_bus("camera", wire)
    going, ended = threading.Event(), threading.Event()

    def obey() -> None:
        for line in sys.stdin:
            (going.set if line.strip() == "go" else going.clear)()
        ended.set()

    threading.Thread(target=obey, daemon=True).start()
    try:
        with until_interrupted() as stop:

            def done() -> bool:
                return stop.is_set() or ended.is_set()

            publishers = {topic: bus.publisher(kind, topic, QoS()) for topic, (kind, _) in messages[0].items()}
            while not done() and not all(p.subscribers for p in publishers.values()):
                time.sleep(0.02)
            _tell(ready=True)
            play(messages, publishers, rate_hz, going, done, lambda p: _tell(sent=p.sent, missed=p.missed))
    finally:
        bus.close()


if __name__ == "__main__":
    tyro.cli(main)
