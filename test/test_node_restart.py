"""Camera, router and node die and come back: what goes on, and what is lost (nothing that was saved)."""

import signal
import threading

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from analytic_scene import stream
from node_peer import Program, Robot, feed, fill, free_endpoint, node_config, running, settle, until

from semfield_ros import checkpoint
from semfield_ros.config_io import to_yaml
from semfield_ros.errors import CheckpointError
from semfield_ros.node.config import DiagnosticsConfig, ServiceConfig

FIRST_S = 1000.0
QUERY, STATUS = "semfield_ros/srv/Query", "semfield_ros/msg/Status"


def service(folder, **settings):
    return ServiceConfig(map_folder=str(folder / "maps"), **settings)


def asks(robot, prompt="red"):
    return robot.call("/semfield/query", QUERY, prompts=[prompt])


# ---- the camera ---------------------------------------------------------------------------------------------------


def test_a_camera_dies_and_another_takes_its_place(tmp_path):
    config = node_config(tmp_path, diagnostics=DiagnosticsConfig(silent_after_s=0.3))
    with running(None, config) as node:
        camera = Robot(node.bus.endpoint, name="camera")
        fill(node, camera, stream(6, first_s=FIRST_S))
        before = node.engine.status()
        camera.kill()
        until(lambda: "nobody publishes /rgb/image" in node.diagnostics.findings()[0].message)
        camera = Robot(node.bus.endpoint, name="camera")
        try:
            fill(node, camera, stream(12, first_s=FIRST_S + 10)[6:])
            after = node.engine.status()
            assert node.inputs.submitted == 12 and node.inputs.unused() == {}
            assert after.used > before.used and after.mapping.voxels > before.mapping.voxels
        finally:
            camera.close()


def test_a_camera_that_dies_in_the_middle_of_a_frame_leaves_it_counted(tmp_path):
    with running(None, node_config(tmp_path)) as node:
        camera = Robot(node.bus.endpoint, name="camera")
        frames = stream(3, first_s=FIRST_S)
        fill(node, camera, frames[:1])
        feed_colour_only(camera, frames[1])
        settle(node, 2, waiting=1)
        camera.kill()
        camera = Robot(node.bus.endpoint, name="camera")
        try:
            fill(node, camera, frames[2:])
            assert (node.inputs.submitted, node.inputs.unused()) == (2, {"unsynchronised": 1})
        finally:
            camera.close()


def feed_colour_only(robot, frame):
    from node_peer import messages_of

    robot.publish([(topic, message) for topic, message in messages_of(frame) if topic != "depth/image"])


def test_a_camera_that_reboots_with_its_clock_in_the_past(tmp_path):
    """Its stamps begin anew; the map is kept and goes on."""
    with running(None, node_config(tmp_path)) as node:
        camera = Robot(node.bus.endpoint, name="camera")
        fill(node, camera, stream(6, first_s=FIRST_S))
        camera.kill()
        camera = Robot(node.bus.endpoint, name="camera")
        try:
            feed(camera, stream(12, first_s=5.0))
            settle(node, 18)
            assert node.inputs.assembler.time_jumps == 1
            # Poses that came before the first image of the new time are forgotten with those of the old.
            assert node.inputs.submitted >= 16 and set(node.inputs.unused()) <= {"pose_missing"}
            assert node.engine.status().mapping.frames == node.inputs.submitted
        finally:
            camera.close()


# ---- the router ---------------------------------------------------------------------------------------------------


def test_the_router_dies_and_comes_back(tmp_path):
    """Who has met talks on without it; all find it again by themselves, and whoever comes new meets them through it."""
    endpoint = free_endpoint()
    router, robot = Robot(endpoint, name="router", mode="embedded"), Robot()
    try:
        with running(robot, node_config(tmp_path), mode="join", endpoint=endpoint) as node:
            fill(node, robot, stream(6, first_s=FIRST_S))
            assert asks(robot).answer.found.tolist() == [True]
            router.kill()
            until(lambda: not node.bus.connected and not robot.do("connected"))
            fill(node, robot, stream(3, first_s=FIRST_S + 10))
            assert asks(robot).answer.found.tolist() == [True]
            router = Robot(endpoint, name="router", mode="embedded")
            until(lambda: node.bus.connected and robot.do("connected"))
            newcomer = Robot(endpoint, name="newcomer")
            try:
                fill(node, newcomer, stream(12, first_s=FIRST_S + 20)[6:])
                assert asks(newcomer, "blue").answer.found.tolist() == [True]
            finally:
                newcomer.close()
            fill(node, robot, stream(3, first_s=FIRST_S + 30))
            assert asks(robot).answer.found.tolist() == [True]
            assert (node.inputs.submitted, node.inputs.unused()) == (18, {})
    finally:
        robot.close()
        router.close()


def test_a_node_waits_for_a_router_that_comes_later(tmp_path):
    endpoint = free_endpoint()
    with running(None, node_config(tmp_path), mode="join", endpoint=endpoint) as node:
        assert not node.bus.connected
        robot = Robot(endpoint, name="robot", mode="embedded")
        try:
            until(lambda: node.bus.connected)
            fill(node, robot, stream(3, first_s=FIRST_S))
            assert asks(robot).success
        finally:
            robot.close()


# ---- the node -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def robot():
    robot = Robot()
    yield robot
    robot.close()


def test_a_map_is_saved_when_the_node_ends_and_gone_on_from_when_it_starts(robot, tmp_path):
    with running(robot, node_config(tmp_path, service=service(tmp_path, save_on_shutdown="kitchen"))) as node:
        fill(node, robot, stream(12, first_s=FIRST_S))
        node.engine.train(steps=10)
        voxels = np.sort(node.engine.snapshot().cloud.points, 0)
    again = service(tmp_path, load_on_start="kitchen", save_on_shutdown="kitchen")
    with running(robot, node_config(tmp_path, service=again)) as node:
        np.testing.assert_array_equal(np.sort(node.engine.snapshot().cloud.points, 0), voxels)
        steps = node.engine.status().mapping.steps
        assert steps >= 10 and asks(robot).answer.found.tolist() == [True]
        fill(node, robot, stream(6, first_s=FIRST_S + 10))
        node.engine.train(steps=5)
        assert node.engine.status().mapping.steps >= steps + 5


def test_a_map_that_cannot_be_loaded_is_not_overwritten_at_the_end(tmp_path):
    """A torn file ends the node at once, and stays as it is for whoever wants to look at it."""
    (tmp_path / "maps").mkdir()
    kept = tmp_path / "maps/kitchen.semfield"
    kept.write_bytes(b"torn")
    both = service(tmp_path, load_on_start="kitchen", save_on_shutdown="kitchen")
    with pytest.raises(CheckpointError), running(None, node_config(tmp_path, service=both)):
        raise AssertionError("it has started")
    assert kept.read_bytes() == b"torn"


def test_an_empty_map_does_not_take_the_place_of_a_saved_one(tmp_path):
    """A node that starts without a camera and ends must not cost the map of yesterday."""
    (tmp_path / "maps").mkdir()
    kept = tmp_path / "maps/kitchen.semfield"
    kept.write_bytes(b"of yesterday")
    with running(None, node_config(tmp_path, service=service(tmp_path, save_on_shutdown="kitchen"))):
        pass
    assert kept.read_bytes() == b"of yesterday"


def test_a_map_that_cannot_be_saved_does_not_keep_the_node_from_ending(robot, tmp_path, caplog):
    (tmp_path / "maps").write_text("a file where the folder should be")
    with running(robot, node_config(tmp_path, service=service(tmp_path, save_on_shutdown="kitchen"))) as node:
        fill(node, robot, stream(3, first_s=FIRST_S))
    assert "could not be saved as 'kitchen'" in caplog.text
    assert not [thread for thread in threading.enumerate() if thread.name == "semfield-engine"]


# ---- the program --------------------------------------------------------------------------------------------------


def program(folder, endpoint, **settings):
    """`semfield node` with the settings of these tests."""
    config = node_config(folder, service=service(folder, **settings))
    (folder / "node.yaml").write_text(to_yaml(config))
    return Program("node", "--config", folder / "node.yaml", "--wire.endpoint", endpoint)


def until_mapped(robot, frames):
    """Wait until the node's status tells of so many mapped frames; the status."""
    return robot.until_heard("/semfield/status", lambda s: s.frames_used + s.frames_skipped >= frames)


@pytest.mark.slow
def test_a_node_is_killed_and_started_again(tmp_path):
    """SIGKILL in the middle: the saved map is there, what was mapped after it was saved is lost. SIGTERM saves."""
    endpoint = free_endpoint()
    robot = Robot(endpoint, name="camera")
    try:
        with program(tmp_path, endpoint) as node:
            node.says("listens to")
            until(lambda: robot.do("connected"))
            robot.listen("/semfield/status", STATUS)
            feed(robot, stream(12, first_s=FIRST_S)[:6])
            assert until_mapped(robot, 6).frames_used == 6
            saved = robot.call("/semfield/save_map", "semfield_ros/srv/SaveMap", name="kitchen")
            assert saved.success, saved.message
            feed(robot, stream(12, first_s=FIRST_S)[6:])
            assert until_mapped(robot, 12).frames_used == 12
            node.process.kill()
            assert node.ends() == -signal.SIGKILL

        path = tmp_path / "maps/kitchen.semfield"
        assert checkpoint.describe(path)["counts"]["keyframes"] == 6
        with program(tmp_path, endpoint, load_on_start="kitchen", save_on_shutdown="kitchen") as node:
            node.says("listens to")
            # The robot was there all the time: it finds the new node by itself.
            status = robot.until_heard("/semfield/status", lambda s: s.keyframes)
            assert status.keyframes == 6  # the other six are lost: nobody saved them
            assert asks(robot).success
            feed(robot, stream(12, first_s=FIRST_S + 10)[6:])
            assert until(lambda: robot.heard("/semfield/status")[-1].keyframes == 12)
            assert node.stop(signal.SIGTERM) == 0, node.text
        assert "Traceback" not in node.text
        assert checkpoint.describe(path)["counts"]["keyframes"] == 12
    finally:
        robot.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_node_that_is_stopped_while_it_starts_ends_in_order(tmp_path, how):
    """It is on the wire before its models are loaded."""
    endpoint = free_endpoint()
    robot = Robot(endpoint)
    try:
        with program(tmp_path, endpoint, save_on_shutdown="kitchen") as node:
            until(lambda: robot.do("connected"))
            assert node.stop(how) == 0 and "Traceback" not in node.text, node.text
        assert not (tmp_path / "maps/kitchen.semfield").exists()  # an empty map is none
    finally:
        robot.close()


@pytest.mark.slow
def test_a_node_that_cannot_start_says_why(tmp_path):
    endpoint = free_endpoint()
    with program(tmp_path, endpoint, load_on_start="kitchen", save_on_shutdown="kitchen") as node:
        assert node.ends() == 2
        assert "there is no kitchen.semfield in the map folder" in node.text and "Traceback" not in node.text
    assert not (tmp_path / "maps/kitchen.semfield").exists()
