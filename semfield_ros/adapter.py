"""A coloured point cloud, its photographs and their cameras in; the same cloud with labels out.

For programs that have a reconstruction already: `label_cloud` names the points of a dictionary by any of the published
ways, on the field, the fusions and the masks of this package. The images need no depth: where none is given, the cloud
itself, seen from the camera, says what hides what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .cloud import sureness
from .config import EncoderConfig, FrameConfig, HeadsConfig, MaskConfig, MemoryConfig, SemfieldConfig
from .encoders import create
from .encoders.base import Encoder
from .encoders.concept_fusion import ConceptFusionEncoder
from .encoders.crops import crop_features
from .encoders.masks import MaskMaker, mask_maker
from .errors import ConfigError, FrameRejected, Reason
from .field.snapshot import Snapshot
from .frame import Frame, make_frame, resized
from .geometry import Camera, invert
from .mapping import Mapping as FieldMapping
from .mapping import pick_device
from .memory.features import FeatureShape
from .memory.keyframes import Keyframe
from .memory.mask_store import mask_view
from .memory.point_fusion import PointFusion
from .memory.splatting import depth_of_points, spacing_of
from .objects.mask_graph import instances_from_masks
from .objects.mask_views import mask_incidence, top_views, visible_boxes
from .query.classes import TEMPLATE, best_class, encode_classes, probabilities
from .query.ensemble import ensemble_features
from .query.points import features_at, query_points
from .query.prompt import EncodedPrompts, PromptEncoder
from .query.relevancy import best_synonym
from .query.scores import map_cosines

Method = Literal["nerf", "openscene", "openmask3d", "conceptfusion"]
ANY_DEPTH = FrameConfig(min_depth_m=0.001, max_depth_m=1000.0, min_valid_fraction=0.0005)


@dataclass(frozen=True)
class _Named:
    """Of N points: cosines [N, C] with the classes, whether anything is known [N], how sure the surface is [N]."""

    cosine: np.ndarray
    seen: np.ndarray
    surface: np.ndarray


@dataclass(frozen=True)
class _Scene:
    """What every method works on."""

    points: np.ndarray
    normals: np.ndarray | None
    frames: list[Frame]
    encoder: Encoder
    classes: EncodedPrompts
    config: SemfieldConfig
    steps: int
    masks: MaskMaker

    def cosines(self, features: np.ndarray) -> np.ndarray:
        """[N, C] of features [N, D] of any length."""
        cosine = map_cosines(features, self.classes.positives)
        return best_synonym(cosine, self.classes.owner, len(self.classes.prompts))


def label_cloud(
    cloud: Mapping[str, Any],
    images: Sequence[np.ndarray],
    cameras: Sequence[tuple[np.ndarray, np.ndarray]],
    method: Method = "openscene",
    *,
    names: Sequence[str],
    depths: Sequence[np.ndarray] | None = None,
    encoder: Encoder | None = None,
    config: SemfieldConfig | None = None,
    steps: int = 400,
    masks: MaskMaker | str = "felzenszwalb",
    template: str = TEMPLATE,
    other: bool = False,
    least: float | None = None,
    temperature: float = 0.07,
) -> dict[str, Any]:
    """A copy of a cloud with labels.

    Args:
        cloud: "pos" [N, 3] metres; optional "rgb" [N, 3] and "normals" [N, 3]; anything else is passed on.
        images: V of [H, W, 3] uint8. cameras: for each the intrinsics K [3, 3] and the WORLD-TO-CAMERA pose RT, [3, 4]
            or [4, 4], OpenCV axes: x_camera = R x + t, so the camera stands at -R^T t, not at t.
        method: nerf: a field trained on the images answers. openscene: features fused on the points, the field
            distilled from them, and of both the surer at each point. conceptfusion: features of masks mixed with the
            whole image, fused on the points. openmask3d: masks of all views become instances, described by crops.
        names: classes, synonyms separated by ";". depths: V of [H, W], uint16 millimetres or float metres; None = the
            cloud's own surface.
        encoder: of images and words; None = the configured one. config: None = defaults, with voxels as the points
            lie. steps: of training (nerf, openscene). masks: (conceptfusion, openmask3d), see `encoders.masks`.
        template: around every name. other: a further class "other" competes; what it wins is unknown.
        least: cosines below this are unknown. temperature: of the softmax over cosines.

    Returns:
        the entries of `cloud` and "labels" [N] int32 (rows of "label_names", -1 = unknown), "label_confidence" [N]
        float32 in [0, 1]: the probability of the label times how sure the surface is; "label_names" list of str.

    Raises:
        ConfigError: unusable arguments. FrameRejected: an unusable image or pose. QueryError: unusable names.
    """
    if method not in _METHODS:
        raise ConfigError(f"method is {method!r}; allowed: {', '.join(_METHODS)}")
    if steps < 1:
        raise ConfigError(f"steps is {steps}; allowed: >= 1")
    points = _array(cloud, "pos")
    normals = _array(cloud, "normals") if cloud.get("normals") is not None else None
    if cloud.get("rgb") is not None:
        _array(cloud, "rgb")
    config = config or _config_for(points)
    encoder = encoder or create(config.encoder)
    classes = encode_classes(PromptEncoder(encoder, config.query), names, template=template, other=other)
    label_names = [prompt.label for prompt in classes.prompts]
    label_names = label_names[:-1] if other else label_names
    finite = np.flatnonzero(np.isfinite(points).all(1))
    frames = frames_of(points[finite], images, cameras, depths)
    labels, confidence = np.full(len(points), -1, np.int32), np.zeros(len(points), np.float32)
    if frames and len(finite):
        scene = _Scene(
            points[finite], None if normals is None else normals[finite], frames, encoder, classes, config, steps,
            mask_maker(masks) if isinstance(masks, str) else masks,
        )  # fmt: skip
        found = _METHODS[method](scene)
        best = best_class(found.cosine, other)
        at = np.arange(len(best))
        known = found.seen & (best < len(label_names))
        known &= True if least is None else found.cosine[at, best] >= least
        labels[finite] = np.where(known, best, -1)
        sure = probabilities(found.cosine, temperature)[at, best] * found.surface
        confidence[finite] = np.where(known, sure, 0)
    return {**cloud, "labels": labels, "label_confidence": confidence, "label_names": label_names}


def frames_of(
    points: np.ndarray,
    images: Sequence[np.ndarray],
    cameras: Sequence[tuple[np.ndarray, np.ndarray]],
    depths: Sequence[np.ndarray] | None = None,
) -> list[Frame]:
    """Images with world-to-camera poses as Frames of one size; views that see no surface are left out.

    Raises:
        ConfigError: numbers or shapes that do not belong together. FrameRejected: an unusable image or pose.
    """
    counts = {len(images), len(cameras)} | ({len(depths)} if depths is not None else set())
    if len(counts) != 1:
        raise ConfigError(
            f"{len(images)} images, {len(cameras)} cameras"
            + (f", {len(depths)} depth images" if depths is not None else "") + "; expected one of each a view"
        )
    frames: list[Frame] = []
    spacing_m = spacing_of(points) if depths is None else 0.0
    for number, (rgb, (K, RT)) in enumerate(zip(images, cameras)):
        if not isinstance(rgb, np.ndarray) or rgb.ndim != 3:
            raise ConfigError(f"image {number} is {type(rgb).__name__}; expected uint8 [H, W, 3]")
        camera = Camera.from_matrix(K, rgb.shape[1], rgb.shape[0])
        T_world_camera = invert(_homogeneous(RT, number))
        depth = depth_of_points(camera, T_world_camera, points, spacing_m) if depths is None else depths[number]
        try:
            frame = make_frame(
                stamp_s=float(number), camera=camera, T_world_camera=T_world_camera, rgb=rgb, depth=depth,
                config=ANY_DEPTH,
            )  # fmt: skip
        except FrameRejected as error:
            if error.reason is not Reason.DEPTH_EMPTY:
                raise
            continue  # it looks elsewhere
        frames.append(resized(frame, frames[0].camera.width, frames[0].camera.height) if frames else frame)
    return frames


def _array(cloud: Mapping[str, Any], name: str) -> np.ndarray:
    """An entry [N, 3] of the cloud, float32; N is that of "pos"."""
    if "pos" not in cloud:
        raise ConfigError(f"the cloud has {', '.join(map(str, cloud)) or 'no entries'}; it needs 'pos' [N, 3]")
    try:
        values = np.asarray(cloud[name], np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cloud[{name!r}] is no array of numbers: {error}") from error
    if values.ndim != 2 or values.shape[1] != 3 or len(values) != len(cloud["pos"]):
        raise ConfigError(f"cloud[{name!r}] has shape {values.shape}; expected [{len(cloud['pos'])}, 3]")
    return values


def _homogeneous(RT: np.ndarray, number: int) -> np.ndarray:
    """[4, 4] of a pose [3, 4] or [4, 4]."""
    try:
        RT = np.asarray(RT, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the pose of camera {number} is no matrix of numbers: {error}") from error
    if RT.shape not in ((3, 4), (4, 4)):
        raise ConfigError(f"the pose of camera {number} has shape {RT.shape}; expected (3, 4) or (4, 4), [R | t]")
    T = np.eye(4)
    T[: len(RT)] = RT
    return T


def _config_for(points: np.ndarray) -> SemfieldConfig:
    """Defaults, with voxels about twice as wide as the points lie apart."""
    finite = points[np.isfinite(points).all(1)]
    voxel_m = float(np.clip(2 * spacing_of(finite), 0.005, 1.0)) if len(finite) > 1 else 0.02
    return SemfieldConfig(
        frame=ANY_DEPTH, encoder=EncoderConfig(), memory=MemoryConfig(voxel_size_m=voxel_m, forget=False)
    )


def _trained(scene: _Scene, heads: HeadsConfig) -> Snapshot:
    """A field that learnt all frames and the encoder's features of them."""
    config = replace(scene.config, heads=heads)
    mapping = FieldMapping(config, scene.encoder.dim, pick_device(config.engine.device))
    for frame in scene.frames:
        target = scene.encoder.encode_frame(frame)
        mapping.saw(frame)
        mapping.add_features(mapping.add_keyframe(frame, FeatureShape.of(target)), frame, target)
    for _ in range(scene.steps):
        mapping.train_step()
    return mapping.snapshot()


def _nerf(scene: _Scene) -> _Named:
    """The field alone, where a camera looked."""
    snapshot = _trained(scene, scene.config.heads)
    found = query_points(snapshot, scene.points, scene.classes, source="field", features=True)
    return _Named(scene.cosines(found.features), found.seen, found.confidence)


def _openscene(scene: _Scene) -> _Named:
    """Fused and distilled features, the surer of both at each point (Peng et al. 2023)."""
    fusion = PointFusion(scene.points, scene.encoder.dim, "openscene")
    for frame in scene.frames:
        fusion.add(frame, scene.encoder.encode_frame(frame))
    snapshot = _trained(scene, replace(scene.config.heads, point_weight=1.0))
    distilled = features_at(snapshot, scene.points, "field")
    unseen = ~fusion.seen
    features = ensemble_features(fusion.features, distilled, scene.classes.positives)
    features[unseen] = distilled[unseen]
    seen = fusion.seen | (np.abs(distilled).sum(1) > 0)
    return _Named(scene.cosines(features), seen, sureness(np.maximum(fusion.views, seen)))


def _conceptfusion(scene: _Scene) -> _Named:
    """Pixel-aligned features, fused on the points (Jatavallabhula et al. 2023)."""
    encoder = scene.encoder
    if not isinstance(encoder, ConceptFusionEncoder):
        settings = scene.config.encoder.concept_fusion
        encoder = ConceptFusionEncoder(
            encoder, scene.masks, temperature=settings.temperature, uniqueness=settings.uniqueness,
            local=settings.local,
        )  # fmt: skip
    fusion = PointFusion(scene.points, encoder.dim, "conceptfusion", normals=scene.normals)
    for frame in scene.frames:
        fusion.add(frame, encoder.encode_frame(frame))
    return _Named(scene.cosines(fusion.features), fusion.seen, sureness(fusion.views))


def _openmask3d(scene: _Scene) -> _Named:
    """Instances from the masks of all views, described by crops (Takmaz et al. 2023); what is in none is unknown."""
    config: MaskConfig = scene.config.masks
    memory = scene.config.memory
    views = [
        mask_view(Keyframe(i, i, f.stamp_s, f.camera, f.T_world_camera), f, scene.masks(f))
        for i, f in enumerate(scene.frames)
    ]
    found = mask_incidence(
        views, scene.points, tolerance_m=memory.visibility_tolerance_m,
        tolerance_relative=memory.visibility_tolerance_relative,
    )  # fmt: skip
    instances = instances_from_masks(found.incidence, found.visibility, found.view, config)
    looks = visible_boxes(
        instances.voxels, scene.points, views, tolerance_m=config.view_tolerance_m, spacing_m=memory.voxel_size_m
    )
    best = top_views(looks.pixels, config.top_views)
    shown = ((t, np.flatnonzero((best == t).any(1))) for t in range(len(views)))
    features = crop_features(
        scene.encoder, len(instances), ((views[t].rgb, things, looks.boxes[things, t]) for t, things in shown),
        config.crop_levels, config.crop_growth,
    )  # fmt: skip
    owner = instances.of_voxels()
    seen = (owner >= 0) & (np.linalg.norm(features, axis=1)[owner] > 0.5 if len(features) else False)
    cosine = np.zeros((len(owner), len(scene.classes.prompts)), np.float32)
    surface = np.zeros(len(owner), np.float32)
    if seen.any():
        cosine[seen] = scene.cosines(features)[owner[seen]]
        surface[seen] = instances.score[owner[seen]]
    return _Named(cosine, seen, surface)


_METHODS: dict[str, Callable[[_Scene], _Named]] = {
    "nerf": _nerf, "openscene": _openscene, "openmask3d": _openmask3d, "conceptfusion": _conceptfusion,
}  # fmt: skip
