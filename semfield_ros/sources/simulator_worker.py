"""A process that renders simulator frames for another one: MuJoCo's ray casting holds Python's lock, processes do not.

Spoken over its standard input and output, pickled: first the configuration, then tasks (T_world_camera, stamp_s); each
is answered by its Frame. Only ever started by `frames_of`, on this machine.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SourceError
from ..frame import Frame

if TYPE_CHECKING:
    from .simulator import SimulatorConfig

_AHEAD = 2  # frames that each worker may be ahead of the consumer


def frames_of(
    config: SimulatorConfig, poses: Sequence[np.ndarray], stamps_s: Sequence[float], workers: int
) -> Iterator[Frame]:
    """The noisy frames of these poses, in order, rendered by `workers` processes that end with the iterator.

    Raises:
        SourceError: a worker ended; what it had to say stands on standard error.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        for _ in range(min(workers, len(poses)))
    ]

    def ask(k: int) -> None:
        if k < len(poses):
            _send(processes[k % len(processes)], (poses[k], stamps_s[k]))

    try:
        for process in processes:
            _send(process, config)
        for k in range(_AHEAD * len(processes)):
            ask(k)
        for k in range(len(poses)):
            stream = processes[k % len(processes)].stdout
            assert stream is not None
            frame: Frame = pickle.load(stream)
            ask(k + _AHEAD * len(processes))
            yield frame
    except (EOFError, BrokenPipeError) as error:
        raise SourceError("a simulator process ended before its frames were done; its message stands above") from error
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin is not None
    pickle.dump(message, process.stdin)
    process.stdin.flush()


def main() -> None:
    """Serve until the other side hangs up."""
    from .simulator import Simulator

    tasks, answers = sys.stdin.buffer, sys.stdout.buffer
    simulator = Simulator(pickle.load(tasks))
    while True:
        try:
            T_world_camera, stamp_s = pickle.load(tasks)
        except EOFError:
            return
        pickle.dump(simulator.render(T_world_camera, stamp_s), answers, protocol=pickle.HIGHEST_PROTOCOL)
        answers.flush()


if __name__ == "__main__":
    main()
