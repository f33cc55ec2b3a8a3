"""pip installation; colcon builds the same package from CMakeLists.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (ROOT / "semfield_ros/__init__.py").read_text(), re.M).group(1)
README = ROOT / "README.md"

setup(
    name="semfield_ros",
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
    package_data={"semfield_ros": ["py.typed", "encoders/tiny_model/*"]},
    python_requires=">=3.10",
    install_requires=[
        "numba>=0.57",
        "numpy>=1.23.5",
        "open_clip_torch>=2.24",
        # ROS's cv_bridge is built against OpenCV 4.
        "opencv-python-headless>=4.6,<5",
        "pillow>=9.2",
        "pyyaml>=6.0",
        "rich>=13.0",
        "safetensors>=0.4",
        "scikit-image>=0.20",
        "scipy>=1.9",
        "torch>=2.1",
        "tyro>=0.9",
    ],
    extras_require={
        "sim": ["mujoco>=3.1.3"],
        "test": [
            "hypothesis>=6.80",
            "mypy>=1.8",
            "plyfile>=1.0",
            # The launch_testing plugins of ROS 2 do not load under pytest 9.
            "pytest>=8.3,<9",
            "ruff>=0.5",
            "transforms3d>=0.4.1",
            "trimesh>=4.0",
        ],
    },
    entry_points={"console_scripts": ["semfield = semfield_ros.cli:main"]},
    zip_safe=False,
)
