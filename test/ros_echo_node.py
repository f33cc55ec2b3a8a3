"""A small node on the lifecycle shell: it answers on `echo` what comes in on `in`, and ticks. Run by `test_launch.py`.

    python ros_echo_node.py [--locate] --ros-args -p sub.gain:=2.0
"""

import os
import signal
import sys

signal.signal(signal.SIGINT, lambda *_: os._exit(0))

import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from dataclasses import field as nested  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated  # noqa: E402

from semfield_ros.config import Between, Live  # noqa: E402
from semfield_ros.errors import ConfigError  # noqa: E402
from semfield_ros.wire.bus import QoS  # noqa: E402
from semfield_ros.wire.rclpy_lifecycle import run  # noqa: E402

STRING = "std_msgs/msg/String"
LOCATE = "semfield_ros/action/Locate"


@dataclass(frozen=True)
class Sub:
    """What is live."""

    gain: Annotated[float, Between(0, 10), Live()] = 1.0
    """How loud."""
    limit: Annotated[float | None, Between(-1, 1), Live()] = None
    """No more than this; None = no limit."""
    words: Annotated[tuple[str, ...], Live()] = ()
    """What to say."""


@dataclass(frozen=True)
class Config:
    """Everything."""

    build_s: float = 0.0
    """Building takes that long."""
    needs: str = ""
    """A file that must be there; one named *.crash ends in an unexpected error."""
    count: Annotated[int, Between(1, 5)] = 1
    """How many."""
    sub: Sub = nested(default_factory=Sub)


class Echo:
    """The Runnable."""

    def __init__(self, bus, config):
        print("building", flush=True)
        time.sleep(config.build_s)
        if config.needs and not Path(config.needs).exists():
            raise KeyError("boom") if config.needs.endswith(".crash") else ConfigError(f"there is no {config.needs}")
        self.bus, self.config = bus, config
        self.publisher = bus.publisher(STRING, "echo", QoS(100))
        self.parts = []
        self.actions = {"~/locate": (LOCATE, self.locate)} if "--locate" in sys.argv else {}

    def start(self):
        print("started", flush=True)
        self.parts = [self.bus.subscribe(STRING, "in", self.publisher.publish), self.bus.timer(0.02, self.tick)]

    def tick(self):
        sub = self.config.sub
        self.publisher.publish(self.bus.new(STRING, data=f"{sub.gain} {sub.limit} {' '.join(sub.words)}"))

    def stop(self):
        print("stopped", flush=True)
        for part in self.parts:
            part.close()

    def close(self):
        print("closed", flush=True)

    def configure_live(self, config):
        self.config = config

    def locate(self, goal, feedback, cancelled):
        """Found after 3 looks if the prompt is `mug`; never otherwise. Fails if it is `crash`."""
        new, start = self.bus.new, time.monotonic()
        if goal.prompt == "crash":
            raise KeyError("boom")
        for looks in range(1, 10**9):
            elapsed = time.monotonic() - start
            feedback(new(f"{LOCATE}_Feedback", elapsed=elapsed, best_score=0.5, frames=looks))
            if goal.prompt == "mug" and looks == 3:
                answer = new("semfield_ros/msg/Answer", prompts=["mug"], found=[True])
                return new(f"{LOCATE}_Result", success=True, answer=answer)
            if cancelled() or 0 < goal.timeout <= elapsed:
                why = "cancelled" if cancelled() else "nothing in time"
                return new(f"{LOCATE}_Result", success=False, message=why)
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(run(Echo, Config(), "echo"))
