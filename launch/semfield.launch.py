"""Start the semfield node: with a preset for the camera, with RViz if wanted.

    ros2 launch semfield_ros semfield.launch.py camera:=realsense rviz:=true

A topic given by name (`rgb_topic:=/my/image`) goes before the preset's.
"""

from pathlib import Path
from typing import Any

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue

PACKAGE = "semfield_ros"
NODE = "semfield"

# Where drivers publish with the settings of their own launch files. Depth must be registered to colour: the comments
# say how to ask for it. Every name can be replaced by the launch argument of the same kind.
CAMERAS: dict[str, dict[str, str]] = {
    # The node's own names: remap the driver, or give the topics as arguments.
    "none": {},
    # realsense2_camera 4: rs_launch.py align_depth.enable:=true enable_sync:=true
    "realsense": {
        "rgb": "/camera/camera/color/image_raw",
        "depth": "/camera/camera/aligned_depth_to_color/image_raw",
        "info": "/camera/camera/color/camera_info",
    },
    # depthai_ros_driver 2: rgbd_pcl.launch.py (its default parameters align stereo to colour)
    "oak_d": {
        "rgb": "/oak/rgb/image_raw",
        "depth": "/oak/stereo/image_raw",
        "info": "/oak/rgb/camera_info",
    },
    # azure_kinect_ros_driver: driver.launch.py (publishes depth_to_rgb by itself)
    "azure_kinect": {
        "rgb": "/rgb/image_raw",
        "depth": "/depth_to_rgb/image_raw",
        "info": "/rgb/camera_info",
    },
    # OrbbecSDK_ROS2 2: femto_bolt.launch.py (or gemini_330_series.launch.py ...) depth_registration:=true
    "orbbec": {
        "rgb": "/camera/color/image_raw",
        "depth": "/camera/depth/image_raw",
        "info": "/camera/color/camera_info",
    },
    # zed_wrapper from 5.1: zed_camera.launch.py camera_model:=zed2i (depth is in the rectified left image)
    "zed": {
        "rgb": "/zed/zed_node/rgb/color/rect/image",
        "depth": "/zed/zed_node/depth/depth_registered",
        "info": "/zed/zed_node/rgb/color/rect/camera_info",
        "odom": "/zed/zed_node/odom",
    },
    # turtlebot4_simulator: the bridge of the OAK-D's rgbd_camera in Gazebo
    "turtlebot4_sim": {
        "rgb": "/oakd/rgb/preview/image_raw",
        "depth": "/oakd/rgb/preview/depth",
        "info": "/oakd/rgb/preview/camera_info",
        "odom": "/odom",
    },
}
TOPICS = {"rgb": "rgb/image", "depth": "depth/image", "info": "rgb/camera_info", "odom": "odom", "pose": "pose"}
# A remapping holds for one name only, and image_transport appends to it.
TRANSPORTS = {"rgb": ("compressed",), "depth": ("compressedDepth",)}
# Launch arguments that are parameters of the node; empty = as in params_file.
PARAMETERS: dict[str, tuple[str, Any, str]] = {
    "pose_source": ("pose.source", str, "tf, odometry or pose"),
    "global_frame": ("global_frame", str, "Frame of the map"),
    "encoder": ("encoder.name", str, "tiny, openclip, precomputed or stub"),
    "labels_topic": ("camera.labels_topic", str, "Label images from another node"),
    "masks_topic": ("camera.masks_topic", str, "Instance masks from another node"),
    "masks_named": ("camera.masks_named", bool, "false = keep masks that no LabelInfo names"),
    "semantic_classes": ("heads.semantic_classes", int, "Classes of the label images to learn"),
    "instances": ("heads.instances", str, "Learn instances of the masks: off, slots or embedding"),
    "teachers": ("heads.teachers", list[str], "Further encoders to learn, such as \"['pyramid', 'dino']\""),
}


def arguments() -> list[DeclareLaunchArgument]:
    """What can be given on the command line."""
    share = Path(get_package_share_directory(PACKAGE))
    declared = [
        ("namespace", "", "Namespace of the node and of its relative topics"),
        ("params_file", str(share / "config/semfield_node.yaml"), "Parameters of the node"),
        ("use_sim_time", "false", "Take time from /clock"),
        ("autostart", "true", "Configure and activate at once; false leaves that to a lifecycle manager"),
        ("log_level", "info", "debug, info, warn, error or fatal"),
        ("rviz", "false", "Start RViz too"),
        ("rviz_config", str(share / "config/semfield.rviz"), "What RViz shows"),
        ("camera", "none", f"Whose topics to listen to: {', '.join(CAMERAS)}"),
        *((f"{kind}_topic", "", f"In place of {name}, whatever the camera") for kind, name in TOPICS.items()),
        *((name, "", f"{text}; empty = as in params_file") for name, (_, _, text) in PARAMETERS.items()),
    ]
    return [DeclareLaunchArgument(name, default_value=value, description=text) for name, value, text in declared]


def remappings(camera: str, topics: dict[str, str]) -> list[tuple[str, str]]:
    """From the node's names to a camera's, or to those of `topics` where these are not empty."""
    if camera not in CAMERAS:
        raise ValueError(f"camera is {camera!r}; allowed: {', '.join(CAMERAS)}")
    found = {**CAMERAS[camera], **{kind: topic for kind, topic in topics.items() if topic}}
    pairs = [("/tf", "tf"), ("/tf_static", "tf_static")]
    for kind, topic in found.items():
        pairs.append((TOPICS[kind], topic))
        pairs += [(f"{TOPICS[kind]}/{suffix}", f"{topic}/{suffix}") for suffix in TRANSPORTS.get(kind, ())]
    return pairs


def _nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    def given(name: str) -> str:
        return str(LaunchConfiguration(name).perform(context))

    overrides: dict[str, object] = {
        name: ParameterValue(LaunchConfiguration(name), value_type=bool) for name in ("use_sim_time", "autostart")
    }
    for argument, (parameter, kind, _) in PARAMETERS.items():
        if given(argument):
            overrides[parameter] = ParameterValue(LaunchConfiguration(argument), value_type=kind)
    pairs = remappings(given("camera"), {kind: given(f"{kind}_topic") for kind in TOPICS})
    return [
        LifecycleNode(
            package=PACKAGE,
            executable="semfield_node",
            name=NODE,
            namespace=LaunchConfiguration("namespace"),
            parameters=[ParameterFile(LaunchConfiguration("params_file"), allow_substs=True), overrides],
            remappings=pairs,
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            # A large map takes a while to save; launch would end the process after five seconds.
            sigterm_timeout="30",
            sigkill_timeout="30",
            output="screen",
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=LaunchConfiguration("namespace"),
            arguments=["-d", LaunchConfiguration("rviz_config")],
            parameters=[{"use_sim_time": overrides["use_sim_time"]}],
            remappings=[("/tf", "tf"), ("/tf_static", "tf_static")],
            condition=IfCondition(LaunchConfiguration("rviz")),
            output="log",
        ),
    ]


def generate_launch_description() -> LaunchDescription:
    """The arguments, and what they start."""
    return LaunchDescription([*arguments(), OpaqueFunction(function=_nodes)])
