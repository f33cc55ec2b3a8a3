"""The pyramid of crops, against LERF's published counts, brute force and hand-computed values."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semfield_ros.config import EncoderConfig, HeadsConfig, PyramidConfig
from semfield_ros.encoders import create, teacher
from semfield_ros.encoders.base import CropEncoder, in_steps
from semfield_ros.encoders.pyramid import (
    STEP,
    PyramidEncoder,
    blend,
    corners,
    crops_of,
    levels_of,
    metric_scale,
    ratios,
)  # fmt: skip
from semfield_ros.encoders.stub import PALETTE, StubEncoder
from semfield_ros.errors import ConfigError
from semfield_ros.frame import Frame
from semfield_ros.geometry import Camera

LERF = PyramidConfig()


def frame_of(rgb):
    height, width = rgb.shape[:2]
    camera = Camera(width, height, 100.0, 100.0, width / 2, height / 2)
    return Frame(0.0, camera, np.eye(4), rgb, np.ones((height, width), np.float32))


def test_lerfs_numbers_of_crops():
    counts = [level.count for level in levels_of(640, 480, LERF)]
    assert counts == [567, 234, 154, 80, 48, 35, 30] and sum(counts) == 1148


def test_tiles_are_seven_heights_from_a_twentieth_to_half():
    assert np.allclose(ratios(LERF), [0.05, 0.125, 0.2, 0.275, 0.35, 0.425, 0.5])
    assert [level.tile_px for level in levels_of(640, 480, LERF)] == [24, 60, 96, 132, 168, 204, 240]


def test_only_tiles_from_15_percent_on_overlap_by_half():
    levels = levels_of(640, 480, LERF)
    assert levels[0].stride_px == levels[0].tile_px
    assert all(level.stride_px == level.tile_px // 2 for level in levels[2:])


@pytest.mark.parametrize("size", [(640, 480), (320, 240), (333, 217), (160, 120)])
def test_the_grid_of_tiles_is_what_unfolding_the_padded_image_gives(size):
    image = torch.zeros(1, 1, size[1], size[0])
    for level in levels_of(*size, LERF):
        unfold = torch.nn.Unfold(level.tile_px, padding=level.tile_px // 2, stride=level.stride_px)
        assert unfold(image).shape[2] == level.count


def test_crops_are_the_unfolded_image():
    rgb = np.random.default_rng(0).integers(0, 256, (97, 130, 3), dtype=np.uint8)
    for level in levels_of(130, 97, LERF):
        unfold = torch.nn.Unfold(level.tile_px, padding=level.tile_px // 2, stride=level.stride_px)
        expected = unfold(torch.from_numpy(rgb).permute(2, 0, 1).double()[None])[0].T
        expected = expected.reshape(level.count, 3, level.tile_px, level.tile_px).permute(0, 2, 3, 1)
        assert np.array_equal(crops_of(rgb, level), expected.numpy())


def test_the_centre_of_a_tile_is_where_its_pixels_are():
    v, u = np.mgrid[:96, :128]
    coordinates = np.stack([u, v, np.ones_like(u)], -1).astype(np.float64)
    for level in levels_of(128, 96, LERF):
        crops = crops_of(coordinates, level)
        inside = crops[..., 2].all((1, 2))  # not at the border
        i, j = np.divmod(np.flatnonzero(inside), level.columns)
        mean = crops[inside].mean((1, 2))
        assert np.allclose(mean[:, 0], level.centre_px + j * level.stride_px)
        assert np.allclose(mean[:, 1], level.centre_px + i * level.stride_px)


def test_features_that_are_linear_in_the_image_are_interpolated_exactly():
    levels = levels_of(640, 480, LERF)
    rows = []
    for level in levels:
        i, j = np.mgrid[: level.rows, : level.columns]
        x, y = level.centre_px + j * level.stride_px, level.centre_px + i * level.stride_px
        rows.append(np.stack([x, y, np.full_like(x, level.tile_px)], -1).reshape(-1, 3))
    values = torch.from_numpy(np.concatenate(rows))
    g = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, 500, generator=g) * torch.tensor([[400.0], [300.0]]) + 100
    at, share = torch.randint(6, (500,), generator=g), torch.rand(500, generator=g)
    row, weight = blend(levels, u, v, at, share)
    got = (values[row] * weight[..., None]).sum(1)
    assert torch.allclose(weight.sum(1), torch.ones(500), atol=1e-5)
    tiles = torch.tensor([float(level.tile_px) for level in levels])
    assert torch.allclose(got[:, 0].float(), u, atol=1e-3) and torch.allclose(got[:, 1].float(), v, atol=1e-3)
    assert torch.allclose(got[:, 2].float(), tiles[at] + share * (tiles[at + 1] - tiles[at]), atol=1e-3)


def test_the_target_between_unit_features_is_not_renormalised():
    levels = levels_of(64, 96, LERF)
    values = torch.nn.functional.normalize(torch.randn(sum(x.count for x in levels), 8), dim=1)
    row, weight = blend(levels, torch.rand(50) * 60, torch.rand(50) * 90, torch.zeros(50).long(), torch.rand(50))
    length = (values[row] * weight[..., None]).sum(1).norm(dim=1)
    assert (length < 0.99).any() and (length <= 1 + 1e-5).all()


def test_outside_the_outermost_centres_the_outermost_tile_counts():
    levels = levels_of(640, 480, LERF)
    far = torch.tensor([-50.0, 5000.0])
    row, weight = corners(levels, far, far, torch.tensor([6, 6]))
    assert row[0, 0] == levels[6].first and weight[0, 0] == 1
    assert (row[1] == levels[6].first + levels[6].count - 1).all() and weight[1].sum() == 1


def test_scale_is_the_tiles_height_in_metres():
    # a tile of half of 480 rows, 2 m away, seen with a focal length of 480 px, is 1 m high
    scale = metric_scale(torch.tensor([0.5]), 480, torch.tensor([2.0]), torch.tensor([480.0]))
    assert torch.allclose(scale, torch.tensor([1.0]))


def test_every_tile_is_encoded_and_stands_in_the_targets_order():
    rgb = np.zeros((120, 160, 3), np.uint8)
    rgb[:, :80], rgb[:, 80:] = PALETTE["red"], PALETTE["blue"]
    encoder = PyramidEncoder(StubEncoder())
    target = encoder.encode_frame(frame_of(rgb))
    assert target.values.shape == (sum(x.count for x in levels_of(160, 120, LERF)), encoder.dim)
    assert np.allclose(np.linalg.norm(target.values, axis=1), 1, atol=1e-5)
    red, blue = encoder.encode_text(["red", "blue"])
    levels = levels_of(160, 120, LERF)
    finest = target.values[: levels[0].count].reshape(levels[0].rows, levels[0].columns, -1)
    middle = finest[len(finest) // 2]
    assert middle[2] @ red > 0.99 and middle[-3] @ blue > 0.99
    row, weight = blend(levels, torch.tensor([20.0, 140.0]), torch.tensor([60.0, 60.0]),
                        torch.tensor([1, 1]), torch.tensor([0.5, 0.5]))  # fmt: skip
    feature = (torch.from_numpy(target.values)[row] * weight[..., None]).sum(1).numpy()
    assert feature[0] @ red > 0.99 and feature[1] @ blue > 0.99


def test_it_pauses_after_every_few_tiles():
    rgb = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    encoder = PyramidEncoder(StubEncoder())
    *pauses, target = encoder.encode_steps(frame_of(rgb))
    assert pauses == [None] * sum(-(-level.count // STEP) for level in levels_of(160, 120, LERF))
    assert np.array_equal(target.values, encoder.encode_frame(frame_of(rgb)).values)
    assert [t is None for t in in_steps("stub", encoder.of, frame_of(rgb))] == [False]


def test_it_is_remembered_on_disk_like_any_encoder(tmp_path):
    settings = EncoderConfig(cache_folder=str(tmp_path))
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    lead = create(EncoderConfig(name="stub", cache_folder=str(tmp_path)))
    heads = HeadsConfig(pyramid=PyramidConfig(levels=2, smallest=0.2))
    (_, first), (_, again) = (teacher("pyramid", lead, settings, heads) for _ in range(2))
    *pauses, target = in_steps("pyramid", first, frame_of(rgb))
    *none, read = in_steps("pyramid", again, frame_of(rgb))
    assert pauses and not none and np.array_equal(read["pyramid"].values, target["pyramid"].values)


@pytest.mark.parametrize("of", ["stub", "tiny"])
def test_it_is_created_by_name_over_another_encoder(of):
    config = EncoderConfig(name="pyramid", model=of)
    encoder = create(config)
    lead = create(EncoderConfig(name=of))
    assert encoder.name == "pyramid" and encoder.dim == lead.dim and isinstance(lead, CropEncoder)
    encoder = PyramidEncoder(encoder.of, PyramidConfig(levels=2, smallest=0.3))
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    target = encoder.encode_frame(frame_of(rgb))
    assert np.isfinite(target.values).all() and len(target.values) == target.index.size
    assert of in encoder.cache_key


def test_as_a_teacher_it_takes_the_leading_encoders_image_tower():
    lead = StubEncoder()
    name, encoder = teacher("pyramid", lead, EncoderConfig(), HeadsConfig(pyramid=PyramidConfig(levels=3)))
    assert name == "pyramid" and encoder.of is lead and encoder.config.levels == 3
    _, other = teacher("pyramid:tiny", lead, EncoderConfig(), HeadsConfig())
    assert other.of.name == "tiny"


def test_a_crop_is_encoded_as_the_image_tower_encodes_it_alone():
    from semfield_ros.encoders.tiny import TinyEncoder, normalised_images

    encoder = TinyEncoder(device="cpu")
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = encoder._model.encode_image(normalised_images(encoder._model, crops), normalize=True).numpy()
    assert np.allclose(encoder.encode_crops(crops, 320), expected, atol=1e-5)
    assert encoder.encode_crops(crops[:0], 320).shape == (0, encoder.dim)


def test_open_clip_crops_go_through_its_image_tower():
    from semfield_ros.encoders.openclip import OpenClipEncoder

    encoder = OpenClipEncoder("ViT-S-32-alt", "", device="cpu")
    size = encoder.model.visual.image_size
    crops = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    visual = encoder.model.visual
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (visual.image_mean, visual.image_std))
    with torch.inference_mode():
        images = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 255 - mean) / std
        expected = encoder.model.encode_image(images, normalize=True).numpy()
    assert np.allclose(encoder.encode_crops(crops, 640), expected, atol=1e-4)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="at least 4"):
        levels_of(64, 48, LERF)
    with pytest.raises(ConfigError, match="smallest"):
        PyramidConfig(smallest=0.6)
    with pytest.raises(ConfigError, match="leads no map"):
        create(EncoderConfig(name="pyramid"))
    with pytest.raises(ConfigError, match="pyramid:tiny"):
        teacher("pyramid", SimpleNamespace(name="dino"), EncoderConfig(), HeadsConfig())
