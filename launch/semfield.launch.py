"""Start the semfield_ros node.

This version has no node executable yet: launching says so and ends. `semfield run` works without it.
"""

from pathlib import Path

from ament_index_python.packages import get_package_prefix
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

PACKAGE, EXECUTABLE = "semfield_ros", "semfield_node"
ARGUMENTS = [
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node and its relative topics"),
    DeclareLaunchArgument("use_sim_time", default_value="false", description="Take time from /clock"),
    DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
]


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    executable = Path(get_package_prefix(PACKAGE)) / "lib" / PACKAGE / EXECUTABLE
    if not executable.exists():
        reason = f"this version of {PACKAGE} has no {EXECUTABLE}; use `semfield run` meanwhile"
        return [LogInfo(msg=reason), Shutdown(reason=reason)]
    return [
        Node(
            package=PACKAGE,
            executable=EXECUTABLE,
            name="semfield",
            namespace=LaunchConfiguration("namespace"),
            parameters=[{"use_sim_time": LaunchConfiguration("use_sim_time")}],
            remappings=[("/tf", "tf"), ("/tf_static", "tf_static")],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node where it is installed."""
    return LaunchDescription([*ARGUMENTS, OpaqueFunction(function=_node)])
