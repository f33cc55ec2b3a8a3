"""Features kept on disk, so that a recording is encoded once whatever is tried on it afterwards.

An entry is one safetensors file named by a hash of the encoder's settings (its `cache_key`) and of all of a frame that
an encoder may look at: images, labels, masks and intrinsics, but neither stamp nor pose. A file that is torn, foreign
or altered is no entry, and is written again. The folder is bounded; what was used longest ago goes first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..frame import Frame
from .base import Calibration, Encoder, Target, Window

logger = logging.getLogger(__name__)

SUFFIX = ".features.safetensors"
"""Of entries: nothing else in a folder is counted or deleted."""
FORMAT = "1"


def content_hash(frame: Frame) -> str:
    """32 hex digits of everything in a frame that features may depend on."""
    digest = hashlib.blake2b(digest_size=16)
    masks = None if frame.segments is None else frame.segments.ids
    images = (frame.rgb, frame.depth_m, frame.semantic, frame.instance, masks)
    for image in images:
        if image is None:
            digest.update(b"none")
        else:
            digest.update(f"{image.dtype.str}{image.shape}".encode())
            digest.update(np.ascontiguousarray(image).data)
    camera = frame.camera
    digest.update(repr((camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy)).encode())
    if frame.segments is not None:
        for table in (frame.segments.names, frame.segments.scores):
            digest.update(repr(sorted(table.items())).encode())
    return digest.hexdigest()


def pack(targets: Mapping[str, Target]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and a header that say all of some targets; TypeError where one holds anything else."""
    arrays: dict[str, np.ndarray] = {}
    for number, target in enumerate(targets.values()):
        if type(target) is not Target:
            raise TypeError(f"a {type(target).__name__} is no Target")
        for field in fields(target):
            value = getattr(target, field.name)
            if isinstance(value, Window):
                arrays[f"{number}.{field.name}.kernel"] = value.kernel
                arrays[f"{number}.{field.name}.pitch_px"] = np.float64(value.pitch_px).reshape(1)
            elif isinstance(value, np.ndarray):
                arrays[f"{number}.{field.name}"] = value
            elif value is not None:
                raise TypeError(f"{field.name} is a {type(value).__name__}")
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sums = {name: crc(array) for name, array in arrays.items()}
    return arrays, {"format": FORMAT, "names": json.dumps(list(targets)), "crc": json.dumps(sums)}


def unpack(arrays: dict[str, np.ndarray], header: dict[str, str]) -> dict[str, Target]:
    """What `pack` took apart; ValueError, KeyError or TypeError where it is none of its making."""
    if header.get("format") != FORMAT:
        raise ValueError(f"format {header.get('format')!r}")
    if json.loads(header["crc"]) != {name: crc(array) for name, array in arrays.items()}:
        raise ValueError("checksums disagree")
    names = json.loads(header["names"])
    parts: list[dict[str, Any]] = [{} for _ in names]
    for name, array in arrays.items():
        number, field, *inner = name.split(".")
        if not inner:
            parts[int(number)][field] = array
        elif inner == ["kernel"]:
            pitch_px = float(arrays[f"{number}.{field}.pitch_px"][0])
            parts[int(number)][field] = Window(array, pitch_px)
    return {name: Target(**part) for name, part in zip(names, parts)}


def crc(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class FeatureCache:
    """A bounded folder of targets. Safe to share between threads and processes: files appear whole or not at all.

    Args:
        folder: made where it is missing. max_mb: of entries; the newest one is kept even if it alone is larger.

    Raises:
        ConfigError: the folder cannot be written, or max_mb <= 0.
    """

    def __init__(self, folder: str | Path, max_mb: float = 4096.0):
        if not max_mb > 0:
            raise ConfigError(f"cache_mb is {max_mb}; allowed: > 0")
        self.folder, self.max_bytes = Path(folder).expanduser(), int(max_mb * 2**20)
        self.hits = self.misses = self.torn = 0
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise ConfigError(f"cache_folder {self.folder} cannot be written ({error}); name another folder") from error
        self._bytes = sum(size for _, size, _ in self._entries())

    def path(self, key: str) -> Path:
        """Where the entry of a key lies, if it does."""
        return self.folder / f"{key}{SUFFIX}"

    def get(self, key: str) -> dict[str, Target] | None:
        """The entry of a key; None where there is none that can be read."""
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        try:
            with safe_open(str(path), framework="numpy") as file:
                header = file.metadata() or {}
                found = unpack({name: file.get_tensor(name) for name in file.keys()}, header)
            os.utime(path)  # used now: the last to go
        except FileNotFoundError:
            found = None
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("cached features %s are unusable (%s); encoding again", path.name, error)
            self.torn += 1
            found = None
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: str, targets: Mapping[str, Target]) -> bool:
        """Keep targets; False where one is none that can be kept, or the disk refused."""
        from safetensors.numpy import save

        try:
            arrays, header = pack(targets)
        except TypeError as error:
            logger.debug("features not cached: %s", error)
            return False
        data = save(arrays, metadata=header)
        path, handle = self.path(key), None
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as handle:
                handle.write(data)
            replaced = path.stat().st_size if path.exists() else 0
            os.replace(handle.name, path)
        except OSError as error:
            logger.warning("features were not cached in %s: %s", self.folder, error)
            if handle is not None:
                Path(handle.name).unlink(missing_ok=True)
            return False
        with self._lock:
            self._bytes += len(data) - replaced
            if self._bytes > self.max_bytes:
                self._shrink(keep=path)
        return True

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every entry."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            found.append((status.st_mtime_ns / 1e9, status.st_size, path))
        return found

    def _shrink(self, keep: Path) -> None:
        """Delete entries, those used longest ago first, until nine tenths of the budget hold the rest."""
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= 0.9 * self.max_bytes:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size
        self._bytes = total


class CachedEncoder:
    """An encoder that remembers on disk what it saw; everything else is the encoder's own."""

    def __init__(self, encoder: Encoder, cache: FeatureCache):
        self.encoder, self.cache = encoder, cache
        self.name, self.dim, self.has_text = encoder.name, encoder.dim, encoder.has_text
        self.cache_key = encoder.cache_key
        self.calibration: Calibration = encoder.calibration
        self._settings = hashlib.blake2b(self.cache_key.encode(), digest_size=8).hexdigest()
        if hasattr(encoder, "encode_targets"):
            # only where the encoder has it: `targets_of` asks
            self.encode_targets = self._encode_targets
        if hasattr(encoder, "encode_steps"):
            self.encode_steps = self._encode_steps

    def __getattr__(self, name: str) -> Any:
        if name == "encoder":  # not there yet while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.encoder, name)

    def encode_frame(self, frame: Frame) -> Target:
        """See `Encoder.encode_frame`; from the disk where it was done before."""
        key = f"{self._settings}-{content_hash(frame)}"
        found = self.cache.get(key)
        if found is None or "" not in found:
            found = {"": self.encoder.encode_frame(frame)}
            self.cache.put(key, found)
        return found[""]

    def _encode_steps(self, frame: Frame) -> Iterator[Target | None]:
        key = f"{self._settings}-{content_hash(frame)}"
        found = self.cache.get(key)
        if found is not None and "" in found:
            yield found[""]
            return
        for target in self.encoder.encode_steps(frame):  # type: ignore[attr-defined]
            if target is not None:
                self.cache.put(key, {"": target})
            yield target

    def _encode_targets(self, frame: Frame) -> dict[str, Target]:
        key = f"{self._settings}-several-{content_hash(frame)}"
        found = self.cache.get(key)
        if found is None:
            found = self.encoder.encode_targets(frame)  # type: ignore[attr-defined]
            self.cache.put(key, found)
        return found

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode_text`."""
        return self.encoder.encode_text(texts)
