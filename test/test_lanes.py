"""Lanes and the pool: order, bounds, fairness, and what is counted."""

import threading
import time

import pytest
from wire_peer import until

from semfield_ros.errors import WireError
from semfield_ros.wire.bus import QoS
from semfield_ros.wire.lanes import DURATIONS_KEPT, KEEP_ALL_LIMIT, Lane, Lanes, depth_of
from semfield_ros.wire.pool import ServicePool


@pytest.fixture
def lane():
    lane = Lane("test")
    yield lane
    lane.close()


class Gate:
    """A callback that waits to be let through."""

    def __init__(self):
        self.entered, self.go, self.items = threading.Event(), threading.Event(), []

    def __call__(self, item=None):
        self.entered.set()
        assert self.go.wait(20)
        self.items.append(item)


def test_items_are_handled_in_order(lane):
    items = []
    inbox = lane.inbox("a", items.append, 1000)
    for i in range(500):
        inbox.put(i)
    until(lambda: inbox.traffic.handled == 500)
    assert items == list(range(500))
    assert (inbox.traffic.received, inbox.traffic.dropped, inbox.waiting) == (500, 0, 0)


def test_the_oldest_is_dropped_and_counted(lane):
    gate = Gate()
    inbox = lane.inbox("a", gate, 2)
    inbox.put(0)
    until(gate.entered.is_set)
    for i in range(1, 10):
        inbox.put(i)
    assert (inbox.waiting, inbox.traffic.received, inbox.traffic.dropped) == (2, 10, 7)
    gate.go.set()
    until(lambda: inbox.traffic.handled == 3)
    assert gate.items == [0, 8, 9]


def test_inboxes_take_turns(lane):
    """A flooded topic does not hold up the others."""
    gate, order = Gate(), []
    lane.inbox("gate", gate, 1).put(None)
    until(gate.entered.is_set)
    flooded = lane.inbox("flooded", lambda i: order.append(("flooded", i)), 100)
    quiet = lane.inbox("quiet", lambda i: order.append(("quiet", i)), 100)
    for i in range(100):
        flooded.put(i)
    for i in range(3):
        quiet.put(i)
    gate.go.set()
    until(lambda: len(order) == 103)
    assert order[:6] == [(name, i) for i in range(3) for name in ("flooded", "quiet")]


def test_timers_are_not_starved_by_a_flood(lane):
    ticks, stop = [], threading.Event()
    inbox = lane.inbox("flood", lambda i: inbox.put(i) if not stop.is_set() else None, 10)
    lane.timer(0.005, lambda: ticks.append(1))
    inbox.put(0)
    until(lambda: len(ticks) >= 3)
    stop.set()


def test_a_late_timer_does_not_catch_up(lane):
    """While the lane was held up for many periods, one call is owed, not many."""
    gate, calls, seen = Gate(), [], []
    lane.inbox("gate", gate, 1).put(None)
    until(gate.entered.is_set)
    timer = lane.timer(0.001, lambda: calls.append(1))
    lane.inbox("next", lambda i: seen.append(len(calls)), 1).put(None)
    time.sleep(0.05)
    gate.go.set()
    until(lambda: seen)
    assert seen == [1]
    timer._due_s, timer.period_s = 10.0, 1.0
    timer._reschedule(13.5)
    assert timer._due_s == 14.0, "in step with the calls before"


def test_faults_are_counted_and_the_lane_goes_on(lane, caplog):
    def decode(item):
        if item == "malformed":
            raise WireError("no message")
        if item == "worse":
            raise MemoryError("too long")
        return item

    def callback(item):
        if item == "bad":
            raise ValueError("bad item")

    inbox = lane.inbox("/topic", callback, 100, decode)
    for item in ("fine", "malformed", "bad", "worse", *["bad"] * 9, "fine"):
        inbox.put(item)
    until(lambda: inbox.traffic.handled == 2)
    traffic = inbox.traffic
    assert (traffic.received, traffic.handled, traffic.malformed, traffic.failed) == (14, 2, 2, 10)
    assert traffic.last_error == "ValueError: bad item"
    logged = [record for record in caplog.records if "callback failed" in record.message]
    assert len(logged) == 4, "the 1st, 2nd, 4th and 8th"
    assert "/topic" in logged[0].message and logged[0].exc_info


def test_a_failing_timer_goes_on(lane, caplog):
    calls = []

    def tick():
        calls.append(1)
        raise RuntimeError("always")

    timer = lane.timer(0.002, tick)
    until(lambda: len(calls) >= 4)
    assert timer.failed >= 3 and "always" in caplog.text


def test_nothing_starts_after_close(lane):
    gate, items = Gate(), []
    first, second = lane.inbox("first", gate, 1), lane.inbox("second", items.append, 10)
    first.put(None)
    until(gate.entered.is_set)
    timer = lane.timer(0.001, lambda: items.append("tick"))
    second.put(1)
    time.sleep(0.01)
    second.close()
    timer.close()
    timer.close()
    second.put(2)
    gate.go.set()
    until(lambda: first.traffic.handled == 1)
    lane.close()
    assert items == []
    assert (second.traffic.received, second.traffic.dropped) == (1, 1)


def test_durations_are_bounded(lane):
    inbox = lane.inbox("a", lambda i: None, 10_000)
    for i in range(2 * DURATIONS_KEPT + 10):
        inbox.put(i)
    until(lambda: inbox.traffic.handled == 2 * DURATIONS_KEPT + 10)
    assert DURATIONS_KEPT <= len(inbox.traffic.callback_s) <= 2 * DURATIONS_KEPT


def test_many_threads_lose_nothing(lane):
    inbox = lane.inbox("a", lambda i: None, 5)

    def fill():
        for i in range(1000):
            inbox.put(i)

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    traffic = inbox.traffic
    until(lambda: traffic.handled + traffic.dropped == 4000)
    assert traffic.received == 4000


def test_a_lane_closes_from_itself_and_twice():
    lane, closed = Lane("own"), threading.Event()
    lane.inbox("a", lambda i: (lane.close(), closed.set()), 1).put(None)
    until(closed.is_set)
    lane.close()
    assert not lane._thread.is_alive()


def test_busy_lanes_are_named(monkeypatch):
    monkeypatch.setattr("semfield_ros.wire.lanes.BUSY_S", 0.05)
    lanes, gate = Lanes(), Gate()
    assert lanes["a"] is lanes["a"]
    lanes["a"].inbox("x", gate, 1).put(None)
    lanes["b"].inbox("x", lambda i: None, 1).put(None)
    until(lambda: lanes.busy() == ["a"])
    gate.go.set()
    until(lambda: lanes.busy() == [])
    lanes.close()
    with pytest.raises(WireError, match="closed"):
        lanes["c"]


def test_a_callback_that_hangs_does_not_hold_up_closing():
    lanes, gate = Lanes(), Gate()
    lanes["a"].inbox("x", gate, 1).put(None)
    until(gate.entered.is_set)
    lanes.close(timeout_s=0.05)
    assert gate.items == []
    gate.go.set()


@pytest.mark.parametrize("period_s", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_timers_are_refused(lane, period_s):
    with pytest.raises(WireError, match="above 0"):
        lane.timer(period_s, print)


def test_impossible_inboxes_and_pools_are_refused(lane):
    with pytest.raises(WireError, match="at least 1"):
        lane.inbox("/a", print, 0)
    for workers, waiting in ((0, 1), (1, -1)):
        with pytest.raises(WireError, match="not possible"):
            ServicePool(workers, waiting)


def test_depth_follows_the_qos():
    assert [depth_of(q) for q in (QoS(7), QoS(0), QoS(1, keep_all=True))] == [7, 1, KEEP_ALL_LIMIT]


class TestPool:
    def test_workers_run_together_and_the_rest_is_refused(self):
        pool, gate, done, refused = ServicePool(2, 1), Gate(), [], []
        barrier = threading.Barrier(3)

        def run(i):
            if i < 2:
                barrier.wait(10)
            gate()
            done.append(i)

        for i in range(2):
            assert pool.submit(lambda i=i: run(i), refused.append)
        barrier.wait(10)
        assert pool.submit(lambda: run(2), refused.append)
        assert not pool.submit(lambda: run(3), refused.append)
        assert refused == ["the server is busy: 2 requests run and 1 wait; try again later"]
        gate.go.set()
        until(lambda: pool.served == 3)
        assert sorted(done) == [0, 1, 2] and pool.refused == 1
        assert pool.submit(lambda: done.append(4), refused.append)
        until(lambda: 4 in done)
        pool.close()

    def test_as_many_as_there_are_workers_never_wait(self):
        """Handed over while the workers sleep, before they have taken anything."""
        for _ in range(50):
            pool, refused = ServicePool(3, 0), []
            gate = Gate()
            assert [pool.submit(gate, refused.append) for _ in range(4)] == [True, True, True, False]
            gate.go.set()
            until(lambda pool=pool: pool.served == 3)
            pool.close()

    def test_a_failing_request_is_logged_and_the_worker_goes_on(self, caplog):
        pool, done = ServicePool(1, 10), []

        def fails(*_):
            raise ValueError("broken")

        pool.submit(fails, fails)
        pool.submit(lambda: done.append(1), fails)
        until(lambda: done)
        pool.close()
        assert not pool.submit(lambda: None, fails)
        assert caplog.text.count("broken") >= 2

    def test_closing_refuses_what_waits_and_lets_the_rest_end(self):
        pool, gate, done, refused = ServicePool(1, 10), Gate(), [], []
        pool.submit(lambda: (gate(), done.append("first")), refused.append)
        until(gate.entered.is_set)
        pool.submit(lambda: done.append("second"), refused.append)
        threading.Timer(0.05, gate.go.set).start()
        pool.close(timeout_s=10)
        assert done == ["first"] and refused == ["the server is shutting down"]
        pool.close()

    def test_closing_from_a_worker(self):
        pool, closed = ServicePool(2, 10), threading.Event()
        pool.submit(lambda: (pool.close(), closed.set()), print)
        until(closed.is_set)
