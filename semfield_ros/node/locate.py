"""Locate: wait until something matches a prompt. The work behind the action `~/locate`."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..answer import Answer
from ..engine import Engine
from ..errors import QueryError, SemfieldError
from .questions import Question

POLL_S = 0.1


def locate(
    engine: Engine,
    question: Question,
    timeout_s: float,
    *,
    feedback: Callable[[float, float, int], None],
    cancelled: Callable[[], bool],
) -> tuple[Answer | None, str]:
    """Ask every new snapshot until something matches.

    Args:
        timeout_s: give up after this; 0 = when cancelled.
        feedback: called with seconds since the start, the best score so far and the frames fused since the start.

    Returns:
        the answer that matched and ''; or the last answer (None before any) and why there is no match.

    Raises:
        QueryError: a time-out that is not finite or negative, or a question that cannot be asked at all.
    """
    if not 0 <= timeout_s < float("inf"):
        raise QueryError(f"timeout is {timeout_s} s; allowed: 0 (until cancelled) or more")
    started_s, first_frame = time.monotonic(), engine.snapshot().frames
    asked: object = None
    answer: Answer | None = None
    best, refused = float("-inf"), ""
    while True:
        snapshot = engine.snapshot()
        if snapshot is not asked:
            asked = snapshot
            try:
                answer = question.ask(engine)
                refused = ""
            except SemfieldError as error:
                refused = str(error)  # the field may not have learnt features yet
            if answer is not None:
                best = max([best, *(found.peak for found in answer.prompts)])
                if any(found.matched for found in answer.prompts):
                    return answer, ""
        elapsed_s = time.monotonic() - started_s
        feedback(elapsed_s, max(best, -1.0), snapshot.frames - first_frame)
        known = f"best score {best:.2f}" if best > float("-inf") else "nothing has been seen yet"
        if cancelled():
            return answer, f"cancelled after {elapsed_s:.1f} s; nothing had matched ({known})"
        if timeout_s and elapsed_s >= timeout_s:
            return answer, refused or f"nothing matched within {timeout_s:.1f} s ({known})"
        time.sleep(POLL_S)
