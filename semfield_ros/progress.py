"""What a person sees while a session runs, and the answer as a table."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .answer import Answer
from .session import Progress as Standing


def memory_mb() -> float:
    """Resident memory of this process now; nan where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20
    except OSError:
        return float("nan")


class LiveProgress:
    """Two bars (frames, training) and a line of figures; plain lines where there is no terminal."""

    def __init__(self, console: Console, train_s: float):
        self.console, self.train_s = console, train_s
        self.bars = Progress(
            TextColumn("{task.description:>9}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console,
        )  # fmt: skip
        self.frames = self.bars.add_task("frames", total=None)
        self.training = self.bars.add_task("training s", total=max(train_s, 1e-9))
        self.line = Text()
        self.live = Live(Group(self.bars, self.line), console=console, refresh_per_second=8, transient=False)
        self._told_phase = ""

    def __enter__(self) -> LiveProgress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def update(self, at: Standing) -> None:
        """Show where the session stands."""
        mapping = at.status.mapping
        losses = "  ".join(f"{k} {v:.3f}" for k, v in (mapping.losses or {}).items())
        dropped = sum(at.status.dropped.values())
        text = (
            f"{at.frame_rate_hz:5.1f} frames/s  {mapping.keyframes} keyframes  {mapping.voxels} voxels  "
            f"{at.step_rate_hz:5.1f} steps/s  {losses}  {memory_mb():.0f} MB"
            + (f"  dropped {dropped}" if dropped else "")
        )
        if self.console.is_terminal:
            self.bars.update(self.frames, completed=at.frames, total=at.total or None)
            if at.phase == "training":
                self.bars.update(self.training, completed=round(self.train_s - at.remaining_s, 1))
            self.line.plain = text
            self.live.update(Group(self.bars, self.line))
        elif at.phase != self._told_phase or (at.remaining_s == 0 and at.phase == "training"):
            self._told_phase = at.phase
            self.console.print(f"{at.elapsed_s:6.1f} s  {at.phase:8}  {at.frames} frames  {text}", highlight=False)

    def say(self, text: str) -> None:
        """One line under the bars."""
        self.line.plain = text
        if self.console.is_terminal:
            self.live.update(Group(self.bars, self.line))


def show_answer(console: Console, answer: Answer | None) -> None:
    """The answer as a table: one row an object, one for every prompt without a match."""
    if answer is None:
        return
    table = Table(title=f"Found in frame {answer.global_frame!r}, metres; answered from {answer.source}")
    for name in ("prompt", "score", "confidence", "centre x y z", "size x y z", "grasps", "best grasp"):
        table.add_column(name, justify="left" if name in ("prompt", "best grasp") else "right")
    for found in answer.prompts:
        if not found.matched:
            table.add_row(found.label, f"{found.peak:.2f}", "", "[dim]no match[/]", "", "", "")
        for thing in found.objects:
            best = thing.grasps[0] if thing.grasps else None
            why = next(iter(thing.rejected), "none fits")
            table.add_row(
                found.label, f"{thing.score:.2f}", f"{thing.confidence:.2f}",
                " ".join(f"{v:6.3f}" for v in thing.box.centre),
                " ".join(f"{2 * v:.3f}" for v in thing.box.half_extents),
                str(len(thing.grasps)),
                f"{best.approach}, {best.width_m * 1000:.0f} mm wide" if best else why,
            )  # fmt: skip
    console.print(table)
