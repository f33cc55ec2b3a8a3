"""pip installation; colcon builds the same package from CMakeLists.txt."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "semfield_ros/__init__.py").read_text(), re.M).group(1)
README = ROOT / "README.md"


class BuildWithInterfaces(build_py):
    """The definitions of our messages stand once, in msg/, srv/ and action/; an installed package carries a copy."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for kind in ("msg", "srv", "action"):
                target = Path(self.build_lib) / "semfield_ros/messages/definitions/semfield_ros" / kind
                shutil.copytree(ROOT / kind, target, dirs_exist_ok=True)


setup(
    name="semfield_ros",
    cmdclass={"build_py": BuildWithInterfaces},
    version=VERSION,
    description="A posed RGB-D stream becomes a neural semantic field that answers in words, objects and grasps",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["semfield_ros", "semfield_ros.*"]),
    package_data={
        "semfield_ros": [
            "py.typed", "encoders/tiny_model/*", "sources/*.csv", "grippers/*.yaml", "messages/definitions/*/*/*",
        ]
    },
    python_requires=">=3.10",
    install_requires=[
        "eclipse-zenoh>=1.7.2",
        "numba>=0.57",
        "numpy>=1.23.5",
        "open_clip_torch>=2.24",
        # ROS's cv_bridge is built against OpenCV 4.
        "opencv-python-headless>=4.6,<5",
        "pillow>=9.2",
        "pytransform3d>=3.6",
        "pyyaml>=6.0",
        "rich>=13.0",
        "rosbags>=0.11",
        "safetensors>=0.4",
        "scikit-image>=0.20",
        # HDBSCAN is in it from this version on.
        "scikit-learn>=1.3",
        "scipy>=1.9",
        "torch>=2.1",
        "tyro>=0.9",
        "xxhash>=3.0",
    ],
    extras_require={
        # Pictures of benchmarks.
        "bench": ["matplotlib>=3.6"],
        # Offline building of several maps at once; Ray has wheels for some Pythons only.
        "build": ["ray>=2.9; python_version < '3.14'"],
        # From 3.5 on rays give normals.
        "sim": ["mujoco>=3.5"],
        "test": [
            "hypothesis>=6.80",
            "matplotlib>=3.6",
            "mypy>=1.8",
            "plyfile>=1.0",
            # The launch_testing plugins of ROS 2 do not load under pytest 9.
            "pytest>=8.3,<9",
            "ray>=2.9; python_version < '3.14'",
            "ruff>=0.5",
            "transforms3d>=0.4.1",
            "trimesh>=4.0",
            # The other side of the wire in conformance tests.
            "zenoh-ros2-sdk>=0.1.8",
        ],
    },
    entry_points={"console_scripts": ["semfield = semfield_ros.cli:main"]},
    zip_safe=False,
)
