"""Jobs on a Ray cluster: one on this machine by default."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError

A = TypeVar("A")
B = TypeVar("B")
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's shared memory: jobs pass descriptions, maps go through files."""


class RayPool:
    """Use as a context manager: a local cluster of so many workers ends with it, a cluster that was there goes on.

    Args:
        jobs: workers at once, of a local cluster. address: of a running cluster ('' = a local one); its machines need
            this package installed and the output folder at the same path.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, jobs: int, address: str = ""):
        if jobs < 1:
            raise ConfigError(f"jobs is {jobs}; allowed: >= 1")
        # before it is imported: building maps tells nobody
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{jobs} jobs at once need Ray: pip install 'semfield_ros[build]', or use --jobs 1"
            ) from error
        self.ray: Any = ray
        self.jobs, self.address = jobs, address
        self._mine = False

    def __enter__(self) -> RayPool:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        local = {} if self.address else {
            "num_cpus": self.jobs, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
        }  # fmt: skip
        if not self.ray.is_initialized():
            try:
                self.ray.init(address=self.address or "local", log_to_driver=False, logging_level="ERROR", **local)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(f"no Ray cluster at {self.address or 'this machine'}: {error}") from error
            self._mine = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            self.ray.shutdown()

    def run(self, work: Callable[[A], B], items: Sequence[A]) -> Iterator[tuple[int, B | Exception]]:
        """As they finish. A worker that dies fails its item, nothing else."""
        task = self.ray.remote(num_cpus=1, max_retries=0)(work)
        waiting = {task.remote(item): number for number, item in enumerate(items)}
        while waiting:
            (ready, *_), _ = self.ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ready)
            try:
                yield number, self.ray.get(ready)
            except Exception as error:
                yield number, error
