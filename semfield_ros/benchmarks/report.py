"""A benchmark's report: a table to read and, last, one line of JSON to keep."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def peak_rss_mb() -> float:
    """Peak resident memory of this process, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def median_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The median of some runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(statistics.median(times))


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are numbers; nan where there is none."""
    numbers = [v for v in values if v is not None and not math.isnan(v)]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def show_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table; floats with three significant figures."""
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(text(value) for value in row))
    console.print(table)


def text(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def json_line(data: Mapping[str, Any]) -> str:
    """One line of strict JSON: nan becomes null, floats keep five significant figures."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float):
            return None if math.isnan(value) or math.isinf(value) else float(f"{value:.5g}")
        return value

    return json.dumps(plain(data), allow_nan=False)
