"""One way through the house: modules import only what stands before them. Read from the sources, not by importing."""

import ast
from pathlib import Path

import pytest

PACKAGE = "semfield_ros"
ORDER = [
    "errors", "grippers", "config", "config_io", "geometry", "cloud", "frame", "messages", "sources", "encoders",
    "memory", "field", "query", "objects", "planners", "answer", "mapping", "checkpoint", "shelf", "atlas",
    "atlas_files", "engine", "export", "semantic_mesh", "openlex3d", "viewer", "session", "offline", "offline_ray",
    "results", "progress", "adapter", "evaluation", "wire", "node", "benchmarks", "protocols", "tasks_cli", "cli",
]
INDEPENDENT = {("encoders", "sources")}
"""(who, whom): stands before, and yet must not be imported."""
ONLY_IN = {"mujoco": "sources/simulator", "rclpy": "wire/", "zenoh": "wire/", "viser": "viewer"}
"""Third parties, and where alone they may be imported (start of the path inside the package)."""


def modules(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*.py") if path != package / "__init__.py")


def room(path: Path, package: Path) -> str:
    """The entry of ORDER a module belongs to: its folder, or its own name."""
    first = path.relative_to(package).parts[0]
    return "cli" if first == "__main__.py" else first.removesuffix(".py")


def imported(path: Path, package: Path) -> list[str]:
    """Absolute dotted names of everything a module imports anywhere, also inside functions."""
    here = [package.name, *path.relative_to(package).with_suffix("").parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            # `from . import x` and `from semfield_ros import x` name the module last; elsewhere x is mostly no module.
            names += [".".join([*stem, alias.name] if stem == [package.name] else stem) for alias in node.names]
    return names


def violations(package: Path) -> list[str]:
    """What breaks the order, in words."""
    found = []
    for path in modules(package):
        where, own = path.relative_to(package).as_posix(), room(path, package)
        if own not in ORDER:
            found.append(f"{where}: {own!r} has no place in the order {ORDER}")
            continue
        for name in imported(path, package):
            first, *rest = name.split(".")
            if first in ONLY_IN and not where.startswith(ONLY_IN[first]):
                found.append(f"{where} imports {first}; only {ONLY_IN[first]}* may")
            if first != package.name or not rest or rest[0] == own or rest[0].startswith("__"):
                continue
            if rest[0] not in ORDER:
                found.append(f"{where} imports {name}, which has no place in the order")
            elif ORDER.index(rest[0]) > ORDER.index(own) or (own, rest[0]) in INDEPENDENT:
                found.append(f"{where} imports {name}: {rest[0]} must not be known to {own}")
    return found


def test_nothing_is_imported_backwards(root):
    assert len(modules(root / PACKAGE)) > 10
    assert violations(root / PACKAGE) == []


def test_interface_folders_are_left_to_rosidl(root):
    for name in ("msg", "srv", "action"):
        assert not (root / PACKAGE / name).exists(), "it would hide the generated interfaces"


@pytest.mark.parametrize(
    ("file", "line", "found"),
    [
        ("frame.py", "from .errors import X", 0),
        ("frame.py", "from .engine import X", 1),
        ("frame.py", "from . import errors, engine", 1),
        ("frame.py", "import semfield_ros.query.scores", 1),
        ("frame.py", "from semfield_ros import engine", 1),
        ("frame.py", "def f():\n    from .engine import X", 1),
        ("query/scores.py", "from .prompt import X", 0),
        ("query/scores.py", "from . import prompt", 0),
        ("query/scores.py", "from ..field.model import X", 0),
        ("query/scores.py", "from ..objects import X", 1),
        ("query/scores.py", "from .. import objects", 1),
        ("encoders/tiny.py", "from ..sources import X", 1),
        ("encoders/tiny.py", "from ..frame import X", 0),
        ("encoders/tiny.py", "import mujoco", 1),
        ("sources/simulator_scene.py", "import mujoco", 0),
        ("engine.py", "import rclpy.node", 1),
        ("wire/rclpy_bus.py", "from rclpy import node", 0),
        ("utils.py", "", 1),
        ("cli.py", "from .utils import X", 1),
        ("cli.py", "from . import __version__", 0),
    ],
)
def test_the_check_itself(tmp_path, file, line, found):
    package = tmp_path / PACKAGE
    (package / file).parent.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / file).write_text(line)
    assert len(violations(package)) == found
