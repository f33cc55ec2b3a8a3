"""A session: one source fed through an engine, to the end of the stream and some training beyond."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .engine import Engine, EngineStatus
from .frame import Frame


@dataclass
class Progress:
    """Where a session stands. `phase` is "mapping" while frames come, then "training"."""

    phase: str
    frames: int
    total: int
    frame_rate_hz: float
    step_rate_hz: float
    elapsed_s: float
    remaining_s: float
    status: EngineStatus


@dataclass
class Session:
    """What was fed: a few frames spread over it, when it began (perf_counter), seconds of each phase."""

    views: list[Frame] = field(default_factory=list)
    frames: int = 0
    started_s: float = 0.0
    mapping_s: float = 0.0
    training_s: float = 0.0

    def remember(self, frame: Frame, keep: int = 24) -> None:
        """Keep at most `keep` frames, evenly spread over the session so far: every 2^k-th of them."""
        if self.frames % self._every == 0:
            self.views.append(frame)
            if len(self.views) > keep:
                self.views, self._every = self.views[::2], self._every * 2

    _every: int = 1


class _Rate:
    """Events a second over the last few seconds."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=20)

    def __call__(self, now_s: float, count: float) -> float:
        self._marks.append((now_s, count))
        (t0, c0), (t1, c1) = self._marks[0], self._marks[-1]
        return (c1 - c0) / (t1 - t0) if t1 - t0 > 1e-6 else 0.0


def feed(
    engine: Engine,
    frames: Iterable[Frame],
    *,
    total: int = 0,
    live: bool = False,
    train_s: float = 5.0,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Session:
    """Hand all frames to a running engine, wait until they are mapped, then train `train_s` seconds more.

    Args:
        live: a full queue drops frames, as a live stream does; otherwise the source waits.
        report: called now and then from this thread (a progress display).
    """
    session, last_report_s = Session(started_s=time.perf_counter()), -1.0
    rates = _Rate(), _Rate()

    def tell(phase: str, remaining_s: float = 0.0, force: bool = False) -> None:
        nonlocal last_report_s
        now_s = time.perf_counter() - session.started_s
        if force or now_s - last_report_s >= 0.1:
            last_report_s, status = now_s, engine.status()
            report(
                Progress(
                    phase, session.frames, total, rates[0](now_s, session.frames),
                    rates[1](now_s, status.mapping.steps), now_s, remaining_s, status,
                )
            )  # fmt: skip

    for frame in frames:
        engine.submit(frame, block=not live)
        session.remember(frame)
        session.frames += 1
        tell("mapping")
    while not engine.drain(timeout_s=0.1):
        tell("mapping")
    session.mapping_s = time.perf_counter() - session.started_s
    end_s = time.perf_counter() + train_s
    while session.frames and (remaining_s := end_s - time.perf_counter()) > 0:
        engine.train(seconds=min(0.25, remaining_s))
        tell("training", remaining_s)
    session.training_s = time.perf_counter() - session.started_s - session.mapping_s
    tell("training", 0.0, force=True)
    return session


def take_in(engine: Engine, frames: Iterable[Frame], *, steps: int = 0, train_s: float = 0.0) -> None:
    """Have a running engine map all frames, none dropped, and only then train: so many steps, or seconds where `steps`
    is 0, or not at all. The engine stays paused."""
    engine.pause()
    for frame in frames:
        engine.submit(frame, block=True)
    engine.drain()
    if steps:
        engine.train(steps=steps)
    elif train_s:
        engine.train(seconds=train_s)
