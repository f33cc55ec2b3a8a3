"""Replay: a bounded store of ray records and feature measurements, by keyframe slot.

A record is one pixel of one keyframe in CAMERA coordinates (pixel, z-depth, colour, normal); poses live in a table
beside them, so a pose correction is a table edit (DESIGN idea 6). Each keyframe keeps one random valid pixel of every
`stride` x `stride` block (a jittered lattice), so that a pixel's surroundings can be looked up: training through a
receptive window needs them. All tensors of one slot are overwritten when its keyframe is dropped; nothing ever grows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ..config import MemoryConfig
from ..encoders.base import Target, Window
from ..frame import Frame
from ..geometry import Camera
from .draws import kept, on_device
from .features import FeatureShape, FeatureStore
from .keyframes import Keyframe
from .labels import LabelStore
from .surface import depth_normals

try:
    from . import rays_cpu
except (ImportError, RuntimeError):  # an accelerator, not a need; RuntimeError: nowhere to keep its cache
    rays_cpu = None  # type: ignore[assignment]

NEIGHBOUR_REACH = 3
"""Blocks between neighbours and the middle of them, at most."""
HELD_OUT = 16
"""Of so many feature measurements one can be kept from training, to judge what was learnt."""
COLOUR_SCALE = 40.0
"""A difference of 8-bit colours that makes an edge."""
FORGOTTEN = -1.0
"""The depth of a record that is not to be used any more; 0 is a pixel whose depth the sensor could not tell."""
BEND_SCALE = 0.03
"""A relative deviation from the plane through two pixels, midway between them, that makes an edge."""


@dataclass(frozen=True)
class RayBatch:
    """R rays with their measurements.

    Attributes:
        origins, directions: [R, 3] world, directions unnormalised with camera z = 1 (so t is z-depth).
        norms: [R] metres along the ray per metre of z. depth_m: [R] z-depth. rgb: [R, 3] in [0, 1].
        incidence: [R] cosine between ray and surface normal (1 where the normal is unknown).
        slots: [R] int64 keyframe slots.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    norms: torch.Tensor
    depth_m: torch.Tensor
    rgb: torch.Tensor
    incidence: torch.Tensor
    slots: torch.Tensor


@dataclass(frozen=True)
class ColourBatch:
    """R rays of known colour and unknown depth: origins, directions [R, 3] as in RayBatch; rgb [R, 3] in [0, 1].

    `share` (0-d): of the rays that were asked for, how many there really were; a few must not weigh as much as many.
    """

    origins: torch.Tensor
    directions: torch.Tensor
    rgb: torch.Tensor
    share: torch.Tensor | float = 1.0


@dataclass(frozen=True)
class PatchBatch:
    """P feature measurements, each with K surface points sampled from its receptive window.

    Attributes:
        points: [P, K, 3] world. valid: [P, K] bool. values: [P, D] unit targets. confidence: [P].
        directions: [P, K, 3] world, z-unit rays of the points (for jitter along the ray).
    """

    points: torch.Tensor
    directions: torch.Tensor
    valid: torch.Tensor
    values: torch.Tensor
    confidence: torch.Tensor


@dataclass(frozen=True)
class NeighbourBatch:
    """N pairs of surface points that are neighbours in one image: a, b [N, 3] world; weight [N] in [0, 1], low where
    the surface bends or its colour changes between them."""

    a: torch.Tensor
    b: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class LabelBatch:
    """N labelled pixels whose depth is known.

    Attributes:
        points: [N, 3] world, the surface that was labelled. directions: [N, 3] z-unit rays.
        semantic, instance, segment: [N] int64 as in `Frame`: 0 = none. confidence: [N] of the segment, 0 to 1.
        slots: [N] int64, which image. pixel: [N] v * width + u.
    """

    points: torch.Tensor
    directions: torch.Tensor
    semantic: torch.Tensor
    instance: torch.Tensor
    segment: torch.Tensor
    confidence: torch.Tensor
    slots: torch.Tensor
    pixel: torch.Tensor


class Replay:
    """Slots of ray records and feature targets on one device. Not thread-safe: the engine's thread owns it."""

    def __init__(self, config: MemoryConfig, width: int, height: int, features: FeatureShape, device: str):
        self.config, self.device = config, torch.device(device)
        self.width, self.height = width, height
        self.stride = max(1, int(np.ceil(np.sqrt(width * height / config.pixels_per_keyframe))))
        self.grid_w, self.grid_h = -(-width // self.stride), -(-height // self.stride)
        self.records = self.grid_w * self.grid_h
        self.bytes_per_slot = self.records * 12 + features.bytes + 80
        budget = int(config.replay_mb * 2**20 // self.bytes_per_slot)
        self.capacity = max(1, min(config.max_keyframes, budget))
        n, r, device_ = self.capacity, self.records, self.device
        self.pixel = torch.zeros(n, r, dtype=torch.int32, device=device_)
        self.depth = torch.zeros(n, r, dtype=torch.float32, device=device_)
        self.rgb = torch.zeros(n, r, 3, dtype=torch.uint8, device=device_)
        self.incidence = torch.zeros(n, r, dtype=torch.uint8, device=device_)
        self.camera = torch.ones(n, 4, dtype=torch.float32, device=device_)
        self.pose = torch.eye(4, dtype=torch.float32, device=device_).repeat(n, 1, 1)
        self.language = FeatureStore(features, n, device_)
        """What the main encoder measured."""
        self.teachers: dict[str, FeatureStore] = {}
        """What further encoders measured, by name."""
        self.labels = LabelStore(config, n, device_)
        self.order: list[int] = []
        """Occupied slots, oldest first."""
        self.with_holes: list[int] = []
        """Slots with records without depth."""

    @property
    def bytes(self) -> int:
        """Allocated bytes: fixed at construction, but for labels and further teachers, with budgets of their own."""
        more = sum(store.bytes for store in self.teachers.values()) + self.labels.bytes
        return self.capacity * self.bytes_per_slot + more

    def store(self, teacher: str) -> FeatureStore | None:
        """What the teacher of that name measured; None before its first measurement."""
        return self.language if teacher == "language" else self.teachers.get(teacher)

    def write(self, slot: int, frame: Frame, rng: np.random.Generator) -> None:
        """Fill a slot with a frame's records. O(pixels)."""
        height, width, s = self.height, self.width, self.stride
        if frame.depth_m.shape != (height, width):
            raise ValueError(f"frame is {frame.depth_m.shape[::-1]}, this replay holds {(width, height)}")
        # one random pixel per block, second draw where the first has no depth
        v0, u0 = np.meshgrid(np.arange(self.grid_h) * s, np.arange(self.grid_w) * s, indexing="ij")
        pixel = np.zeros((self.grid_h, self.grid_w), np.int64)
        depth = np.zeros((self.grid_h, self.grid_w), np.float32)
        for _ in range(3 if s > 1 else 1):
            v = np.minimum(v0 + rng.integers(0, s, v0.shape), height - 1)
            u = np.minimum(u0 + rng.integers(0, s, u0.shape), width - 1)
            missing = depth <= 0
            pixel = np.where(missing, v * width + u, pixel)
            depth = frame.depth_m.reshape(-1)[pixel]
        normals = depth_normals(frame.camera, frame.depth_m).reshape(-1, 3)[pixel.reshape(-1)]
        camera = frame.camera
        v, u = np.divmod(pixel.reshape(-1), width)
        rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(len(u))], -1)
        cosine = np.abs((rays * normals).sum(-1)) / np.linalg.norm(rays, axis=-1)
        known = np.abs(normals).sum(-1) > 0
        incidence = np.where(known, np.clip(cosine, 0.25, 1), 1.0)
        self.pixel[slot] = torch.from_numpy(pixel.reshape(-1).astype(np.int32)).to(self.device)
        self.depth[slot] = torch.from_numpy(depth.reshape(-1)).to(self.device)
        self.rgb[slot] = torch.from_numpy(frame.rgb.reshape(-1, 3)[pixel.reshape(-1)]).to(self.device)
        self.incidence[slot] = torch.from_numpy((incidence * 255).astype(np.uint8)).to(self.device)
        self.camera[slot] = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], device=self.device)
        self.set_pose(slot, frame.T_world_camera)
        for store in (self.language, *self.teachers.values()):
            store.drop(slot)
        if slot in self.with_holes:
            self.with_holes.remove(slot)
        if (depth == 0).any():
            self.with_holes.append(slot)
        if slot in self.order:
            self.order.remove(slot)
        self.order.append(slot)
        self.labels.write(slot, frame, rng)

    def write_target(self, slot: int, target: Target, teacher: str = "language") -> None:
        """Attach a teacher's feature measurements to a filled slot: see `FeatureStore.write`."""
        store = self.store(teacher)
        if store is None:
            shape, budget_mb = FeatureShape.of(target), self.config.teacher_mb
            store = self.teachers[teacher] = FeatureStore(shape, self.capacity, self.device, budget_mb)
        store.write(slot, target)

    def set_pose(self, slot: int, T_world_camera: np.ndarray) -> None:
        """Correct a keyframe's pose: its rays move with it."""
        self.pose[slot] = torch.from_numpy(np.asarray(T_world_camera, np.float32)).to(self.device)

    def neighbours(self, n: int, generator: torch.Generator) -> NeighbourBatch:
        """At most n random pairs of records, up to 2 NEIGHBOUR_REACH blocks apart in one keyframe.

        Pairs without depth fall out. With z of the ends and m of the record midway, the weight is
        exp(-(colour difference / COLOUR_SCALE)^2 - (m |1/z_a + 1/z_b - 2/m| / BEND_SCALE)^2):
        inverse depth is linear in the image on a plane, however it is tilted.
        """
        device, reach = self.device, NEIGHBOUR_REACH
        slots = self.pick_slots(self.order, n, 0.0, generator)
        draw = torch.rand(4, n, generator=generator, device=device)
        if rays_cpu is not None and device.type == "cpu":
            return NeighbourBatch(
                *rays_cpu.neighbour_pairs(
                    slots, draw, (self.grid_h, self.grid_w), reach, (COLOUR_SCALE, BEND_SCALE), self.width, self.depth,
                    self.rgb, self.pixel, self.camera, self.pose,
                )
            )
        row, column = (draw[0] * self.grid_h).long(), (draw[1] * self.grid_w).long()
        down, right = ((d * (2 * reach + 1)).long() - reach for d in draw[2:])
        inside = (row >= down.abs()) & (row + down.abs() < self.grid_h)
        inside &= (column >= right.abs()) & (column + right.abs() < self.grid_w)
        inside = kept(inside)
        slots, row, column, down, right = (x[inside] for x in (slots, row, column, down, right))
        a = (row - down) * self.grid_w + column - right
        b = (row + down) * self.grid_w + column + right
        z_a, z_b, middle = (self.depth[slots, r] for r in (a, b, row * self.grid_w + column))
        keep = kept((z_a > 0) & (z_b > 0) & (middle > 0))
        slots, a, b, z_a, z_b, middle = (x[keep] for x in (slots, a, b, z_a, z_b, middle))
        colour = (self.rgb[slots, a].float() - self.rgb[slots, b].float()).norm(dim=-1) / COLOUR_SCALE
        bend = middle * (1 / z_a + 1 / z_b - 2 / middle).abs() / BEND_SCALE
        points = []
        for record, depth in ((a, z_a), (b, z_b)):
            origins, directions, _ = self.world_rays(slots, self.pixel[slots, record])
            points.append(origins + directions * depth[:, None])
        return NeighbourBatch(points[0], points[1], torch.exp(-colour.square() - bend.square()).nan_to_num(0.0))

    def frame(self, slot: int, keyframe: Keyframe) -> tuple[Frame, Target | None]:
        """What is still known of a slot's frame: an image with a pixel for each record, and its feature measurements.

        Records are taken to lie at the middle of their block, which is half a block off at most."""
        s, camera = self.stride, keyframe.camera
        shape = (self.grid_h, self.grid_w)
        frame = Frame(
            keyframe.stamp_s,
            Camera(
                self.grid_w, self.grid_h, camera.fx / s, camera.fy / s,
                (camera.cx + 0.5) / s - 0.5, (camera.cy + 0.5) / s - 0.5,
            ),
            keyframe.T_world_camera,
            self.rgb[slot].cpu().numpy().reshape(*shape, 3),
            self.depth[slot].clamp_min(0).cpu().numpy().reshape(shape),
            camera_name=keyframe.camera_name,
        )  # fmt: skip
        return replace(frame, semantic=self._label_image(slot)), self.language.target(slot)

    def _label_image(self, slot: int) -> np.ndarray | None:
        """The classes of a slot's labelled pixels, at the records in whose blocks they lie; None without any."""
        pixel, semantic = self.labels.pixels(slot)
        if not len(pixel):
            return None
        v, u = np.divmod(pixel, self.width)
        image = np.zeros(self.records, np.int32)
        image[(v // self.stride) * self.grid_w + u // self.stride] = semantic
        return image.reshape(self.grid_h, self.grid_w)

    def clear_region(self, low: np.ndarray, high: np.ndarray) -> int:
        """Forget the records whose points lie in an axis-aligned box [3], [3]; returns how many. O(records)."""
        lowest, highest = (torch.tensor(c, dtype=torch.float32, device=self.device) for c in (low, high))
        count = 0
        for slot in self.order:
            points = self._points(slot)
            inside = ((points >= lowest) & (points <= highest)).all(1) & (self.depth[slot] > 0)
            self.depth[slot, inside] = FORGOTTEN
            count += int(inside.sum())
        return count

    def keep_inside(self, slot: int, low: np.ndarray, high: np.ndarray) -> None:
        """Of a slot, forget the records whose points lie outside an axis-aligned box [3], [3]. O(records)."""
        lowest, highest = (torch.tensor(c, dtype=torch.float32, device=self.device) for c in (low, high))
        points = self._points(slot)
        outside = ((points < lowest) | (points > highest)).any(1) & (self.depth[slot] > 0)
        self.depth[slot, outside] = FORGOTTEN

    def _points(self, slot: int) -> torch.Tensor:
        """World points [records, 3] of a slot; of records without depth they mean nothing."""
        slots = torch.full((self.records,), slot, device=self.device)
        origins, directions, _ = self.world_rays(slots, self.pixel[slot])
        return origins + directions * self.depth[slot, :, None]

    _TENSORS = ("pixel", "depth", "rgb", "incidence", "camera", "pose")

    def state(self) -> dict[str, torch.Tensor]:
        """The occupied slots, for a checkpoint."""
        slots = torch.tensor(self.order, dtype=torch.int64, device=self.device)
        state = {name: getattr(self, name)[slots] for name in self._TENSORS} | self.language.state(self.order)
        for name, store in self.teachers.items():
            state |= {f"teacher.{name}.{k}": v for k, v in store.state(store.slots).items()}
        return state | {f"labels.{k}": v for k, v in self.labels.state(self.order).items()}

    def describe(self) -> dict[str, Any]:
        """What a checkpoint has to know besides `state()`, as JSON."""

        def told(store: FeatureStore) -> dict[str, Any]:
            window = store.window
            return {
                "shape": asdict(store.shape), "slots": list(store.slots),
                "window": None if window is None else {"kernel": window.kernel.tolist(), "pitch_px": window.pitch_px},
            }  # fmt: skip

        return {
            "order": list(self.order), "language": told(self.language),
            "teachers": {name: told(store) for name, store in self.teachers.items()},
        }  # fmt: skip

    def load(self, state: dict[str, torch.Tensor], described: dict[str, Any]) -> None:
        """Fill slots from a `state()` and its `describe()`."""

        def window(told: dict[str, Any]) -> Window | None:
            found = told["window"]
            return None if found is None else Window(np.array(found["kernel"], np.float32), found["pitch_px"])

        self.order = list(described["order"])
        slots = torch.tensor(self.order, dtype=torch.int64, device=self.device)
        for name in self._TENSORS:
            getattr(self, name)[slots] = state[name].to(self.device)
        language = described["language"]
        self.language.load(state, self.order, language["slots"], window(language))
        for name, told in described.get("teachers", {}).items():
            store = FeatureStore(FeatureShape(**told["shape"]), self.capacity, self.device, self.config.teacher_mb)
            prefix = f"teacher.{name}."
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            store.load(part, told["slots"], told["slots"], window(told))
            self.teachers[name] = store
        self.labels.load({k[7:]: v for k, v in state.items() if k.startswith("labels.")}, self.order)
        self.with_holes = [slot for slot in self.order if bool((self.depth[slot] == 0).any())]

    def pick_slots(
        self, candidates: list[int], n: int, recent_fraction: float, generator: torch.Generator
    ) -> torch.Tensor:
        """Slots [n]: `recent_fraction` from the newest eighth, the rest from all."""
        table = on_device(tuple(candidates), self.device)
        recent = max(1, len(candidates) // 8)
        pick = torch.randint(len(candidates), (n,), generator=generator, device=self.device)
        cut = int(n * recent_fraction) if len(candidates) > 8 else 0
        pick[:cut] = len(candidates) - 1 - pick[:cut] % recent
        return table[pick]

    def rays(self, n: int, recent_fraction: float, generator: torch.Generator) -> RayBatch:
        """A random batch of at most n rays (records without depth fall out)."""
        slots = self.pick_slots(self.order, n, recent_fraction, generator)
        record = torch.randint(self.records, (n,), generator=generator, device=self.device)
        depth = self.depth[slots, record]
        keep = kept(depth > 0)
        slots, record, depth = slots[keep], record[keep], depth[keep]
        origins, directions, norms = self.world_rays(slots, self.pixel[slots, record])
        return RayBatch(
            origins, directions, norms, depth,
            self.rgb[slots, record].float() / 255,
            self.incidence[slots, record].float() / 255,
            slots,
        )

    def labelled(self, n: int, recent_fraction: float, generator: torch.Generator) -> LabelBatch | None:
        """A random batch of at most n labelled pixels, of every labelled keyframe alike; None where there are none."""
        if not self.labels.slots:
            return None
        slots = self.pick_slots(self.labels.slots, n, recent_fraction, generator)
        draw = torch.rand(n, generator=generator, device=self.device)
        return self._label_batch(slots, draw, self.labels.named)

    def labelled_images(self, images: int, pixels: int, generator: torch.Generator) -> LabelBatch | None:
        """`pixels` pixels of each of so many labelled keyframes, some without a label; rows of one image follow each
        other. For losses whose labels mean something within one image only."""
        if not self.labels.slots:
            return None
        slots = self.pick_slots(self.labels.slots, images, 0.0, generator).repeat_interleave(pixels)
        draw = torch.rand(len(slots), generator=generator, device=self.device)
        return self._label_batch(slots, draw, self.labels.count)

    def _label_batch(self, slots: torch.Tensor, draw: torch.Tensor, count: torch.Tensor) -> LabelBatch:
        labels = self.labels
        entry = (draw * count[slots]).long().minimum(count[slots] - 1)
        pixel, depth = labels.pixel[slots, entry], labels.depth[slots, entry]
        v = torch.div(pixel, self.width, rounding_mode="floor")
        u = pixel - v * self.width
        block = torch.div(v, self.stride, rounding_mode="floor") * self.grid_w + torch.div(
            u, self.stride, rounding_mode="floor"
        )
        # what was forgotten around a pixel was forgotten of it too
        keep = kept(self.depth[slots, block.long()] != FORGOTTEN)
        slots, entry, pixel, depth = slots[keep], entry[keep], pixel[keep], depth[keep]
        origins, directions, _ = self.world_rays(slots, pixel)
        return LabelBatch(
            origins + directions * depth[:, None], directions, labels.semantic[slots, entry].long(),
            labels.instance[slots, entry].long(), labels.segment[slots, entry].long(),
            labels.confidence[slots, entry].float() / 255, slots, pixel,
        )  # fmt: skip

    def rays_without_depth(self, n: int, generator: torch.Generator) -> ColourBatch:
        """A random batch of at most n rays whose depth is not known; fewer where there are few. Free without any."""
        if not self.with_holes or n == 0:
            none = torch.zeros(0, 3, device=self.device)
            return ColourBatch(none, none, none)
        draws = 4 * n
        slots = self.pick_slots(self.with_holes, draws, 0.0, generator)
        record = torch.randint(self.records, (draws,), generator=generator, device=self.device)
        unknown = self.depth[slots, record] == 0
        keep = kept(unknown)[:n]
        slots, record = slots[keep], record[keep]
        origins, directions, _ = self.world_rays(slots, self.pixel[slots, record])
        share = (unknown.sum() / n).clamp_max(1)
        return ColourBatch(origins, directions, self.rgb[slots, record].float() / 255, share)

    def world_rays(self, slots: torch.Tensor, pixel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Origins, z-unit directions [N, 3] in global_frame and their lengths [N] of pixels [N] of slots [N]."""
        if rays_cpu is not None and not pixel.is_cuda:
            return rays_cpu.world_rays(slots, pixel, self.width, self.camera, self.pose)
        v = torch.div(pixel, self.width, rounding_mode="floor")
        u = pixel - v * self.width
        camera, pose = self.camera[slots], self.pose[slots]
        x, y = (u - camera[:, 2]) / camera[:, 0], (v - camera[:, 3]) / camera[:, 1]
        local = torch.stack([x, y, torch.ones_like(x)], -1)
        directions = (pose[:, :3, :3] @ local[..., None]).squeeze(-1)
        return pose[:, :3, 3], directions, local.norm(dim=-1)

    def patches(
        self, n: int, window_rays: int, through_window: bool, recent_fraction: float, generator: torch.Generator,
        window_scale: float = 1.0, held_out: bool | None = None, teacher: str = "language",
    ) -> PatchBatch | None:
        """A random batch of at most n feature measurements with `window_rays` surface points each, None if there are
        no measurements yet. With `through_window` False every point lies at the measurement's centre.

        Args:
            window_scale: size of the window, of what it was declared. held_out: only measurements of the share that is
                kept from training (True), or only of the rest (False). teacher: whose measurements.
        """
        store = self.store(teacher)
        if store is None or not store.slots or store.window is None:
            return None
        device, k, window = self.device, window_rays, store.window
        slots = self.pick_slots(store.slots, n, recent_fraction, generator)
        at = store.row[slots]
        shape = store.grid_shape[at]
        cell = (torch.rand(n, generator=generator, device=device) * (shape[:, 0] * shape[:, 1])).long()
        if held_out is not None:
            apart = (cell + 5 * slots) % HELD_OUT
            cell = cell - apart if held_out else torch.where(apart > 0, cell, -1)
        row = torch.where(cell >= 0, store.cell_row[at, cell.clamp_min(0)], -1)
        keep = kept(row >= 0)
        slots, at, shape, cell, row = slots[keep], at[keep], shape[keep], cell[keep], row[keep].long()
        i, j = torch.div(cell, shape[:, 1], rounding_mode="floor"), cell % shape[:, 1]
        cell_w, cell_h = self.width / shape[:, 1], self.height / shape[:, 0]
        centre_u = (j + 0.5) * cell_w - 0.5
        centre_v = (i + 0.5) * cell_h - 0.5
        p = len(slots)
        jitter = torch.rand(2, p, k, generator=generator, device=device) - 0.5
        if through_window and window.pitch_px > 0:
            edge = window.kernel.shape[0]
            draw = torch.rand(p, k, generator=generator, device=device)
            tap = torch.searchsorted(store.kernel_cdf, draw).clamp_max(edge * edge - 1)
            pitch = window.pitch_px * window_scale
            dv = (torch.div(tap, edge, rounding_mode="floor") - edge // 2 + jitter[0]) * pitch
            du = (tap % edge - edge // 2 + jitter[1]) * pitch
        else:
            dv, du = jitter[0] * cell_h[:, None], jitter[1] * cell_w[:, None]
        u, v = centre_u[:, None] + du, centre_v[:, None] + dv
        values, confidence = store.values[at, row].float(), store.confidence[at, row] * (row >= 0)
        if rays_cpu is not None and device.type == "cpu":
            points, directions, usable = rays_cpu.window_points(
                slots, u, v, self.width, self.height, self.stride, self.grid_w, self.depth, self.pixel, self.camera,
                self.pose,
            )  # fmt: skip
            return PatchBatch(points, directions, usable, values, confidence)
        u, v = u.round().long(), v.round().long()
        inside = (u >= 0) & (v >= 0) & (u < self.width) & (v < self.height)
        record = (v.clamp(0, self.height - 1) // self.stride) * self.grid_w + u.clamp(0, self.width - 1) // self.stride
        slot_k = slots[:, None].expand(-1, k)
        depth = self.depth[slot_k, record]
        origins, directions, _ = self.world_rays(slot_k.reshape(-1), self.pixel[slot_k, record].reshape(-1))
        points = origins + directions * depth.reshape(-1, 1)
        return PatchBatch(points.view(p, k, 3), directions.view(p, k, 3), inside & (depth > 0), values, confidence)
