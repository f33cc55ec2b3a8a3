"""Packaging: the build descriptions agree, interfaces are complete and commented, CI runs the README's command."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import semfield_ros

KINDS = ("msg", "srv", "action")
PRIMITIVES = {"bool", "string", "float32", "float64"} | {f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64)}


def interfaces(root: Path) -> list[Path]:
    return sorted(path for kind in KINDS for path in (root / kind).glob(f"*.{kind}"))


def fields(path: Path) -> list[tuple[str, str, bool]]:
    """Type, name and whether it is commented, of every field and constant."""
    found, commented = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            commented = True
        elif line in ("", "---"):
            commented = False
        else:
            kind, name = line.split("#")[0].split(maxsplit=1)
            found.append((kind, name.strip(), commented or "#" in line))
            commented = False
    return found


@pytest.fixture(scope="module")
def package(root):
    return ElementTree.parse(root / "package.xml").getroot()


@pytest.fixture(scope="module")
def cmake(root):
    return (root / "CMakeLists.txt").read_text(encoding="utf-8")


def test_name_version_and_licence_agree(root, package, cmake):
    command = [sys.executable, "setup.py", "--name", "--version", "--license"]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()[-3:]
    assert shown == [package.findtext("name"), package.findtext("version"), package.findtext("license")]
    assert shown == ["semfield_ros", semfield_ros.__version__, "Apache-2.0"]
    assert "project(semfield_ros)" in cmake
    assert "Apache License" in (root / "LICENSE").read_text(encoding="utf-8")


def test_package_xml_is_an_interface_package(package):
    assert package.get("format") == "3"
    assert package.findtext("export/build_type") == "ament_cmake"
    assert package.findtext("member_of_group") == "rosidl_interface_packages"
    assert re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", package.find("maintainer").get("email"))
    tags = {(element.tag, element.text) for element in package}
    for dependency in ("ament_cmake", "ament_cmake_python", "rosidl_default_generators"):
        assert ("buildtool_depend", dependency) in tags
    assert ("exec_depend", "rosidl_default_runtime") in tags


def test_cmake_lists_every_interface(root, cmake):
    block = re.search(r"rosidl_generate_interfaces\((.*?)\)", cmake, re.S)[1]
    listed = re.findall(r'"([^"]+)"', block)
    assert sorted(listed) == sorted(path.relative_to(root).as_posix() for path in interfaces(root))


def test_dependencies_of_the_interfaces_are_declared(root, package, cmake):
    used = {kind.split("/")[0] for path in interfaces(root) for kind, _, _ in fields(path) if "/" in kind}
    used.discard("semfield_ros")
    block = re.search(r"rosidl_generate_interfaces\(.*?DEPENDENCIES (.*?)\)", cmake, re.S)[1].split()
    assert sorted(block) == sorted(used)
    for name in used:
        assert f"find_package({name} REQUIRED)" in cmake
        assert name in {element.text for element in package.findall("depend")}


def test_cmake_chooses_how_to_install_by_version(cmake):
    """rosidl and ament_python_install_package clash before ament_cmake_python 2.8.7, and rosidl must come first."""
    switch = cmake.index("if(ament_cmake_python_VERSION VERSION_GREATER_EQUAL 2.8.7)")
    assert cmake.index("rosidl_generate_interfaces(") < switch < cmake.index("ament_python_install_package(")


def test_every_field_is_commented_and_well_formed(root):
    assert len(interfaces(root)) >= 15
    for path in interfaces(root):
        assert path.read_text(encoding="utf-8").startswith("# "), f"{path.name} does not say what it is for"
        for kind, name, commented in fields(path):
            assert commented, f"{path.name}: {name} has no comment"
            assert re.fullmatch(r"[a-z](_?[a-z0-9])*|[A-Z](_?[A-Z0-9])*=\S+", name), f"{path.name}: {name}"
            base = re.sub(r"\[\d*\]$", "", kind)
            own = re.fullmatch(r"semfield_ros/(\w+)", base)
            assert base in PRIMITIVES or "/" in base, f"{path.name}: {kind}"
            assert not own or (root / "msg" / f"{own[1]}.msg").exists(), f"{path.name}: {kind} is not defined"


def test_services_answer_with_success_and_message(root):
    for path in interfaces(root):
        parts = path.read_text(encoding="utf-8").split("\n---\n")
        assert len(parts) == {".msg": 1, ".srv": 2, ".action": 3}[path.suffix], path.name
        if path.suffix != ".msg":
            assert "bool success" in parts[1] and "string message" in parts[1], path.name


def test_sources_install_for_pip_as_well(root):
    text = (root / "setup.py").read_text(encoding="utf-8")
    assert 'python_requires=">=3.10"' in text and "semfield = semfield_ros.cli:main" in text
    for folder in (root / "semfield_ros").rglob("*.py"):
        assert (folder.parent / "__init__.py").exists(), f"{folder.parent} is no package"


def test_launch_file_is_valid_python_and_starts_with_what_it_does(root):
    for path in (root / "launch").glob("*.launch.py"):
        code = compile(path.read_text(encoding="utf-8"), path.name, "exec")
        assert "generate_launch_description" in code.co_names and code.co_consts[0]


def test_the_executable_runs_in_place_and_installed(root, cmake):
    """A symlink install starts the source file itself."""
    script = root / "scripts/semfield_node"
    assert os.access(script, os.X_OK)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env python3\n")
    compile(text, script.name, "exec")
    assert "install(PROGRAMS scripts/semfield_node DESTINATION lib/${PROJECT_NAME})" in cmake


def test_cmake_installs_definitions_where_they_are_looked_for(cmake):
    from semfield_ros.messages import types

    inside = Path(types.DEFINITIONS, types._OWN).relative_to(Path(semfield_ros.__file__).parent).as_posix()
    block = re.search(r"install\(DIRECTORY msg srv action\s+DESTINATION (\S+)", cmake)[1]
    names = {"${PYTHON_INSTALL_DIR}": "SITE", "${PROJECT_NAME}": "semfield_ros"}
    for name, value in names.items():
        block = block.replace(name, value)
    assert block == f"SITE/semfield_ros/{inside}"


def test_ros_packages_that_are_imported_or_spoken_are_declared(root, package):
    """From the sources: imports of wire/ and launch/, and the types that are named in quotes."""
    declared = {element.text for element in package if element.tag in ("depend", "exec_depend")}
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in [*(root / "semfield_ros").rglob("*.py"), *(root / "launch").glob("*.py")]
    )
    spoken = set(re.findall(r'"([a-z0-9_]+)/(?:msg|srv)/\w+"', text)) - {"semfield_ros"}
    assert {"sensor_msgs", "vision_msgs", "diagnostic_msgs"} <= spoken
    shipped_by_ros_itself = {"rosgraph_msgs", "service_msgs"}
    assert spoken - shipped_by_ros_itself <= declared
    imported = set(re.findall(r"^(?:from|import) (rclpy|tf2_ros|rcl_interfaces|launch|launch_ros)\b", text, re.M))
    assert {name.replace("tf2_ros", "tf2_ros_py") for name in imported} <= declared and len(imported) == 5


def test_rviz_shows_what_the_node_publishes(root):
    data = yaml.safe_load((root / "config/semfield.rviz").read_text(encoding="utf-8"))["Visualization Manager"]
    displays = {display["Name"]: display for display in data["Displays"]}
    topics = {display["Topic"]["Value"] for display in displays.values() if "Topic" in display}
    outputs = (root / "semfield_ros/node/outputs.py").read_text(encoding="utf-8")
    for topic in topics:
        assert f'"{topic.removeprefix("semfield/")}"' in outputs
    assert {display["Class"].split("/")[0] for display in displays.values()} == {"rviz_default_plugins"}
    relevancy = displays["Relevancy"]
    # its colours are those of the surface, with the relevancy laid over; the channel is one click away
    assert (relevancy["Color Transformer"], relevancy["Channel Name"]) == ("RGB8", "relevancy")
    assert not relevancy["Autocompute Intensity Bounds"]
    assert (relevancy["Min Intensity"], relevancy["Max Intensity"]) == (0, 1)
    for display in displays.values():
        latched = display.get("Topic", {}).get("Value") in ("semfield/map_cloud", "semfield/labelled_cloud")
        assert "Topic" not in display or (display["Topic"]["Durability Policy"] == "Transient Local") == latched
    assert {d["Channel Name"] for d in displays.values() if d.get("Color Transformer") == "Intensity"} == {
        "instance", "confidence",
    }  # fmt: skip
    assert data["Global Options"]["Fixed Frame"] == "map"


def test_workflows_cover_the_supported_versions(root):
    tests = yaml.safe_load((root / ".github/workflows/tests.yml").read_text())
    assert tests["jobs"]["python"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    ros = yaml.safe_load((root / ".github/workflows/ros.yml").read_text())
    assert ros["jobs"]["colcon"]["strategy"]["matrix"]["distro"] == ["humble", "jazzy", "kilted", "rolling"]
    assert ".ci/run" in ros["jobs"]["node"]["steps"][-1]["run"]


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("no command", "found 0"),
        ("```bash\na '.[sim,test]'\nb '.[sim,test]'\n```\n", "found 2"),
        ("```bash\nmake '.[sim,test]' && .venv-test/bin/python -m pytest\n```\n", "is not: make .venv-test"),
    ],
)
def test_ci_refuses_a_readme_without_the_one_command(root, tmp_path, readme, message):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_bytes((root / ".ci/run").read_bytes())
    (tmp_path / "README.md").write_text(readme)
    ran = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and message in ran.stderr
    assert os.access(root / ".ci/run", os.X_OK)
