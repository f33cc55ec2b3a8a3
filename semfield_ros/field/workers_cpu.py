"""Threads of our own for the CPU kernels, which release the GIL.

numba's own layers either spin while they wait, which starves the other threads of a robot's computer, or are not safe
to enter from two threads, which training and queries do. torch's spin too: between two of its operations they hold the
cores that our kernels are about to need, so a training step keeps torch to one thread (`undisturbed`).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache

import torch

PIECES = 2
_here = threading.local()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "semfield-kernels")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, torch computes on this thread alone, and `split` on as many as torch had before."""
    threads = torch.get_num_threads()
    _here.threads = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        del _here.threads


def split(count: int, work: Callable[[int, int], None]) -> None:
    """Call work(first, last) over 0..count on as many threads as torch uses, this one among them.

    There are PIECES for each thread, and whoever is free takes the next: on a busy computer nobody waits for a thread
    that has not been given a core yet.
    """
    threads = max(1, min(getattr(_here, "threads", 0) or torch.get_num_threads(), count))
    if threads == 1:
        work(0, count)
        return
    pieces = min(PIECES * threads, count)
    order = itertools.count()

    def take() -> None:
        while (piece := next(order)) < pieces:
            work(count * piece // pieces, count * (piece + 1) // pieces)

    others = [_pool().submit(take) for _ in range(threads - 1)]
    try:
        take()
    finally:
        for other in others:
            if not other.cancel():
                other.result()
