"""The node from the command line: `semfield node | publish | ask`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, UseAppendAction, arg

from ..errors import ConfigError
from ..wire.bus import Bus
from .config import NodeConfig

if TYPE_CHECKING:
    from .node import SemfieldNode

console = Console(stderr=True, width=None if sys.stderr.isatty() else 110)

NodeSettings = Annotated[NodeConfig, arg(name="")]


@dataclass(frozen=True)
class WireConfig:
    """How to reach the ROS 2 graph."""

    kind: Literal["zenoh", "rclpy"] = "zenoh"
    """zenoh = without ROS, as rmw_zenoh speaks; rclpy = a sourced ROS 2 installation and its middleware."""
    mode: Literal["embedded", "join"] = "embedded"
    """zenoh only: embedded = be the router unless there is one; join = look for one until it is there."""
    endpoint: str = "tcp/127.0.0.1:7447"
    """zenoh only: where the router is. Other machines reach it only if it listens on more than 127.0.0.1."""
    zenoh_config: Path | None = None
    """zenoh only: a Zenoh configuration file (TLS, access control ...); what it says goes before everything here."""
    namespace: str = ""
    """Namespace of the node and of its relative topics, such as /robot."""
    use_sim_time: bool = False
    """Take time from /clock."""
    remap: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="FROM:=TO")] = field(default=())
    """Another name for a topic or service (repeat the flag), such as rgb/image:=/camera/color/image_raw."""

    def remappings(self) -> dict[str, str]:
        """Names by what they stand for."""
        pairs = {}
        for rule in self.remap:
            name, found, target = rule.partition(":=")
            if not (name and found and target):
                raise ConfigError(f"remap is {rule!r}; expected FROM:=TO, such as rgb/image:=/camera/color/image_raw")
            pairs[name] = target
        return pairs


def open_bus(name: str, wire: WireConfig, *, workers: int = 4, max_waiting: int = 32) -> Bus:
    """A node of that name on the wire.

    Raises:
        ConfigError, WireError: names, endpoints or files that are not usable, or no ROS 2 is sourced.
    """
    if wire.kind == "rclpy":
        from ..wire.rclpy_bus import open_rclpy_bus

        return open_rclpy_bus(
            name, namespace=wire.namespace, use_sim_time=wire.use_sim_time, remappings=wire.remappings(),
            workers=workers, max_waiting=max_waiting,
        )  # fmt: skip
    from ..wire.zenoh_bus import ZenohBus

    return ZenohBus(
        name, namespace=wire.namespace, mode=wire.mode, endpoint=wire.endpoint, config_file=wire.zenoh_config,
        use_sim_time=wire.use_sim_time, remappings=wire.remappings(), workers=workers, max_waiting=max_waiting,
    )  # fmt: skip


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that a map can still be saved; a second SIGINT interrupts at once."""
    stop = threading.Event()

    def ask_to_stop(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, ask_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def node(
    name: str = "semfield",
    wire: WireConfig = WireConfig(),
    record: Path | None = None,
    settings: NodeSettings = NodeConfig(),  # noqa: B008
) -> int:
    """Run the ROS 2 node: camera topics in, clouds, objects, grasps and answers out. Ctrl-C ends it.

    Without ROS it speaks the wire of rmw_zenoh; with `--wire.kind rclpy` it is a node of the ROS 2 that is sourced
    (`ros2 launch semfield_ros semfield.launch.py` starts it as a lifecycle node with ROS parameters).

    Args:
        name: of the node; its outputs and services are /NAMESPACE/NAME/...
        record: a folder to record inputs and answers into, as an MCAP bag; it must not exist yet.
        settings: all settings; `--config FILE` reads them from YAML.
    """
    from .node import SemfieldNode

    with until_interrupted() as stop, ExitStack() as ending:
        bus = open_bus(name, wire, workers=settings.service.workers, max_waiting=settings.service.max_waiting)
        ending.callback(bus.close)
        if record is not None:
            from .recording import Recording

            recording = Recording(bus, record)
            ending.callback(recording.close)
            bus = recording.bus
        semfield = SemfieldNode(bus, settings)
        ending.callback(semfield.close)
        semfield.start()
        console.print(f"[bold]{bus.node_name}[/] listens to " + ", ".join(semfield.inputs.subscriptions))
        console.print(f"ask it:  semfield ask \"mug\" --node {bus.node_name}", highlight=False)
        _watch(semfield, stop)
        semfield.engine.check()
    return 0


def _watch(semfield: SemfieldNode, stop: threading.Event) -> None:
    """Show how things stand until the event is set or a worker has failed."""
    line = ""
    with console.status("waiting for frames") if console.is_terminal else _silence() as display:
        while not stop.wait(1.0):
            status = semfield.engine.status()
            semfield.engine.check()
            mapping = status.mapping
            line = (
                f"{semfield.inputs.frames_in()} frames in, {mapping.keyframes} keyframes, {mapping.voxels} voxels, "
                f"{mapping.steps} steps"
            )
            if display is not None:
                display.update(line)
    console.print(line or "no frames came")


@contextmanager
def _silence() -> Iterator[None]:
    yield None


def publish(
    source: Positional[str],
    name: str = "camera",
    wire: WireConfig = WireConfig(),
    camera: str = "",
    rate: float = 1.0,
    loops: int = 1,
    width: int | None = None,
    compressed: bool = False,
    depth_encoding: Literal["32FC1", "16UC1"] = "32FC1",
    labels: bool = False,
) -> int:
    """Be a robot's camera: publish a recording or the simulator as ROS 2 topics (images, camera_info, /tf).

    Args:
        source: simulator, simulator:SEED, bag:PATH, or a folder in a known layout.
        camera: namespace of the camera's topics.
        rate: 1 = real time.
        loops: how often; 0 = until Ctrl-C.
        width: of the images.
        compressed: JPEG and compressedDepth PNG instead of raw images.
        depth_encoding: metres as float, or millimetres.
        labels: publish label images and masks too, where the source has them.
    """
    from ..sources import open_source
    from .publisher import publish as run

    stream = open_source(source, width=width)
    bus = open_bus(name, wire)
    try:
        with until_interrupted() as stop:
            frames = run(
                bus, stream, namespace=camera, rate=rate, loops=loops, compressed=compressed,
                depth_encoding=depth_encoding, labels=labels, stopped=stop.is_set,
            )  # fmt: skip
    finally:
        bus.close()
    console.print(f"published {frames} frames")
    return 0


def _grasps(thing: Any) -> str:
    """How many grasps an object of an answer has and how the best one goes, or why there is none."""
    if not len(thing.grasps):
        return thing.why_no_grasps or "0"
    best = thing.grasps[0]
    side = ("top", "oblique", "side")[best.approach]
    return f"{len(thing.grasps)}: {best.score:.2f} from {side}, {best.width * 1000:.0f} mm wide"


def ask(
    text: Positional[tuple[str, ...]],
    node: str = "/semfield",
    wire: WireConfig = WireConfig(mode="join"),
    timeout_s: float = 10.0,
    grasps: bool = True,
) -> int:
    """Ask a running node in words, over the wire.

    Args:
        text: what to look for, one or several; synonyms separated by ";", or "mug; handle" for a part of an object.
        node: absolute name of the node.
        timeout_s: how long to wait for it to be there, and then for its answer.
        grasps: whether to look for grasps.
    """
    bus = open_bus("semfield_ask", wire)
    try:
        client = bus.client("semfield_ros/srv/Query", f"{node}/query")
        client.wait(timeout_s)
        options = bus.new("semfield_ros/msg/QueryOptions", with_grasps=grasps)
        request = bus.new("semfield_ros/srv/Query_Request", prompts=list(text), options=options)
        response = client.call(request, timeout_s)
    finally:
        bus.close()
    if not response.success:
        console.print(f"[red]{node} says:[/] {response.message}", highlight=False)
        return 1
    answer = response.answer
    table = Table(title=f"{node}, in {answer.header.frame_id}, metres")
    for column in ("asked for", "score", "centre", "size", "confidence", "grasps"):
        table.add_column(column, justify="left" if column == "asked for" else "right")
    for thing in answer.objects:
        centre, size = thing.box_pose.position, thing.box_size
        table.add_row(
            thing.prompt, f"{thing.score:.2f}", f"{centre.x:.3f} {centre.y:.3f} {centre.z:.3f}",
            f"{size.x:.3f} {size.y:.3f} {size.z:.3f}", f"{thing.confidence:.2f}", _grasps(thing),
        )  # fmt: skip
    for prompt, found, best in zip(answer.prompts, answer.found, answer.best_scores):
        if not found:
            table.add_row(prompt, f"{best:.2f}", "no match", "", "", "")
    console.print(table)
    return 0
