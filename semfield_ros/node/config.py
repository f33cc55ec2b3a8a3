"""Settings of the node. YAML, command line and ROS parameters are generated from these; live ones are marked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from dataclasses import field as nested
from typing import Annotated, Literal

from ..config import Between, Live, SemfieldConfig, require
from ..messages.assembly import AssemblyConfig

Rate = Annotated[float, Live(), Between(0, 100)]


@dataclass(frozen=True)
class CameraConfig:
    """Topics of a camera, relative to its namespace, and how its messages are brought together."""

    namespaces: tuple[str, ...] = ("",)
    """One camera for each; '' = the node's own namespace. Topics of a camera are NAMESPACE/TOPIC."""
    rgb_topic: str = "rgb/image"
    rgb_transport: Literal["raw", "compressed"] = "raw"
    """compressed = sensor_msgs/CompressedImage on RGB_TOPIC/compressed."""
    depth_topic: str = "depth/image"
    depth_transport: Literal["raw", "compressed_depth"] = "raw"
    """compressed_depth = PNG of compressed_depth_image_transport on DEPTH_TOPIC/compressedDepth."""
    info_topic: str = "rgb/camera_info"
    labels_topic: str = ""
    """Label images (mono8, mono16, 16UC1, 32SC1; 0 = none) from another node, such as labels/image; '' = none. Classes
    1 to heads.semantic_classes of them are learnt."""
    label_info_topic: str = "labels/info"
    """vision_msgs/LabelInfo that names the labels."""
    masks_topic: str = ""
    """Instance masks (ids that disagree between images) from another node, such as masks/image; '' = none."""
    masks_info_topic: str = "masks/info"
    """vision_msgs/LabelInfo that names the masks."""
    masks_named: bool = True
    """Leave out masks that it does not name; false = keep all, as heads.instances can use them without names."""
    reliable: bool = False
    """Ask for reliable delivery. A reliable subscriber hears nothing from a best-effort publisher."""
    approx_sync: bool = True
    """Bring colour and depth together whose stamps differ a little; false = equal stamps only."""
    sync_slop_s: Annotated[float, Between(0, 10)] = 0.02
    """How much they may differ."""
    sync_queue_size: Annotated[int, Between(1, 1000)] = 10
    """Images of each kind that wait for their partner; above this the oldest is dropped and counted."""
    width: Annotated[int, Between(0, 10_000)] = 320
    """Frames are reduced to this width before mapping; 0 = as they come."""
    labels_timeout_s: Annotated[float, Between(0, 60)] = 0.5
    """How long a frame waits for its label image or masks before it goes on without."""

    def __post_init__(self) -> None:
        require(bool(self.namespaces), "namespaces", self.namespaces, "at least one")
        require(len(set(self.namespaces)) == len(self.namespaces), "namespaces", self.namespaces, "each only once")
        require(self.sync_slop_s >= 0, "sync_slop_s", self.sync_slop_s, ">= 0")
        require(1 <= self.sync_queue_size <= 1000, "sync_queue_size", self.sync_queue_size, "1 to 1000")
        require(self.width == 0 or self.width >= 8, "width", self.width, "0 or >= 8")
        require(self.labels_timeout_s >= 0, "labels_timeout_s", self.labels_timeout_s, ">= 0")


@dataclass(frozen=True)
class PoseConfig:
    """Where the camera's pose comes from."""

    source: Literal["tf", "odometry", "pose"] = "tf"
    """tf = global_frame to the optical frame of the depth image; odometry = nav_msgs/Odometry; pose =
    geometry_msgs/PoseStamped."""
    odometry_topic: str = "odom"
    pose_topic: str = "pose"
    pose_frame: str = ""
    """Frame whose pose PoseStamped gives; '' = the camera's optical frame. Odometry says it as child_frame_id."""
    timeout_s: Annotated[float, Between(0, 600)] = 1.0
    """How long a frame waits for its pose before it is rejected."""
    max_gap_s: Annotated[float, Between(0.001, 60)] = 0.25
    """Poses of odometry and pose topics are interpolated between neighbours no farther apart than this."""
    pending_frames: Annotated[int, Between(1, 10_000)] = 30
    """Frames that may wait for their pose; above this the oldest is dropped and counted."""
    on_time_jump: Literal["keep", "reset"] = "keep"
    """What becomes of the map when time jumps back (a bag loops): kept, or forgotten."""

    def __post_init__(self) -> None:
        require(self.timeout_s >= 0, "timeout_s", self.timeout_s, ">= 0")
        require(self.max_gap_s > 0, "max_gap_s", self.max_gap_s, "> 0")
        require(1 <= self.pending_frames <= 10_000, "pending_frames", self.pending_frames, "1 to 10000")


@dataclass(frozen=True)
class OutputConfig:
    """What is published, and how often at most. Nothing is computed for a topic nobody listens to; 0 = never."""

    vocabulary: Annotated[tuple[str, ...], Live()] = ()
    """Classes of the labelled cloud and of query_points; synonyms separated by ';'. Empty = no labels."""
    labels: Annotated[Literal["auto", "vocabulary", "classes"], Live()] = "auto"
    """What labelled_cloud shows: the vocabulary, the classes learnt from label images (heads.semantic_classes), or,
    auto, the vocabulary where one is set, else the classes."""
    instances: Annotated[bool, Live()] = True
    """Number its things by what the field has learnt of instances (heads.instances), the same from cloud to cloud;
    false, or where it learns none = connected pieces of a class, numbered anew in each cloud."""
    prompts: Annotated[tuple[str, ...], Live()] = ()
    """What relevancy_cloud, objects, markers and grasps show; a query through the service takes its place."""
    map_cloud_hz: Rate = 0.5
    labelled_cloud_hz: Rate = 0.5
    relevancy_hz: Rate = 1.0
    """Of relevancy_cloud, objects, markers and grasps together."""
    rendered_hz: Rate = 1.0
    status_hz: Rate = 1.0
    diagnostics_hz: Rate = 1.0
    rendered_width: Annotated[int, Between(8, 4096)] = 160
    """Width of rendered images; the height follows from the camera."""
    max_cloud_points: Annotated[int, Between(1, 100_000_000)] = 500_000
    """Larger clouds are thinned evenly."""

    def __post_init__(self) -> None:
        for name in ("map_cloud_hz", "labelled_cloud_hz", "relevancy_hz", "rendered_hz", "status_hz", "diagnostics_hz"):
            require(0 <= getattr(self, name) <= 100, name, getattr(self, name), "0 to 100")
        require(self.labels in ("auto", "vocabulary", "classes"), "labels", self.labels, "auto, vocabulary, classes")
        require(8 <= self.rendered_width <= 4096, "rendered_width", self.rendered_width, "8 to 4096")
        require(self.max_cloud_points >= 1, "max_cloud_points", self.max_cloud_points, ">= 1")


@dataclass(frozen=True)
class ServiceConfig:
    """How requests are answered."""

    map_folder: str = "~/.ros/semfield_maps"
    """Maps are saved to, loaded from and exported to this folder only; it is made when needed."""
    workers: Annotated[int, Between(1, 64)] = 4
    """Requests answered at a time."""
    max_waiting: Annotated[int, Between(1, 10_000)] = 32
    """Requests that may wait for a worker; more are refused."""
    save_on_shutdown: str = ""
    """Name of a map to save (over an older one) when the node stops; '' = none."""
    load_on_start: str = ""
    """Name of a map to go on from; '' = start empty."""

    def __post_init__(self) -> None:
        require(1 <= self.workers <= 64, "workers", self.workers, "1 to 64")
        require(self.max_waiting >= 1, "max_waiting", self.max_waiting, ">= 1")


@dataclass(frozen=True)
class DiagnosticsConfig:
    """When something is wrong."""

    silent_after_s: Annotated[float, Between(0.1, 3600)] = 3.0
    """A topic that has brought nothing for so long is called silent."""

    def __post_init__(self) -> None:
        require(self.silent_after_s > 0, "silent_after_s", self.silent_after_s, "> 0")


@dataclass(frozen=True)
class NodeConfig(SemfieldConfig):
    """Everything: the engine's settings, and the node's."""

    camera: CameraConfig = nested(default_factory=CameraConfig)
    pose: PoseConfig = nested(default_factory=PoseConfig)
    output: OutputConfig = nested(default_factory=OutputConfig)
    service: ServiceConfig = nested(default_factory=ServiceConfig)
    diagnostics: DiagnosticsConfig = nested(default_factory=DiagnosticsConfig)

    def assembly(self) -> AssemblyConfig:
        """How messages become frames."""
        camera, pose = self.camera, self.pose
        return AssemblyConfig(
            cameras=camera.namespaces, global_frame=self.global_frame, approx_sync=camera.approx_sync,
            sync_slop_s=camera.sync_slop_s, sync_queue_size=camera.sync_queue_size, width=camera.width,
            labels=bool(camera.labels_topic), masks=bool(camera.masks_topic), masks_named=camera.masks_named,
            labels_timeout_s=camera.labels_timeout_s,
            pose_source=pose.source, pose_frame=pose.pose_frame, pose_timeout_s=pose.timeout_s,
            max_gap_s=pose.max_gap_s, pending_frames=pose.pending_frames,
        )  # fmt: skip

    def engine_config(self) -> SemfieldConfig:
        """The engine's part, as maps are saved with."""
        return SemfieldConfig(**{f.name: getattr(self, f.name) for f in fields(SemfieldConfig)})
