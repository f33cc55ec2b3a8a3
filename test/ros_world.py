"""A ROS 2 of the tests' own: a domain on the loopback interface, a plain rclpy node in another process, an overlay.

Imported by tests that are skipped without ROS; nothing here imports rclpy in the tests' process.
"""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wire_peer import Peer

ROOT = Path(__file__).resolve().parents[1]
LOOPBACK = """<CycloneDDS xmlns="https://cdds.io/config"><Domain id="any">
<General><Interfaces><NetworkInterface name="lo" priority="default" multicast="false"/></Interfaces>
<AllowMulticast>false</AllowMulticast><MaxMessageSize>65500B</MaxMessageSize></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>120</MaxAutoParticipantIndex>
<Peers><Peer address="127.0.0.1"/></Peers><LeaseDuration>2s</LeaseDuration></Discovery>
<Internal><SocketReceiveBufferSize min="default" max="16MB"/></Internal>
</Domain></CycloneDDS>
"""


@pytest.fixture(scope="session")
def ros(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of all processes of a test run: nobody else hears them."""
    folder = tmp_path_factory.mktemp("ros")
    (folder / "cyclonedds.xml").write_text(LOOPBACK)
    ours = {
        "CYCLONEDDS_URI": f"file://{folder}/cyclonedds.xml",
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(random.SystemRandom().randint(1, 100)),
        "ROS_LOG_DIR": str(folder / "log"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        # Executables start with `env python3`, which must be the Python that has what this one has.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }
    if any((Path(prefix) / "share/rmw_cyclonedds_cpp").exists() for prefix in prefixes()):
        ours["RMW_IMPLEMENTATION"] = "rmw_cyclonedds_cpp"
    before = dict(os.environ)
    os.environ.update(ours)
    yield dict(os.environ)
    os.environ.clear()
    os.environ.update(before)


def prefixes() -> list[str]:
    """Where ROS and the workspaces on top of it are installed."""
    return [prefix for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix]


class RosPeer(Peer):
    """A plain rclpy node in another process; see `ros_peer.py`."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None):
        command = [sys.executable, str(Path(__file__).with_name("ros_peer.py")), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        self.endpoint = self._answer()


@pytest.fixture(scope="session")
def overlay(ros: dict[str, str], pytestconfig: pytest.Config) -> dict[str, str]:
    """An environment with this package built by CMake: its interfaces, executable and launch files.

    Built once (a minute) and kept in pytest's cache until one of these, or ROS, changes. Its copy of the Python sources
    is not used.
    """
    if any((Path(prefix) / "share/semfield_ros/package.xml").exists() for prefix in prefixes()):
        return ros
    folder = pytestconfig.cache.mkdir(f"overlay-{_digest()}")
    install = folder / "install"
    if not (folder / "complete").exists():
        for old in folder.parent.glob("overlay-*"):
            shutil.rmtree(old)
        _build(folder, ros)
        (folder / "complete").touch()
    [site] = install.glob("lib/python3*/*-packages")
    added = {"AMENT_PREFIX_PATH": [install], "PYTHONPATH": [ROOT, site], "LD_LIBRARY_PATH": [install / "lib"]}
    return {**ros, **{k: os.pathsep.join([*map(str, v), ros.get(k, "")]) for k, v in added.items()}}


def _build(folder: Path, env: dict[str, str]) -> None:
    python, cmake = builder(), shutil.which("cmake")
    if python is None or cmake is None:
        pytest.skip("this package is not built and sourced, and CMake or the Python modules em, lark, catkin_pkg are "
                    "missing to build it here")  # fmt: skip
    configure = [
        cmake, "-S", str(ROOT), "-B", str(folder / "build"), f"-DCMAKE_INSTALL_PREFIX={folder / 'install'}",
        "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={python}", "-DCMAKE_C_FLAGS=-O0", "-DCMAKE_CXX_FLAGS=-O0",
        *(["-GNinja"] if shutil.which("ninja") else []),
    ]  # fmt: skip
    compile, install = [cmake, "--build", str(folder / "build"), "-j2"], [cmake, "--install", str(folder / "build")]
    for command in (configure, compile, install):
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _digest() -> str:
    """Of all that is installed besides Python modules, and of the ROS it is built for."""
    parts = [repr((sys.version_info[:2], prefixes())).encode()]
    for name in ("CMakeLists.txt", "package.xml", "msg", "srv", "action", "launch", "config", "scripts"):
        paths = sorted((ROOT / name).glob("*")) if (ROOT / name).is_dir() else [ROOT / name]
        parts += [path.name.encode() + path.read_bytes() for path in paths if path.is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def builder() -> str | None:
    """A Python that has what the generators of interfaces need: ours, or the one ROS itself was built with."""
    candidates = [sys.executable]
    if ros2 := shutil.which("ros2"):
        with open(ros2, errors="replace") as file:
            candidates.append(file.readline().removeprefix("#!").strip().removeprefix("/usr/bin/env "))
    candidates += [found for name in ("/usr/bin/python3", "python3") if (found := shutil.which(name))]
    for python in candidates:
        check = [python, "-c", "import em, lark, catkin_pkg, sys; print(sys.version_info[:2])"]
        try:
            done = subprocess.run(check, capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0 and done.stdout.strip() == str(sys.version_info[:2]):
            return python
    return None


class Program:
    """A process whose output is read as it runs."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path):
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def says(self, text: str, timeout_s: float = 60.0) -> str:
        """Wait until it has said something; all it has said by then."""
        end_s = time.monotonic() + timeout_s
        while text not in (said := self.log.read_text(errors="replace")):
            if time.monotonic() > end_s or (self.process.poll() is not None and text not in self.log.read_text()):
                raise AssertionError(f"never said {text!r} (exit status {self.process.poll()}):\n{said}")
            time.sleep(0.02)
        return said

    def ends(self, number: int | None = None, timeout_s: float = 60.0) -> int:
        """Its exit status, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """It and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
