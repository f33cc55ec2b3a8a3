"""The engine: frames in, answers out, while it trains; what it does when things go wrong."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import BLUE, CAMERA, RED, SMALL, cast, frame_at, ring, stream

from semfield_ros.config import EncoderConfig, EngineConfig, FrameConfig
from semfield_ros.encoders import create
from semfield_ros.engine import Engine
from semfield_ros.errors import EngineError, QueryError
from semfield_ros.geometry import Camera, look_at
from semfield_ros.mapping import Cleared
from semfield_ros.query.view import render_view

STUB = create(EncoderConfig(name="stub"))
PATIENCE_S = 60.0
"""Longer than anything here takes on a busy machine: nothing is allowed to wait for ever."""


class Faulty:
    """The stub encoder with a gate in front of its eyes, and a fault."""

    name, dim, has_text, calibration = "faulty", STUB.dim, True, STUB.calibration
    cache_key = STUB.cache_key

    def __init__(self, fails_at: int = -1, gated_from: int = 1 << 30):
        self.fails_at, self.gated_from = fails_at, gated_from
        self.gate, self.arrived, self.seen = threading.Event(), threading.Event(), 0

    def encode_frame(self, frame):
        self.seen += 1
        if self.seen > self.gated_from:
            self.arrived.set()
            assert self.gate.wait(PATIENCE_S)
        if self.seen - 1 == self.fails_at:
            raise RuntimeError("the lens is dirty")
        return STUB.encode_frame(frame)

    def encode_text(self, texts):
        if "unspeakable" in texts:
            raise RuntimeError("no words")
        return STUB.encode_text(texts)


def later(call: Callable, *args, **options) -> Future:
    """Run a call in a thread that cannot hold up the end of the tests."""
    future: Future = Future()

    def work():
        try:
            future.set_result(call(*args, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def soon(call: Callable, *args, **options):
    """The call's result; TimeoutError where it hangs."""
    return later(call, *args, **options).result(timeout=PATIENCE_S)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fails where it never comes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def engine_of(encoder=None, config=SMALL, **engine) -> Engine:
    return Engine(replace(config, engine=replace(config.engine, **engine)), encoder or STUB)


def feed(engine: Engine, frames) -> None:
    for frame in frames:
        soon(engine.submit, frame, block=True)
    assert engine.drain(timeout_s=PATIENCE_S)


def job(engine: Engine, work: Callable):
    return engine.run(work).result(timeout=PATIENCE_S)


def steps(engine: Engine) -> int:
    return job(engine, lambda m: m.steps)


# ---- the main line -------------------------------------------------------------------------------------------------


def test_the_first_frame_is_enough_for_an_answer():
    with engine_of() as engine:
        feed(engine, stream(1))
        soon(engine.snapshot, fresh=True)
        found = engine.query(["red", "zebra"], grasps=False)
    red, zebra = found.prompts
    assert red.matched and found.source in ("points", "mixed") and not zebra.matched
    assert all(lo - 0.02 <= x <= hi + 0.02 for x, lo, hi in zip(red.objects[0].centroid, RED.low, RED.high))


def test_queries_from_several_threads_while_frames_arrive_and_training_goes_on():
    frames = stream(24)
    with engine_of(queue_size=8) as engine:
        feed(engine, frames[:4])
        soon(engine.snapshot, fresh=True)
        before = steps(engine)
        everyone_asked = threading.Event()

        def asks(prompts: list[str]) -> list[list[bool]]:
            return [[p.matched for p in engine.query(prompts, grasps=False).prompts] for _ in range(8)]

        def scores() -> list[float]:
            points = np.array([[-0.14, -0.02, 0.159], [0.15, 0.02, 0.099]])
            return [float(engine.scores("red", points).relevancy[0, 0]) for _ in range(20)]

        def streams() -> None:
            while not everyone_asked.is_set():
                for frame in frames:
                    engine.submit(frame)

        streaming = later(streams)
        asking = [later(asks, ["red", "blue"]), later(asks, ["zebra", "red"]), later(scores)]
        answers = [future.result(timeout=PATIENCE_S) for future in asking]
        everyone_asked.set()
        streaming.result(timeout=PATIENCE_S)
        assert engine.drain(timeout_s=PATIENCE_S)
        soon(engine.train, steps=1)
        assert steps(engine) > before
        engine.check()
    assert answers[0] == [[True, True]] * 8 and answers[1] == [[False, True]] * 8
    assert min(answers[2]) > 0.7


def test_status_counts():
    with engine_of(queue_size=2) as engine:
        feed(engine, [*stream(6), stream(6)[-1]])
        soon(engine.train, steps=3)
        status = engine.status()
    mapping = status.mapping
    assert (mapping.frames, mapping.keyframes, mapping.encoded) == (7, 6, 6), "the same view again is no keyframe"
    assert mapping.steps >= 3 and mapping.samples > 0 and mapping.voxels > 1000 and mapping.train_s > 0
    assert set(mapping.losses) == {"sdf", "free", "rgb", "language", "smooth"}
    assert (status.dropped, status.frames_waiting, status.encoder_waiting) == ({}, 0, 0) and status.encode_s > 0


def test_a_snapshot_stays_as_it_is_while_the_map_changes():
    with engine_of() as engine:
        feed(engine, stream(4))
        soon(engine.train, steps=80)
        engine.pause()
        snapshot = soon(engine.snapshot, fresh=True)
        held = {name: getattr(snapshot, name).copy() for name in ("features", "measured", "created_step", "keys")}
        held |= {name: getattr(snapshot.cloud, name).copy() for name in ("points", "rgb", "observations")}
        weights = {k: v.clone() for k, v in snapshot.field.state_dict().items()}
        scores = engine.scores("red").relevancy.copy()
        engine.pause(False)
        feed(engine, [frame_at(T, 10.0 + i) for i, T in enumerate(ring(9, radius_m=0.6))])
        soon(engine.train, steps=20)
        soon(engine.reset)
        assert engine.snapshot() is not snapshot and engine.snapshot().step == 0
    for name, value in held.items():
        assert np.array_equal(getattr(snapshot, name, getattr(snapshot.cloud, name, None)), value), name
    assert all(torch.equal(v, weights[k]) for k, v in snapshot.field.state_dict().items())
    from semfield_ros.query.scores import score_points

    assert np.array_equal(score_points(snapshot, engine.prompts.encode("red")).relevancy, scores)


# ---- queues --------------------------------------------------------------------------------------------------------


def test_the_queue_keeps_the_latest_and_counts_what_it_drops():
    encoder = Faulty(gated_from=0)
    frames = stream(11)
    with engine_of(encoder, queue_size=3) as engine:
        soon(engine.submit, frames[0])
        assert encoder.arrived.wait(PATIENCE_S), "the engine is busy with the first frame"
        kept = [soon(engine.submit, frame) for frame in frames[1:]]
        assert kept == [True] * 3 + [False] * 7 and engine.status().frames_waiting == 3
        assert not engine.drain(timeout_s=0.05), "drain gives up when told to"
        encoder.gate.set()
        assert engine.drain(timeout_s=PATIENCE_S)
        snapshot = soon(engine.snapshot, fresh=True)
        assert engine.status().dropped == {"queue_full": 7}
        stamps = job(engine, lambda m: [k.stamp_s for k in m.keyframes.items])
    assert snapshot.frames == 4 and snapshot.stamp_s == frames[-1].stamp_s
    assert stamps == [frames[i].stamp_s for i in (0, 8, 9, 10)]


def test_a_blocking_submit_loses_nothing():
    with engine_of(queue_size=1) as engine:
        feed(engine, stream(9))
        assert soon(engine.snapshot, fresh=True).frames == 9 and engine.status().dropped == {}


def test_an_encoder_that_falls_behind_drops_the_oldest_keyframes_features():
    encoder = Faulty(gated_from=1)
    with engine_of(encoder, queue_size=20) as engine:
        soon(engine.submit, stream(1)[0], block=True)
        for frame in stream(12)[1:]:
            soon(engine.submit, frame, block=True)
        assert encoder.arrived.wait(PATIENCE_S)
        # mapped without features, while the encoder is stuck
        until(lambda: job(engine, lambda m: len(m.keyframes)) == 12)
        encoder.gate.set()
        assert engine.drain(timeout_s=PATIENCE_S)
        counts = job(engine, lambda m: dict(m.counts))
        dropped = engine.status().dropped["encoder_behind"]
        assert counts["keyframes"] == 12 and counts["encoded"] + dropped == 12 and dropped >= 6


def test_a_submit_that_waits_is_told_when_the_engine_stops():
    encoder = Faulty(gated_from=0)
    engine = engine_of(encoder, queue_size=1)
    engine.start()
    soon(engine.submit, stream(3)[0])
    assert encoder.arrived.wait(PATIENCE_S)
    soon(engine.submit, stream(3)[1])
    waiting = later(engine.submit, stream(3)[2], block=True)
    stopping = later(engine.stop)
    with pytest.raises(EngineError, match="not running"):
        waiting.result(timeout=PATIENCE_S)
    encoder.gate.set()
    stopping.result(timeout=PATIENCE_S)


# ---- frames that do not fit ----------------------------------------------------------------------------------------


def test_a_camera_of_another_size_maps_the_same_surface():
    other = Camera(150, 130, 120.0, 140.0, 74.5, 64.5)  # another aspect ratio, too
    with engine_of() as engine:
        feed(engine, [stream(1)[0], frame_at(ring(5)[1], 1.0, camera=other), stream(5)[2]])
        assert engine.status().dropped == {} and job(engine, lambda m: len(m.keyframes)) == 3
        cloud = engine.snapshot().cloud
    red = cloud.points[(cloud.rgb[:, 0] > 150) & (cloud.rgb[:, 1] < 90)]
    assert len(red) > 50
    # everything red lies on the red block, to a voxel
    assert (red >= np.array(RED.low) - 0.02).all() and (red <= np.array(RED.high) + 0.02).all()


def test_a_cleared_region_is_forgotten_and_learnt_again():
    with engine_of() as engine:
        feed(engine, stream(6))
        before = engine.snapshot().cloud.points
        low, high = np.array(RED.low) - 0.05, np.array(RED.high) + 0.05

        def inside(points):
            return ((points >= low) & (points <= high)).all(1).sum()

        cleared = engine.clear_region(low, high)
        assert cleared.voxels == inside(before) > 100 and cleared.rays > 500
        after = engine.snapshot().cloud.points
        assert inside(after) == 0 and len(after) == len(before) - cleared.voxels
        assert engine.clear_region(low, high) == Cleared(0, 0), "its rays are gone too"
        feed(engine, [replace(f, stamp_s=f.stamp_s + 10) for f in stream(6)])
        engine.run(lambda m: m.add_keyframe(stream(6, first_s=20.0)[3], m.replay.language.shape)).result()
        assert inside(engine.snapshot(fresh=True).cloud.points) > 100
        with pytest.raises(QueryError, match="region"):
            engine.clear_region([0, 0, 0], [-1, 1, 1])


def test_training_rests_when_nothing_new_comes_and_goes_on_when_it_does():
    config = replace(SMALL, train=replace(SMALL.train, settle_steps=40))
    with Engine(config, STUB) as engine:
        feed(engine, stream(2))
        until(lambda: engine.status().mapping.steps >= 40)
        rested = steps(engine)
        time.sleep(0.3)
        assert steps(engine) == rested, "it rests"
        feed(engine, [replace(stream(5)[3], stamp_s=9.0)])
        until(lambda: steps(engine) >= rested + 40)


def test_corrected_poses_move_the_map_and_the_field_follows():
    """Every keyframe was half a metre off; the correction brings the map, and soon the field, to the true place."""
    shift = np.eye(4)
    shift[:3, 3] = 0.25, 0.0, 0.0
    truth = stream(8)
    with engine_of() as engine:
        feed(engine, [replace(f, T_world_camera=shift @ f.T_world_camera) for f in truth])
        engine.train(steps=60)
        rows = [f.stamp_s for f in truth]
        done = engine.correct_poses("", [*rows, 99.0], [*(f.T_world_camera for f in truth), np.eye(4)])
        assert (done.corrected, done.unknown) == (8, 1)
        assert done.largest_translation_m == pytest.approx(0.25)
        assert done.largest_rotation_rad == pytest.approx(0, abs=1e-6)
        assert engine.drain(PATIENCE_S)
        cloud = engine.snapshot(fresh=True).cloud
        red = cloud.points[(cloud.rgb[:, 0] > 150) & (cloud.rgb[:, 1] < 90)]
        assert len(red) > 50 and (red >= np.array(RED.low) - 0.03).all() and (red <= np.array(RED.high) + 0.03).all()

        def depth_error():
            T = ring(16)[3]
            view = render_view(engine.snapshot(), CAMERA, T)
            exact, _ = cast(T)
            both = (view.depth_m > 0) & (exact > 0)
            return np.median(np.abs(view.depth_m - exact)[both])

        engine.train(steps=250)
        assert depth_error() < 0.02


@pytest.mark.parametrize(
    ("stamps", "poses", "tolerance", "message"),
    [
        ([0.0], [np.eye(4), np.eye(4)], 0.0, "expected"), ([0.0], [2 * np.eye(4)], 0.0, "rigid"),
        ([np.nan], [np.eye(4)], 0.0, "finite"), ([0.0], [np.eye(4)], -1.0, "tolerance"),
        ([0.0], [np.full((4, 4), np.nan)], 0.0, "rigid"),
    ],
)  # fmt: skip
def test_unusable_corrections_move_nothing(stamps, poses, tolerance, message):
    with engine_of() as engine:
        feed(engine, stream(2))
        before = engine.snapshot().cloud.points
        with pytest.raises(QueryError, match=message):
            engine.correct_poses("", stamps, poses, tolerance)
        assert np.array_equal(engine.snapshot(fresh=True).cloud.points, before)


@pytest.mark.parametrize("first", [True, False])
def test_frames_without_usable_depth_are_dropped_and_counted(first):
    """Also when only this engine's range of trusted depth leaves nothing of them."""
    good, other = stream(5)[:2]
    blind = replace(other, depth_m=np.zeros_like(other.depth_m))
    far = frame_at(look_at([0.0, 0.0, 4.5], [0.1, 0.0, 0.0]), 2.0)
    config = replace(SMALL, frame=FrameConfig(max_depth_m=3.0))
    with engine_of(config=config) as engine:
        feed(engine, [blind, far, good] if first else [good, blind, far])
        assert engine.status().dropped == {"depth_empty": 2}
        assert job(engine, lambda m: len(m.keyframes)) == 1
        soon(engine.train, steps=2)


def test_a_frame_with_one_pixel_of_depth_is_survived():
    frame = stream(1)[0]
    depth = np.zeros_like(frame.depth_m)
    depth[30, 40] = 1.0
    config = replace(SMALL, field=replace(SMALL.field, centre_m=None, extent_m=None))
    with engine_of(config=config) as engine:
        feed(engine, [replace(frame, depth_m=depth)])
        soon(engine.train, steps=3)
        feed(engine, stream(4))
        soon(engine.train, steps=3)
        soon(engine.snapshot, fresh=True)
        assert engine.query("red", grasps=False).prompts[0].matched


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [0, 2])
def test_a_workers_exception_reaches_the_owner(fails_at):
    """Whichever thread was encoding: the engine's own (the first frame) or the encoder's."""
    with engine_of(Faulty(fails_at=fails_at)) as engine:
        for frame in stream(fails_at + 1):
            soon(engine.submit, frame, block=True)
        with pytest.raises(EngineError, match="the lens is dirty") as caught:
            soon(engine.drain, PATIENCE_S)
        assert isinstance(caught.value.__cause__, RuntimeError)
        for call in (
            lambda: engine.submit(stream(1)[0]), lambda: engine.query("red"), lambda: engine.train(steps=1),
            lambda: engine.snapshot(fresh=True), lambda: engine.run(lambda m: 1), engine.reset, engine.check,
        ):  # fmt: skip
            with pytest.raises(EngineError, match="the lens is dirty"):
                soon(call)
    soon(engine.stop)


def test_an_error_nobody_met_is_raised_at_the_end_of_the_block():
    encoder = Faulty(fails_at=1)
    with pytest.raises(EngineError, match="the lens is dirty"):
        with engine_of(encoder) as engine:
            for frame in stream(2):
                soon(engine.submit, frame, block=True)
            for thread in engine._threads:
                thread.join(PATIENCE_S)


def test_jobs_that_wait_fail_with_the_worker():
    encoder = Faulty(fails_at=1, gated_from=1)
    with engine_of(encoder) as engine:
        for frame in stream(2):
            soon(engine.submit, frame, block=True)
        assert encoder.arrived.wait(PATIENCE_S)
        hold, started = threading.Event(), threading.Event()
        running = engine.run(lambda m: started.set() or hold.wait(PATIENCE_S))
        assert started.wait(PATIENCE_S)
        waiting = engine.run(lambda m: 1)
        encoder.gate.set()
        with pytest.raises(EngineError, match="the lens is dirty"):
            waiting.result(timeout=PATIENCE_S)
        hold.set()
        assert running.result(timeout=PATIENCE_S), "what already ran could finish"


def test_a_jobs_error_is_its_callers_alone():
    with engine_of() as engine:
        feed(engine, stream(1))
        with pytest.raises(ZeroDivisionError):
            job(engine, lambda m: 1 / 0)
        with pytest.raises(RuntimeError, match="no words"):
            Engine(SMALL, Faulty()).prompts.encode("unspeakable")
        with pytest.raises(QueryError):
            engine.query("")
        assert job(engine, lambda m: m.counts["frames"]) == 1


def test_too_many_jobs_are_refused_and_cancelled_ones_skipped():
    encoder = Faulty(gated_from=0)
    with engine_of(encoder, max_pending_jobs=3) as engine:
        soon(engine.submit, stream(1)[0])
        assert encoder.arrived.wait(PATIENCE_S)
        first, second, third = (engine.run(lambda m: m.counts["frames"]) for _ in range(3))
        with pytest.raises(EngineError, match="3 jobs"):
            engine.run(lambda m: 0)
        assert second.cancel()
        encoder.gate.set()
        assert first.result(timeout=PATIENCE_S) == third.result(timeout=PATIENCE_S) == 1
        assert engine.drain(timeout_s=PATIENCE_S)


def test_an_engine_that_does_not_run_says_so():
    engine = engine_of()
    for call in (lambda: engine.submit(stream(1)[0]), lambda: engine.run(len), lambda: engine.train(steps=1)):
        with pytest.raises(EngineError, match="not running"):
            call()
    assert engine.snapshot().frames == 0 and not engine.query("red").prompts[0].matched
    engine.start()
    threads = list(engine._threads)
    engine.start()
    assert engine._threads == threads, "a second start does nothing"
    for _ in range(2):
        soon(engine.stop)
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(EngineError, match="stopped"):
        engine.start()
    with pytest.raises(EngineError, match="not running"):
        engine.submit(stream(1)[0])


# ---- training ------------------------------------------------------------------------------------------------------


def test_stop_ends_a_long_training_at_once():
    engine = engine_of()
    engine.start()
    feed(engine, stream(3))
    engine.pause()
    started = steps(engine)
    training = later(engine.train, seconds=3600.0)
    waiting = later(engine.train, seconds=3600.0)
    until(lambda: engine._mapping.steps >= started + 3 and len(engine._jobs) == 1)
    soon(engine.stop)
    taken, error = None, None
    for future in (training, waiting):
        try:
            taken = future.result(timeout=PATIENCE_S)
        except EngineError as stopped:
            error = stopped
    assert taken >= 3 and "stopped" in str(error), "one was training, the other waiting"


def test_train_takes_steps_or_seconds():
    with engine_of() as engine:
        assert soon(engine.train, steps=5) == 0, "there is nothing to train yet"
        assert soon(engine.train, seconds=3600.0) == 0
        feed(engine, stream(2))
        engine.pause()
        before = steps(engine)
        assert soon(engine.train, steps=4) == 4 and steps(engine) == before + 4 == engine.snapshot().step
        assert soon(engine.train, seconds=0.0) == 0
        for arguments in ({}, {"steps": 1, "seconds": 1.0}):
            with pytest.raises(EngineError, match="either"):
                engine.train(**arguments)


def test_a_paused_engine_maps_but_does_not_train():
    with engine_of() as engine:
        feed(engine, stream(2))
        engine.pause()
        before = steps(engine)
        feed(engine, stream(7)[2:5])
        assert steps(engine) == before and job(engine, lambda m: len(m.keyframes)) == 5
        engine.pause(False)
        until(lambda: steps(engine) > before)


def test_steps_per_keyframe_bound_training():
    config = replace(SMALL, train=replace(SMALL.train, steps_per_keyframe=4))
    with engine_of(config=config) as engine:
        feed(engine, stream(3))
        until(lambda: steps(engine) >= 12)
        feed(engine, [stream(3)[-1]] * 3)
        assert steps(engine) == 12, "no new view, no more steps"


# ---- forgetting, saving, correcting --------------------------------------------------------------------------------


def test_reset_forgets_everything_and_goes_on():
    with engine_of() as engine:
        feed(engine, stream(4))
        soon(engine.reset)
        snapshot = engine.snapshot()
        assert len(snapshot.cloud) == 0 and snapshot.field is None and snapshot.frames == 0
        assert not engine.query("red").prompts[0].matched
        # another size is welcome now
        feed(engine, [frame_at(T, i, camera=CAMERA.resized(120, 90)) for i, T in enumerate(ring(3))])
        soon(engine.snapshot, fresh=True)
        assert engine.query("red", grasps=False).prompts[0].matched and engine.status().dropped == {"reset": 0}


def test_what_the_encoder_works_on_during_a_reset_belongs_to_the_old_map():
    encoder = Faulty(gated_from=1)
    with engine_of(encoder, queue_size=8) as engine:
        for frame in stream(4):
            soon(engine.submit, frame, block=True)
        assert encoder.arrived.wait(PATIENCE_S)
        until(lambda: job(engine, lambda m: len(m.keyframes)) == 4)
        soon(engine.reset)
        assert not engine.drain(timeout_s=0.05), "it still works on it"
        encoder.gate.set()
        assert engine.drain(timeout_s=PATIENCE_S)
        assert job(engine, lambda m: (m.counts["encoded"], len(m.points), m.field)) == (0, 0, None)
        feed(engine, stream(3))
        assert job(engine, lambda m: (m.counts["encoded"], len(m.keyframes))) == (3, 3)


def test_save_load_and_resume(tmp_path):
    points = np.random.default_rng(0).uniform([-0.4, -0.4, 0], [0.4, 0.4, 0.2], (400, 3))
    texts = ["red", "blue; cyan"]
    with engine_of() as engine:
        feed(engine, stream(6))
        soon(engine.train, steps=70)
        engine.pause()
        soon(engine.snapshot, fresh=True)
        expected = [engine.scores(texts, p, source=s) for p in (None, points) for s in ("auto", "points", "field")]
        found = engine.query(texts, grasps=False)
        path = soon(engine.save, tmp_path / "table")
        taken = steps(engine)
        status = engine.status().mapping
    assert path == tmp_path / "table.semfield"
    with engine_of() as other:
        other.pause()
        feed(other, stream(2, blocks=(BLUE,)))
        soon(other.load, path)
        again = [other.scores(texts, p, source=s) for p in (None, points) for s in ("auto", "points", "field")]
        for a, b in zip(expected, again):
            for name in ("cosine", "relevancy", "seen", "from_field"):
                assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name
        repeated = other.query(texts, grasps=False)
        assert [p.peak for p in repeated.prompts] == [p.peak for p in found.prompts]
        assert [o.n_points for o in repeated.objects] == [o.n_points for o in found.objects]
        assert replace(other.status().mapping, train_s=0, losses=None) == replace(status, train_s=0, losses=None)
        losses = job(other, lambda m: m.trainer.step(m.replay).losses)
        assert float(losses["sdf"]) < 1.0 and float(losses["language"]) < 0.5, "it goes on from where it was"
        assert soon(other.train, steps=10) == 10 and steps(other) == taken + 11
        feed(other, [frame_at(T, 60.0 + i) for i, T in enumerate(ring(5, radius_m=0.55))])
        ids = job(other, lambda m: [k.id for k in m.keyframes.items])
        assert ids == list(range(11)), "ids go on"


def test_the_first_step_after_a_load_is_the_one_that_would_have_come(tmp_path):
    with engine_of() as engine, engine_of() as other:
        engine.pause()
        other.pause()
        feed(engine, stream(4))
        soon(engine.train, steps=20)
        soon(other.load, soon(engine.save, tmp_path / "m"))

        def one_step(mapping):
            mapping.trainer.generator.manual_seed(5)
            mapping.train_step()
            return {k: v.clone() for k, v in mapping.field.state_dict().items()}

        a, b = job(engine, one_step), job(other, one_step)
    assert all(torch.equal(a[k], b[k]) for k in a), "weights, moments, rays and features are all there"


def test_a_failed_load_leaves_the_running_map_alone(tmp_path):
    (tmp_path / "torn.semfield").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with engine_of() as engine:
        feed(engine, stream(3))
        engine.pause()
        soon(engine.snapshot, fresh=True)
        before = engine.scores("red")
        for name in ("torn.semfield", "absent.semfield"):
            with pytest.raises(Exception, match=name):
                soon(engine.load, tmp_path / name)
        soon(engine.snapshot, fresh=True)
        assert np.array_equal(engine.scores("red").relevancy, before.relevancy)
        assert job(engine, lambda m: len(m.keyframes)) == 3


def test_an_empty_map_can_be_saved_and_loaded(tmp_path):
    with engine_of() as engine:
        path = soon(engine.save, tmp_path / "nothing")
        feed(engine, stream(2))
        soon(engine.load, path)
        assert len(engine.snapshot().cloud) == 0 and engine.snapshot().field is None
        feed(engine, stream(2))
        assert job(engine, lambda m: len(m.keyframes)) == 2


def test_pose_corrections_move_a_keyframes_rays():
    with engine_of() as engine:
        feed(engine, stream(4))
        engine.pause()
        T = look_at([0.0, 0.9, 0.6], [0.0, 0.0, 0.0])
        assert job(engine, lambda m: m.correct_pose(2, T)) is True
        assert job(engine, lambda m: m.correct_pose(99, T)) is False

        def origins(mapping):
            rays = mapping.replay.rays(400, 0.0, torch.Generator().manual_seed(0))
            return rays.origins[rays.slots == mapping.keyframes.items[2].slot]

        assert torch.allclose(job(engine, origins), torch.tensor(T[:3, 3], dtype=torch.float32))
        soon(engine.train, steps=2)


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_over_many_frames():
    memory = replace(SMALL.memory, replay_mb=1.0, max_voxels=4000, max_keyframes=200)
    config = replace(SMALL, memory=memory)
    rng = np.random.default_rng(0)
    with engine_of(config=config, queue_size=2) as engine:
        engine.pause()
        seen = []
        for i in range(150):
            eye = rng.uniform([-2, -2, 0.4], [2, 2, 1.0])
            soon(engine.submit, frame_at(look_at(eye, eye + [*rng.uniform(-1, 1, 2), -0.8]), float(i)), block=True)
            if i % 30 == 29:
                assert engine.drain(timeout_s=PATIENCE_S)
                seen.append(
                    job(engine, lambda m: (m.replay.bytes, len(m.replay.order), len(m.keyframes), m.points.bytes))
                )
                assert job(engine, lambda m: len(m.points)) <= 4000
        soon(engine.train, steps=3)
        capacity, most = job(engine, lambda m: (m.replay.capacity, m.points.max_bytes))
        assert engine.status().mapping.frames == 150 and engine.status().dropped.get("queue_full", 0) == 0
    assert capacity < 30 and all(s[:3] == (seen[0][0], capacity, capacity) for s in seen[1:])
    # voxels may exceed their budget by one frame's, until they are evicted
    assert seen[0][0] <= 2**20 and max(s[3] for s in seen) <= most * (1 + CAMERA.width * CAMERA.height / 4000)


def test_the_configured_number_of_threads_is_used():
    before = torch.get_num_threads()
    try:
        engine_of(config=replace(SMALL, engine=EngineConfig(threads=1, device="cpu")))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
