"""The node's benchmark: its law of frames, its camera, its processes; one tiny run. No wall-clock is judged."""

import io
import itertools
import json
import math
import os
import threading

import numpy as np
import pytest
from rich.console import Console

from semfield_ros.benchmarks.node import Plan, Reply, percentiles_ms, run
from semfield_ros.benchmarks.node_account import Account, Watch, longest_pause_s, read_account, slope
from semfield_ros.benchmarks.node_camera import Played, play, read_shots, stamp, to_and_fro, write_shots
from semfield_ros.benchmarks.node_processes import Child, usage
from semfield_ros.errors import SemfieldError
from semfield_ros.frame import Frame
from semfield_ros.geometry import Camera
from semfield_ros.messages.images import decode_colour, decode_depth
from semfield_ros.messages.poses import matrix_of_transform, stamp_of
from semfield_ros.messages.types import types

KEYS = {
    "frames_in", "frames_used", "frames_skipped", "frames_lost", "query_p50_ms", "query_p99_ms", "callback_p99_ms",
    "cpu_percent", "rss_mb",
}  # fmt: skip
FRAMES = {"in": 100, "to the engine": 90, "waiting": 2, "transport": 3, "unsynchronised": 5}
ENGINE = {
    "keyframes": 7, "voxels": 1000, "steps": 50, "frames used": 10, "frames skipped": 70, "frames waiting": 4,
    "dropped: queue_full": 6, "dropped: encoder_behind": 2, "resident [MB]": 12.5,
}  # fmt: skip
CALLBACKS = {"p50 [ms]": 0.5, "p99 [ms]": 3.0, "busy lanes": ""}


def diagnostics(node="semfield", **changed):
    new = types().new
    found = {"frames": FRAMES, "engine": ENGINE, "callbacks": CALLBACKS, **changed}
    status = [
        new(
            "diagnostic_msgs/msg/DiagnosticStatus", name=f"{node}: {name}",
            values=[new("diagnostic_msgs/msg/KeyValue", key=k, value=str(v)) for k, v in values.items()],
        )
        for name, values in found.items()
    ]  # fmt: skip
    return new("diagnostic_msgs/msg/DiagnosticArray", status=status)


def accounts(*received, from_s=0.0, step_s=1.0):
    return [Account(from_s + k * step_s, received=n) for k, n in enumerate(received)]


def test_every_frame_is_in_the_account():
    account = read_account(diagnostics(), 1.0)
    assert account.waiting == 6 and account.unused == {"transport": 3, "unsynchronised": 5, "queue_full": 6}
    assert account.features_dropped == 2, "a keyframe without features is no lost frame"
    assert account.lost == 100 - 10 - 70 - 6 - 14 == 0
    assert (account.voxels, account.steps, account.rss_mb, account.callback_p99_ms) == (1000, 50, 12.5, 3.0)


@pytest.mark.parametrize(("name", "by"), [("in", 1), ("waiting", -1), ("transport", -1)])
def test_a_frame_that_nobody_counted_is_lost(name, by):
    assert read_account(diagnostics(frames={**FRAMES, name: FRAMES[name] + by}), 0.0).lost == 1


def test_reasons_of_both_queues_add_up():
    account = read_account(diagnostics(frames={**FRAMES, "reset": 1}, engine={**ENGINE, "dropped: reset": 2}), 0.0)
    assert account.unused["reset"] == 3


def test_foreign_diagnostics_are_refused():
    message = diagnostics()
    message.status = message.status[:1]
    with pytest.raises(SemfieldError, match="semfield node"):
        read_account(message, 0.0)


class Bus:
    def subscribe(self, type, topic, callback, qos, *, lane):
        self.hear = callback


def test_watch_waits_for_rest_and_says_what_it_saw_last(monkeypatch):
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr("semfield_ros.benchmarks.node_account.time.monotonic", lambda: next(clock))
    bus = Bus()
    watch = Watch(bus, "/semfield")
    bus.hear(diagnostics(node="other"))
    assert watch.accounts == []

    def later():
        for frames in (100, 101, 101, 101, 101):
            bus.hear(diagnostics(frames={**FRAMES, "in": frames}))

    threading.Timer(0.1, later).start()
    assert watch.settled(1e6).received == 101
    with pytest.raises(SemfieldError, match="received=101"):
        watch.until(lambda account: False, 0.0)


def test_longest_pause_also_of_a_node_that_counts_from_zero():
    flowing = accounts(0, 10, 20, 20, 20, 50, 60)
    assert longest_pause_s(flowing, 0.0, 6.0) == 3.0
    assert longest_pause_s(accounts(10, 20, 0, 0, 5, 9), 0.5, 5.0) == 3.0, "0 is a node that has just started"
    assert longest_pause_s(accounts(10, 20, 20, 20), 1.0, 3.0) == 2.0, "it never came back"


def test_slope_is_that_of_a_fit():
    rng = np.random.default_rng(0)
    t, v = np.sort(rng.uniform(0, 100, 30)), rng.normal(size=30)
    assert slope(t.tolist(), v.tolist()) == pytest.approx(np.polyfit(t, v, 1)[0])
    assert math.isnan(slope([1.0, 2.0], [1.0, 2.0])) and math.isnan(slope([1.0] * 3, [1.0, 2.0, 3.0]))


def test_percentiles_leave_out_what_was_not_answered():
    replies = [Reply(0.1, 5), Reply(0.3, 5), Reply(60.0, 0, "busy")]
    assert percentiles_ms(replies) == pytest.approx((200.0, 298.0))
    assert all(map(math.isnan, percentiles_ms(replies[2:])))


def frames(count):
    rng = np.random.default_rng(1)
    camera = Camera(32, 24, 30.0, 31.0, 15.5, 11.5)
    for k in range(count):
        T = np.eye(4)
        T[:3, 3] = k, 2.0, 3.0
        depth_m = rng.uniform(0.5, 2, (24, 32)).astype(np.float32)
        yield Frame(0.0, camera, T, rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), depth_m)


def test_shots_become_messages_of_the_larger_size(tmp_path):
    kept = list(frames(3))
    write_shots(tmp_path / "shots.npz", kept)
    shots = read_shots(tmp_path / "shots.npz", 64, 48)
    assert len(shots) == 3 and set(shots[0]) == {"rgb/image", "depth/image", "rgb/camera_info", "/tf"}
    for frame, messages in zip(kept, shots):
        stamp(messages, 5_000_000_007)
        depth_m = decode_depth(messages["depth/image"][1])
        assert decode_colour(messages["rgb/image"][1]).shape == (48, 64, 3)
        np.testing.assert_array_equal(depth_m[::2, ::2], frame.depth_m)
        transform = messages["/tf"][1].transforms[0]
        np.testing.assert_allclose(matrix_of_transform(transform.transform), frame.T_world_camera)
        assert messages["rgb/camera_info"][1].k[0] == 60.0
        headers = [messages[t][1].header for t in ("rgb/image", "depth/image", "rgb/camera_info")] + [transform.header]
        assert {stamp_of(h.stamp) for h in headers} == {5_000_000_007}


def test_to_and_fro_has_no_jumps():
    assert list(itertools.islice(to_and_fro(4), 9)) == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert list(itertools.islice(to_and_fro(1), 3)) == [0, 0, 0]


def test_the_camera_counts_what_it_sends_and_what_it_leaves_out(tmp_path, monkeypatch):
    """By a clock of the test's own: a frame every 0.1 s; the third takes 0.35 s to send, which costs those of 0.3 s and
    0.4 s, and the one of 0.5 s is late."""
    write_shots(tmp_path / "shots.npz", list(frames(2)))
    now, sent, told = [0.0], [], []

    class Clock:
        monotonic = staticmethod(lambda: now[0])
        time_ns = staticmethod(lambda: round(now[0] * 1e9))

        @staticmethod
        def sleep(seconds):
            now[0] += seconds + 1e-9

    class Publisher:
        def publish(self, message):
            sent.append((now[0], message))
            now[0] += 0.35 if len(sent) == 3 else 0.0

    monkeypatch.setattr("semfield_ros.benchmarks.node_camera.time", Clock)
    shots = [{"rgb/image": shot["rgb/image"]} for shot in read_shots(tmp_path / "shots.npz", 32, 24)]
    going = threading.Event()
    going.set()
    played = play(
        shots, {"rgb/image": Publisher()}, 10.0, going, lambda: len(sent) == 6, lambda p: told.append(Played(**vars(p)))
    )
    np.testing.assert_allclose([at for at, _ in sent], [0.0, 0.1, 0.2, 0.55, 0.6, 0.7], atol=1e-6)
    assert played == Played(sent=6, missed=2) and [t.sent for t in told] == [1, 2, 3, 4, 5, 6]


def test_a_process_is_heard_and_its_last_words_are_told(tmp_path, monkeypatch):
    (tmp_path / "short_lived.py").write_text(
        'import sys\nprint(\'{"ready": true}\', flush=True)\nsys.stdin.readline()\nsys.exit("no memory left")\n'
    )
    monkeypatch.chdir(tmp_path)
    child = Child("camera", ["short_lived"], tmp_path)
    try:
        assert child.wait_for(lambda: child.said.get("ready")) is True
        assert child.usage().rss_mb > 1 or not os.path.exists("/proc")
        child.say("go")
        with pytest.raises(SemfieldError, match=r"camera process ended with code 1.*\n.*no memory left"):
            child.wait_for(lambda: False)
    finally:
        child.close()
        child.close()
    assert math.isnan(child.usage().cpu_s)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux's /proc")
def test_usage_is_that_of_the_process():
    before = usage(os.getpid())
    while sum(os.times()[:2]) < before.cpu_s + 0.05:
        pass
    after = usage(os.getpid())
    assert after.cpu_s == pytest.approx(sum(os.times()[:2]), abs=0.5) and after.percent_since(before) > 0


@pytest.mark.slow
def test_a_tiny_run_has_every_key_and_loses_nothing():
    pytest.importorskip("mujoco", reason="the simulator needs the extra [sim]")
    pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
    console = Console(record=True, file=io.StringIO(), width=200)
    plan = Plan(
        shots=8, rate_hz=20.0, idle_s=0.1, stream_s=1.0, clients=3, repeats=1, settings={"memory.voxel-size-m": 0.02}
    )
    assert run(plan, console=console, as_json=True) == 0
    report = json.loads(console.export_text().strip().splitlines()[-1])
    assert set(report) >= KEYS
    assert report["frames_in"] > 0 and report["frames_used"] > 0 and report["frames_lost"] == 0
    counted = report["frames_used"] + report["frames_skipped"] + sum(report["frames_dropped"].values())
    assert counted <= report["frames_in"] <= report["frames_sent"]
    assert report["errors"] == [] and report["clients_answered"] == 3 and report["query_points"] > 100
    assert report["answers"]["and the scored cloud"]["bytes"] > 10 * report["query_points"]
