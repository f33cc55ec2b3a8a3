"""Every setting, as typed dataclasses: YAML files, the command line and ROS parameters are generated from these.

Units stand in the names. Constructors reject unusable values and quote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as nested
from typing import Annotated, Literal

from .errors import ConfigError
from .grippers import dimensions


@dataclass(frozen=True)
class Live:
    """Marks a setting, in its annotation, that may change while everything runs."""


@dataclass(frozen=True)
class Between:
    """The range of a number, in its annotation; checked where it is set, and told to ROS as the parameter's range."""

    low: float
    high: float


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless `ok`, naming the setting, its value and what is allowed."""
    if not ok:
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class FrameConfig:
    """What makes a frame valid."""

    min_depth_m: Annotated[float, Between(0.001, 1000)] = 0.1
    """Nearer depth is no measurement."""
    max_depth_m: Annotated[float, Between(0.001, 1000)] = 6.0
    """Farther depth is no measurement."""
    rigid_tolerance: Annotated[float, Between(1e-9, 1)] = 5e-3
    """Largest deviation of a pose from SE(3)."""
    min_valid_fraction: Annotated[float, Between(0, 1)] = 0.01
    """Frames with fewer valid depth pixels are rejected."""

    def __post_init__(self) -> None:
        require(0 < self.min_depth_m < self.max_depth_m, "min_depth_m", self.min_depth_m, "0 < min < max_depth_m")
        require(self.rigid_tolerance > 0, "rigid_tolerance", self.rigid_tolerance, "> 0")
        require(0 <= self.min_valid_fraction <= 1, "min_valid_fraction", self.min_valid_fraction, "0 to 1")


@dataclass(frozen=True)
class DinoConfig:
    """Self-supervised features without a text space: encoder dino."""

    model: str = "vit_small_patch8_224.dino"
    """A vision transformer of timm."""
    weights: str = "default"
    """default = timm's own for this model, a local file, or '' for random initialisation."""
    layer: Annotated[int, Between(0, 99)] = 11
    """The block whose keys are taken, counted from 0."""
    stride_px: Annotated[int, Between(1, 64)] = 8
    """Pixels between patches: the patch's own size, or less for a finer grid (F3RM takes 4)."""
    shorter_side_px: Annotated[int, Between(16, 4096)] = 224
    """Images are scaled to this."""

    def __post_init__(self) -> None:
        require(self.layer >= 0, "layer", self.layer, ">= 0")
        require(self.stride_px >= 1, "stride_px", self.stride_px, ">= 1")
        require(self.shorter_side_px >= 16, "shorter_side_px", self.shorter_side_px, ">= 16")


@dataclass(frozen=True)
class ConceptFusionConfig:
    """Masks mixed with the whole image (ConceptFusion): encoder concept_fusion."""

    base: str = "tiny"
    """The encoder of crops, images and words: tiny, openclip, stub."""
    masks: str = "felzenszwalb"
    """felzenszwalb, segments (the frame's own), or module:attribute of a callable: an image to masks."""
    temperature: Annotated[float, Between(0.001, 1000)] = 1.0
    """Of the softmax over masks that says how much of the whole image each keeps."""
    uniqueness: bool = True
    """A mask that is like the other masks keeps more of the whole image."""
    local: Literal["crop", "pooled"] = "crop"
    """Features of a mask: its crop's, or the mean of the base's dense features under it."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        require(self.local in ("crop", "pooled"), "local", self.local, "crop, pooled")


@dataclass(frozen=True)
class EncoderConfig:
    """Which 2-D model turns pixels and words into features."""

    name: str = "tiny"
    """A registered encoder: tiny, openclip, concept_fusion, precomputed, stub; pyramid and dino only teach."""
    model: str = "ViT-B-16"
    """openclip only: architecture."""
    pretrained: str = "laion2b_s34b_b88k"
    """openclip only: weights tag, a local file, or '' for random initialisation."""
    neighbourhood: bool = False
    """openclip only: NACLIP-style attention in the last block instead of MaskCLIP's value path."""
    text_table: str = ""
    """precomputed only: .npz with text vectors (see the encoder's docstring)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dim: Annotated[int, Between(0, 65_536)] = 0
    """Length of the features that are expected, refused where they are another; 0 = whatever the encoder gives."""
    cache_folder: str = ""
    """Features are kept here, by the encoder's settings and the frame's content; '' = nowhere."""
    cache_mb: Annotated[float, Between(1, 10_000_000)] = 4096.0
    """Bytes of them; what was used longest ago goes first."""
    dino: DinoConfig = nested(default_factory=DinoConfig)
    concept_fusion: ConceptFusionConfig = nested(default_factory=ConceptFusionConfig)


@dataclass(frozen=True)
class MemoryConfig:
    """What is remembered: keyframes, ray records, voxels. Budgets are hard."""

    min_translation_m: Annotated[float, Between(0, 1000)] = 0.08
    """A frame this far from every near keyframe's camera is new."""
    min_rotation_deg: Annotated[float, Between(0, 180)] = 8.0
    """A frame turned this far is new."""
    min_unseen_fraction: Annotated[float, Between(0, 1)] = 0.08
    """A frame with this share of pixels on voxels not yet seen is new."""
    max_keyframes: Annotated[int, Between(1, 1_000_000)] = 400
    """Above this the most redundant keyframe is dropped."""
    replay_mb: Annotated[float, Between(1, 1_000_000)] = 512.0
    """Bytes of ray records (pixels) and feature targets kept for training."""
    pixels_per_keyframe: Annotated[int, Between(64, 100_000_000)] = 19200
    """Ray records kept of each keyframe."""
    labels_per_keyframe: Annotated[int, Between(16, 100_000_000)] = 4096
    """Labelled pixels kept of each keyframe, where a source labels any; all of them where they are fewer..."""
    labels_mb: Annotated[float, Between(0.001, 1_000_000)] = 64.0
    """...and bytes of them in all."""
    teacher_mb: Annotated[float, Between(1, 1_000_000)] = 256.0
    """Bytes of feature targets kept of each further encoder (`heads.teachers`)."""
    voxel_size_m: Annotated[float, Between(0.0001, 100)] = 0.02
    """Edge of a voxel of the point map."""
    max_voxels: Annotated[int, Between(1000, 1_000_000_000)] = 400_000
    """Voxels kept; above this the least recently seen are dropped."""
    block_m: Annotated[float | None, Between(0.01, 100_000)] = None
    """Edge of the cubes that space is cut into, each with a map and budgets of its own; None = one map without end."""
    max_active_blocks: Annotated[int, Between(1, 10_000)] = 4
    """Blocks in memory; those seen longest ago sleep on disk until they are seen again."""
    block_folder: str = ""
    """Where a temporary folder for sleeping blocks is made, gone at the end; '' = where the system has its own."""
    asleep_mb: Annotated[float, Between(1, 1_000_000)] = 512.0
    """Of sleeping blocks, what queries have read is kept up to so many bytes."""
    visibility_tolerance_m: Annotated[float, Between(0, 100)] = 0.05
    """A voxel is seen by a pixel whose depth agrees to this..."""
    visibility_tolerance_relative: Annotated[float, Between(0, 1)] = 0.02
    """...or to this share of the depth, whichever is larger..."""
    visibility_border_px: Annotated[int, Between(0, 10_000)] = 2
    """...and which lies this far inside the image. OpenScene: 0 m, .25 or .02, 10 px; ConceptFusion: .05 m."""
    forget: bool = True
    """Follow changes: forget surface that is seen through, start again where the colour stays another one."""
    forget_relative: Annotated[float, Between(0, 1)] = 0.01
    """A voxel is seen through when no measurement around it is nearer than this share of its depth. Frames that agree
    less with the map (noise, poses) must show more."""
    min_changed_fraction: Annotated[float, Between(0, 1)] = 0.002
    """A frame is new when it contradicts this share of the voxels it looks at."""
    change_period_s: Annotated[float, Between(0, 3600)] = 0.1
    """Frames that are new only because they show a change come at most this often."""

    def __post_init__(self) -> None:
        require(self.voxel_size_m > 0, "voxel_size_m", self.voxel_size_m, "> 0")
        require(self.max_keyframes >= 1, "max_keyframes", self.max_keyframes, ">= 1")
        require(self.max_voxels >= 1000, "max_voxels", self.max_voxels, ">= 1000")
        require(self.block_m is None or self.block_m >= 4 * self.voxel_size_m, "block_m", self.block_m,
                f"None, or the minimum of 4 voxels of {self.voxel_size_m} m and more")  # fmt: skip
        require(self.max_active_blocks >= 1, "max_active_blocks", self.max_active_blocks, ">= 1")
        require(self.visibility_border_px >= 0, "visibility_border_px", self.visibility_border_px, ">= 0")
        require(self.asleep_mb >= 1, "asleep_mb", self.asleep_mb, ">= 1")
        require(self.replay_mb >= 1, "replay_mb", self.replay_mb, ">= 1")
        require(self.labels_per_keyframe >= 16, "labels_per_keyframe", self.labels_per_keyframe, ">= 16")
        require(self.labels_mb > 0, "labels_mb", self.labels_mb, "> 0")
        require(self.teacher_mb >= 1, "teacher_mb", self.teacher_mb, ">= 1")
        require(self.pixels_per_keyframe >= 64, "pixels_per_keyframe", self.pixels_per_keyframe, ">= 64")


@dataclass(frozen=True)
class GridConfig:
    """A multi-resolution hash grid (Mueller et al. 2022), resolutions per workspace edge."""

    levels: Annotated[int, Between(1, 16)] = 8
    features: Annotated[int, Between(1, 8)] = 4
    log2_table: Annotated[int, Between(4, 24)] = 16
    min_resolution: Annotated[int, Between(2, 100_000)] = 16
    max_resolution: Annotated[int, Between(2, 100_000)] = 256

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 16, "levels", self.levels, "1 to 16 (tiny-cuda-nn's limit)")
        require(self.features in (1, 2, 4, 8), "features", self.features, "1, 2, 4, 8")
        require(4 <= self.log2_table <= 24, "log2_table", self.log2_table, "4 to 24")
        require(2 <= self.min_resolution <= self.max_resolution, "min_resolution", self.min_resolution, ">= 2, <= max")


@dataclass(frozen=True)
class VolumeConfig:
    """How rays without depth are sampled: two proposal networks, then the field (nerfacto, smaller)."""

    near_m: Annotated[float, Between(0.001, 1000)] = 0.05
    """Nothing nearer to a camera is looked for."""
    far_extents: Annotated[float, Between(0.5, 1e6)] = 500.0
    """Nothing farther, in workspace edges: past the horizon."""
    coarse_samples: Annotated[int, Between(2, 4096)] = 48
    """Samples a ray of the first proposal..."""
    fine_samples: Annotated[int, Between(2, 4096)] = 32
    """...of the second..."""
    samples: Annotated[int, Between(2, 4096)] = 24
    """...and of the field."""
    hidden: Annotated[int, Between(16, 128)] = 16
    """Width of the proposals' MLPs."""
    coarse_grid: GridConfig = nested(
        default_factory=lambda: GridConfig(levels=5, features=2, log2_table=15, min_resolution=16, max_resolution=128)
    )
    fine_grid: GridConfig = nested(
        default_factory=lambda: GridConfig(levels=5, features=2, log2_table=15, min_resolution=16, max_resolution=256)
    )

    def __post_init__(self) -> None:
        for name in ("near_m", "far_extents"):
            require(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        for name in ("coarse_samples", "fine_samples", "samples"):
            require(getattr(self, name) >= 2, name, getattr(self, name), ">= 2")
        require(self.hidden in (16, 32, 64, 128), "hidden", self.hidden, "16, 32, 64, 128")


@dataclass(frozen=True)
class FieldConfig:
    """The neural field: what is learnt."""

    centre_m: tuple[float, float, float] | None = None
    """Workspace centre in global_frame; None = from the first keyframes."""
    extent_m: Annotated[float | None, Between(0.001, 100_000)] = None
    """Workspace edge (a cube); None = from the first keyframes. What lies outside is contracted (L-infinity)."""
    geometry_grid: GridConfig = nested(default_factory=GridConfig)
    feature_grid: GridConfig = nested(
        default_factory=lambda: GridConfig(levels=6, features=4, log2_table=15, min_resolution=16, max_resolution=160)
    )
    hidden: Annotated[int, Between(16, 128)] = 64
    """Width of every MLP (tiny-cuda-nn's fused MLP takes 16, 32, 64, 128)."""
    truncation_m: Annotated[float, Between(0.0001, 100)] = 0.06
    """Signed distances are learnt within this band around the surface."""
    volume: VolumeConfig = nested(default_factory=VolumeConfig)
    backend: Literal["auto", "torch", "numba", "triton", "tcnn"] = "auto"
    """What computes grids and MLPs; auto = numba on CPUs, Triton on GPUs, else torch. The map is the same with all."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of the products in MLPs that Triton computes; sums and parameters are float32."""
    seed: int = 0
    """Initial weights."""

    def __post_init__(self) -> None:
        require(self.extent_m is None or self.extent_m > 0, "extent_m", self.extent_m, "> 0, or None")
        require(self.truncation_m > 0, "truncation_m", self.truncation_m, "> 0")
        require(self.hidden in (16, 32, 64, 128), "hidden", self.hidden, "16, 32, 64, 128")
        backends, precisions = ("auto", "torch", "numba", "triton", "tcnn"), ("float32", "tf32", "bfloat16")
        require(self.backend in backends, "backend", self.backend, ", ".join(backends))
        require(self.precision in precisions, "precision", self.precision, ", ".join(precisions))


@dataclass(frozen=True)
class PyramidConfig:
    """Language with scale (LERF): what teacher pyramid measures, and how it is learnt."""

    levels: Annotated[int, Between(2, 32)] = 7
    """Sizes of crops, evenly from..."""
    smallest: Annotated[float, Between(0.005, 1)] = 0.05
    """...this share of the image's height..."""
    largest: Annotated[float, Between(0.005, 1)] = 0.5
    """...to this."""
    smallest_m: Annotated[float, Between(0.0001, 1000)] = 0.02
    """Scales are told apart from this, the height of a crop where the surface is..."""
    largest_m: Annotated[float, Between(0.0001, 1000)] = 2.0
    """...to this (LERF searches up to 2 m)..."""
    knots: Annotated[int, Between(2, 32)] = 7
    """...at so many, evenly in the logarithm, and linearly between."""
    pixels: Annotated[int, Between(1, 1_000_000)] = 512
    """Pixels a step, each at a random scale."""
    loss: Literal["huber", "cosine"] = "huber"
    """huber: delta 1.25, summed over dimensions (LERF's code); cosine: minus the product (its paper)."""
    weight: Annotated[float, Between(0, 1000)] = 1.0

    def __post_init__(self) -> None:
        require(2 <= self.levels <= 32, "levels", self.levels, "2 to 32")
        require(0 < self.smallest < self.largest <= 1, "smallest", self.smallest, "0 < smallest < largest <= 1")
        require(0 < self.smallest_m < self.largest_m, "smallest_m", self.smallest_m, "0 < smallest_m < largest_m")
        require(2 <= self.knots <= 32, "knots", self.knots, "2 to 32")
        require(self.pixels >= 1, "pixels", self.pixels, ">= 1")
        require(self.loss in ("huber", "cosine"), "loss", self.loss, "huber, cosine")


@dataclass(frozen=True)
class LanguageConfig:
    """The head of the main encoder's features."""

    layers: Annotated[int, Between(0, 8)] = 1
    """Hidden layers."""
    frequencies: Annotated[int, Between(0, 16)] = 0
    """Of the position, seen beside the grid; F3RM has 6."""
    unit: bool = True
    """Samples' features have length 1 before they are composited."""
    loss: Literal["cosine_sqrt", "l1", "l2"] = "cosine_sqrt"
    """sqrt(1 - cos), robust to wrong views; or the mean absolute or squared error of all components."""
    weight: Annotated[float, Between(0, 1000)] = 1.0

    def __post_init__(self) -> None:
        require(self.layers >= 0, "layers", self.layers, ">= 0")
        require(0 <= self.frequencies <= 16, "frequencies", self.frequencies, "0 to 16")
        require(self.loss in ("cosine_sqrt", "l1", "l2"), "loss", self.loss, "cosine_sqrt, l1, l2")


@dataclass(frozen=True)
class HeadsConfig:
    """What the field learns besides shape, colour and language: each a head of the one field."""

    semantic_classes: Annotated[int, Between(0, 32_000)] = 0
    """Classes of label images, 1 to this; 0 = labels are not learnt."""
    class_names: tuple[str, ...] = ()
    """Their names, where they are known."""
    semantic_compositing: Literal["logits", "probability"] = "logits"
    """What is composited along a ray: logits (Semantic-NeRF) or probabilities, which are bounded (Panoptic Lifting)."""
    semantic_weight: Annotated[float, Between(0, 1000)] = 1.0
    semantic_shapes_geometry: bool = False
    """Learn classes on the grid of shape and colour, which they then bend (Semantic-NeRF); else on that of features."""
    semantic_smoothness: Annotated[float, Between(0, 100)] = 0.1
    """Weight of the prior that neighbours on one surface of one colour are of one class: few labels spread; 0 = off."""
    semantic_pairs: Annotated[int, Between(1, 1_000_000)] = 1024
    """Pairs of neighbours a step for it."""
    segment_weight: Annotated[float, Between(0, 1000)] = 0.0
    """Of pixels of one 2-D segment being of one class, whichever (Panoptic Lifting); 0 = off."""
    language: LanguageConfig = nested(default_factory=LanguageConfig)
    appearance: bool = False
    """Learn a code of each keyframe's exposure and white balance (nerfacto); views are rendered as images are on
    average. Colour is then not computed by the fused CPU kernels."""
    normals: bool = False
    """Predict normals, smoother than the slope of the shape (nerfacto)."""
    refine_poses: bool = False
    """Correct the poses of keyframes while mapping, against what the field has learnt from all of them."""
    label_rays: Annotated[int, Between(1, 1_000_000)] = 1024
    """Labelled pixels a step, for each head that learns labels."""
    instances: Literal["off", "slots", "embedding"] = "off"
    """How instances of views become those of the scene: slots by assignment (Panoptic Lifting), or an embedding that is
    clustered (Contrastive Lift)."""
    teachers: tuple[str, ...] = ()
    """Further encoders, NAME or NAME:MODEL or NAME:MODEL:WEIGHTS, each with a head of its own: dino, pyramid, ..."""
    teacher_period: Annotated[int, Between(1, 10_000)] = 1
    """Of so many keyframes one is shown to them, and only when the main encoder has nothing to do."""
    pyramid: PyramidConfig = nested(default_factory=PyramidConfig)
    point_weight: Annotated[float, Between(0, 1000)] = 0.0
    """Of 1 - cos between features at single points that a camera saw and what was measured there, whatever its window
    (OpenScene's distillation); 0 = off."""
    point_rays: Annotated[int, Between(1, 1_000_000)] = 1024
    """Such points a step."""
    align_weight: Annotated[float, Between(0, 1000)] = 0.0
    """Of drawing features at labelled pixels towards the words of their classes (`class_names`); 0 = off."""

    def __post_init__(self) -> None:
        require(self.semantic_classes >= 0, "semantic_classes", self.semantic_classes, ">= 0")
        named = len(self.class_names)
        require(named in (0, self.semantic_classes), "class_names", self.class_names,
                f"none, or one for each of {self.semantic_classes} classes")  # fmt: skip
        names = {teacher.split(":")[0] for teacher in self.teachers}
        require(len(names) == len(self.teachers), "teachers", self.teachers, "each encoder once")
        require(self.semantic_compositing in ("logits", "probability"), "semantic_compositing",
                self.semantic_compositing, "logits, probability")  # fmt: skip
        require(self.instances in ("off", "slots", "embedding"), "instances", self.instances, "off, slots, embedding")
        require(self.label_rays >= 1, "label_rays", self.label_rays, ">= 1")
        require(self.teacher_period >= 1, "teacher_period", self.teacher_period, ">= 1")
        for name in ("point_weight", "align_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")


@dataclass(frozen=True)
class TrainConfig:
    """How the field is learnt."""

    rays: Annotated[int, Between(1, 10_000_000)] = 2048
    """Rays a step for geometry and colour."""
    feature_patches: Annotated[int, Between(1, 10_000_000)] = 192
    """Feature measurements a step..."""
    window_rays: Annotated[int, Between(1, 10_000)] = 24
    """...each predicted as the mean over this many rays of its receptive window."""
    through_window: bool = True
    """Train features through the encoder's receptive window (False: per pixel)."""
    smoothness: Annotated[float, Between(0, 100)] = 1.0
    """Weight of the prior that neighbours on one surface of one colour mean the same; 0 = off."""
    smooth_pairs: Annotated[int, Between(1, 1_000_000)] = 1024
    """Pairs of neighbours a step."""
    window_scale: Annotated[float, Between(0.05, 4)] = 0.75
    """Features are trained through this share of their window: a field's own smoothness widens what it sees."""
    fit_window: bool = True
    """Fit the window's size while mapping, on measurements that are not trained; False = what the encoder says."""
    free_samples: Annotated[int, Between(0, 20)] = 6
    """Samples a ray in free space."""
    surface_samples: Annotated[int, Between(1, 20)] = 8
    """Samples a ray within the truncation band. free + surface <= 20."""
    depthless_rays: Annotated[int, Between(0, 10_000_000)] = 256
    """Rays whose depth the sensor could not tell, at most so many at a time: colour teaches them; 0 = never. They cost
    nothing where there are none..."""
    depthless_period: Annotated[int, Between(1, 1000)] = 4
    """...and every so many steps where there are: a few large batches cost less than many small ones."""
    photometric: Annotated[float, Between(0, 100)] = 1.0
    """Weight of their colour."""
    clear: Annotated[float, Between(0, 100)] = 0.1
    """Weight of the prior that space nobody has measured is free; more of it outdoors."""
    distortion: Annotated[float, Between(0, 100)] = 0.002
    """Weight of the prior that a ray ends in one place (mip-NeRF 360)."""
    learning_rate: Annotated[float, Between(1e-9, 10)] = 1e-2
    decay_steps: Annotated[int, Between(0, 1_000_000_000)] = 0
    """The rate falls exponentially to a hundredth over so many steps; 0 = it stays, as a map that grows needs."""
    recent_fraction: Annotated[float, Between(0, 1)] = 0.3
    """Share of rays from the newest keyframes; the rest replays everything."""
    steps_per_keyframe: Annotated[int, Between(0, 1_000_000)] = 0
    """Bound on training steps per admitted keyframe while frames arrive; 0 = unbounded."""
    settle_steps: Annotated[int, Between(0, 1_000_000_000)] = 5000
    """Training rests after so many steps without a new keyframe: a robot that waits has its processor; 0 = never."""
    seed: int = 0
    """Order of rays."""

    def __post_init__(self) -> None:
        require(
            1 <= self.free_samples + self.surface_samples <= 20,
            "free_samples + surface_samples", self.free_samples + self.surface_samples, "1 to 20",
        )
        require(self.free_samples >= 0, "free_samples", self.free_samples, ">= 0")
        for name in ("rays", "feature_patches", "window_rays", "surface_samples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "> 0")
        for name in ("steps_per_keyframe", "settle_steps"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(0 <= self.recent_fraction <= 1, "recent_fraction", self.recent_fraction, "0 to 1")


@dataclass(frozen=True)
class QueryConfig:
    """How words are matched."""

    negatives: Annotated[tuple[str, ...], Live()] = ("object", "things", "stuff", "texture")
    """Canonical negatives (LERF, Kerr et al. 2023)."""
    temperature: Annotated[float, Between(0.001, 1000), Live()] = 10.0
    """Pairwise relevancy temperature (LERF)."""
    score: Annotated[Literal["relevancy", "cosine"], Live()] = "relevancy"
    source: Annotated[Literal["auto", "field", "points", "ensemble", "scales"], Live()] = "auto"
    """Which map answers; auto prefers the field where it is trained and seen, ensemble of both the surer at each point,
    scales the field at each prompt's best scale (teacher pyramid)."""
    no_match: Annotated[float | None, Between(-1, 1), Live()] = None
    """Best score below this = no match; None = the encoder's calibrated default (raw cosines have none)."""
    evidence_area_m2: Annotated[float, Between(0, 100), Live()] = 0.012
    """A prompt's peak is the mean score of the best so much surface: a few stray voxels are no evidence."""
    top_percent: Annotated[float | None, Between(0.0001, 100), Live()] = None
    """Objects are made of the best so many percent of the seen points, instead of the points above a threshold."""
    part_words: Annotated[tuple[str, ...], Live()] = (
        "handle; grip", "rim; edge; lip; brim", "body; side", "base; foot; bottom", "neck", "stem", "lid",
        "cap; stopper", "shaft; rod", "head", "spout", "blade", "knob", "label", "tip", "top", "stalk", "lens",
        "wheel; wheels", "window; windows", "roof", "spine", "pages", "cover", "ring", "stripe", "button", "strap",
        "hook", "nozzle",
    )  # fmt: skip
    """Words that name a part of an object behind ";", as in "mug; handle"; words for the same part stand together, and
    those of others are what a part is told apart from inside its object."""
    part_no_match: Annotated[float, Between(0, 1), Live()] = 0.35
    """An object none of whose points are the part with at least this relevancy, among all parts, does not have it."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "> 0")
        percent = self.top_percent
        require(percent is None or 0 < percent <= 100, "top_percent", percent, "0 < percent <= 100, or None")


@dataclass(frozen=True)
class ObjectConfig:
    """How scored points become objects."""

    high: Annotated[float | None, Between(-1, 1), Live()] = None
    """Seeds of a region score at least this; None = the encoder's calibrated default."""
    low: Annotated[float | None, Between(-1, 1), Live()] = None
    """Regions grow down to this score (hysteresis); None = the encoder's calibrated default."""
    radius_m: Annotated[float, Between(0.0001, 100), Live()] = 0.03
    """Neighbours are at most this far apart, or two voxels where those are larger."""
    max_normal_angle_deg: Annotated[float, Between(0.1, 180), Live()] = 60.0
    """Growth stops across sharper concave creases unless features agree."""
    min_feature_cosine: Annotated[float, Between(-1, 1), Live()] = 0.85
    """Neighbours whose features are less alike than this, and than most neighbours are, are of different parts."""
    max_colour_distance: Annotated[float, Between(0.1, 1000), Live()] = 35.0
    """The same by colour where there are no features: CIELAB distance."""
    valley_ratio: Annotated[float, Between(0.001, 1), Live()] = 0.5
    """Two peaks are two objects when the score between them drops by this share of the lower one's height above low."""
    support_tolerance_m: Annotated[float, Between(0, 100), Live()] = 0.012
    """Points this near the height of a table, facing up, belong to the table: they never glue what stands on it."""
    up: Annotated[tuple[float, float, float], Live()] = (0.0, 0.0, 1.0)
    """Against gravity, in global_frame."""
    min_points: Annotated[int, Between(1, 1_000_000), Live()] = 12
    max_objects: Annotated[int, Between(1, 10_000), Live()] = 20

    def __post_init__(self) -> None:
        require(self.radius_m > 0, "radius_m", self.radius_m, "> 0")
        require(0 < self.max_normal_angle_deg <= 180, "max_normal_angle_deg", self.max_normal_angle_deg, "0 to 180")
        require(-1 <= self.min_feature_cosine <= 1, "min_feature_cosine", self.min_feature_cosine, "-1 to 1")
        require(self.max_colour_distance > 0, "max_colour_distance", self.max_colour_distance, "> 0")
        require(0 < self.valley_ratio <= 1, "valley_ratio", self.valley_ratio, "0 to 1, not 0")
        require(self.support_tolerance_m >= 0, "support_tolerance_m", self.support_tolerance_m, ">= 0")
        require(any(self.up), "up", self.up, "a direction, not all zero")
        require(self.min_points >= 1, "min_points", self.min_points, ">= 1")
        require(self.max_objects >= 1, "max_objects", self.max_objects, ">= 1")


@dataclass(frozen=True)
class MaskConfig:
    """How 2-D masks of many views become instances (see `objects.mask_graph`)."""

    store_mb: Annotated[float, Between(0, 1_000_000)] = 32.0
    """Bytes of masks, depth and colour of keyframes kept for it; 0 = none. Above it the most redundant view goes."""
    segmenter: str = "off"
    """What makes masks where frames bring none: off, felzenszwalb, or module:attribute (see `encoders.masks`)."""
    tolerance_voxels: Annotated[float, Between(0.1, 100)] = 1.5
    """A mask covers a voxel when the depth there agrees to so many voxel sizes (more would take in what lies close
    behind thin things)..."""
    tolerance_relative: Annotated[float, Between(0, 1)] = 0.01
    """...or to this share of the depth, whichever is larger."""
    visible_share: Annotated[float, Between(0.01, 1)] = 0.3
    """A view sees a mask of another one when it sees this share of its voxels."""
    contained_share: Annotated[float, Between(0.5, 1)] = 0.75
    """A mask lies in one of another view when this share of what that view sees of it does."""
    divided_share: Annotated[float, Between(0, 1)] = 0.3
    """Masks that more of the views divide among several masks cover several things, and are left out."""
    consensus: Annotated[float, Between(0.01, 1)] = 0.8
    """Masks are of one thing when this share of the views that see both hold both in one mask."""
    voxel_share: Annotated[float, Between(0, 1)] = 0.5
    """A voxel is an instance's when this share of the instance's views which see it say so."""
    island_voxels: Annotated[float, Between(0, 1000)] = 3.0
    """Parts of an instance farther than so many voxel sizes from the rest are islands..."""
    island_share: Annotated[float, Between(0, 1)] = 0.2
    """...and left out where they are smaller than this share of its largest part; 0 = never."""
    min_views: Annotated[int, Between(1, 1000)] = 2
    """Instances are seen by so many views."""
    top_views: Annotated[int, Between(1, 1000)] = 5
    """Their features come from so many views, those with the most visible pixels."""
    view_tolerance_m: Annotated[float, Between(0, 100)] = 0.2
    """For that choice, a point is visible where the measured depth agrees to this (OpenMask3D)."""
    crop_levels: Annotated[int, Between(1, 10)] = 3
    """Crops a view, each larger than the one before..."""
    crop_growth: Annotated[float, Between(0, 2)] = 0.1
    """...by this share of the box on every side."""

    def __post_init__(self) -> None:
        require(self.store_mb >= 0, "store_mb", self.store_mb, ">= 0")
        for name in ("visible_share", "contained_share", "consensus"):
            require(0 < getattr(self, name) <= 1, name, getattr(self, name), "0 to 1, not 0")
        for name in ("min_views", "top_views", "crop_levels"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")


@dataclass(frozen=True)
class GripperConfig:
    """A parallel gripper. Its frame: origin midway between the fingertips, x closes, z approaches, y = z cross x."""

    model: Annotated[str, Live()] = ""
    """parallel, panda_hand, robotiq_2f85, or a YAML file: the dimensions it gives take the place of those below; '' =
    those below."""
    max_width_m: Annotated[float, Between(0.001, 10), Live()] = 0.085
    """Largest opening between the fingers."""
    min_width_m: Annotated[float, Between(0, 10), Live()] = 0.002
    """Narrowest thing held."""
    finger_length_m: Annotated[float, Between(0.001, 10), Live()] = 0.045
    finger_thickness_m: Annotated[float, Between(0.0001, 10), Live()] = 0.012
    """Along x."""
    finger_breadth_m: Annotated[float, Between(0.0001, 10), Live()] = 0.02
    """Along y."""
    palm_depth_m: Annotated[float, Between(0.0001, 10), Live()] = 0.06
    """Thickness of the palm behind the fingers."""
    palm_width_m: Annotated[float, Between(0, 10), Live()] = 0.0
    """Of the palm along x; 0 = as wide as the open fingers."""
    palm_breadth_m: Annotated[float, Between(0, 10), Live()] = 0.0
    """Of the palm along y; 0 = as broad as the fingers."""
    clearance_m: Annotated[float, Between(0, 10), Live()] = 0.005
    """Kept to everything around; the fingers open this much wider than the object on each side."""
    friction: Annotated[float, Between(0.001, 100), Live()] = 0.5
    """Coulomb coefficient: antipodal contacts lie inside this cone."""
    candidates: Annotated[int, Between(1, 10_000), Live()] = 20
    """Ranked candidates kept per object."""

    def __post_init__(self) -> None:
        if self.model:
            for name, value in dimensions(self.model):
                object.__setattr__(self, name, value)
        for name in ("finger_length_m", "finger_thickness_m", "finger_breadth_m", "palm_depth_m", "friction"):
            require(getattr(self, name) > 0, name, getattr(self, name), "> 0")
        for name in ("clearance_m", "palm_width_m", "palm_breadth_m"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")
        require(
            0 <= self.min_width_m < self.max_width_m - 2 * self.clearance_m,
            "min_width_m", self.min_width_m, "0 <= min < max_width_m - 2 clearance_m",
        )
        require(self.candidates >= 1, "candidates", self.candidates, ">= 1")

    @property
    def widest_m(self) -> float:
        """The widest thing that is held: what noise adds to it must still pass between the open fingers."""
        return self.max_width_m - 1.2 * self.clearance_m

    def opening_m(self, width_m: float) -> float:
        """How far the fingers are opened before they go around something: the clearance on each side, if they can."""
        return min(width_m + 2 * self.clearance_m, self.max_width_m)

    @property
    def palm_half_m(self) -> tuple[float, float]:
        """Half of the palm along x and along y."""
        x = self.palm_width_m or self.max_width_m + 2 * self.finger_thickness_m
        return x / 2, (self.palm_breadth_m or self.finger_breadth_m) / 2


@dataclass(frozen=True)
class GraspConfig:
    """How grasps are looked for."""

    planner: Annotated[str, Live()] = "antipodal"
    """antipodal, optimised (by gradient), or somebody's own as module:attribute (see `objects.grasps.GraspPlanner`)."""
    source: Annotated[Literal["auto", "field", "points"], Live()] = "auto"
    """Where surface, normals and clearance come from; auto = the field where it has been trained."""
    unseen: Annotated[Literal["occupied", "free"], Live()] = "occupied"
    """What space that no camera saw is taken for."""
    max_approach_deg: Annotated[float, Between(1, 180), Live()] = 100.0
    """Approaches lie within this of straight down."""
    standoff_m: Annotated[float, Between(0, 10), Live()] = 0.1
    """The straight way in begins so far back; it must be free."""
    retreat_m: Annotated[float, Between(0, 10), Live()] = 0.1
    """The object is first lifted by this, straight up."""
    reach_from: Annotated[tuple[float, float, float], Live()] = (0.0, 0.0, 0.0)
    """Where the arm stands, in global_frame, metres."""
    reach_m: Annotated[float, Between(0, 1000), Live()] = 0.0
    """Grasps farther from there are out of reach; 0 = no limit."""

    def __post_init__(self) -> None:
        require(bool(self.planner.strip()), "planner", self.planner, "a name, or module:attribute")
        require(0 < self.max_approach_deg <= 180, "max_approach_deg", self.max_approach_deg, "0 to 180, not 0")
        for name in ("standoff_m", "retreat_m", "reach_m"):
            require(getattr(self, name) >= 0, name, getattr(self, name), ">= 0")


@dataclass(frozen=True)
class EngineConfig:
    """Threads, queues and schedules."""

    queue_size: Annotated[int, Between(1, 10_000)] = 8
    """Frames waiting; when full the oldest is dropped and counted."""
    snapshot_period_s: Annotated[float, Between(0, 100_000)] = 1.0
    max_pending_jobs: Annotated[int, Between(1, 100_000)] = 64
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: Annotated[int, Between(0, 1024)] = 0
    """CPU threads of torch; 0 = leave as it is."""

    def __post_init__(self) -> None:
        for name in ("queue_size", "max_pending_jobs"):
            require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        require(self.snapshot_period_s >= 0, "snapshot_period_s", self.snapshot_period_s, ">= 0")
        require(self.threads >= 0, "threads", self.threads, ">= 0")


@dataclass(frozen=True)
class SemfieldConfig:
    """The whole configuration."""

    global_frame: str = "map"
    """The frame all points and poses are in."""
    frame: FrameConfig = nested(default_factory=FrameConfig)
    encoder: EncoderConfig = nested(default_factory=EncoderConfig)
    memory: MemoryConfig = nested(default_factory=MemoryConfig)
    field: FieldConfig = nested(default_factory=FieldConfig)
    heads: HeadsConfig = nested(default_factory=HeadsConfig)
    train: TrainConfig = nested(default_factory=TrainConfig)
    query: QueryConfig = nested(default_factory=QueryConfig)
    objects: ObjectConfig = nested(default_factory=ObjectConfig)
    masks: MaskConfig = nested(default_factory=MaskConfig)
    gripper: GripperConfig = nested(default_factory=GripperConfig)
    grasp: GraspConfig = nested(default_factory=GraspConfig)
    engine: EngineConfig = nested(default_factory=EngineConfig)


def demo_config() -> SemfieldConfig:
    """Settings for a table top an arm's length away: centimetre voxels, nothing beyond 1.6 m."""
    return SemfieldConfig(
        frame=FrameConfig(max_depth_m=1.6),
        memory=MemoryConfig(voxel_size_m=0.01, min_translation_m=0.06, min_rotation_deg=6.0),
    )
