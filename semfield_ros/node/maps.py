"""The map folder: the only place where requests from outside may read and write."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError

MAX_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_ALLOWED = f"letters, digits, '_', '-' and single '.' within, at most {MAX_NAME} characters, no folders"


class MapFolder:
    """A folder whose files are named from outside. It is made when it is first written to."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()

    def resolve(self, name: str, suffix: str) -> Path:
        """The file a name stands for, `suffix` added where it lacks. It need not exist.

        Raises:
            ConfigError: a name that is none, or a link that leads out of the folder.
        """
        stem = name.removesuffix(suffix) if isinstance(name, str) else ""
        if len(stem) > MAX_NAME or ".." in stem or not _NAME.fullmatch(stem):
            shown = repr(name if len(str(name)) <= 40 else f"{str(name)[:40]}...")
            raise ConfigError(f"name {shown} cannot be used in the map folder; allowed: {_ALLOWED}")
        root = self.path.resolve()
        path = root / (stem + suffix)
        try:
            inside = path.resolve().parent == root
        except (OSError, RuntimeError):  # links that lead in circles
            inside = False
        if not inside:
            raise ConfigError(f"{path.name} is a link that leads out of the map folder; choose another name")
        return path

    def existing(self, name: str, suffix: str) -> Path:
        """The file of a name.

        Raises:
            ConfigError: a name that is none, or that nothing has; the message says what there is.
        """
        path = self.resolve(name, suffix)
        if not path.is_file():
            there = ", ".join(self.names(suffix)[:20]) or "nothing"
            raise ConfigError(f"there is no {path.name} in the map folder; it holds {there}")
        return path

    def new(self, name: str, suffix: str, *, overwrite: bool) -> Path:
        """Where to write what has a name; the folder is made. Without a suffix it is to be a folder itself, and whoever
        writes it sees what it may replace.

        Raises:
            ConfigError: a name that is none or taken, or a folder that cannot be made.
        """
        path = self.resolve(name, suffix)
        if path.exists() and not (overwrite and (path.is_file() or not suffix)):
            raise ConfigError(f"{path.name} is in the map folder already; allow overwriting or choose another name")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the map folder cannot be made: {error}; set service.map_folder") from error
        return path

    def names(self, suffix: str) -> list[str]:
        """Names of what can be read, sorted."""
        found = (p.name.removesuffix(suffix) for p in self.path.glob(f"*{suffix}") if p.is_file())
        return sorted(name for name in found if _NAME.fullmatch(name))
