"""The launch file under launch_testing: the node comes up active, answers, says what is missing, ends in order.

    launch_test test/ros_launch_check.py

Run by `test_launch.py` where ROS 2 is sourced; `ROS_LAUNCH_CHECK_PARAMS` names the parameters of the node.
"""

import os
import time
import unittest

import launch
import launch_testing
import launch_testing.actions
import launch_testing.asserts
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.srv import GetState
from semfield_ros.srv import Query

NODE = "/bench/semfield"
PATIENCE_S = 60.0


def generate_test_description():
    """The launch file as it is started on a robot, in a namespace."""
    file = PathJoinSubstitution([FindPackageShare("semfield_ros"), "launch", "semfield.launch.py"])
    arguments = {"namespace": "bench", "params_file": os.environ["ROS_LAUNCH_CHECK_PARAMS"], "camera": "realsense"}
    node = launch.actions.IncludeLaunchDescription(
        PythonLaunchDescriptionSource(file), launch_arguments=arguments.items()
    )
    return launch.LaunchDescription([node, launch_testing.actions.ReadyToTest()])


class TestNode(unittest.TestCase):
    """While it runs."""

    def setUp(self):
        """Somebody at the robot."""
        rclpy.init()
        self.node = rclpy.create_node("operator")

    def tearDown(self):
        """Leave."""
        self.node.destroy_node()
        rclpy.shutdown()

    def call(self, kind, name, request):
        """The response of a service."""
        client = self.node.create_client(kind, name)
        self.assertTrue(client.wait_for_service(PATIENCE_S), name)
        done = client.call_async(request)
        rclpy.spin_until_future_complete(self.node, done, timeout_sec=PATIENCE_S)
        return done.result()

    def test_it_gets_active_answers_and_names_the_silent_camera(self):
        """The preset's topics are listened to, and nobody publishes them."""
        end_s = time.monotonic() + PATIENCE_S
        while self.call(GetState, f"{NODE}/get_state", GetState.Request()).current_state.label != "active":
            self.assertLess(time.monotonic(), end_s)
        response = self.call(Query, f"{NODE}/query", Query.Request(prompts=["mug"]))
        self.assertFalse(response.success)
        self.assertIn("the map is empty", response.message)
        said = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", said.append, 10)
        while not said:
            self.assertLess(time.monotonic(), end_s)
            rclpy.spin_once(self.node, timeout_sec=0.1)
        words = " ".join(status.message for status in said[0].status)
        self.assertIn("nobody publishes /camera/camera/color/image_raw", words)


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    """After SIGINT."""

    def test_it_ended_in_order(self, proc_info):
        """Exit code 0, of every process."""
        launch_testing.asserts.assertExitCodes(proc_info)
