"""The node as ROS starts it: lifecycle, parameters, signals, the action, the launch file."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="no ROS 2 is sourced, or one for another Python", exc_type=ImportError)
import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros_world import Program, RosPeer, overlay, ros  # noqa: F401 (fixtures)
from std_msgs.msg import String
from wire_peer import until

from semfield_ros.wire.rclpy_executor import end, spin

pytestmark = pytest.mark.ros
ECHO = Path(__file__).with_name("ros_echo_node.py")
TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
SHUTDOWN_FROM = {"unconfigured": 5, "inactive": 6, "active": 7}


class Operator:
    """Somebody at the robot: plain rclpy."""

    def __init__(self):
        self.node = rclpy.create_node("operator")
        self.heard, self._clients, self._subscriptions = [], {}, []
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=spin, args=(self.executor, self.stop), daemon=True)
        self.thread.start()

    def call(self, kind, name, **fields):
        """The response of a service."""
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        assert client.wait_for_service(30.0), name
        done = client.call_async(kind.Request(**fields))
        until(done.done, 60.0)
        return done.result()

    def state(self, node="/echo"):
        return self.call(GetState, f"{node}/get_state").current_state.label

    def change(self, transition, node="/echo"):
        """Whether a transition succeeded."""
        number = TRANSITIONS.get(transition) or SHUTDOWN_FROM[self.state(node)]
        request = ChangeState.Request()
        request.transition.id = number
        return self.call(ChangeState, f"{node}/change_state", transition=request.transition).success

    def set(self, node="/echo", **values):
        """'' or why the values are refused; `sub__gain` stands for sub.gain. All or none."""
        named = {name.replace("__", "."): value for name, value in values.items()}
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in named.items()]
        result = self.call(SetParametersAtomically, f"{node}/set_parameters_atomically", parameters=parameters).result
        return "" if result.successful else result.reason

    def listen(self, topic):
        self.heard.clear()
        self._subscriptions.append(
            self.node.create_subscription(String, topic, lambda m: self.heard.append(m.data), 10)
        )

    def hears(self, text):
        """A message that contains this comes now."""
        self.heard.clear()
        until(lambda: any(text in heard for heard in list(self.heard)), 30.0)

    def forget(self):
        for subscription in self._subscriptions:
            self.node.destroy_subscription(subscription)
        for client in self._clients.values():
            self.node.destroy_client(client)
        self._subscriptions, self._clients = [], {}


@pytest.fixture(scope="module")
def the_operator(ros):  # noqa: F811
    rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    operator = Operator()
    yield operator
    end(operator.executor, operator.stop)
    operator.thread.join(5)
    rclpy.try_shutdown()


@pytest.fixture
def operator(the_operator):
    yield the_operator
    the_operator.forget()


@pytest.fixture
def program(tmp_path):
    """Start programs that end with the test."""
    started = []

    def start(command, env):
        started.append(Program(command, env, tmp_path / f"{len(started)}.log"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def echo(program, ros):  # noqa: F811
    """Start the echo node with parameters."""

    def start(*arguments, env=None, **parameters):
        values = [part for name, value in parameters.items() for part in ("-p", f"{name.replace('__', '.')}:={value}")]
        return program([sys.executable, str(ECHO), *arguments, "--ros-args", *values], env or ros)

    return start


# ---- parameters ---------------------------------------------------------------------------------------------------


def test_parameters_are_described(echo, operator):
    node = echo(sub__gain=2.5)
    node.says("started")
    names = ["sub.gain", "sub.limit", "sub.words", "count", "needs", "autostart"]
    found = {d.name: d for d in operator.call(DescribeParameters, "/echo/describe_parameters", names=names).descriptors}
    gain = found["sub.gain"]
    assert gain.description == "How loud." and not gain.read_only
    [span] = gain.floating_point_range
    assert (span.from_value, span.to_value) == (0.0, 10.0)
    [span] = found["count"].integer_range
    assert (span.from_value, span.to_value, found["count"].read_only) == (1, 5, True)
    assert found["sub.limit"].additional_constraints == "nan, or -1 to 1."
    assert found["sub.limit"].description == "No more than this; nan = no limit."
    assert found["needs"].read_only and found["autostart"].read_only and not found["sub.words"].read_only
    values = operator.call(GetParameters, "/echo/get_parameters", names=["sub.gain", "count"]).values
    assert (values[0].double_value, values[1].integer_value) == (2.5, 1)
    assert node.ends(signal.SIGINT) == 0


def test_live_parameters_are_live_and_others_are_not(echo, operator):
    node = echo()
    node.says("started")
    operator.listen("/echo")
    operator.hears("1.0 None ")
    assert operator.set(sub__gain=3.0, sub__limit=0.5, sub__words=["a", "b"]) == ""
    operator.hears("3.0 0.5 a b")
    assert operator.set(sub__limit=float("nan"), sub__words=[]) == ""
    operator.hears("3.0 None ")
    for values, reason in (
        ({"sub__gain": 10.5}, "out of range"), ({"sub__gain": 1}, "Wrong parameter type"),
        ({"sub__gain": 9.0, "sub__limit": 2.0}, "sub.limit is 2.0; allowed: -1 to 1"),
        ({"sub__words": [1, 2]}, r"sub.words[0] is 1; allowed: text"), ({"count": 2}, "read-only"),
    ):  # fmt: skip
        assert reason in operator.set(**values)
    operator.hears("3.0 None ")  # all or none
    assert node.ends(signal.SIGINT) == 0


def test_parameters_survive_the_command_line_tools(echo, program, operator, ros, tmp_path):  # noqa: F811
    node = echo()
    node.says("started")

    def ros2(*arguments):
        command = ["ros2", "param", *arguments, "--no-daemon", "--spin-time", "1"]
        return subprocess.run(command, env=ros, capture_output=True, text=True, timeout=60).stdout

    assert "Set parameter successful" in ros2("set", "/echo", "sub.words", "[this, that]")
    assert "Min value: 0.0" in ros2("describe", "/echo", "sub.gain")
    assert operator.set(sub__gain=4.0) == ""
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(ros2("dump", "/echo"))
    assert node.ends(signal.SIGINT) == 0

    again = program([sys.executable, str(ECHO), "--ros-args", "--params-file", str(dumped)], ros)
    again.says("started")
    operator.listen("/echo")
    operator.hears("4.0 None this that")
    assert again.ends(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("parameters", "status", "said"),
    [
        ({"sub__gain": 11.0}, 2, "sub.gain out of range"),
        ({"sub__gain": 1}, 2, "expecting type 'DOUBLE'"),
        ({"sub__limit": 1.5}, 1, "sub.limit is 1.5; allowed: -1 to 1"),
        ({"sub__words": "[1, 2]"}, 1, "sub.words[0] is 1; allowed: text"),
        ({"needs": "/missing"}, 1, "there is no /missing"),
        ({"needs": "/missing.crash"}, 1, "KeyError: 'boom'"),
    ],
)
def test_unusable_parameters_end_the_process_with_a_reason(echo, parameters, status, said):
    node = echo(**parameters)
    assert node.ends() == status
    assert said in node.log.read_text()
    assert ("Traceback" in node.log.read_text()) == ("boom" in said)


def test_a_parameter_file_that_is_none_ends_it_too(program, ros, tmp_path):  # noqa: F811
    (tmp_path / "odd.yaml").write_text("/**: {ros__parameters: {sub: {words: [yes, maybe]}}}")
    command = [sys.executable, str(ECHO), "--ros-args", "--params-file", str(tmp_path / "odd.yaml")]
    node = program(command, ros)
    assert node.ends() == 2
    assert "Couldn't parse params file" in node.log.read_text() and "Traceback" not in node.log.read_text()


def test_a_mistyped_parameter_is_warned_of(echo):
    node = echo(sub__gian=2.0)
    assert "sub.gian is not a parameter; did you mean sub.gain?" in node.says("started")
    assert node.ends(signal.SIGTERM) == 0


# ---- lifecycle ----------------------------------------------------------------------------------------------------


def test_states_are_what_they_say(echo, operator, tmp_path):
    needed = tmp_path / "needed"
    node = echo(autostart="false", needs=needed)
    operator.listen("/echo")
    assert operator.state() == "unconfigured"
    assert not operator.change("configure") and operator.state() == "unconfigured"
    assert f"there is no {needed}" in node.says("cannot be configured")
    needed.touch()
    assert operator.change("configure") and operator.state() == "inactive"
    assert operator.heard == [] and "started" not in node.log.read_text()
    assert operator.set(sub__gain=7.0) == ""
    for _ in range(2):
        assert operator.change("activate") and operator.state() == "active"
        operator.hears("7.0")
        assert operator.change("deactivate") and operator.state() == "inactive"
        node.says("stopped")
    assert operator.change("cleanup") and operator.state() == "unconfigured"
    node.says("closed")
    assert operator.change("configure") and operator.change("activate")
    operator.hears("7.0")
    assert operator.change("shutdown") and operator.state() == "finalized"
    assert node.log.read_text().count("closed") == 2
    assert node.ends(signal.SIGINT) == 0


def test_an_unexpected_error_leaves_it_ready_to_be_configured_again(echo, operator, tmp_path):
    needed = tmp_path / "needed.crash"
    node = echo(autostart="false", needs=needed)
    assert not operator.change("configure")
    node.says("KeyError: 'boom'")
    assert operator.state() == "unconfigured"
    needed.touch()
    assert operator.change("configure") and operator.change("activate")
    assert node.ends(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["unconfigured", "inactive", "active", "finalized"])
def test_signals_end_it_in_any_state(echo, operator, state, number):
    node = echo(autostart="true" if state == "active" else "false")
    if state == "inactive":
        operator.change("configure")
    elif state == "finalized":
        operator.change("shutdown")
    until(lambda: operator.state() == state, 30.0)
    assert node.ends(number) == 0
    said = node.log.read_text()
    assert "Traceback" not in said and "rror" not in said
    assert said.count("closed") == (state in ("inactive", "active"))


def test_sigint_while_it_is_being_built(echo):
    node = echo(build_s=1.5)
    node.says("building")
    node.process.send_signal(signal.SIGINT)
    assert node.ends(signal.SIGINT) == 0  # twice, as from a terminal with ros2 launch
    said = node.log.read_text()
    assert "closed" in said and "started" not in said and "Traceback" not in said


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3, 0.6])
def test_sigint_while_it_starts(echo, after_s):
    node = echo()
    try:
        node.process.wait(after_s)
    except subprocess.TimeoutExpired:
        pass
    status = node.ends(signal.SIGINT)
    assert status == 0 or (status == -signal.SIGINT and not node.log.read_text())  # before Python itself runs


# ---- the action ---------------------------------------------------------------------------------------------------


def test_locate_reports_ends_and_can_be_cancelled(echo, overlay):  # noqa: F811
    node, peer = echo("--locate", env=overlay), RosPeer(env=overlay)
    node.says("started")
    succeeded, cancelled, aborted = 4, 5, 6

    assert peer.do("locate", name="/echo/locate", prompt="mug")
    assert peer.do("located") == [succeeded, True, "", ["mug"]]
    assert peer.do("feedback", count=3) == [1, 2, 3]

    assert peer.do("locate", name="/echo/locate", prompt="unicorn", timeout=0.2)
    assert peer.do("located")[:3] == [aborted, False, "nothing in time"]

    assert peer.do("locate", name="/echo/locate", prompt="unicorn")
    peer.do("feedback", count=3)
    assert peer.do("cancel") == 1
    assert peer.do("located")[:3] == [cancelled, False, "cancelled"]

    assert peer.do("locate", name="/echo/locate", prompt="crash")
    assert peer.do("located")[:3] == [aborted, False, "KeyError: 'boom'"]

    assert peer.do("locate", name="/echo/locate", prompt="unicorn")
    peer.do("feedback", count=1)
    assert node.ends(signal.SIGINT) == 0  # in the middle of a goal
    assert peer.close() == 0


# ---- the launch file ----------------------------------------------------------------------------------------------


def ros2(overlay, *arguments):  # noqa: F811
    done = subprocess.run(["ros2", *arguments], env=overlay, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_launch_names_its_arguments_and_interfaces_can_be_shown(overlay):  # noqa: F811
    shown = ros2(overlay, "launch", "semfield_ros", "semfield.launch.py", "--show-args")
    for argument in (
        "namespace", "params_file", "use_sim_time", "autostart", "log_level", "rviz", "rviz_config", "camera",
        "rgb_topic", "depth_topic", "info_topic", "odom_topic", "global_frame", "encoder",
        "semantic_classes", "instances", "teachers", "masks_named",
    ):  # fmt: skip
        assert f"'{argument}':" in shown
    names = ros2(overlay, "interface", "package", "semfield_ros").split()
    assert len(names) == 18
    assert "semfield_ros/QueryOptions options" in ros2(overlay, "interface", "show", "semfield_ros/srv/Query")


def test_every_preset_remaps_what_the_node_listens_to(overlay, root):  # noqa: F811
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("semfield_launch", root / "launch/semfield.launch.py")
    launch_file = module_from_spec(spec)
    spec.loader.exec_module(launch_file)
    from semfield_ros.node.config import CameraConfig, PoseConfig
    from semfield_ros.wire.names import expand

    listened = {CameraConfig().rgb_topic, CameraConfig().depth_topic, CameraConfig().info_topic}
    listened |= {f"{CameraConfig().rgb_topic}/compressed", f"{CameraConfig().depth_topic}/compressedDepth"}
    for camera in launch_file.CAMERAS:
        pairs = dict(launch_file.remappings(camera, {}))
        assert camera == "none" or listened <= set(pairs)
        assert (pairs["/tf"], pairs["/tf_static"]) == ("tf", "tf_static")
        assert set(pairs) - listened <= {"/tf", "/tf_static", PoseConfig().odometry_topic, PoseConfig().pose_topic}
        for target in pairs.values():
            assert expand(target, "/node")
    assert dict(launch_file.remappings("zed", {"rgb": "/mine"}))["rgb/image/compressed"] == "/mine/compressed"
    with pytest.raises(ValueError, match="realsense"):
        launch_file.remappings("kinect", {})


def test_the_node_is_launched_maps_answers_and_ends(operator, program, overlay, tmp_path):  # noqa: F811
    """Topics by name, a namespace, TF inside it; a query from the command line; a clean end."""
    from analytic_scene import stream
    from node_peer import node_config

    from semfield_ros.config import GripperConfig
    from semfield_ros.messages.stream import frame_messages
    from semfield_ros.wire.bus import LATCHED, QoS
    from semfield_ros.wire.parameters import to_ros_yaml
    from semfield_ros.wire.rclpy_bus import RclpyBus

    params = tmp_path / "params.yaml"
    wide = GripperConfig(max_width_m=0.158, finger_length_m=0.06)  # the blue block is 14 cm wide
    params.write_text(to_ros_yaml(node_config(tmp_path, gripper=wide)))
    launched = program(
        ["ros2", "launch", "semfield_ros", "semfield.launch.py", "namespace:=robot", f"params_file:={params}",
         "rgb_topic:=/cam/colour", "depth_topic:=/cam/range", "info_topic:=/cam/info"],
        overlay,
    )  # fmt: skip
    robot_node = rclpy.create_node("robot")
    robot = RclpyBus(robot_node)
    names = {"rgb/image": "/cam/colour", "depth/image": "/cam/range", "rgb/camera_info": "/cam/info",
             "/tf": "/robot/tf"}  # fmt: skip
    publishers, clouds = {}, []
    robot.subscribe("sensor_msgs/msg/PointCloud2", "/robot/semfield/map_cloud", clouds.append, LATCHED)
    for lap in range(12):  # what is sent while the other side still matches may be lost
        for frame in stream(6, first_s=1000.0 + lap):
            for topic, (kind, message) in frame_messages(frame).items():
                if topic not in publishers:
                    publishers[topic] = robot.publisher(kind, names[topic], QoS(100))
                    until(lambda topic=topic: publishers[topic].subscribers, 60.0)
                publishers[topic].publish(message)
        with suppress(TimeoutError):
            cloud = until(lambda: clouds and clouds[-1].width > 100 and clouds[-1], 5.0)
            break
    else:
        raise TimeoutError("no map cloud came")
    assert cloud.header.frame_id == "map" and {f.name for f in cloud.fields} >= {"x", "y", "z", "rgb"}

    seeker, (succeeded, cancelled) = RosPeer(env=overlay), (4, 5)
    assert seeker.do("locate", name="/robot/semfield/locate", prompt="red", timeout=60.0)
    assert seeker.do("located") == [succeeded, True, "", ["red"]]
    assert seeker.do("locate", name="/robot/semfield/locate", prompt="unicorn")
    assert len(seeker.do("feedback", count=2)) >= 2 and seeker.do("cancel") == 1
    status, success, message, _ = seeker.do("located")
    assert (status, success) == (cancelled, False) and message.startswith("cancelled after")
    assert seeker.close() == 0

    request = "{prompts: [block]}"
    answered = ros2(overlay, "service", "call", "/robot/semfield/query", "semfield_ros/srv/Query", request)
    assert "success=True" in answered and "prompts=['block']" in answered
    frames = []
    robot.subscribe("tf2_msgs/msg/TFMessage", "/robot/tf_static", frames.append, LATCHED)
    request = "{prompts: [blue, red], options: {with_grasps: true, publish_tf: true}}"
    answered = ros2(overlay, "service", "call", "/robot/semfield/query", "semfield_ros/srv/Query", request)
    assert "pregrasp=geometry_msgs.msg.Pose" in answered and "why_no_grasps=''" in answered
    children = {t.child_frame_id: t.header.frame_id for t in until(lambda: frames, 30.0)[-1].transforms}
    assert children["robot/semfield/object_1"] == "map" and any("_retreat" in name for name in children)
    assert operator.set("/robot/semfield", output__prompts=["block"], query__temperature=5.0) == ""
    assert operator.state("/robot/semfield") == "active"
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert operator.change(transition, "/robot/semfield"), transition
    robot.close()
    robot_node.destroy_node()
    assert launched.ends(signal.SIGINT) == 0
    said = launched.log.read_text()
    assert "process has finished cleanly" in said and "Traceback" not in said


def test_the_launch_file_under_launch_testing(overlay, tmp_path):  # noqa: F811
    from node_peer import node_config

    from semfield_ros.wire.parameters import to_ros_yaml

    params = tmp_path / "params.yaml"
    params.write_text(to_ros_yaml(node_config(tmp_path)))
    command = [sys.executable, "-m", "launch_testing.launch_test", str(Path(__file__).with_name("ros_launch_check.py"))]
    done = subprocess.run(
        command, env={**overlay, "ROS_LAUNCH_CHECK_PARAMS": str(params)}, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_cleaning_up_lets_go_of_everything(overlay):  # noqa: F811
    """Nothing that holds the map, its field or a snapshot outlives it, so a GPU's memory is free for others."""
    script = Path(__file__).with_name("ros_cleanup_check.py")
    done = subprocess.run([sys.executable, str(script)], env=overlay, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-2:] == ["6 of 6 let go", "6 of 6 let go"]


def test_the_executable_runs_by_name(operator, program, overlay):  # noqa: F811
    node = program(
        ["ros2", "run", "semfield_ros", "semfield_node", "--ros-args", "-r", "__ns:=/alone", "-p", "autostart:=false",
         "-p", "memory.voxel_size_m:=0.05", "-p", "encoder.name:=stub"], overlay,
    )  # fmt: skip
    values = operator.call(GetParameters, "/alone/semfield/get_parameters", names=["memory.voxel_size_m"]).values
    assert values[0].double_value == 0.05 and operator.state("/alone/semfield") == "unconfigured"
    # ros2 run hands signals on to nobody when it is no terminal's: end the node itself.
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGINT)
    assert node.ends() == 0
