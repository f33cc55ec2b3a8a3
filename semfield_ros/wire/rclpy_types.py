"""Between our messages and the generated classes of a ROS installation, by way of CDR bytes."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from typing import Any

from rclpy.serialization import deserialize_message, serialize_message

from ..errors import WireError
from ..messages.types import Types


@cache
def ros_class(type: str) -> Any:
    """The generated class of `std_msgs/msg/String`, `std_srvs/srv/Trigger` or `semfield_ros/action/Locate`.

    Raises:
        WireError: ROS does not know it; says what to install or build.
    """
    package, kind, name = type.split("/")
    try:
        return getattr(import_module(f"{package}.{kind}"), name)
    except (ImportError, AttributeError) as error:
        if package == __package__.split(".")[0]:
            remedy = "build the workspace with colcon and source its install/setup.bash"
        else:
            distro = os.environ.get("ROS_DISTRO", "DISTRO")
            remedy = f"install ros-{distro}-{package.replace('_', '-')} and source ROS again"
        raise WireError(f"this ROS installation has no {type} ({error}); {remedy}") from error


def to_ros(types: Types, message: Any, kind: Any) -> Any:
    """Our message as an instance of the generated class `kind` of the same type."""
    return deserialize_message(types.encode(message), kind)


def from_ros(types: Types, message: Any, type: str) -> Any:
    """A generated message as ours; `type` is its name."""
    return types.decode(serialize_message(message), type)


def failed(types: Types, type: str, reason: str) -> Any:
    """A default message of a type that says `success=False` and why, as far as it has the fields."""
    fields = types.fields(type)
    values = {"success": False, "message": reason}
    return types.new(type, **{name: value for name, value in values.items() if name in fields})
