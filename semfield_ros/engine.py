"""The engine: owns the threads. Frames go in, snapshots come out, jobs run between training steps.

One thread owns the map and its field; another runs the 2-D encoder, which is stateless. Callers never wait for
training: `submit` keeps the latest frames in a bounded queue and counts what it drops, `snapshot` returns the last
published copy. A worker's exception stops the engine and is raised to whoever calls it next.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .answer import Answer, answer, in_region
from .atlas import AnyMap, new_map
from .atlas_files import load_map, save_map
from .config import GraspConfig, GripperConfig, ObjectConfig, QueryConfig, SemfieldConfig
from .encoders import create, teacher
from .encoders.base import Encoder, Target, in_steps
from .encoders.masks import mask_maker
from .errors import EngineError
from .field.rehearsal import rehearse
from .field.snapshot import Snapshot
from .field.trainer import warm_up
from .frame import Frame, resized, within_range
from .mapping import Cleared, MappingStatus, class_texts, colour_head, language_head, pick_device
from .memory.corrections import Correction
from .memory.features import FeatureShape
from .memory.mask_store import masks_of
from .query.instances import InstanceIds, Instances
from .query.prompt import EncodedPrompts, PromptEncoder
from .query.scores import Scores, score_points

log = logging.getLogger(__name__)
T = TypeVar("T")

_SLICE_S = 0.05  # training goes on at most this long before the engine looks at its queues again
_ENCODER_QUEUE = 4
_TEACHER_QUEUE = 64
_WARM_UP_S = 5.0


@dataclass(frozen=True)
class EngineStatus:
    """What the engine is doing: the map's counters, and those of this engine's whole life, whatever map it has had.

    submitted = used (as keyframes) + skipped (nothing new) + the sum of `dropped` + frames_waiting, up to the frame
    being mapped. `dropped["encoder_behind"]` counts keyframes without features, no frames.
    """

    mapping: MappingStatus
    submitted: int
    used: int
    skipped: int
    dropped: dict[str, int]
    frames_waiting: int
    encoder_waiting: int
    train_s: float
    encode_s: float


class Engine:
    """An online semantic field. Use as a context manager, or call `start` and `stop`."""

    def __init__(self, config: SemfieldConfig | None = None, encoder: Encoder | None = None):
        self.config = config or SemfieldConfig()
        if self.config.engine.threads > 0:
            torch.set_num_threads(self.config.engine.threads)
        self.device = pick_device(self.config.engine.device)
        self.encoder = encoder or create(self.config.encoder)
        heads, settings = self.config.heads, self.config.encoder
        beside = (teacher(spec, self.encoder, settings, heads) for spec in heads.teachers)
        self.teachers: dict[str, Encoder] = dict(beside)
        """Further encoders, shown a keyframe now and then."""
        self.prompts = PromptEncoder(self.encoder, self.config.query)
        self.dropped: Counter[str] = Counter()
        self._class_texts = class_texts(self.config.heads, self.encoder)
        self._mapping = new_map(self.config, self.encoder, self.device)
        self._mapping.align(self._class_texts)
        self._snapshot: Snapshot = self._mapping.snapshot()
        self._status = self._mapping.status()
        self._frames: deque[Frame] = deque()
        self._to_encode: deque[tuple[Any, Frame]] = deque()
        self._encoded: deque[tuple[int, Any, Frame, str, dict[str, Target]]] = deque()
        self._to_teach: deque[tuple[int, Any, Frame, str]] = deque()
        maker = self.config.masks.segmenter
        self._segmenter = None if maker == "off" else mask_maker(maker)
        self._segmented: deque[tuple[int, Any, Frame, np.ndarray]] = deque()
        self._encoding = 0
        self._jobs: deque[tuple[Callable[[Any], Any], Future]] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._told = False
        self._stopping = False
        self._training = True
        self._steps_left = 0
        self._submitted = self._used = self._skipped = 0
        self._epoch = 0
        self._feature_shape: FeatureShape | None = None
        self._train_s = self._encode_s = 0.0
        self._last_snapshot_s = 0.0
        self._busy = False
        self._published = (-1, -1)
        self._threads: list[threading.Thread] = []
        self._warming: threading.Thread | None = None
        self._naming, self._instance_ids = threading.Lock(), InstanceIds()
        self._named: Instances | None = None

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        if kind is None and not self._told:  # an error nobody has met yet must not end in silence
            self.check()

    def start(self) -> None:
        """Start the threads; a second call does nothing."""
        if self._stopping:
            raise EngineError("this engine was stopped; make a new one (a saved map can be loaded into it)")
        if self._threads:
            return
        if self.device == "cpu":
            # beside the first frames, which the point map answers alone
            self._warming = threading.Thread(target=warm_up, name="semfield-compile", daemon=True)
            self._warming.start()
        elif self.device.startswith("cuda"):
            language = language_head(self.encoder.dim, self.config.heads.language)
            rehearse(self.config.field, (colour_head(), language), self.device)
        for name, loop in (("semfield-engine", self._engine_loop), ("semfield-encoder", self._encoder_loop)):
            thread = threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Stop the threads and fail the jobs that wait. Safe to call twice, and after an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if self._warming is not None:
            # a process that ends while kernels are being loaded may be aborted
            self._warming.join(_WARM_UP_S)
        self._fail_jobs(EngineError("the engine was stopped"))

    def _guard(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:
            log.exception("%s failed", threading.current_thread().name)
            with self._changed:
                self._error = self._error or error
                self._stopping = True
                self._changed.notify_all()
            failure = EngineError(f"a worker of the engine failed: {error!r}")
            failure.__cause__ = error
            self._fail_jobs(failure)

    def _fail_jobs(self, error: BaseException) -> None:
        while self._jobs:
            _, future = self._jobs.popleft()
            if not future.done():
                future.set_exception(error)
                self._told = True

    def check(self) -> None:
        """Raise EngineError if a worker has failed."""
        if self._error is not None:
            self._told = True
            raise EngineError(f"a worker of the engine failed: {self._error!r}") from self._error

    # ---- what callers do -------------------------------------------------------------------------------------

    def submit(self, frame: Frame, *, block: bool = False) -> bool:
        """Hand over a frame. A full queue drops its OLDEST frame (counted), or, with `block`, waits.

        Returns:
            False if some frame had to be dropped. Never waits for training unless `block` is set.
        """
        size = self.config.engine.queue_size
        with self._changed:
            if block and self._threads:
                self._changed.wait_for(lambda: len(self._frames) < size or self._stopping)
            self.check()
            if not self._threads or self._stopping:
                raise EngineError("the engine is not running; call start() or use it in a with-block")
            dropped = len(self._frames) >= size
            if dropped:
                self._frames.popleft()
                self.dropped["queue_full"] += 1
            self._frames.append(frame)
            self._submitted += 1
            self._changed.notify_all()
        return not dropped

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """The last published copy of the map; `fresh` has one made now (waits for the current step)."""
        self.check()
        if fresh:
            return self.run(lambda _: self._publish()).result()
        return self._snapshot

    def run(self, job: Callable[[Any], T]) -> Future[T]:
        """Run `job(map)`, Mapping or Atlas, on the engine's thread between steps. EngineError when too many wait."""
        self.check()
        future: Future[T] = Future()
        with self._changed:
            if self._stopping or not self._threads:
                raise EngineError("the engine is not running; call start() or use it in a with-block")
            if len(self._jobs) >= self.config.engine.max_pending_jobs:
                raise EngineError(f"{len(self._jobs)} jobs are waiting, the limit; try again later")
            self._jobs.append((job, future))
            self._changed.notify_all()
        return future

    def query(self, prompts: str | Sequence[str | Sequence[str]] | EncodedPrompts, **options: Any) -> Answer:
        """Answer prompts from the last snapshot, in the caller's thread: see `answer.answer` for the options."""
        return answer(self.snapshot(), self.prompts, prompts, config=self.config, **options)

    def scores(
        self, prompts: str | Sequence[str | Sequence[str]], points: np.ndarray | None = None, **options: Any
    ) -> Scores:
        """Scores of prompts at points [N, 3] (None = the map's own): see `query.scores.score_points`."""
        return score_points(self.snapshot(), self.prompts.encode(prompts), points, **options)

    def instances(self) -> Instances:
        """The things of the last snapshot, under ids that last (`heads.instances`); worked out once a snapshot, in the
        caller's thread. QueryError where the map has not learnt any."""
        snapshot = self.snapshot()
        with self._naming:
            if self._named is None or self._named.snapshot is not snapshot:
                self._named = self._instance_ids.update(snapshot)
            return self._named

    def status(self) -> EngineStatus:
        """Counters, as of the last look of the engine's thread."""
        return EngineStatus(
            self._status, self._submitted, self._used, self._skipped, dict(self.dropped), len(self._frames),
            len(self._to_encode) + self._encoding, self._train_s, self._encode_s,
        )  # fmt: skip

    def pause(self, paused: bool = True) -> None:
        """Stop or resume training; frames are still mapped."""
        with self._changed:
            self._training = not paused
            self._changed.notify_all()

    def set_matching(
        self, query: QueryConfig, objects: ObjectConfig, gripper: GripperConfig, grasp: GraspConfig
    ) -> None:
        """Change how words are matched, objects made and grasped; the map stays, queries from now on follow."""
        self.config = replace(self.config, query=query, objects=objects, gripper=gripper, grasp=grasp)
        self.prompts.config = query

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until every submitted frame is mapped, encoded and in the snapshot. False on time-out."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._stopping
                or not (
                    self._frames or self._to_encode or self._to_teach or self._encoded or self._segmented
                    or self._encoding or self._busy or self._mapping.rebuilding
                ),
                timeout_s,
            )
        self.check()
        if done and not self._stopping:
            self.snapshot(fresh=True)
        return done

    def train(self, *, steps: int | None = None, seconds: float | None = None) -> int:
        """Have the engine train so many more steps or seconds, however long the queues are; returns steps taken."""
        if (steps is None) == (seconds is None):
            raise EngineError("train() takes either steps or seconds")

        def job(mapping: AnyMap) -> int:
            start, taken = time.perf_counter(), 0
            # without a keyframe there is nothing to train
            while mapping.can_train and (steps is None or taken < steps) and not self._stopping:
                if seconds is not None and time.perf_counter() - start >= seconds:
                    break
                self._train_one(mapping)
                taken += 1
            self._publish()
            return taken

        return self.run(job).result()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Save map, field and replay: training can resume from it."""
        return self.run(lambda m: save_map(path, m, self.encoder, overwrite=overwrite)).result()

    def load(self, path: str | Path) -> None:
        """Replace the map by a saved one. On any error the running map stays as it was."""
        loaded = load_map(path, self.config, self.encoder, self.device)
        self.run(lambda _: self._adopt(loaded)).result()

    def reset(self) -> None:
        """Forget the map; frames that wait are dropped and counted."""

        def job(_: AnyMap) -> None:
            with self._changed:
                self.dropped["reset"] += len(self._frames)
                self._frames.clear()
            self._adopt(new_map(self.config, self.encoder, self.device))

        self.run(job).result()

    def clear_region(self, low: Sequence[float] | np.ndarray, high: Sequence[float] | np.ndarray) -> Cleared:
        """Forget what is inside an axis-aligned box in global_frame [m]; it is learnt again when it is seen again.

        Raises:
            QueryError: corners that are not finite, or the wrong way round.
        """
        in_region(np.zeros((0, 3)), (low, high))  # type: ignore[arg-type]  # refuses unusable corners

        def job(mapping: AnyMap) -> Cleared:
            cleared = mapping.clear_region(np.asarray(low, np.float64), np.asarray(high, np.float64))
            self._publish()
            return cleared

        return self.run(job).result()

    def label(self, points: np.ndarray, classes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Clicks: say what class the surface at points [N, 3] is: see `Mapping.label`. Training takes it up at once."""
        at, given = np.asarray(points), np.asarray(classes)
        return self.run(lambda m: m.label(at, given)).result()

    def correct_poses(
        self, camera_name: str, stamps_s: Sequence[float] | np.ndarray, poses: Sequence[np.ndarray] | np.ndarray,
        tolerance_s: float = 0.0,
    ) -> Correction:  # fmt: skip
        """Move keyframes after a loop closure: see `Mapping.correct_poses`. The point map is made anew from the
        corrected keyframes, one of them between two training steps, and takes the old one's place when it is whole."""
        stamps, corrected = np.asarray(stamps_s, np.float64), np.asarray(poses, np.float64)

        return self.run(lambda m: m.correct_poses(camera_name, stamps, corrected, tolerance_s)).result()

    def _adopt(self, mapping: AnyMap) -> None:
        with self._changed:
            self._epoch += 1  # what the encoder still works on belongs to the map before
            self._to_encode.clear()
            self._to_teach.clear()
            self._encoded.clear()
            self._segmented.clear()
        mapping.align(self._class_texts)
        self._mapping = mapping
        with self._naming:  # ids of the map before mean nothing here
            self._instance_ids, self._named = InstanceIds(), None
        self._feature_shape = mapping.feature_shape
        self._publish()

    # ---- the engine's thread ---------------------------------------------------------------------------------

    def _engine_loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work, timeout=0.2)
                if self._stopping:
                    return
                self._busy = True
            self._run_jobs()
            worked = self._map_one_frame()
            worked |= self._fuse_encoded()
            self._mapping.rebuild_some()
            with self._changed:
                self._busy = False  # training is not work that anyone waits for
                self._changed.notify_all()
            if not worked or not self._frames:
                self._train_slice()
            self._publish_on_schedule()

    def _has_work(self) -> bool:
        can_train = self._training and self._mapping.can_train and self._may_train()
        waiting = self._jobs or self._frames or self._encoded or self._segmented or self._mapping.rebuilding
        return bool(self._stopping or waiting or can_train)

    def _may_train(self) -> bool:
        train = self.config.train
        settled = 0 < train.settle_steps <= self._mapping.settled_steps
        return not settled and (train.steps_per_keyframe == 0 or self._steps_left > 0)

    def _run_jobs(self) -> None:
        while self._jobs and not self._stopping:
            job, future = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job(self._mapping))
            except Exception as error:  # a job's error is its caller's
                future.set_exception(error)

    def _map_one_frame(self) -> bool:
        with self._changed:
            if not self._frames:
                return False
            frame = within_range(self._frames.popleft(), self.config.frame)
            self._changed.notify_all()
        mapping = self._mapping
        size = mapping.image_size
        if size is not None and frame.depth_m.shape != size[::-1]:
            # another camera of the rig, or a map that was saved at another size
            frame = resized(frame, *size)
        if not frame.depth_m.any():
            self.dropped["depth_empty"] += 1  # none of it lies in the range this engine trusts
            return True
        mapping.saw(frame)
        if not mapping.accepts(frame):
            self._skipped += 1
            return True
        self._used += 1
        if self._feature_shape is None:
            # the first frame is encoded here: its target says how much room features need
            started = time.perf_counter()
            target = self.encoder.encode_frame(frame)
            self._encode_s += time.perf_counter() - started
            self._feature_shape = FeatureShape.of(target)
            keyframe: Any = mapping.add_keyframe(frame, self._feature_shape)
            mapping.add_features(keyframe, frame, target)
            self._find_masks(self._epoch, keyframe, frame)
            with self._changed:
                self._ask_teachers(keyframe, frame)
                self._changed.notify_all()
            self._publish()
        else:
            keyframe = mapping.add_keyframe(frame, self._feature_shape)
            with self._changed:
                if len(self._to_encode) >= _ENCODER_QUEUE:
                    self._to_encode.popleft()
                    self.dropped["encoder_behind"] += 1
                self._to_encode.append((keyframe, frame))
                self._changed.notify_all()
        self._steps_left = min(
            self._steps_left + self.config.train.steps_per_keyframe, 4 * self.config.train.steps_per_keyframe
        )
        return True

    def _fuse_encoded(self) -> bool:
        worked = False
        while self._segmented:
            epoch, keyframe, frame, masks = self._segmented.popleft()
            if epoch == self._epoch:
                self._mapping.add_masks(keyframe, frame, masks)
            worked = True
        while self._encoded:
            with self._changed:
                epoch, keyframe, frame, teacher, targets = self._encoded.popleft()
            if epoch == self._epoch and teacher:
                self._mapping.add_teacher(keyframe, frame, teacher, targets)
            elif epoch == self._epoch:
                self._mapping.add_features(keyframe, frame, targets[""])
            worked = True
        return worked

    def _train_slice(self) -> None:
        mapping, end = self._mapping, time.perf_counter() + _SLICE_S
        while mapping.can_train and self._training and self._may_train() and not self._stopping:
            self._train_one(mapping)
            self._steps_left -= 1
            if self._frames or self._jobs or self._encoded or time.perf_counter() >= end:
                return

    def _train_one(self, mapping: AnyMap) -> None:
        started = time.perf_counter()
        mapping.train_step()
        self._train_s += time.perf_counter() - started

    def _publish_on_schedule(self) -> None:
        now = time.perf_counter()
        if now - self._last_snapshot_s >= self.config.engine.snapshot_period_s:
            self._publish()

    def _publish(self) -> Snapshot:
        version = (self._epoch, self._mapping.revision)
        if version != self._published:
            self._snapshot, self._published = self._mapping.snapshot(), version
        self._status = replace(self._mapping.status(), train_s=self._train_s)
        self._last_snapshot_s = time.perf_counter()
        return self._snapshot

    # ---- the encoder's thread --------------------------------------------------------------------------------

    def _encoder_loop(self) -> None:
        # of its own, so that encoding and training fill a GPU together; None means the thread's usual one
        stream = torch.cuda.Stream() if self.device.startswith("cuda") else None
        if stream is not None:
            stream.wait_stream(torch.cuda.default_stream())
        count = 0
        lesson: tuple[int, Any, Frame, str] | None = None
        steps: Iterator[dict[str, Target] | None] = iter(())
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._to_encode or self._to_teach or self._stopping)
                if self._stopping:
                    return
                leads = bool(self._to_encode)
                if leads:
                    keyframe, frame = self._to_encode.popleft()
                    epoch, self._encoding = self._epoch, 1
                elif lesson is None:
                    lesson = self._to_teach[0]
                    steps = in_steps(lesson[3], self.teachers[lesson[3]], lesson[2])
            started = time.perf_counter()
            with torch.cuda.stream(stream):
                # the main encoder leads: others go on with what they look at where it leaves time
                found = {"": self.encoder.encode_frame(frame)} if leads else next(steps)
            self._encode_s += time.perf_counter() - started
            if leads:
                self._find_masks(epoch, keyframe, frame)
            with self._changed:
                if leads:
                    assert found is not None
                    self._encoded.append((epoch, keyframe, frame, "", found))
                    if epoch == self._epoch and count % self.config.heads.teacher_period == 0:
                        self._ask_teachers(keyframe, frame)
                    count += 1
                    self._encoding = 0
                elif found is not None and lesson is not None:
                    self._encoded.append((*lesson, found))
                    if self._to_teach and self._to_teach[0] is lesson:  # else there was a reset meanwhile
                        self._to_teach.popleft()
                    lesson = None
                self._changed.notify_all()

    def _find_masks(self, epoch: int, keyframe: Any, frame: Frame) -> None:
        """Make the masks of a keyframe that brings none, unless the encoder itself falls behind."""
        if self._segmenter is None or masks_of(frame) is not None:
            return
        if len(self._to_encode) >= _ENCODER_QUEUE:
            self.dropped["segmenter_behind"] += 1
            return
        self._segmented.append((epoch, keyframe, frame, self._segmenter(frame)))

    def _ask_teachers(self, keyframe: Any, frame: Frame) -> None:
        """Show a keyframe to the further encoders, when the main one has nothing to do; called with `_changed` held."""
        self._to_teach.extend((self._epoch, keyframe, frame, teacher) for teacher in self.teachers)
        if len(self._to_teach) > _TEACHER_QUEUE:
            # all of the scene is better seen coarsely than its end finely; the first is being worked on
            kept = [lesson for i, lesson in enumerate(self._to_teach) if i // len(self.teachers) % 2 == 0]
            self.dropped["teacher_behind"] += len(self._to_teach) - len(kept)
            self._to_teach = deque(kept)
