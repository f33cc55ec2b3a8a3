"""Layouts of published datasets: one rendered wall, written as each lays out its files, must come back as that wall."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_sources import COUNT, assert_on_the_wall, cut, pose, save_colour, view, write_nerfstudio

from semfield_ros.errors import FrameRejected, SourceError
from semfield_ros.frame import make_frame
from semfield_ros.geometry import Camera, image_directions
from semfield_ros.sources import open_source, panoptic_lifting, replica, scannet
from semfield_ros.sources.posed_folder import every, fitting_camera, numbers
from semfield_ros.sources.replica_layout import write_replica_layout

SQUARE = Camera(64, 48, 32.0, 32.0, 31.5, 23.5)
"""A horizontal field of view of 90 degrees, its centre in the middle."""


def label_image(i: int, shape: tuple[int, int] = (48, 64)) -> np.ndarray:
    ids = np.zeros(shape, np.uint16)
    ids[10:20, 5 + i : 30] = 2
    ids[25:40, 30:50] = 7
    return ids


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def wall(i: int, camera: Camera = SQUARE) -> tuple[np.ndarray, np.ndarray]:
    """Colour, and depth in millimetres."""
    rgb, z = view(pose(i), image_directions(camera))
    return rgb, np.rint(z * 1000).astype(np.uint16)


def same(camera: Camera, expected: Camera) -> None:
    for name in ("width", "height", "fx", "fy", "cx", "cy"):
        assert getattr(camera, name) == pytest.approx(getattr(expected, name), abs=1e-4)


# what the layouts share


def test_every_is_semantic_nerfs_rule():
    split = every(900, 5, 2)
    assert len(split.train) == len(split.test) == 180 and split.train[:3] == (0, 5, 10) and split.test[-1] == 897
    assert every(120, 100, 50).test == (50,), "the last has nothing 50 frames later"


def test_files_are_sorted_by_their_numbers():
    assert sorted(["rgb_10", "rgb_9", "rgb_100"], key=numbers) == ["rgb_9", "rgb_10", "rgb_100"]
    assert numbers("0_0012") == (0, 12)


def test_a_matrix_of_another_size_is_told_by_its_centre():
    colour = np.array([[1170.0, 0, 647.0], [0, 1170.0, 483.0], [0, 0, 1]])
    depth = np.array([[577.0, 0, 319.0], [0, 577.0, 239.0], [0, 0, 1]])
    assert fitting_camera([depth, colour], [(640, 480), (1296, 968)]).fx == 577.0
    assert fitting_camera([depth, colour], [(1296, 968)]).fx == 1170.0
    assert fitting_camera([colour], [(640, 480), (1296, 968)]) == Camera.from_matrix(colour, 1296, 968)
    with pytest.raises(FrameRejected, match=r"\(647, 483\) lie far from the centre of images of 640x480"):
        fitting_camera([colour], [(640, 480)])
    with pytest.raises(FrameRejected, match="are missing"):
        fitting_camera([], [(640, 480)])


# Replica as Semantic-NeRF renders it


@pytest.fixture
def rendered(tmp_path) -> Path:
    frames = []
    for i in range(COUNT):
        rgb, depth = wall(i)
        frames.append(
            make_frame(stamp_s=i, camera=SQUARE, T_world_camera=pose(i), rgb=rgb, depth=depth, semantic=label_image(i))
        )
        save(tmp_path / "semantic_instance" / f"semantic_instance_{i}.png", 300 * label_image(i))
    write_replica_layout(tmp_path, frames, ["void", *(f"name {k}" for k in range(1, 9))])
    return tmp_path


def test_replica_gives_back_what_was_written(rendered):
    source = open_source(rendered)
    assert source.rate_hz == pytest.approx(30) and source.class_names[:3] == ("void", "name 1", "name 2")
    frames = list(source)
    assert len(frames) == COUNT and not source.gate.rejected
    for i, frame in enumerate(frames):
        same(frame.camera, SQUARE)
        assert_on_the_wall(frame, i, 5e-4)
        assert np.array_equal(frame.semantic, label_image(i))
        assert np.array_equal(frame.instance, 300 * label_image(i).astype(int)), "16 bits, beyond 255 instances"
    assert [f.stamp_s for f in open_source(f"replica:{rendered}")] == [f.stamp_s for f in frames]


def test_replica_without_labels_or_names_is_read_all_the_same(rendered):
    (rendered / "info_semantic.json").unlink()
    (rendered / "semantic_class" / "semantic_class_1.png").unlink()
    for path in (rendered / "semantic_instance").iterdir():
        path.unlink()
    source = open_source(rendered)
    frames = list(source)
    assert len(frames) == COUNT and source.class_names == ()
    assert [frame.semantic is None for frame in frames] == [False, True, False, False, False]
    assert all(frame.instance is None for frame in frames)


def test_replica_splits_by_the_numbers_of_its_images(tmp_path):
    rgb, depth = wall(0)
    for n in (0, 2, 3, 5, 7, 10):
        save_colour_at(tmp_path / "rgb" / f"rgb_{n}.png", rgb)
        save(tmp_path / "depth" / f"depth_{n}.png", depth)
    np.savetxt(tmp_path / "traj_w_c.txt", np.stack([pose(i).reshape(16) for i in range(11)]))
    split = replica.split(tmp_path)
    assert (split.train, split.test) == ((0, 3, 5), (1, 4))
    assert [round(30 * f.stamp_s) for f in open_source(f"{tmp_path}?split=train")] == [0, 5, 10]
    test = list(open_source(f"replica:{tmp_path}?split=test"))
    assert [round(30 * f.stamp_s) for f in test] == [2, 7]
    assert np.allclose(test[1].T_world_camera, pose(7)), "poses go by the number of the image, not by its place"


def save_colour_at(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_colour(path, rgb)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: cut(d / "rgb/rgb_2.png", 0.6), "colour_type"),
        (lambda d: (d / "depth/depth_2.png").unlink(), "depth_type"),
        (lambda d: cut(d / "semantic_class/semantic_class_2.png", 0.6), "target_type"),
        (lambda d: save(d / "semantic_class/semantic_class_2.png", np.zeros((48, 64, 3), np.uint8)), "target_type"),
        (lambda d: save(d / "semantic_instance/semantic_instance_2.png", np.zeros((48, 48), np.uint8)), "target_type"),
    ],
)
def test_one_damaged_frame_is_counted(rendered, damage, reason):
    damage(rendered)
    source = open_source(rendered)
    assert [round(30 * f.stamp_s) for f in source] == [0, 1, 3, 4] and source.gate.rejected == {reason: 1}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("traj_w_c.txt", "1 0 0\n", r"shape \(1, 3\); expected lines of 16"),
        ("traj_w_c.txt", "one two\n", "does not hold 16 numbers a line"),
        ("traj_w_c.txt", " ".join(["1"] * 16) + "\n", "has 1 poses and there is an image 4.*cut off"),
        ("info_semantic.json", '{"classes": [{"id": 1}]}', r"info_semantic.json is not \{"),
        ("info_semantic.json", '{"classes": [{"id": 99999999, "name": "x"}]}', "expected 0 to 65535"),
    ],
)
def test_replica_malformed_files_are_refused(rendered, file, content, message):
    (rendered / file).write_text(content)
    with pytest.raises(SourceError, match=message):
        open_source(rendered)


# Replica as NICE-SLAM renders it


def write_slam(directory: Path, scale: float) -> None:
    for i in range(COUNT):
        rgb, z = view(pose(i), image_directions(SQUARE))
        save_colour_at(directory / "results" / f"frame{i:06d}.jpg", rgb)
        save(directory / "results" / f"depth{i:06d}.png", np.rint(z * scale).astype(np.uint16))
    np.savetxt(directory / "traj.txt", np.stack([pose(i).reshape(16) for i in range(COUNT)]))


@pytest.mark.parametrize("where", ["room0", "."])
def test_nice_slam_depth_is_in_the_units_of_its_scale(tmp_path, where):
    """Poses are OpenCV's camera-to-world as they stand: that code turns y and z only for its own renderer."""
    room = tmp_path / "room0"
    write_slam(room, 6553.5)
    camera = {"w": 64, "h": 48, "fx": 32.0, "fy": 32.0, "cx": 31.5, "cy": 23.5, "scale": 6553.5}
    (tmp_path / where / "cam_params.json").write_text(json.dumps({"camera": camera}))
    source = open_source(room)
    for i, frame in enumerate(source):
        same(frame.camera, SQUARE)
        assert_on_the_wall(frame, i, 1e-4, colour_step=40)  # JPEG
    assert source.gate.admitted == COUNT


def test_nice_slam_without_calibration_takes_the_published_one(tmp_path):
    save_colour_at(tmp_path / "results/frame000000.jpg", np.zeros((680, 1200, 3), np.uint8))
    save(tmp_path / "results/depth000000.png", np.full((680, 1200), 13107, np.uint16))
    np.savetxt(tmp_path / "traj.txt", np.eye(4).reshape(1, 16))
    (frame,) = open_source(tmp_path)
    assert frame.camera == Camera(1200, 680, 600.0, 600.0, 599.5, 339.5) and frame.depth_m[5, 5] == pytest.approx(2.0)


@pytest.mark.parametrize("content", ["[", '{"camera": {"w": 64}}', '{"camera": {"w": 1, "h": 1, "fx": 1, "fy": 1, "cx": 1, "cy": 1, "scale": 0}}'])  # fmt: skip  # noqa: E501
def test_nice_slam_malformed_calibration_is_refused(tmp_path, content):
    write_slam(tmp_path, 1000)
    (tmp_path / "cam_params.json").write_text(content)
    with pytest.raises(SourceError, match=r"cam_params\.json is not"):
        open_source(tmp_path)


# ScanNet

DEPTH = Camera(64, 48, 57.7, 57.7, 31.6, 23.7)
_FINER = DEPTH.resized(648, 486)
COLOUR = Camera(648, 484, _FINER.fx, _FINER.fy, _FINER.cx, _FINER.cy - 1)
"""Ten times finer, and one row short above and below: as 1296x968 is two short of 640x480's aspect."""


def matrix_4x4(camera: Camera) -> np.ndarray:
    K = np.eye(4)
    K[:3, :3] = camera.matrix
    return K


def write_scannet(directory: Path, *, count: int = COUNT, labels: str = "label-filt", frames: str = ".") -> None:
    root = directory / frames
    for i in range(count):
        rgb, _ = view(pose(i), image_directions(COLOUR))
        save_colour_at(root / "color" / f"{i}.jpg", rgb)
        save(root / "depth" / f"{i}.png", wall(i, DEPTH)[1])
        (root / "pose").mkdir(exist_ok=True)
        np.savetxt(root / "pose" / f"{i}.txt", pose(i))
        if labels:
            ids = np.zeros((484, 648), np.uint16)
            ids[:, :324], ids[:, 324:] = 1, 1163  # wall; object
            save(directory / labels / f"{i}.png", ids)
            save(directory / labels.replace("label", "instance") / f"{i}.png", (ids % 7).astype(np.uint8))
    (root / "intrinsic").mkdir()
    np.savetxt(root / "intrinsic/intrinsic_color.txt", matrix_4x4(COLOUR))
    np.savetxt(root / "intrinsic/intrinsic_depth.txt", matrix_4x4(DEPTH))


@pytest.mark.parametrize("frames", [".", "frames"])
def test_scannet_comes_on_the_grid_of_depth(tmp_path, frames):
    write_scannet(tmp_path, frames=frames)
    source = open_source(tmp_path)
    for i, frame in enumerate(source):
        same(frame.camera, DEPTH)
        assert_on_the_wall(frame, i, 5e-4, colour_step=12)
        assert (frame.semantic[1:-1, :31] == 1).all() and (frame.semantic[1:-1, 33:] == 40).all()
        assert (frame.instance[1:-1, :31] == 1).all() and (frame.instance[1:-1, 33:] == 1163 % 7).all()
    assert source.gate.admitted == COUNT and source.class_names[1] == "wall" and source.class_names[40] == "other prop"


def test_scannet_without_the_matrix_of_depth_goes_by_that_of_colour(tmp_path):
    write_scannet(tmp_path)
    (tmp_path / "intrinsic/intrinsic_depth.txt").unlink()
    for i, frame in enumerate(open_source(tmp_path)):
        same(frame.camera, DEPTH)
        assert_on_the_wall(frame, i, 5e-4, colour_step=12)


def test_scannet_as_semantic_nerf_unpacks_it(tmp_path):
    """renders/ without intrinsics, labels as their archives unpack, numbers in SCENE.txt."""
    scene = tmp_path / "scene0088_00"
    write_scannet(scene, frames="renders", labels="scene0088_00_2d-label-filt/label-filt")
    for path in (scene / "renders/intrinsic").iterdir():
        path.unlink()
    lines = ["axisAlignment = 1 0 0 0", "colorWidth = 648"]
    for which, c in (("depth", DEPTH), ("color", COLOUR)):
        for key, value in (("fx", c.fx), ("fy", c.fy), ("mx", c.cx), ("my", c.cy)):
            lines.append(f"{key}_{which} = {value}")
    (scene / "scene0088_00.txt").write_text("\n".join(lines) + "\n")
    first = next(iter(open_source(f"scannet:{scene}")))
    same(first.camera, DEPTH)
    assert set(np.unique(first.semantic)) <= {0, 1, 40}
    (scene / "scene0088_00.txt").write_text("fx_depth = many\n")
    with pytest.raises(SourceError, match="has no fx, fy, mx, my"):
        open_source(scene)
    (scene / "scene0088_00.txt").unlink()
    with pytest.raises(SourceError, match=r"has no intrinsics; looked for.*scene0088_00\.txt"):
        open_source(scene)


@pytest.mark.parametrize(
    ("labels", "count", "names", "ids"),
    [
        ("nyu40", 41, {1: "wall", 5: "chair", 40: "other prop"}, {1: 1, 2: 5, 1163: 40, 22: 23}),
        ("nyu13", 14, {4: "chair", 12: "wall"}, {1: 12, 2: 4, 3: 5}),
        ("scannet20", 21, {1: "wall", 20: "other furniture"}, {1: 1, 2: 5, 22: 0}),
        ("scannet200", 201, {1: "wall", 2: "chair", 200: "mattress"}, {1: 1, 2: 2, 1191: 200, 12: 0}),
    ],
)
def test_scannet_labels_are_mapped(tmp_path, labels, count, names, ids):
    """Ids of scannetv2-labels: 1 wall, 2 chair, 3 floor, 22 books, 1163 object, 1191 mattress."""
    write_scannet(tmp_path, count=1)
    save(tmp_path / "label-filt/0.png", np.full((484, 648), next(iter(ids)), np.uint16))
    source = open_source(f"{tmp_path}?labels={labels}")
    assert len(source.class_names) == count and all(source.class_names[k] == name for k, name in names.items())
    assert (next(iter(source)).semantic[1:-1] == next(iter(ids.values()))).all()
    table = scannet._table()[labels]
    assert scannet.mapped(np.array([list(ids)]), table).tolist() == [list(ids.values())]
    assert scannet.mapped(np.array([[0, 65535]], np.uint16), table).tolist() == [[0, 0]], "unknown ids are void"


def test_scannet_trains_on_every_hundredth_frame_with_a_pose(tmp_path):
    for kind in ("color", "depth", "pose"):
        (tmp_path / kind).mkdir()
    for i in range(260):
        (tmp_path / "color" / f"{i}.jpg").touch()
        np.savetxt(tmp_path / "pose" / f"{i}.txt", np.full((4, 4), -np.inf) if i in (3, 120) else np.eye(4))
    split = scannet.split(tmp_path)
    assert split.train == (0, 101, 202) and split.test == (51, 152, 252), "frames 3 and 120 have no pose"


def test_scannet_lost_frames_are_counted(tmp_path):
    write_scannet(tmp_path, labels="")
    np.savetxt(tmp_path / "pose/2.txt", np.full((4, 4), -np.inf))
    source = open_source(tmp_path)
    assert len(list(source)) == COUNT - 1 and source.gate.rejected == {"pose_not_finite": 1}
    assert source.class_names == ()


def test_images_resized_without_their_intrinsics_are_refused(tmp_path):
    write_scannet(tmp_path, count=1)
    np.savetxt(tmp_path / "intrinsic/intrinsic_depth.txt", matrix_4x4(COLOUR))
    save_colour(tmp_path / "color/0.jpg", np.zeros((48, 64, 3), np.uint8))
    source = open_source(tmp_path)
    assert list(source) == [] and "resized without their intrinsics" in source.gate.last_error
    (tmp_path / "intrinsic/intrinsic_depth.txt").write_text("1 2 3\n")
    with pytest.raises(SourceError, match="does not hold a 3x3 or 4x4 intrinsic matrix"):
        open_source(tmp_path)


# Panoptic Lifting


@pytest.fixture
def panoptic(tmp_path) -> Path:
    for i in range(COUNT):
        rgb, depth = wall(i)
        stem = f"0_{2 * i:04d}"
        save_colour_at(tmp_path / "color" / f"{stem}.jpg", rgb)
        save(tmp_path / "depth" / f"{stem}.png", depth)
        (tmp_path / "pose").mkdir(exist_ok=True)
        np.savetxt(tmp_path / "pose" / f"{stem}.txt", pose(i))
        ids = label_image(i)
        save(tmp_path / "m2f_semantics" / f"{stem}.png", ids)
        save(tmp_path / "m2f_instance" / f"{stem}.png", np.where(ids == 7, 40 + i, 0).astype(np.uint16))
        save(tmp_path / "m2f_segments" / f"{stem}.png", np.where(ids > 0, ids + 100 * i, 0).astype(np.uint16))
        save(tmp_path / "rs_semantics" / f"{stem}.png", np.full((48, 64), 3, np.uint8))
        save(tmp_path / "rs_instance" / f"{stem}.png", np.full((48, 64), 9, np.uint8))
        (tmp_path / "m2f_probabilities").mkdir(exist_ok=True)
        confidence = np.where(ids == 7, 0.75, 0.25).astype(np.float32)
        np.savez_compressed(
            tmp_path / "m2f_probabilities" / f"{stem}.npz", confidence=confidence,
            probability=np.full((12, 16, 22), 1 / 22, np.float32), confidence_notta=confidence,
        )  # fmt: skip
    (tmp_path / "intrinsic").mkdir()
    np.savetxt(tmp_path / "intrinsic/intrinsic_color.txt", matrix_4x4(SQUARE))
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["0_0000", "0_0004", "0_0008"], "test": ["0_0002"]}))
    return tmp_path


def test_panoptic_predictions_become_labels_and_segments(panoptic):
    source = open_source(panoptic)
    assert source.class_names == panoptic_lifting.REDUCED and source.rate_hz == pytest.approx(10)
    for i, frame in enumerate(source):
        same(frame.camera, SQUARE)
        assert_on_the_wall(frame, i, 5e-4, colour_step=40)
        ids = label_image(i)
        assert np.array_equal(frame.semantic, ids)
        assert np.array_equal(frame.instance, np.where(ids == 7, 40 + i, 0))
        assert np.array_equal(frame.segments.ids, np.where(ids == 2, 1, np.where(ids == 7, 2, 0)))
        assert frame.segments.names == {1: "floor", 2: "table"}
        assert frame.segments.scores == pytest.approx({1: 0.25, 2: 0.75})
    assert source.gate.admitted == COUNT
    probability, confidence = panoptic_lifting.predictions(panoptic, "0_0004")
    assert probability.shape == (12, 16, 22) and confidence.shape == (48, 64) and confidence.dtype == np.float32


def test_panoptic_truth_is_read_when_asked_for(panoptic):
    for frame in open_source(f"panoptic:{panoptic}?labels=truth&split=test"):
        assert (frame.semantic == 3).all() and (frame.instance == 9).all() and frame.segments is None
    with pytest.raises(SourceError, match=r"labels=nyu40 is not known to Panoptic Lifting; allowed: m2f, notta, truth"):
        open_source(f"{panoptic}?labels=nyu40")
    with pytest.raises(SourceError, match="has no m2f_notta_semantics/"):
        open_source(f"{panoptic}?labels=notta")


def test_panoptic_splits_are_those_of_the_file(panoptic):
    assert panoptic_lifting.split(panoptic) == panoptic_lifting.Split((0, 2, 4), (1,))
    assert [round(10 * f.stamp_s) for f in open_source(f"{panoptic}?split=train")] == [0, 2, 4]
    (panoptic / "splits.json").write_text('{"train": ["0_0001"]}')
    with pytest.raises(SourceError, match=r"splits.json is not .*'0_0001'"):
        open_source(f"{panoptic}?split=train")
    (panoptic / "splits.json").unlink()
    assert panoptic_lifting.split(panoptic) == panoptic_lifting.Split((1, 2, 3, 4), (0,))


def test_panoptic_pixels_without_a_mask_or_an_image_say_nothing(panoptic):
    empty, outside = np.zeros((2, 48, 64), np.uint8)
    empty[:, :32], outside[:20] = 255, 255
    save(panoptic / "m2f_invalid/0_0000.png", empty)
    save(panoptic / "invalid/0_0000.jpg", outside)
    first = next(iter(open_source(panoptic)))
    assert not first.semantic[:, :32].any() and not first.semantic[:20].any() and first.semantic[30, 40] == 7
    assert not first.depth_m[:20].any() and first.depth_m[21:].all()


def test_panoptic_without_confidences_scores_every_segment_one(panoptic):
    for path in (panoptic / "m2f_probabilities").iterdir():
        path.unlink()
    segments = next(iter(open_source(panoptic))).segments
    assert segments.names == {1: "floor", 2: "table"} and not segments.scores


@pytest.mark.parametrize(("count", "last"), [(21, "other prop"), (32, "other prop"), (9, "class 8")])
def test_panoptic_names_follow_the_number_of_predicted_classes(panoptic, count, last):
    for path in (panoptic / "m2f_probabilities").iterdir():
        np.savez(path, probability=np.zeros((2, 2, count), np.float32), confidence=np.zeros((2, 2), np.float32))
    names = panoptic_lifting.class_names(panoptic)
    assert names[-1] == last and len(names) == {21: 22, 32: 32, 9: 9}[count]


def test_panoptic_torn_predictions_are_counted(panoptic):
    cut(panoptic / "m2f_probabilities/0_0002.npz", 0.5)
    cut(panoptic / "m2f_segments/0_0004.png", 0.5)
    save(panoptic / "m2f_segments/0_0006.png", np.zeros((24, 32), np.uint8))
    source = open_source(panoptic)
    assert len(list(source)) == COUNT - 3 and source.gate.rejected == {"target_type": 3}


def test_panoptic_scenes_without_depth_or_intrinsics_are_refused(panoptic):
    (panoptic / "intrinsic/intrinsic_color.txt").unlink()
    with pytest.raises(SourceError, match="no intrinsics"):
        open_source(panoptic)
    (panoptic / "depth").rename(panoptic / "depth_elsewhere")
    with pytest.raises(SourceError, match=r"has no depth/"):
        open_source(panoptic)


def test_things_and_stuff_are_told_apart():
    things = dict(zip(panoptic_lifting.EXTENDED, panoptic_lifting.things(panoptic_lifting.EXTENDED)))
    assert things["chair"] and things["cup"] and not things["wall"] and not things["lamp"] and not things["void"]
    assert panoptic_lifting.things(panoptic_lifting.REDUCED).sum() == 10


# LERF and F3RM: nerfstudio's transforms.json


def test_intrinsics_of_each_frame_and_depth_beside_the_images(tmp_path):
    """As phone captures are exported: intrinsics in every frame, depth in depth/, names without suffix."""
    write_nerfstudio(tmp_path)
    scene = json.loads((tmp_path / "transforms.json").read_text())
    own = {key: scene.pop(key) for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
    (tmp_path / "depth").mkdir()
    for frame in scene["frames"]:
        frame.update(own)
        depth = Path(frame.pop("depth_file_path"))
        (tmp_path / depth).rename(tmp_path / "depth" / f"{Path(frame['file_path']).stem}.png")
        frame["file_path"] = frame["file_path"].removesuffix(".png")
    (tmp_path / "depth/3.png").unlink()
    (tmp_path / "transforms.json").write_text(json.dumps(scene))
    source = open_source(f"lerf:{tmp_path}")
    frames = list(source)
    assert source.gate.admitted == len(frames) == COUNT - 1, "the frame without depth is left out"
    for i, frame in zip((0, 1, 2, 4), frames):
        assert_on_the_wall(frame, i, 2.5e-4)


def test_scenes_without_any_depth_say_what_to_do(tmp_path):
    write_nerfstudio(tmp_path)
    scene = json.loads((tmp_path / "transforms.json").read_text())
    for frame in scene["frames"]:
        del frame["depth_file_path"]
    (tmp_path / "transforms.json").write_text(json.dumps(scene))
    with pytest.raises(SourceError, match=r"none of 5 frames has a depth_file_path, nor a file.*depth is needed"):
        open_source(f"f3rm:{tmp_path}")


def test_transforms_split_by_name_or_by_nerfstudios_fraction(tmp_path):
    write_nerfstudio(tmp_path)
    train = open_source(f"{tmp_path}?split=train")
    assert len(train) == 5, "ceil(.9 * 5)"
    with pytest.raises(SourceError, match="no frames for split=test"):
        open_source(f"{tmp_path}?split=test")
    write_nerfstudio(tmp_path, train_filenames=["images/0.png", "images/4.png"], val_filenames=["images/2.png"])
    assert [round(10 * f.stamp_s) for f in open_source(f"{tmp_path}?split=train")] == [0, 4]
    assert [round(10 * f.stamp_s) for f in open_source(f"{tmp_path}?split=test")] == [2]


# what is said in front of and behind a path


def test_a_named_layout_is_the_only_one_looked_for(rendered):
    with pytest.raises(SourceError) as caught:
        open_source(f"scannet:{rendered}")
    assert "ScanNet: color/" in str(caught.value) and "Replica" not in str(caught.value)
    with pytest.raises(SourceError, match=r"is no directory; allowed: simulator.*replica:DIRECTORY"):
        open_source("replica:/no/such/place")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("split=val", "split=val; allowed: train, test"),
        ("labels=nyu40", "labels=nyu40 is not known to Replica; allowed: no choice"),
        ("stride=2", "allowed: split=train"),
        ("split", "allowed: split=train"),
    ],
)
def test_unknown_options_are_refused(rendered, options, message):
    with pytest.raises(SourceError, match=message):
        open_source(f"{rendered}?{options}")


def test_layouts_without_a_split_say_so(tmp_path):
    from test_sources import write_seven_scenes

    write_seven_scenes(tmp_path)
    with pytest.raises(SourceError, match="7-Scenes has no split; use stride and start"):
        open_source(f"{tmp_path}?split=train")


def test_a_directory_may_have_a_question_mark_in_its_name(tmp_path):
    from test_sources import write_seven_scenes

    directory = tmp_path / "kitchen?"
    directory.mkdir()
    write_seven_scenes(directory)
    assert len(open_source(directory)) == COUNT
