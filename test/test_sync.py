"""Synchroniser: against exhaustive matching of the whole stream, and the laws of counting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semfield_ros.errors import ConfigError
from semfield_ros.messages.sync import Synchroniser

MS = 1_000_000


def mutually_nearest(a: list[int], b: list[int], slop: int) -> list[tuple[int, int]]:
    """Pairs of stamps that are each other's nearest in the whole streams."""
    pairs = []
    for x in a:
        y = min(b, key=lambda s: abs(s - x), default=None)
        if y is not None and abs(y - x) <= slop and min(a, key=lambda s: abs(s - y)) == x:
            pairs.append((x, y))
    return pairs


def fed(sync: Synchroniser, arrivals: list[tuple[str, int]]) -> list[tuple[int, ...]]:
    made = [pair for stream, stamp in arrivals for pair in sync.put(stream, stamp, stamp)]
    return made + sync.flush()


def streams(seed: int, period_ms: float, jitter_ms: float, offset_ms: float, drop: float, count: int = 40):
    random = np.random.default_rng(seed)
    made = {}
    for name, offset in (("colour", 0.0), ("depth", offset_ms)):
        stamps = np.arange(count) * period_ms + offset + random.uniform(-jitter_ms, jitter_ms, count)
        made[name] = (stamps[random.random(count) >= drop] * MS + 10**18).astype(np.int64).tolist()
    arrivals = sorted((s + int(random.uniform(0, 8) * MS), name, s) for name in made for s in made[name])
    in_order = {name: iter(made[name]) for name in made}  # a topic keeps its order, whatever the delays
    return made, [(name, next(in_order[name])) for _, name, _ in arrivals]


@settings(max_examples=100)
@given(st.integers(0, 2**31), st.floats(10, 100), st.floats(0, 5), st.floats(-20, 20), st.floats(0, 0.5))
def test_pairs_are_the_mutually_nearest(seed, period_ms, jitter_ms, offset_ms, drop):
    made, arrivals = streams(seed, period_ms, min(jitter_ms, period_ms / 5), offset_ms, drop)
    slop_ms = 0.35 * period_ms
    sync = Synchroniser(("colour", "depth"), slop_s=slop_ms * 1e-3, queue_size=1000)
    pairs = fed(sync, arrivals)
    assert pairs == mutually_nearest(made["colour"], made["depth"], round(slop_ms * MS))


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 60)), max_size=120),
    st.integers(0, 10), st.integers(1, 8), st.booleans(), st.integers(0, 120),
)  # fmt: skip
def test_everything_is_matched_dropped_or_waits(arrivals, slop, queue_size, flush, clear_at):
    sync = Synchroniser(("a", "b"), slop_s=slop * 1e-9, queue_size=queue_size)
    pairs = []
    for place, (stream, stamp) in enumerate(arrivals):
        if place == clear_at:
            sync.clear()
            assert sync.waiting("a") == sync.waiting("b") == 0
        pairs += sync.put(stream, stamp, (stream, place))
    pairs += sync.flush() if flush else []
    assert sync.matched == len(pairs)
    for stream in "ab":
        assert sync.received[stream] == sync.dropped[stream] + len(pairs) + sync.waiting(stream)
        assert sync.waiting(stream) <= (0 if flush else queue_size)
    stamp_of = dict(enumerate(stamp for _, stamp in arrivals))
    assert all(a[0] == "a" and b[0] == "b" and abs(stamp_of[a[1]] - stamp_of[b[1]]) <= slop for a, b in pairs)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs), "nobody is matched twice"


def test_tuples_come_in_the_order_of_stamps():
    random = np.random.default_rng(0)
    arrivals = [(name, int(s)) for s in range(0, 3000, 30) for name in ("colour", "depth")]
    swapped = [arrivals[i] for i in np.argsort(np.arange(200) + random.uniform(0, 3, 200))]
    pairs = fed(Synchroniser(("colour", "depth"), queue_size=20), swapped)
    assert pairs == sorted(pairs) and len(pairs) > 90


def test_exact_means_to_the_nanosecond():
    sync = Synchroniser(("colour", "depth"))
    stamp = 1_700_000_000_000_000_000
    assert sync.put("colour", stamp, "c") == []
    assert sync.put("depth", stamp + 1, "d") == []
    assert sync.put("depth", stamp + 2, "d2") == []
    assert sync.put("colour", stamp + 2, "c2") == [("c2", "d2")], "at once"
    assert sync.dropped == {"colour": 1, "depth": 1}


def test_cameras_in_step_are_matched_at_once():
    sync = Synchroniser(("colour", "depth"), slop_s=0.02)
    made = []
    for k in range(10):
        sync.put("depth", k * 33 * MS, k)
        made.append(sync.put("colour", (k * 33 + 2) * MS, k))
    assert made[2:] == [[(k, k)] for k in range(2, 10)], "as soon as the rhythm is known"


def test_a_nearer_partner_is_waited_for():
    sync = Synchroniser(("colour", "depth"), slop_s=0.02)
    # A greedy matcher takes the depth of 16 ms for the colour of 0 ms, and then errs for ever.
    assert sync.put("depth", -16 * MS, "early") == []
    assert sync.put("colour", 0, "c0") == []
    assert sync.put("depth", 1 * MS, "d0") == []
    assert sync.put("colour", 33 * MS, "c1") == [("c0", "d0")]
    assert sync.put("depth", 34 * MS, "d1") == [("c1", "d1")]


def test_three_streams():
    sync = Synchroniser(("a", "b", "c"), slop_s=0.002)
    for k in range(5):
        sync.put("a", 10 * k * MS, f"a{k}")
        sync.put("b", (10 * k + 1) * MS, f"b{k}")
    made = [t for k in range(0, 5, 2) for t in sync.put("c", 10 * k * MS, f"c{k}")]
    assert made + sync.flush() == [(f"a{k}", f"b{k}", f"c{k}") for k in (0, 2, 4)]


def test_a_stream_without_partner_overflows_and_says_how_far_it_was():
    sync = Synchroniser(("colour", "depth"), slop_s=0.01, queue_size=5)
    assert sync.last_miss_ns is None
    for k in range(8):
        sync.put("colour", k * 100 * MS, k)
        sync.put("depth", (k * 100 + 45) * MS, k)
    assert sync.dropped["colour"] == 3 and sync.matched == 0
    assert sync.last_miss_ns == 45 * MS
    assert sync.newest_ns("depth") == 745 * MS


def test_repetitions_and_latecomers_are_dropped():
    sync = Synchroniser(("colour", "depth"))
    sync.put("colour", 5, "c")
    sync.put("colour", 5, "again")
    assert sync.put("depth", 5, "d") == [("c", "d")]
    sync.put("colour", 5, "again")
    sync.put("depth", 4, "late")
    assert sync.dropped == {"colour": 2, "depth": 1} and sync.waiting("depth") == 0


def test_after_clear_time_starts_anew():
    sync = Synchroniser(("colour", "depth"))
    sync.put("colour", 100, "c")
    assert sync.put("depth", 100, "d") == [("c", "d")]
    sync.clear()
    sync.put("colour", 5, "c")
    assert sync.put("depth", 5, "d") == [("c", "d")]


@pytest.mark.parametrize("wrong", [{"streams": ("a",)}, {"streams": ("a", "a")}, {"slop_s": -1}, {"queue_size": 0}])
def test_unusable_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        Synchroniser(**{"streams": ("a", "b"), **wrong})
