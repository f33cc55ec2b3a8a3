"""Sources: one rendered wall written in every layout must come back as the same wall, with torn files left out."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import transforms3d
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.config import FrameConfig
from semfield_ros.errors import ConfigError, FrameRejected, Reason, SourceError
from semfield_ros.frame import Frame
from semfield_ros.geometry import Camera, back_project, image_directions, look_at, project, rigid_error
from semfield_ros.sources import open_source
from semfield_ros.sources.playback import play
from semfield_ros.sources.recording import ahead
from semfield_ros.sources.tum import associate, pose_at

CAMERA = Camera(64, 48, 60.0, 62.0, 30.5, 25.0)
COUNT = 5


# The world: a tilted wall 0.2 x - 0.1 y + z = 1, coloured by position.
NORMAL, OFFSET = np.array([0.2, -0.1, 1.0]), 1.0


def wall_colour(points_world: np.ndarray) -> np.ndarray:
    return np.rint(128 + 60 * np.sin(3 * points_world)).astype(np.uint8)


def pose(i: int) -> np.ndarray:
    eye, target = np.array([0.3 * np.cos(i), 0.3 * np.sin(i), 2.5]), np.array([0.05 * i, 0.0, 1.0])
    return look_at(eye, target, np.array([0.0, 1.0, 0.0]))


def view(T_world_camera: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour and z-depth of the wall along camera-frame directions with z = 1."""
    rays = directions.astype(np.float64) @ T_world_camera[:3, :3].T
    origin = T_world_camera[:3, 3]
    z = (OFFSET - origin @ NORMAL) / (rays @ NORMAL)
    return wall_colour(origin + z[..., None] * rays), z


def save_colour(path: Path, rgb: np.ndarray) -> None:
    assert cv2.imwrite(str(path), rgb[..., ::-1])


def assert_on_the_wall(frame: Frame, i: int, depth_step_m: float, colour_step: int = 3) -> None:
    """The frame's points lie on the wall, and carry the wall's colours."""
    assert np.allclose(frame.T_world_camera, pose(i), atol=1e-5)
    points, index = back_project(frame.camera, frame.T_world_camera, frame.depth_m)
    assert len(index) > 0.8 * frame.depth_m.size
    assert np.abs(points @ NORMAL - OFFSET).max() < 1.5 * depth_step_m
    seen = frame.rgb.reshape(-1, 3)[index].astype(int)
    assert np.abs(seen - wall_colour(points).astype(int)).max() <= colour_step


def write_seven_scenes(directory: Path, suffix: str = "png") -> None:
    np.savetxt(directory / "camera-intrinsics.txt", CAMERA.matrix)
    for i in range(COUNT):
        rgb, z = view(pose(i), image_directions(CAMERA))
        depth = np.rint(z * 1000).astype(np.uint16)
        depth[0, :5] = 65535
        stem = directory / f"frame-{2 * i:06d}"
        save_colour(stem.with_suffix(f".color.{suffix}"), rgb)
        cv2.imwrite(f"{stem}.depth.png", depth)
        np.savetxt(f"{stem}.pose.txt", pose(i))


def write_tum(directory: Path) -> None:
    (directory / "rgb").mkdir()
    (directory / "depth").mkdir()
    (directory / "camera.txt").write_text(f"# fx fy cx cy\n{CAMERA.fx} {CAMERA.fy} {CAMERA.cx} {CAMERA.cy}\n")
    lines: dict[str, list[str]] = {"rgb": ["# stamp file"], "depth": ["# stamp file"], "groundtruth": ["# stamp pose"]}
    for i in range(COUNT):
        stamp = 1000 + i / 30
        rgb, z = view(pose(i), image_directions(CAMERA))
        save_colour(directory / f"rgb/{i}.png", rgb)
        cv2.imwrite(str(directory / f"depth/{i}.png"), np.rint(z * 5000).astype(np.uint16))
        w, x, y, qz = transforms3d.quaternions.mat2quat(pose(i)[:3, :3])
        lines["rgb"].append(f"{stamp - 0.011:.6f} rgb/{i}.png")
        lines["depth"].append(f"{stamp:.6f} depth/{i}.png")
        motion = " ".join(f"{value:.9f}" for value in (*pose(i)[:3, 3], x, y, qz, w))
        lines["groundtruth"].append(f"{stamp:.6f} {motion}")
    for name, content in lines.items():
        (directory / f"{name}.txt").write_text("\n".join(content) + "\n")


def write_nerfstudio(directory: Path, *, depth_as: str = "png", **scene: object) -> None:
    """Poses in OpenGL axes, principal points from the image's corner, after a change of world axes."""
    (directory / "images").mkdir(exist_ok=True)
    applied = np.eye(4)[[0, 2, 1, 3]]
    applied[2] *= -1
    frames = []
    for i in range(COUNT):
        rgb, z = view(pose(i), image_directions(CAMERA))
        save_colour(directory / f"images/{i}.png", rgb)
        if depth_as == "png":
            cv2.imwrite(str(directory / f"images/{i}_depth.png"), np.rint(z * 2000).astype(np.uint16))
        else:
            np.save(directory / f"images/{i}_depth.npy", z * 2000)
        matrix = applied @ pose(i)
        matrix[:, 1:3] *= -1
        frames.append(
            {"file_path": f"images/{i}.png", "depth_file_path": f"images/{i}_depth.{depth_as}",
             "transform_matrix": matrix.tolist()}
        )
    transforms = {
        "camera_model": "OPENCV", "w": 64, "h": 48, "fl_x": 60.0, "fl_y": 62.0, "cx": 31.0, "cy": 25.5, "k1": 0.0,
        "depth_unit_scale_factor": 1 / 2000, "applied_transform": applied[:3].tolist(), "frames": frames[::-1], **scene,
    }
    (directory / "transforms.json").write_text(json.dumps(transforms))


WRITERS: dict[str, tuple[Callable[..., None], float, float]] = {
    "seven_scenes": (write_seven_scenes, 5e-4, 15.0),
    "tum": (write_tum, 1e-4, 30.0),
    "nerfstudio": (write_nerfstudio, 2.5e-4, 10.0),
}


@pytest.fixture(params=WRITERS)
def layout(request, tmp_path):
    write, step_m, rate_hz = WRITERS[request.param]
    directory = tmp_path / request.param
    directory.mkdir()
    write(directory)
    return directory, step_m, rate_hz


def test_every_layout_gives_back_the_wall(layout):
    directory, step_m, rate_hz = layout
    source = open_source(directory)
    assert source.name == directory.name and source.rate_hz == pytest.approx(rate_hz, rel=1e-4) and len(source) == COUNT
    frames = list(source)
    assert source.gate.admitted == COUNT and not source.gate.rejected
    stamps = [frame.stamp_s for frame in frames]
    assert np.allclose(np.diff(stamps), 1 / rate_hz, atol=2e-6)
    for i, frame in enumerate(frames):
        for name in ("width", "height", "fx", "fy", "cx", "cy"):
            assert getattr(frame.camera, name) == pytest.approx(getattr(CAMERA, name))
        assert_on_the_wall(frame, i, step_m)


def test_start_stride_and_limit_choose_frames(layout):
    directory, _, rate_hz = layout
    every = [frame.stamp_s for frame in open_source(directory)]
    source = open_source(directory, start=1, stride=2)
    assert [frame.stamp_s for frame in source] == every[1::2] and len(source) == 2
    assert source.rate_hz == pytest.approx(rate_hz / 2, rel=1e-4)
    assert [frame.stamp_s for frame in open_source(directory, start=1, limit=3)] == every[1:4]


def test_frames_come_in_the_size_asked_for(layout):
    directory, step_m, _ = layout
    for size in ({"width": 32}, {"height": 24}, {"width": 32, "height": 24}):
        for i, frame in enumerate(open_source(directory, **size)):
            assert frame.rgb.shape == (24, 32, 3)
            # Half a pixel of nearest sampling on the slope of the wall, and of colour on its waves.
            assert_on_the_wall(frame, i, step_m + 0.01, colour_step=16)


def test_iterating_again_starts_again(layout):
    directory, _, _ = layout
    source = open_source(directory)
    assert [frame.stamp_s for frame in source] == [frame.stamp_s for frame in source]
    assert not source.gate.rejected


def test_frames_are_judged_by_the_given_configuration(layout):
    directory, _, _ = layout
    source = open_source(directory, frame_config=FrameConfig(max_depth_m=0.5))
    assert list(source) == [] and source.gate.rejected == {"depth_empty": COUNT}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: cut(d / "frame-000004.color.jpg", 0.6), "colour_type"),
        (lambda d: (d / "frame-000004.color.jpg").write_bytes(b""), "colour_type"),
        (lambda d: (d / "frame-000004.color.jpg").write_bytes(b"GIF89a nonsense"), "colour_type"),
        (lambda d: cut(d / "frame-000004.depth.png", 0.6), "depth_type"),
        (lambda d: (d / "frame-000004.depth.png").unlink(), "depth_type"),
        (lambda d: cut(d / "frame-000004.pose.txt", 0.6), "pose_not_finite"),
        (lambda d: (d / "frame-000004.pose.txt").write_text("lost\n"), "pose_not_finite"),
        (lambda d: (d / "frame-000004.pose.txt").unlink(), "pose_not_finite"),
        (lambda d: np.savetxt(d / "frame-000004.pose.txt", np.full((4, 4), -np.inf)), "pose_not_finite"),
        (lambda d: np.savetxt(d / "frame-000004.pose.txt", 1.1 * np.eye(4)), "pose_not_rigid"),
        (lambda d: save_colour(d / "frame-000004.color.jpg", np.zeros((48, 48, 3), np.uint8)), "size_mismatch"),
    ],
)
def test_one_damaged_frame_is_counted_and_the_stream_goes_on(tmp_path, damage, reason):
    write_seven_scenes(tmp_path, "jpg")
    damage(tmp_path)
    source = open_source(tmp_path)
    assert [round(frame.stamp_s * 30) for frame in source] == [0, 2, 6, 8]
    assert source.gate.rejected == {reason: 1} and source.gate.last_error.startswith(reason)


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@given(share=st.floats(0.0, 0.98))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_file_cut_anywhere_is_torn(tmp_path_factory, suffix, share):
    from semfield_ros.sources.images import read_colour

    path = tmp_path_factory.getbasetemp() / f"whole.{suffix}"
    rgb, _ = view(pose(0), image_directions(CAMERA))
    save_colour(path, rgb)
    assert read_colour(path).shape == (48, 64, 3)
    cut(path, share)
    with pytest.raises(FrameRejected) as caught:
        read_colour(path)
    assert caught.value.reason is Reason.COLOUR_TYPE


# 7-Scenes


def test_seven_scenes_without_intrinsics_takes_the_published_ones(tmp_path):
    save_colour(tmp_path / "frame-000000.color.png", np.zeros((480, 640, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "frame-000000.depth.png"), np.full((480, 640), 1500, np.uint16))
    np.savetxt(tmp_path / "frame-000000.pose.txt", np.eye(4))
    (frame,) = open_source(tmp_path)
    assert frame.camera == Camera(640, 480, 585.0, 585.0, 320.0, 240.0)


def test_seven_scenes_65535_is_no_depth_however_far_one_looks(tmp_path):
    write_seven_scenes(tmp_path)
    frame = next(iter(open_source(tmp_path, frame_config=FrameConfig(max_depth_m=100.0))))
    assert (frame.depth_m[0, :5] == 0).all() and frame.depth_m.max() < 6


def test_seven_scenes_masks_become_segments(tmp_path):
    write_seven_scenes(tmp_path)
    ids = np.zeros((48, 64), np.uint8)
    ids[10:20, 10:20], ids[30:40, 30:40], ids[5, 5] = 1, 2, 9
    for i in range(COUNT):
        cv2.imwrite(str(tmp_path / f"frame-{2 * i:06d}.masks.png"), ids)
    listed = [{"id": 1, "class": "cup", "score": 0.5, "box_xyxy": [0, 0, 1, 1]}, {"id": 2, "class": "book"}]
    (tmp_path / "masks.json").write_text(json.dumps({"frame-000000": listed}))
    first, second, *_ = open_source(tmp_path)
    assert first.segments.names == {1: "cup", 2: "book"} and first.segments.scores == {1: 0.5, 2: 1.0}
    expected = np.where(ids == 9, 0, ids)
    assert np.array_equal(first.segments.ids, expected), "an id that nobody named says nothing"
    assert second.segments.names == {} and not second.segments.ids.any()
    cut(tmp_path / "frame-000004.masks.png", 0.5)
    source = open_source(tmp_path)
    assert len(list(source)) == COUNT - 1 and source.gate.rejected == {"target_type": 1}


@pytest.mark.parametrize("content", ["[", '{"frame-000000": [{"id": 1}]}', "[1]", '{"frame-000000": [1]}', "3"])
def test_seven_scenes_malformed_masks_are_refused(tmp_path, content):
    write_seven_scenes(tmp_path)
    (tmp_path / "masks.json").write_text(content)
    with pytest.raises(SourceError, match=r"masks\.json is not a list of masks by frame"):
        open_source(tmp_path)


def test_seven_scenes_malformed_intrinsics_are_refused(tmp_path):
    write_seven_scenes(tmp_path)
    (tmp_path / "camera-intrinsics.txt").write_text("585 585\n")
    with pytest.raises(SourceError, match="does not hold a 3x3"):
        open_source(tmp_path)


def test_redkitchen_is_consistent_between_views(redkitchen):
    source = open_source(redkitchen, stride=25)
    assert source.rate_hz == pytest.approx(15 / 25) and len(source) == 20
    frames = list(source)
    assert len(frames) == 20 and not source.gate.rejected
    assert frames[0].camera.fx == pytest.approx(528.5, abs=0.1) and frames[0].rgb.shape == (480, 640, 3)
    assert {name for frame in frames for name in frame.segments.names.values()} >= {"cup", "chair", "dining table"}
    errors = []
    for a, b in zip(frames[::2], open_source(redkitchen, start=2, stride=50)):
        points, _ = back_project(a.camera, a.T_world_camera, a.depth_m)
        u, v, z = project(b.camera, b.T_world_camera, points[::7])
        inside = (z > 0) & (u > 0) & (u < 639) & (v > 0) & (v < 479)
        measured = b.depth_m[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]
        errors.append(np.abs(measured - z[inside])[measured > 0])
    assert np.median(np.concatenate(errors)) < 0.015


# TUM


def test_association_is_mutual_and_within_the_gap():
    colour, depth = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.001, 0.095, 0.104, 0.23, 0.302])
    assert associate(colour, depth, 0.02) == [(0, 0), (1, 2), (3, 4)]
    assert associate(colour, np.array([]), 0.02) == associate(np.array([]), depth, 0.02) == []
    assert associate(np.array([0.2]), depth, 0.05) == [(0, 3)]


@given(st.lists(st.floats(0, 1), max_size=20), st.lists(st.floats(0, 1), max_size=20))
def test_association_uses_each_image_once_and_only_near_ones(a, b):
    a_s, b_s = np.sort(np.array(a)), np.sort(np.array(b))
    pairs = associate(a_s, b_s, 0.02)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(abs(a_s[i] - b_s[j]) <= 0.02 for i, j in pairs)


def trajectory_row(stamp_s: float, angle_rad: float, x_m: float) -> list[float]:
    w, x, y, z = transforms3d.quaternions.axangle2quat([0, 0, 1], angle_rad)
    return [stamp_s, x_m, 0, 0, x, y, z, w]


def test_poses_are_interpolated_between_stamps():
    rows = (0.0, 0.0, 0.0), (0.05, 0.4, 1.0), (1.0, 0.0, 2.0)
    trajectory = np.array([trajectory_row(*row) for row in rows])
    T = pose_at(trajectory, 0.0125)
    assert T[0, 3] == pytest.approx(0.25) and rigid_error(T) < 1e-12
    assert np.allclose(T[:3, :3], transforms3d.euler.euler2mat(0, 0, 0.1))
    assert np.allclose(pose_at(trajectory, 0.05)[:3, :3], transforms3d.euler.euler2mat(0, 0, 0.4))
    assert pose_at(trajectory, 0.0)[0, 3] == 0.0
    for stamp_s in (-0.01, 0.5, 1.01):
        with pytest.raises(FrameRejected, match="no ground truth around stamp"):
            pose_at(trajectory, stamp_s)


def test_tum_frames_without_ground_truth_are_counted(tmp_path):
    write_tum(tmp_path)
    lines = (tmp_path / "groundtruth.txt").read_text().splitlines()
    (tmp_path / "groundtruth.txt").write_text("\n".join(lines[:-2]) + "\n")
    source = open_source(tmp_path)
    assert len(list(source)) == COUNT - 2 and source.gate.rejected == {"pose_not_finite": 2}


def test_tum_broken_quaternions_are_counted(tmp_path):
    write_tum(tmp_path)
    lines = (tmp_path / "groundtruth.txt").read_text().splitlines()
    lines[-1] = lines[-1].split()[0] + " 0 0 0 0 0 0 0"
    (tmp_path / "groundtruth.txt").write_text("\n".join(lines))
    source = open_source(tmp_path)
    assert len(list(source)) == COUNT - 1 and source.gate.rejected == {"pose_not_rigid": 1}


def test_tum_takes_the_published_intrinsics_by_name(tmp_path):
    directory = tmp_path / "rgbd_dataset_freiburg3_long"
    directory.mkdir()
    write_tum(directory)
    (directory / "camera.txt").unlink()
    assert next(iter(open_source(directory))).camera == Camera(64, 48, 535.4, 539.2, 320.1, 247.6)
    unnamed = directory.rename(tmp_path / "desk")
    with pytest.raises(SourceError, match=r"no intrinsics for 'desk'.*camera\.txt.*freiburg1"):
        open_source(unnamed)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("rgb.txt", "1.0\n", r"rgb\.txt, line 1 is '1\.0'"),
        ("depth.txt", "# x\nlate depth/0.png\n", r"depth\.txt, line 2 is 'late"),
        ("groundtruth.txt", "1 2 3\n", r"shape \(1, 3\); expected rows of stamp"),
        ("groundtruth.txt", "one two\n", "does not hold numbers"),
        ("camera.txt", "1 2 3\n", "has 3 numbers; expected fx fy cx cy"),
        ("camera.txt", "a b c d\n", "something else than numbers"),
        ("rgb.txt", "# nothing\n", "holds 0 frames"),
    ],
)
def test_tum_malformed_files_are_refused(tmp_path, file, content, message):
    write_tum(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path)


def distorted_directions(k1, k2, p1, p2, k3) -> np.ndarray:
    """Where the pixels of a camera with Brown's distortion (1966) look: the model inverted by fixed-point iteration."""
    target = image_directions(CAMERA).astype(np.float64)
    x, y = target[..., 0], target[..., 1]
    for _ in range(50):
        r2 = x**2 + y**2
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        x, y = (
            (target[..., 0] - 2 * p1 * x * y - p2 * (r2 + 2 * x**2)) / radial,
            (target[..., 1] - p1 * (r2 + 2 * y**2) - 2 * p2 * x * y) / radial,
        )
    return np.stack([x, y, np.ones_like(x)], -1)


def wall_share(frame: Frame, i: int) -> float:
    """Share of measured pixels that agree with an undistorted view of the wall, up to a neighbour and a colour step."""
    rgb, z = view(pose(i), image_directions(CAMERA))
    measured = frame.depth_m > 0
    assert measured.mean() > 0.8
    around = np.ones((3, 3))
    agrees = (frame.depth_m >= cv2.erode(z, around) - 1e-3) & (frame.depth_m <= cv2.dilate(z, around) + 1e-3)
    agrees &= np.abs(frame.rgb.astype(int) - rgb).max(-1) <= 2
    inner = (slice(1, -1), slice(1, -1))  # pixels that have all their neighbours
    return float(agrees[inner][measured[inner]].mean())


@pytest.mark.parametrize("kind", ["tum", "nerfstudio"])
def test_distortion_is_taken_out(tmp_path, kind):
    """Render the wall along the true rays of a distorted camera; undistorted, it must be flat again."""
    distortion = (-0.3, 0.1, 0.004, -0.003, 0.02)
    WRITERS[kind][0](tmp_path)
    directions = distorted_directions(*distortion)
    for i in range(COUNT):
        rgb, z = view(pose(i), directions)
        if kind == "tum":
            save_colour(tmp_path / f"rgb/{i}.png", rgb)
            cv2.imwrite(str(tmp_path / f"depth/{i}.png"), np.rint(z * 5000).astype(np.uint16))
        else:
            save_colour(tmp_path / f"images/{i}.png", rgb)
            cv2.imwrite(str(tmp_path / f"images/{i}_depth.png"), np.rint(z * 2000).astype(np.uint16))
    distorted_frame = next(iter(open_source(tmp_path)))
    if kind == "tum":
        values = (CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, *distortion)
        (tmp_path / "camera.txt").write_text(" ".join(map(str, values)))
    else:
        scene = json.loads((tmp_path / "transforms.json").read_text())
        scene.update(zip(("k1", "k2", "p1", "p2", "k3"), distortion))
        (tmp_path / "transforms.json").write_text(json.dumps(scene))
    assert wall_share(distorted_frame, 0) < 0.8
    assert [wall_share(frame, i) for i, frame in enumerate(open_source(tmp_path))] == [1.0] * COUNT


# nerfstudio


def test_nerfstudio_depth_may_be_an_array(tmp_path):
    write_nerfstudio(tmp_path, depth_as="npy")
    for i, frame in enumerate(open_source(tmp_path)):
        assert_on_the_wall(frame, i, 1e-5)
    cut(tmp_path / "images/2_depth.npy", 0.5)
    source = open_source(tmp_path)
    assert len(list(source)) == COUNT - 1 and source.gate.rejected == {"depth_type": 1}


def test_nerfstudio_frames_may_have_their_own_intrinsics(tmp_path):
    write_nerfstudio(tmp_path)
    scene = json.loads((tmp_path / "transforms.json").read_text())
    for frame in scene["frames"]:
        frame.update({key: scene[key] for key in ("fl_x", "fl_y", "cx", "cy", "w", "h")})
    scene.update({"fl_x": 1.0, "fl_y": 1.0, "cx": 0.0, "cy": 0.0})
    (tmp_path / "transforms.json").write_text(json.dumps(scene))
    for i, frame in enumerate(open_source(tmp_path)):
        assert_on_the_wall(frame, i, 2.5e-4)


def test_nerfstudio_field_of_view_replaces_focal_lengths(tmp_path):
    write_nerfstudio(tmp_path, camera_angle_x=np.pi / 2)
    scene = json.loads((tmp_path / "transforms.json").read_text())
    for key in ("fl_x", "fl_y", "cx", "cy"):
        del scene[key]
    (tmp_path / "transforms.json").write_text(json.dumps(scene))
    camera = next(iter(open_source(tmp_path))).camera
    assert (camera.fx, camera.fy) == pytest.approx((32.0, 32.0)) and (camera.cx, camera.cy) == (31.5, 23.5)


@pytest.mark.parametrize(
    ("scene", "message"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "'OPENCV_FISHEYE'; supported: OPENCV, PINHOLE.*Undistort"),
        ({"k4": 0.1}, "with k4 = 0"),
        ({"k1": "large"}, "must be numbers"),
        ({"applied_scale": 0.5}, r"applied_scale is 0\.5; poses must be in metres"),
        ({"applied_transform": (0.5 * np.eye(4)[:3]).tolist()}, "applied_transform is not rigid"),
        ({"applied_transform": "none"}, "applied_transform is not 3x4"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor is 0; allowed"),
        ({"fl_x": "wide"}, "fl_x is 'wide'; expected a finite number"),
        ({"frames": [{"file_path": "images/0.png"}]}, "none of 1 frames has a depth_file_path"),
        ({"frames": []}, "holds 0 frames"),
        ({"frames": [{}]}, "is not a scene with frames"),
    ],
)
def test_nerfstudio_unusable_scenes_are_refused(tmp_path, scene, message):
    write_nerfstudio(tmp_path, **scene)
    with pytest.raises(SourceError, match=message):
        open_source(tmp_path)


def test_nerfstudio_bad_poses_are_counted(tmp_path):
    write_nerfstudio(tmp_path)
    scene = json.loads((tmp_path / "transforms.json").read_text())
    scene["frames"][1]["transform_matrix"] = [[1, 2], [3]]
    del scene["frames"][2]["transform_matrix"]
    (tmp_path / "transforms.json").write_text(json.dumps(scene))
    source = open_source(tmp_path)
    assert len(list(source)) == COUNT - 2 and source.gate.rejected == {"pose_not_finite": 2}


# open_source


def test_unknown_layouts_and_missing_directories_are_named(tmp_path):
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path)
    for looked_for in ("7-Scenes: frame-*", "TUM RGB-D: rgb.txt", "nerfstudio: transforms.json"):
        assert looked_for in str(caught.value)
    with pytest.raises(SourceError, match=r"'/no/such/place' is no directory; allowed: simulator"):
        open_source("/no/such/place")


@pytest.mark.parametrize("bad", [{"stride": 0}, {"start": -1}, {"limit": 0}, {"width": 4}, {"height": 0}])
def test_bad_arguments_are_named(tmp_path, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ConfigError, match=f"{name} is {value}; allowed: "):
        open_source(tmp_path, **bad)


def test_nothing_left_is_an_error(layout):
    directory, _, _ = layout
    with pytest.raises(SourceError, match=f"holds {COUNT} frames; none is left from frame {COUNT} on"):
        open_source(directory, start=COUNT)


def test_simulator_by_name():
    pytest.importorskip("mujoco")
    source = open_source("simulator:3", width=64, start=2, stride=5, limit=2)
    whole = open_source("simulator:3", width=64)
    assert source.name == whole.name and len(source) == 2 and source.rate_hz == pytest.approx(whole.rate_hz / 5)
    assert source.class_names == whole.class_names
    first, second = source
    assert first.rgb.shape == (48, 64, 3) and second.stamp_s - first.stamp_s == pytest.approx(5 / whole.rate_hz)


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5"])
def test_simulator_refuses_a_bad_seed(seed):
    with pytest.raises(SourceError, match=f"has seed '{seed}'; allowed: simulator or simulator:SEED"):
        open_source(f"simulator:{seed}")


def test_simulator_without_mujoco_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(SourceError, match=r"pip install 'semfield_ros\[sim\]'"):
        open_source("simulator")


# Reading ahead


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def test_reading_ahead_is_in_order_and_bounded():
    started = []

    def slow_square(x: int) -> int:
        started.append(x)
        return x * x

    results = []
    for result in ahead(slow_square, range(20), depth=3):
        results.append(result)
        assert len(started) <= len(results) + 3
    assert results == [x * x for x in range(20)] and started == list(range(20)) and readers() == []


def test_reading_ahead_raises_where_the_result_would_have_been():
    results = []
    with pytest.raises(ZeroDivisionError):
        for result in ahead(lambda x: 6 // (3 - x), range(20), depth=2):
            results.append(result)
    assert results == [2, 3, 6] and readers() == []


def test_an_abandoned_reader_ends(tmp_path):
    write_seven_scenes(tmp_path)
    frames = iter(open_source(tmp_path))
    next(frames)
    assert len(readers()) == 1
    frames.close()
    assert readers() == []


def test_errors_that_are_no_rejections_reach_the_consumer(tmp_path, monkeypatch):
    write_seven_scenes(tmp_path)
    monkeypatch.setattr("semfield_ros.sources.recording.make_frame", lambda **parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(open_source(tmp_path))


# Playback


class Stream:
    """A source of stamps; asking for a frame takes `work_s` of a clock that only moves when told."""

    name, rate_hz = "stream", 10.0

    def __init__(self, stamps: list[float], work_s: float = 0.0):
        self.stamps, self.work_s, self.now_s, self.slept = stamps, work_s, 100.0, []

    def __len__(self) -> int:
        return len(self.stamps)

    def __iter__(self):
        for stamp in self.stamps:
            self.now_s += self.work_s
            yield Frame(stamp, CAMERA, np.eye(4), None, None)

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now_s += seconds


def played(stream: Stream, rate: float | None, busy_s: float) -> tuple[list[float], list[float], object]:
    """Stamps, the times they arrived, and the playback, for a consumer that needs `busy_s` a frame."""
    playback = play(stream, rate, clock=stream.clock, sleep=stream.sleep)
    stamps, times = [], []
    for frame in playback:
        stamps.append(frame.stamp_s)
        times.append(round(stream.now_s - 100.0, 9))
        stream.now_s += busy_s
    return stamps, times, playback


STAMPS = [5 + i / 8 for i in range(9)]


def test_as_fast_as_possible_neither_sleeps_nor_drops():
    stream = Stream(STAMPS)
    stamps, _, playback = played(stream, None, busy_s=10.0)
    assert stamps == STAMPS and stream.slept == [] and playback.dropped == 0


@pytest.mark.parametrize("rate", [1.0, 2.0, 0.5])
def test_a_quick_consumer_gets_every_frame_when_it_is_due(rate):
    stamps, times, playback = played(Stream(STAMPS), rate, busy_s=0.01)
    assert stamps == STAMPS and times == pytest.approx([(s - 5) / rate for s in STAMPS]) and playback.dropped == 0


def test_a_slow_consumer_gets_the_newest_frame_and_the_rest_are_dropped():
    # Busy for 0.3 s: at 0.3 the newest of 0, .125, .25 is .25; at 0.6 it is .5; at 0.9 it is .875.
    stamps, times, playback = played(Stream(STAMPS), 1.0, busy_s=0.3)
    assert stamps == [5.0, 5.25, 5.5, 5.875, 6.0] and times == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.2])
    assert playback.dropped == len(STAMPS) - len(stamps) and playback.slipped_s == 0


def test_a_slow_source_delays_the_stream_and_drops_nothing():
    stamps, _, playback = played(Stream(STAMPS, work_s=0.2), 1.0, busy_s=0.0)
    assert stamps == STAMPS and playback.dropped == 0
    assert playback.slipped_s == pytest.approx(8 * (0.2 - 1 / 8))


def test_a_gap_in_the_stamps_is_waited_for():
    stamps, times, _ = played(Stream([0.0, 0.1, 5.0]), 1.0, busy_s=0.05)
    assert times == pytest.approx([0.0, 0.1, 5.0]) and stamps == [0.0, 0.1, 5.0]


@given(
    st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30), st.floats(0, 2), st.floats(0, 1), st.floats(0.1, 10)
)
def test_playback_never_runs_ahead_or_loses_count(gaps, busy_s, work_s, rate):
    stream = Stream(list(np.cumsum(gaps)), work_s)
    stamps, times, playback = played(stream, rate, busy_s)
    assert stamps == sorted(set(stamps)) and stamps[-1] == stream.stamps[-1]
    assert playback.dropped == len(stream) - len(stamps)
    for stamp, time_s in zip(stamps, times):
        assert time_s >= (stamp - stream.stamps[0]) / rate - 1e-6


def test_an_empty_source_plays_nothing():
    assert played(Stream([]), 1.0, 0.0)[0] == played(Stream([]), None, 0.0)[0] == []


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_rates_are_refused(rate):
    with pytest.raises(ConfigError, match=r"rate is .*; allowed: > 0"):
        play(Stream([]), rate)


def test_a_recording_plays_and_its_reader_ends(tmp_path):
    write_seven_scenes(tmp_path)
    assert len(list(play(open_source(tmp_path)))) == COUNT and readers() == []
