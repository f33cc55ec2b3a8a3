"""Checkpoints: one safetensors file with the map, the field, the replay and, in its header, JSON that describes them.

Never pickle. Written to a temporary file and renamed, so a crash leaves the old file whole; every tensor's CRC-32
stands in the JSON, and the JSON's beside it, so a torn or altered file is refused. Loading builds a new `Mapping` and
touches nothing else: the running map stays as it was on any error.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import SemfieldConfig
from .config_io import from_dict
from .encoders.base import Encoder
from .errors import CheckpointError, ConfigError
from .field.heads import HeadConfig
from .field.snapshot import Snapshot, take
from .field.workspace import Workspace
from .geometry import Camera
from .mapping import Mapping
from .memory.cubes import Cube
from .memory.features import FeatureShape
from .memory.keyframes import Keyframe, Keyframes
from .memory.replay import Replay

FORMAT = 2
"""The newest that is read: 1 = a map in one piece, 2 = the index of a map in blocks."""
SUFFIX = ".semfield"


def _crc(tensor: torch.Tensor) -> int:
    # numpy's view, as torch has none of an empty tensor
    return zlib.crc32(tensor.contiguous().numpy().reshape(-1).view(np.uint8).data)


def _umask() -> int:
    """The process's umask, which can only be read by setting it: mkstemp ignores it and makes private files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def checked_path(path: str | Path, overwrite: bool) -> Path:
    """The path a map is saved to, with its suffix; CheckpointError where it is taken."""
    path = Path(path)
    if path.suffix != SUFFIX:
        path = path.with_name(path.name + SUFFIX)
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name or allow overwriting (overwrite=True)")
    return path


def _tensors(mapping: Mapping) -> dict[str, torch.Tensor]:
    tensors = {f"points.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in mapping.points.state().items()}
    if mapping.field is not None and mapping.trainer is not None and mapping.replay is not None:
        tensors |= {f"field.{k}": v for k, v in mapping.field.state_dict().items()}
        tensors |= {f"adam.{k}": v for k, v in mapping.trainer.state().items()}
        tensors |= {f"replay.{k}": v for k, v in mapping.replay.state().items()}
    tensors |= {f"masks.{k}": torch.from_numpy(v.copy()) for k, v in mapping.masks.state()[1].items()}
    # a clone: tensors that share storage cannot be written
    return {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}


def save(
    path: str | Path, mapping: Mapping, encoder: Encoder, *, overwrite: bool = False, durable: bool = True
) -> Path:
    """Save a map; returns the path written (with suffix .semfield). `durable` waits until the disk has it.

    Raises:
        CheckpointError: the file exists and `overwrite` is not set, or its folder cannot be written.
    """
    path = checked_path(path, overwrite)
    tensors = _tensors(mapping)
    description: dict[str, object] = {
        "format": 1,
        "config": asdict(mapping.config),
        "encoder": {"name": encoder.name, "dim": encoder.dim, "cache_key": encoder.cache_key},
        "stamp_s": mapping.stamp_s if np.isfinite(mapping.stamp_s) else None,
        "counts": dict(mapping.counts),
        "samples": mapping.samples,
        "learnt": dict(mapping.learnt),
        "steps": mapping.steps,
        "voxels": len(mapping.points),
        "masks": mapping.masks.state()[0],
        "cube": None if mapping.cube is None else asdict(mapping.cube),
        "crc32": {k: _crc(v) for k, v in tensors.items()},
    }
    if mapping.replay is not None and mapping.field is not None and mapping.keyframes is not None:
        replay, workspace = mapping.replay, mapping.field.workspace
        description |= {
            "workspace": asdict(workspace),
            "image": [replay.width, replay.height],
            "replay": replay.describe(),
            "heads": [asdict(head.config) for head in map(mapping.field.head, mapping.field.heads)],
            "next_keyframe": mapping.keyframes.next_id,
            "keyframes": [
                {
                    "id": k.id, "slot": k.slot, "stamp_s": k.stamp_s, "camera": asdict(k.camera),
                    "T_world_camera": k.T_world_camera.tolist(), "camera_name": k.camera_name,
                }
                for k in mapping.keyframes.items
            ],
        }  # fmt: skip
    return write(path, description, tensors, durable=durable)


def write(
    path: Path, description: dict[str, object], tensors: dict[str, torch.Tensor], *, durable: bool = True
) -> Path:
    """Write a file of this format whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        os.chmod(temporary, 0o666 & ~_umask())
    except OSError as error:
        raise CheckpointError(f"cannot write into {path.parent}: {error}") from error
    try:
        text = json.dumps(description)
        save_file(tensors, temporary, metadata={"semfield": text, "crc32": str(zlib.crc32(text.encode()))})
        if durable:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def describe(path: str | Path) -> dict:
    """The JSON of a saved map, without reading its tensors.

    Raises:
        CheckpointError: missing, torn, foreign or newer.
    """
    return _read(Path(path), tensors=False)[0]


def _read(
    path: Path, *, tensors: bool = True, wanted: Callable[[str], bool] = lambda key: True
) -> tuple[dict, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; `save` writes one, with suffix {SUFFIX}")
    found = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata.get("semfield")
            if text is None:
                raise CheckpointError(f"{path} is a safetensors file but not a semfield map")
            description = json.loads(text)
            if not isinstance(description, dict) or not isinstance(description.get("format"), int):
                raise CheckpointError(f"{path} does not say which format it has; it was not written by this program")
            if description["format"] > FORMAT:
                raise CheckpointError(
                    f"{path} has format {description['format']}, this program reads up to {FORMAT}; update semfield_ros"
                )
            if metadata.get("crc32") != str(zlib.crc32(text.encode())):
                raise CheckpointError(f"{path} is damaged: its description does not have its checksum")
            if tensors:
                found = {key: file.get_tensor(key) for key in file.keys() if wanted(key)}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is torn or is not a semfield map: {error}") from error
    if tensors:
        expected = {k: v for k, v in description.get("crc32", {}).items() if wanted(k)}
        if set(expected) != set(found):
            raise CheckpointError(f"{path} lacks tensors it names: {sorted(set(expected) ^ set(found))[:5]}")
        for key, tensor in found.items():
            if _crc(tensor) != expected[key]:
                raise CheckpointError(f"{path} is damaged: tensor {key} does not have its checksum")
    return description, found


def saved_config(path: str | Path) -> SemfieldConfig:
    """The configuration a map was built with."""
    try:
        return from_dict(describe(path)["config"])
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} has a configuration this program cannot read: {error}") from error


def same_encoder(path: Path, made_with: dict[str, Any], encoder: Encoder) -> None:
    """Raise CheckpointError unless a map was made with this encoder."""
    if made_with.get("cache_key") != encoder.cache_key:
        raise CheckpointError(
            f"{path} was made with encoder {made_with.get('name')!r} ({made_with.get('cache_key')}), this engine runs "
            f"{encoder.name!r} ({encoder.cache_key}): its features cannot be asked with it; use the same encoder"
        )


def load(path: str | Path, config: SemfieldConfig, encoder: Encoder, device: str) -> Mapping:
    """A saved map as a new `Mapping`, ready to train on. Sizes of grids and memory come from the file.

    Raises:
        CheckpointError: missing, torn, foreign, newer, or made with another encoder.
    """
    path = Path(path)
    description, tensors = _read(path)
    same_encoder(path, description.get("encoder", {}), encoder)
    if "blocks" in description:
        raise CheckpointError(f"{path} is the index of a map in blocks, not a single map; `Engine.load` reads both")
    saved = saved_config(path)
    try:
        return _rebuild(description, tensors, config, saved, encoder, device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a whole map: {error!r}") from error


def cube_of(description: dict[str, Any]) -> Cube | None:
    cube = description.get("cube")
    return None if cube is None else Cube(tuple(cube["cell"]), cube["edge_m"])


def learnt_of(description: dict[str, Any]) -> dict[str, int]:
    """How often each head of a saved map was trained; maps from before there were several know it of language."""
    learnt: dict[str, int] = description.get("learnt") or {"language": description.get("language_steps", 0)}
    return learnt


def shape_of(description: dict[str, Any]) -> FeatureShape | None:
    """Room a saved map has for features; None before its first keyframe."""
    language = description.get("replay", {}).get("language")
    shape = description.get("features") if language is None else language["shape"]
    return None if shape is None else FeatureShape(**shape)


def keyframes_of(description: dict[str, Any]) -> list[Keyframe]:
    """The keyframes of a saved map, oldest first."""
    return [
        Keyframe(
            k["id"], k["slot"], k["stamp_s"], Camera(**k["camera"]), np.array(k["T_world_camera"]), k["camera_name"]
        )
        for k in description.get("keyframes", ())
    ]


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}


def _restore(mapping: Mapping, description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Counters and field."""
    mapping.counts.update(description["counts"])
    mapping.stamp_s = float("nan") if description["stamp_s"] is None else float(description["stamp_s"])
    mapping.samples = description["samples"]
    # maps saved before there were several heads say how often language was trained
    mapping.learnt.update(learnt_of(description))
    if "workspace" not in description:
        return
    workspace, weights = description["workspace"], _part(tensors, "field")
    for head in description.get("heads", ()):
        mapping.heads[head["name"]] = HeadConfig(**head)
    mapping.make_field(Workspace(tuple(workspace["centre_m"]), workspace["extent_m"]))
    assert mapping.field is not None and mapping.trainer is not None
    if any(k.startswith("proposals.") for k in weights):
        mapping.trainer.without_depth()
    mapping.field.load_state_dict(weights)
    mapping.trainer.steps = description["steps"]


def read_snapshot(path: Path, config: SemfieldConfig, dim: int, device: str, *, check: bool = True) -> Snapshot:
    """What readers need of a saved map and no more: surface and field; features stay on disk, memory-mapped.

    Args:
        config: its sizes of grids and memory must be the file's. check: read the features once to compare their
            checksum; not needed for a file this process wrote.

    Raises:
        CheckpointError: missing, torn, foreign or newer.
    """

    def wanted(key: str) -> bool:
        return key.startswith("field.") or (key.startswith("points.") and key != "points.features")

    description, tensors = _read(path, wanted=wanted)
    mapping = Mapping(config, dim, device, cube_of(description))
    try:
        mapping.points = mapping.empty_points(feature_dim=0)
        mapping.points.load({k: v.numpy() for k, v in _part(tensors, "points").items()})
        described = description.get("masks", ())
        images = {"bytes": _mapped(path, "masks.bytes")} if described else {}
        mapping.masks.load(described, images)
        _restore(mapping, description, tensors)
        features = _mapped(path, "points.features")
        if features.shape != (len(mapping.points), dim):
            raise ValueError(f"features are {features.shape}, expected {(len(mapping.points), dim)}")
        for key, array in {"points.features": features, **{f"masks.{k}": v for k, v in images.items()}}.items():
            if check and zlib.crc32(np.ascontiguousarray(array).data) != description["crc32"][key]:
                raise CheckpointError(f"{path} is damaged: tensor {key} does not have its checksum")
        # nobody trains this field: no copy is needed of it
        alone = take(
            mapping.points, None, stamp_s=mapping.stamp_s, frames=mapping.counts["frames"], step=mapping.steps,
            language=mapping.language_steps > 0, learnt=dict(mapping.learnt), masks=mapping.masks.views,
        )  # fmt: skip
        field = None if mapping.field is None else mapping.field.eval().requires_grad_(False)
        return replace(alone, features=features, field=field)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole map: {error!r}") from error


def _mapped(path: Path, key: str) -> np.ndarray:
    """A half-precision or byte tensor of a safetensors file as a read-only memory map (the file's layout is public: a
    64-bit length, a JSON header, then the bytes)."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[key]
    if entry["dtype"] not in ("F16", "U8"):
        raise ValueError(f"{key} is {entry['dtype']}; expected F16 or U8")
    kind = np.float16 if entry["dtype"] == "F16" else np.uint8
    shape, begin = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
    if 0 in shape:
        return np.zeros(shape, kind)
    # copy-on-write: torch takes no read-only memory
    return np.memmap(path, kind, "c", begin, shape)


def _replay_of_old(description: dict[str, Any]) -> dict[str, Any]:
    """What `Replay.describe` says, of a map that was saved before there were several teachers."""
    keyframes = description["keyframes"]
    language = {
        "shape": description["features"], "window": description["window"],
        "slots": [k["slot"] for k in keyframes if k["features"]],
    }  # fmt: skip
    return {"order": [k["slot"] for k in keyframes], "language": language}


def _rebuild(
    description: dict[str, Any], tensors: dict[str, torch.Tensor], config: SemfieldConfig, saved: SemfieldConfig,
    encoder: Encoder, device: str,
) -> Mapping:  # fmt: skip
    # what computes the field is a matter of this machine, not of the map
    field = replace(saved.field, backend=config.field.backend, precision=config.field.precision)
    config = replace(config, memory=saved.memory, field=field)
    mapping = Mapping(config, encoder.dim, device, cube_of(description))
    mapping.points.load({k: v.numpy() for k, v in _part(tensors, "points").items()})
    mapping.masks.load(description.get("masks", ()), {k: v.numpy() for k, v in _part(tensors, "masks").items()})
    _restore(mapping, description, tensors)
    if mapping.trainer is None:
        return mapping

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return _part(tensors, prefix)

    mapping.trainer.load(part("adam"), description["steps"])
    mapping.news_step = description["steps"]
    width, height = description["image"]
    described = description["replay"] if "replay" in description else _replay_of_old(description)
    shape = FeatureShape(**described["language"]["shape"])
    replay = Replay(config.memory, width, height, shape, device)
    replay.load(part("replay"), described)
    mapping.replay = replay
    mapping.keyframes = Keyframes(config.memory, replay.capacity)
    mapping.keyframes.restore(keyframes_of(description), description["next_keyframe"])
    mapping.recall_space()
    return mapping
