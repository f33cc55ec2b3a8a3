"""Robots that know what they see: posed RGB-D in, a neural field you can ask in words, objects and grasps out.

    import semfield_ros as sf

The names below are imported when first used, so that `import semfield_ros` stays light.
"""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads that spin while they wait starve the other threads of this process and of the robot: measured on two shared
# cores, training is ten times faster when they sleep. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# From a ROS workspace the generated interfaces (semfield_ros.msg, .srv) live in another folder of the same name.
__path__ = pkgutil.extend_path(__path__, __name__)
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .answer import Answer
    from .config import SemfieldConfig, demo_config
    from .config_io import from_yaml
    from .engine import Engine
    from .export import objects_json, write_json, write_ply
    from .frame import Frame, FrameGate, make_frame
    from .geometry import Camera
    from .objects.objects import Object
    from .results import write_answer, write_results
    from .session import feed
    from .sources import open_source
    from .sources.playback import play

_HOME = {
    "Answer": "answer", "Camera": "geometry", "Engine": "engine", "Frame": "frame", "FrameGate": "frame",
    "Object": "objects.objects", "SemfieldConfig": "config", "demo_config": "config", "feed": "session",
    "from_yaml": "config_io", "make_frame": "frame", "objects_json": "export", "open_source": "sources",
    "play": "sources.playback", "write_answer": "results", "write_json": "export", "write_ply": "export",
    "write_results": "results",
}  # fmt: skip

__all__ = [
    "Answer", "Camera", "Engine", "Frame", "FrameGate", "Object", "SemfieldConfig", "demo_config", "feed", "from_yaml",
    "make_frame", "objects_json", "open_source", "play", "write_answer", "write_json", "write_ply", "write_results",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
