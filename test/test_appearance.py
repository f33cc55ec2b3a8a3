"""Codes of images: each explains its own exposure, views are rendered as images are on average."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic_scene import CAMERA, RED, SMALL, cast, frame_at, mapped_frames, ring

from semfield_ros.checkpoint import load, save
from semfield_ros.config import EncoderConfig, HeadsConfig
from semfield_ros.encoders import create
from semfield_ros.errors import ConfigError
from semfield_ros.field.heads import HeadConfig
from semfield_ros.query.view import render_view

STUB = create(EncoderConfig(name="stub"))
CODED = replace(SMALL, heads=HeadsConfig(appearance=True))
GAINS = (1.0, 0.5)


def mapped_exposures(config, steps, n=8):
    """Frames in turn as bright as they are, and half as bright."""
    frames = [frame_at(T, 0.1 * i) for i, T in enumerate(ring(n))]
    dimmed = [replace(f, rgb=(f.rgb * GAINS[i % 2]).astype(np.uint8)) for i, f in enumerate(frames)]
    return mapped_frames(dimmed, config, steps)


@pytest.fixture(scope="module")
def coded():
    return mapped_exposures(CODED, 400)


def top_of_red(mapping, slot):
    """Colour [3] the head gives the middle of the red block's top, in one image or (None) in none."""
    field, head = mapping.field, mapping.field.head("rgb")
    point = torch.tensor([[np.mean([RED.low[0], RED.high[0]]), np.mean([RED.low[1], RED.high[1]]), RED.high[2]]])
    images = None if slot is None else torch.tensor([slot])
    with torch.no_grad():
        encoded = field.encode("geometry", point.float())
        return head.hidden(encoded, torch.tensor([[0.3, 0.0, -1.0]]), images=images)[0].numpy()


def test_each_image_has_its_exposure_and_views_their_mean(coded):
    bright, dark = (np.mean([top_of_red(coded, k.slot) for k in coded.remembered()[i::2]], axis=0) for i in (0, 1))
    truth = frame_at(ring(8)[2]).rgb[cast(ring(8)[2])[1] == 1].mean(0) / 255
    assert np.abs(bright - truth).max() < 0.1 and np.abs(dark - 0.5 * truth).max() < 0.1
    middle = top_of_red(coded, None)
    assert dark[0] + 0.05 < middle[0] < bright[0] - 0.05
    without = mapped_exposures(SMALL, 400)
    loss, plain = (float(m.last_report.losses["rgb"]) for m in (coded, without))
    assert loss < 0.5 * plain, "one colour for both is wrong in both"


def test_rendering_and_a_checkpoint_know_codes(coded, tmp_path):
    path = save(tmp_path / "map", coded, STUB)
    again = load(path, CODED, STUB, "cpu")
    T = ring(7)[2]
    a, b = (render_view(m.snapshot(), CAMERA, T).rgb for m in (coded, again))
    assert np.array_equal(a, b)
    assert torch.equal(again.field.head("rgb").codes, coded.field.head("rgb").codes)


def test_a_new_image_begins_as_images_are_on_average(coded):
    head = coded.field.head("rgb")
    met = head.get_buffer("met")
    assert int(met.sum()) == 8
    mean = head.codes[met].mean(0)
    head.meet(15)
    assert torch.allclose(head.codes[15], mean, atol=1e-6) and bool(met[15])


def test_unusable_numbers_of_images_are_refused():
    with pytest.raises(ConfigError, match="images -1"):
        HeadConfig("rgb", 3, images=-1)
