"""Diagnostics: what is wrong, in words that say what to do, on /diagnostics and in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import HeadsConfig
from ..engine import Engine, EngineStatus
from ..errors import EngineError
from ..messages.arrivals import AssemblyHealth
from ..messages.poses import time_of
from ..progress import memory_mb
from ..wire.bus import Bus, Closeable, Graph
from ..wire.graph import mismatches
from .config import CameraConfig, NodeConfig
from .inputs import Inputs
from .world import World

log = logging.getLogger(__name__)

OK, WARN, ERROR, STALE = 0, 1, 2, 3
USUAL_PENDING = 5
"""Poses come a little after their images: so many frames may wait before that is worth a warning."""
NAMES = ("label_info", "masks_info")
"""Streams that name what label images and masks hold; latched, sent once."""
LOG_PERIOD_S = 10.0
"""The same complaint is logged no more often."""


@dataclass(frozen=True)
class Finding:
    """One line of diagnostics: what it is about, how bad it is, what is the matter, and figures."""

    name: str
    level: int
    message: str
    values: Mapping[str, object]


def inputs_findings(
    health: AssemblyHealth, topics: Mapping[str, Mapping[str, str]], reasons: Mapping[str, str], silent_after_s: float,
    unheard: Collection[str] = (),
) -> list[Finding]:  # fmt: skip
    """One finding a camera: silent topics, pairs that never match, warnings.

    Args:
        topics: absolute topic by stream (colour, depth, info ...), by camera. reasons: why a topic is silent, as far as
            the graph tells. unheard: latched topics that have brought nothing; some robots have none, so they are only
            worth a word where somebody publishes what does not get here.
    """
    found = []
    for space, camera in health.cameras.items():
        complaints, level = list(camera.warnings), WARN if camera.warnings else OK
        for stream, state in camera.streams.items():
            if stream == "info" and state.received:
                continue  # some drivers send it once
            topic = topics[space].get(stream, stream)
            if state.age_s is None or state.age_s > silent_after_s:
                level = ERROR
                since = "has brought nothing yet" if state.age_s is None else f"is silent since {state.age_s:.0f} s"
                complaints.append(f"{topic} {since}: {reasons.get(topic) or 'a publisher is there, but sends nothing'}")
        for stream in NAMES:
            topic = topics[space].get(stream, "")
            why = reasons.get(topic, "") if topic in unheard else ""
            if why and not why.startswith("nobody"):
                level = max(level, WARN)
                complaints.append(f"{topic} is not heard: {why}")
        streams = camera.streams
        both = streams["colour"].received > 3 and streams["depth"].received > 3
        if both and not camera.synchronised:
            level = ERROR
            miss_s = camera.nearest_miss_s
            gap = "" if miss_s is None else f"; the nearest stamps are {miss_s:.3f} s apart"
            complaints.append(
                f"colour and depth never come together{gap}. Are both cameras' clocks one? Raise camera.sync_slop_s"
            )
        values: dict[str, object] = {}
        for stream, state in streams.items():
            values |= {f"{stream} received": state.received, f"{stream} rate [Hz]": round(state.rate_hz, 1)}
        values |= {
            "synchronised": camera.synchronised, "frames": camera.frames, "pending": camera.pending,
            "unmatched": streams["colour"].dropped,
        }  # fmt: skip
        message = "; ".join(complaints) or f"{streams['colour'].rate_hz:.1f} Hz"
        found.append(Finding(f"camera {space or 'camera'}", level, message, values))
    return found


def pose_finding(
    health: AssemblyHealth, source: str, topic: str, reasons: Mapping[str, str], silent_after_s: float
) -> Finding:
    """Whether poses are there for the images that come."""
    values: dict[str, object] = {"source": source, "pending frames": health.pending, "time jumps": health.time_jumps}
    if health.poses is not None:
        values["rate [Hz]"] = round(health.poses.rate_hz, 1)
        if health.poses.age_s is None or health.poses.age_s > silent_after_s:
            why = reasons.get(topic) or "a publisher is there, but sends nothing"
            return Finding("pose", ERROR, f"{topic} is silent: {why}", values)
    if health.last_pose_error and health.rejected.get("pose_missing"):
        return Finding("pose", ERROR, health.last_pose_error, values)
    if health.last_pose_error and health.pending > USUAL_PENDING:
        return Finding("pose", WARN, health.last_pose_error, values)
    return Finding("pose", OK, f"from {source}", values)


def frames_finding(frames_in: int, submitted: int, waiting: int, unused: Mapping[str, int], last_error: str) -> Finding:
    """What became of the images that came."""
    values: dict[str, object] = {"in": frames_in, "to the engine": submitted, "waiting": waiting, **unused}
    rejected = sum(unused.values())
    if frames_in > 20 and rejected > frames_in / 2:
        worst = max(unused, key=lambda reason: unused[reason])
        text = f"{rejected} of {frames_in} images were not used, most of them for {worst}"
        return Finding("frames", WARN, f"{text}. {last_error}", values)
    return Finding("frames", OK, f"{submitted} of {frames_in} reached the engine", values)


def engine_finding(status: EngineStatus, samples_per_s: float, error: str, memory: Mapping[str, object]) -> Finding:
    """Whether the map grows and the field trains."""
    mapping = status.mapping
    values: dict[str, object] = {
        "keyframes": mapping.keyframes, "voxels": mapping.voxels, "voxels forgotten": mapping.voxels_forgotten,
        "steps": mapping.steps, "samples a second": round(samples_per_s),
        "frames used": status.used, "frames skipped": status.skipped, "frames waiting": status.frames_waiting,
        "encoder waiting": status.encoder_waiting,
        **{f"dropped: {reason}": count for reason, count in status.dropped.items()},
        **{f"steps: {name}": steps for name, steps in sorted(mapping.learnt.items())},
        **{f"loss: {name}": round(loss, 4) for name, loss in (mapping.losses or {}).items()}, **memory,
    }  # fmt: skip
    if error:
        return Finding("engine", ERROR, error, values)
    bad = [name for name, loss in (mapping.losses or {}).items() if not np.isfinite(loss)]
    if bad:
        return Finding("engine", ERROR, f"the loss of {', '.join(bad)} is not finite; reset the map", values)
    if mapping.blocks > 1:
        values |= {"blocks": mapping.blocks, "blocks awake": mapping.awake, "wakes": mapping.wakes}
    if mapping.unreadable:
        lost = f"{mapping.unreadable} blocks of the map are lost until they are seen again; look at the disk"
        return Finding("engine", WARN, lost, values)
    return Finding("engine", OK, f"{mapping.voxels} voxels, {mapping.steps} steps", values)


def labels_finding(heads: HeadsConfig, camera: CameraConfig, names: Collection[int]) -> Finding | None:
    """Whether what other nodes say of images is learnt; None where nothing of the kind is configured.

    Args:
        names: classes that a LabelInfo of the label images has named.
    """
    classes, complaints = heads.semantic_classes, []
    if not (classes or camera.labels_topic or heads.instances != "off"):
        return None
    if camera.labels_topic and not classes:
        complaints.append("label images are listened to and no head learns them; set heads.semantic_classes")
    if heads.instances != "off" and not (camera.masks_topic or camera.labels_topic):
        complaints.append(f"heads.instances is {heads.instances} and nothing brings masks; set camera.masks_topic")
    beyond = sorted(number for number in names if number > classes)
    if classes and beyond:
        shown = ", ".join(map(str, beyond[:5]))
        complaints.append(
            f"{len(beyond)} classes of {camera.label_info_topic} ({shown}) are beyond heads.semantic_classes, which is "
            f"{classes}: their pixels train nothing"
        )
    values = {"classes": classes, "classes named": len(names), "instances": heads.instances}
    return Finding("labels", WARN if complaints else OK, "; ".join(complaints) or f"{classes} classes", values)


def planner_finding(planner: str, failures: Mapping[str, int]) -> Finding | None:
    """What is wrong with the planner of grasps; None where it has always done what a planner must."""
    if not failures:
        return None
    values: dict[str, object] = {"planner": planner, **failures}
    worst = max(failures, key=lambda reason: failures[reason])
    text = f"{planner}: {worst} ({failures[worst]} times). Objects have no grasps of it; mend grasp.planner"
    return Finding("grasps", WARN, text, values)


class Diagnostics:
    """Looks at everything once a period; publishes when somebody listens, logs what is wrong in any case."""

    def __init__(
        self, bus: Bus, engine: Engine, config: Callable[[], NodeConfig], world: World, inputs: Inputs
    ):
        self.bus, self.engine, self.config, self.world, self.inputs = bus, engine, config, world, inputs
        self._publisher = bus.publisher("diagnostic_msgs/msg/DiagnosticArray", "/diagnostics")
        self._timer: Closeable | None = None
        self._told: dict[str, tuple[float, str]] = {}
        self._last = (time.monotonic(), 0)

    def start(self) -> None:
        """Look from now on."""
        self.reschedule()

    def reschedule(self) -> None:
        """Take over the configured rate."""
        self.close()
        rate_hz = self.config().output.diagnostics_hz
        if rate_hz > 0:
            self._timer = self.bus.timer(1.0 / rate_hz, self._tick, lane="diagnostics")

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def findings(self) -> list[Finding]:
        """Everything as it stands now."""
        config, inputs = self.config(), self.inputs
        after_s = config.diagnostics.silent_after_s
        health = inputs.health()
        found: list[Finding] = []
        if inputs.running:
            unheard = self._unheard()
            reasons = self._reasons(health, after_s, unheard)
            found += inputs_findings(health, inputs.topics, reasons, after_s, unheard)
            found.append(pose_finding(health, config.pose.source, inputs.pose_topic, reasons, after_s))
        status = self.engine.status()
        found.append(
            frames_finding(
                inputs.frames_in(), inputs.submitted, inputs.assembler.waiting, inputs.unused(), health.last_error
            )
        )
        try:
            self.engine.check()
            error = ""
        except EngineError as failure:
            error = str(failure)
        found.append(engine_finding(status, self._samples_per_s(status), error, self._memory()))
        found.append(self._callbacks())
        labels = labels_finding(config.heads, config.camera, self.world.class_names)
        planner = planner_finding(config.grasp.planner, self.world.planner_failures())
        return found + [finding for finding in (labels, planner) if finding is not None]

    def _unheard(self) -> set[str]:
        """Topics of names that have brought nothing."""
        topics = {topics[stream] for topics in self.inputs.topics.values() for stream in NAMES if stream in topics}
        heard = {name for name, each in list(self.inputs.subscriptions.items()) if each.traffic.received}
        return topics - heard

    def _reasons(self, health: AssemblyHealth, after_s: float, unheard: Collection[str]) -> dict[str, str]:
        """Why topics are silent; the graph is only asked when one is."""
        streams = [s for camera in health.cameras.values() for s in camera.streams.values()]
        if health.poses is not None:
            streams.append(health.poses)
        if not unheard and all(s.age_s is not None and s.age_s <= after_s for s in streams):
            return {}
        graph: Graph = self.bus.graph()
        return mismatches(graph, self.bus.node_name)

    def _samples_per_s(self, status: EngineStatus) -> float:
        now_s, samples = time.monotonic(), status.mapping.samples
        (before_s, before), self._last = self._last, (now_s, samples)
        return max(0.0, (samples - before) / max(now_s - before_s, 1e-6))

    def _memory(self) -> dict[str, object]:
        memory: dict[str, object] = {"resident [MB]": round(memory_mb(), 1)}
        if self.engine.device.startswith("cuda"):
            import torch

            memory["GPU [MB]"] = round(torch.cuda.memory_allocated() / 2**20)
        return memory

    def _callbacks(self) -> Finding:
        seconds = self.inputs.callback_seconds()
        p50, p99 = (float(np.percentile(seconds, p)) * 1e3 if seconds else 0.0 for p in (50, 99))
        busy = self.bus.lanes_busy()
        values = {"p50 [ms]": round(p50, 2), "p99 [ms]": round(p99, 2), "busy lanes": ", ".join(busy)}
        stuck = "input" in busy
        return Finding("callbacks", WARN if stuck else OK, "input is stuck" if stuck else f"p99 {p99:.1f} ms", values)

    def _tick(self) -> None:
        found = self.findings()
        self._log(found)
        if self._publisher.subscribers:
            self._publisher.publish(self.message(found))

    def _log(self, found: Sequence[Finding]) -> None:
        for finding in found:
            at_s, told = self._told.get(finding.name, (-1e9, ""))
            now_s = time.monotonic()
            if finding.level == OK:
                if told:
                    log.info("%s: %s", finding.name, finding.message)
                    self._told[finding.name] = (now_s, "")
            elif now_s - at_s >= LOG_PERIOD_S:
                log.warning("%s: %s", finding.name, finding.message)
                self._told[finding.name] = (now_s, finding.message)

    def message(self, found: Sequence[Finding]) -> Any:
        """diagnostic_msgs/DiagnosticArray."""
        new = self.bus.new
        status = [
            new(
                "diagnostic_msgs/msg/DiagnosticStatus", level=f.level, name=f"{self.bus.node_name[1:]}: {f.name}",
                message=f.message, hardware_id="semfield",
                values=[new("diagnostic_msgs/msg/KeyValue", key=k, value=str(v)) for k, v in f.values.items()],
            )
            for f in found
        ]  # fmt: skip
        header = self.bus.new("std_msgs/msg/Header", stamp=time_of(self.bus.now_s()))
        return new("diagnostic_msgs/msg/DiagnosticArray", header=header, status=status)
