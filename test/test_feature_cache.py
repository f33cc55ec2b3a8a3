"""Features on disk: the same numbers back, nothing torn believed, never more bytes than allowed."""

import os
from dataclasses import replace

import analytic_scene
import numpy as np
import pytest

from semfield_ros.config import EncoderConfig
from semfield_ros.encoders import Target, Window, create
from semfield_ros.encoders.base import Encoder, targets_of
from semfield_ros.encoders.cache import CachedEncoder, FeatureCache, content_hash
from semfield_ros.engine import Engine
from semfield_ros.errors import ConfigError
from semfield_ros.frame import Segments


@pytest.fixture
def frames():
    return analytic_scene.stream(4)


class Counting:
    """The stub, counting how often it is asked."""

    def __init__(self, key="a"):
        self.inner = create(EncoderConfig(name="stub"))
        self.name, self.dim, self.has_text = "counting", self.inner.dim, True
        self.cache_key, self.calibration, self.calls = key, self.inner.calibration, 0

    def encode_frame(self, frame):
        self.calls += 1
        return self.inner.encode_frame(frame)

    def encode_text(self, texts):
        return self.inner.encode_text(texts)


def same(a: Target, b: Target) -> bool:
    return (
        all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("values", "index", "confidence"))
        and np.array_equal(a.window.kernel, b.window.kernel)
        and a.window.pitch_px == b.window.pitch_px
    )


def test_second_time_comes_from_disk_bit_for_bit(tmp_path, frames):
    inner = Counting()
    encoder = CachedEncoder(inner, FeatureCache(tmp_path / "new" / "folder"))
    first = [encoder.encode_frame(f) for f in frames]
    again = CachedEncoder(Counting(), FeatureCache(tmp_path / "new" / "folder"))
    second = [again.encode_frame(f) for f in frames]
    assert inner.calls == len(frames) and again.encoder.calls == 0 and again.cache.hits == len(frames)
    assert all(same(a, b) for a, b in zip(first, second))
    assert all(same(a, inner.inner.encode_frame(f)) for a, f in zip(first, frames))
    assert isinstance(encoder, Encoder) and encoder.inner is inner.inner
    assert np.array_equal(encoder.encode_text(["red"]), inner.encode_text(["red"]))


def test_another_setting_is_another_entry(tmp_path, frames):
    cache = FeatureCache(tmp_path)
    CachedEncoder(Counting("a"), cache).encode_frame(frames[0])
    other = Counting("b")
    CachedEncoder(other, cache).encode_frame(frames[0])
    assert other.calls == 1


def test_the_key_is_what_an_encoder_may_look_at(frames):
    frame = frames[0]
    key = content_hash(frame)
    assert content_hash(replace(frame, stamp_s=99.0, T_world_camera=np.eye(4))) == key
    rgb = frame.rgb.copy()
    rgb[3, 4, 0] ^= 1
    masks = Segments(np.ones(frame.depth_m.shape, np.int32), {1: "cup"}, {1: 0.5})
    others = [
        replace(frame, rgb=rgb),
        replace(frame, depth_m=frame.depth_m + np.float32(1e-3)),
        replace(frame, camera=replace(frame.camera, fx=71.0)),
        replace(frame, segments=masks),
        replace(frame, segments=replace(masks, names={1: "mug"})),
        replace(frame, segments=replace(masks, scores={1: 0.6})),
        replace(frame, semantic=masks.ids),
        replace(frame, instance=masks.ids),
    ]
    assert len({key, *(content_hash(f) for f in others)}) == 1 + len(others)


@pytest.mark.parametrize("damage", ["cut", "flip", "foreign", "empty"])
def test_torn_files_are_ignored_and_written_again(tmp_path, frames, damage):
    cache = FeatureCache(tmp_path)
    whole = CachedEncoder(Counting(), cache).encode_frame(frames[0])
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[-9] ^= 255
    elif damage == "foreign":
        data = bytearray(b"no safetensors at all")
    else:
        data = bytearray()
    path.write_bytes(data)
    inner = Counting()
    again = CachedEncoder(inner, cache)
    assert same(again.encode_frame(frames[0]), whole) and inner.calls == 1 and cache.torn == 1
    assert same(again.encode_frame(frames[0]), whole) and inner.calls == 1


def test_it_never_holds_more_than_its_budget_and_drops_the_oldest(tmp_path, frames):
    probe = FeatureCache(tmp_path / "probe")
    CachedEncoder(Counting(), probe).encode_frame(frames[0])
    size = probe._bytes
    cache = FeatureCache(tmp_path / "small", max_mb=2.5 * size / 2**20)
    encoder = CachedEncoder(Counting(), cache)
    (tmp_path / "small" / "notes.txt").write_text("not mine")
    for age, frame in enumerate(frames):
        encoder.encode_frame(frame)
        entry = cache.path(f"{encoder._settings}-{content_hash(frame)}")
        os.utime(entry, (1000 + age, 1000 + age))
        held = sum(p.stat().st_size for p in cache.folder.iterdir() if p.suffix == ".safetensors")
        assert held <= cache.max_bytes
    assert entry.exists(), "the newest stays"
    assert (tmp_path / "small" / "notes.txt").exists()
    assert not list(cache.folder.glob("*.part"))


def test_an_entry_larger_than_everything_is_kept_alone(tmp_path, frames):
    cache = FeatureCache(tmp_path, max_mb=1e-4)
    encoder = CachedEncoder(Counting(), cache)
    encoder.encode_frame(frames[0])
    encoder.encode_frame(frames[1])
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_more_than_a_target_passes_through(tmp_path):
    class Richer(Target):
        pass

    cache = FeatureCache(tmp_path)
    rich = Richer(np.eye(2, dtype=np.float32), np.zeros((1, 1), np.int32), np.ones(2, np.float32), Window.pixel())
    assert not cache.put("k", {"": rich}) and not list(tmp_path.iterdir())


def test_several_targets_of_one_frame_are_kept_together(tmp_path, frames):
    class Several(Counting):
        def encode_targets(self, frame):
            target = self.encode_frame(frame)
            return {"level.0": target, "level.1": replace(target, confidence=target.confidence / 2)}

    cache, inner = FeatureCache(tmp_path), Several()
    encoder = CachedEncoder(inner, cache)
    first, second = (targets_of("pyramid", encoder, frames[0]) for _ in range(2))
    assert inner.calls == 1 and list(first) == list(second) == ["level.0", "level.1"]
    assert all(same(first[name], second[name]) for name in first)
    encoder.encode_frame(frames[0])
    assert inner.calls == 2, "one target alone is another entry"
    assert list(targets_of("stub", CachedEncoder(Counting(), cache), frames[0])) == ["stub"]


def test_the_configuration_turns_it_on(tmp_path, frames):
    config = EncoderConfig(name="stub", cache_folder=str(tmp_path), cache_mb=64.0)
    encoder = create(config)
    a, b = encoder.encode_frame(frames[0]), create(config).encode_frame(frames[0])
    assert same(a, b) and encoder.name == "stub" and encoder.encode_crops is not None
    assert len(list(tmp_path.iterdir())) == 1
    assert not isinstance(create(EncoderConfig(name="stub")), CachedEncoder)
    with pytest.raises(ConfigError, match=r"32 dimensions, encoder\.dim asks for 768"):
        create(EncoderConfig(name="stub", dim=768))


def test_an_engine_maps_from_the_cache(tmp_path, frames):
    """A second run over the same frames gives the same features without a network."""
    encoder = EncoderConfig(name="stub", cache_folder=str(tmp_path))
    kept = []
    for _ in range(2):
        with Engine(replace(analytic_scene.SMALL, encoder=encoder)) as engine:
            engine.pause()
            for frame in frames:
                engine.submit(frame)
            engine.drain()
            stored = engine.run(lambda m: [m.replay.language.target(slot).values for slot in m.replay.order])
            kept.append(stored.result())
            hits = engine.encoder.cache.hits
    assert hits == len(frames) == len(kept[0])
    assert all(np.array_equal(a, b) for a, b in zip(*kept))


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cache_mb is 0"):
        FeatureCache(tmp_path, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        FeatureCache(tmp_path / "file")
