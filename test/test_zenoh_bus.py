"""The Bus on Zenoh, between real processes."""

import threading
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from wire_peer import IMAGE, OTHER_HASH, SET_BOOL, STRING, Peer, pixels, until

from semfield_ros.errors import ConfigError, WireError
from semfield_ros.messages.transforms import TransformMissing
from semfield_ros.messages.types import types
from semfield_ros.wire.bus import (
    LATCHED,
    SENSOR,
    Bus,
    QoS,
    RemoteError,
    ServiceTimeout,
    ServiceUnavailable,
    Subscription,
)
from semfield_ros.wire.graph import mismatches
from semfield_ros.wire.zenoh_bus import ZenohBus

REQUEST, RESPONSE = f"{SET_BOOL}_Request", f"{SET_BOOL}_Response"


@pytest.fixture(scope="module")
def bus():
    bus = ZenohBus("semfield", mode="test", domain=0, workers=4, max_waiting=4)
    yield bus
    bus.close()


@pytest.fixture(scope="module")
def peer(bus):
    peer = Peer("--endpoint", bus.endpoint)
    yield peer
    assert peer.close() == 0


@pytest.fixture
def topic(request):
    """A name of the test's own."""
    return "/" + request.node.name.replace("[", "_").replace("]", "").replace("-", "_")


def text(bus, data):
    return bus.new(STRING, data=data)


def found(subscription):
    """Everything that came and went; received is the sum of the others once nothing waits."""
    traffic = subscription.traffic
    return traffic.handled + traffic.dropped + traffic.malformed + traffic.failed


def done(subscription, received):
    until(lambda: subscription.traffic.received >= received and found(subscription) == subscription.traffic.received)


def test_the_bus_is_a_bus(bus):
    """Checked by mypy, too."""
    same: Bus = bus
    assert same.node_name == "/semfield" and bus.connected
    for name in vars(Bus):
        assert name.startswith("_") or hasattr(bus, name)


@pytest.mark.parametrize("reliable", [True, False])
@pytest.mark.parametrize("wanted_reliable", [True, False])
def test_texts_go_both_ways_in_order(bus, peer, topic, reliable, wanted_reliable):
    sent = [f"grüße {i}" for i in range(20)]
    heard = []
    subscription = bus.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS(50, wanted_reliable))
    peer.do("advertise", topic=topic, reliable=reliable)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=sent)
    done(subscription, 20)
    assert heard == sent
    assert (subscription.traffic.handled, subscription.traffic.dropped) == (20, 0)
    assert len(subscription.traffic.callback_s) == 20

    peer.do("listen", topic=f"{topic}/back", depth=50, reliable=wanted_reliable)
    publisher = bus.publisher(STRING, f"{topic}/back", QoS(50, reliable))
    until(lambda: publisher.subscribers == 1)
    for data in sent:
        publisher.publish(text(bus, data))
    assert peer.do("received", topic=f"{topic}/back", count=20) == sent
    subscription.close()
    publisher.close()


def test_big_images_arrive_whole(bus, peer, topic):
    height, width = 1080, 1920
    heard = []
    bus.subscribe(IMAGE, topic, heard.append, QoS(2))
    peer.do("advertise", topic=topic, type=IMAGE)
    peer.do("matched", topic=topic)
    for seed in range(3):
        peer.do("publish_image", topic=topic, height=height, width=width, seed=seed)
        image = until(lambda: heard.pop() if heard else None)
        assert (image.height, image.width, image.encoding) == (height, width, "rgb8")
        np.testing.assert_array_equal(image.data, pixels(height * width * 3, seed))

    peer.do("listen", topic=f"{topic}/back", type=IMAGE)
    publisher = bus.publisher(IMAGE, f"{topic}/back")
    until(lambda: publisher.subscribers)
    publisher.publish(bus.new(IMAGE, height=height, width=width, data=image.data))
    assert peer.do("received", topic=f"{topic}/back", count=1) == [zlib.crc32(image.data)]


def test_latched_topics_reach_late_joiners(bus, peer, topic):
    latched = {"depth": 1, "transient_local": True}
    peer.do("advertise", topic=topic, **latched)
    peer.do("publish", topic=topic, texts=["old", "last"])
    heard = []
    bus.subscribe(STRING, topic, lambda m: heard.append(m.data), LATCHED)
    until(lambda: heard)
    peer.do("publish", topic=topic, texts=["new"])
    until(lambda: len(heard) == 2)
    assert heard == ["last", "new"]

    publisher = bus.publisher(STRING, f"{topic}/back", LATCHED)
    publisher.publish(text(bus, "before"))
    peer.do("listen", topic=f"{topic}/back", **latched)
    assert peer.do("received", topic=f"{topic}/back", count=1) == ["before"]
    until(lambda: publisher.subscribers == 1)


def test_latched_topics_keep_their_depth(bus, peer, topic):
    peer.do("advertise", topic=topic, depth=3, transient_local=True)
    peer.do("publish", topic=topic, texts=["a", "b", "c", "d"])
    heard = []
    bus.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS(100, transient_local=True))
    until(lambda: len(heard) == 3)
    assert sorted(heard) == ["b", "c", "d"]


def test_a_slow_callback_drops_the_oldest_and_counts_them(bus, peer, topic):
    go, entered, heard = threading.Event(), threading.Event(), []

    def slow(message):
        entered.set()
        go.wait(20)
        heard.append(message.data)

    subscription = bus.subscribe(STRING, topic, slow, QoS(3), lane="slow")
    quick = []
    bus.subscribe(STRING, topic, lambda m: quick.append(m.data), QoS(100), lane="quick")
    peer.do("advertise", topic=topic, depth=100)
    peer.do("matched", topic=topic, exactly=2)
    peer.do("publish", topic=topic, texts=["0"])
    until(entered.is_set)
    peer.do("publish", topic=topic, texts=[str(i) for i in range(1, 50)])
    until(lambda: subscription.traffic.received == 50)
    assert subscription.traffic.dropped == 49 - 3
    until(lambda: len(quick) == 50)
    until(lambda: bus.lanes_busy() == ["slow"])
    go.set()
    done(subscription, 50)
    assert heard == ["0", "47", "48", "49"]
    assert subscription.traffic.handled == 4
    assert bus.lanes_busy() == []


def test_exceptions_and_malformed_bytes_are_counted_and_the_lane_goes_on(bus, peer, topic, caplog):
    heard = []

    def picky(message):
        if message.data == "bad":
            raise ValueError("not that one")
        heard.append(message.data)

    subscription = bus.subscribe(STRING, topic, picky, QoS(50))
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["a", "bad"])
    for malformed in ("", "00010000", "00010000ffffffff", "deadbeef", "0001000004000000414243"):
        peer.do("publish_bytes", topic=topic, hexadecimal=malformed)
    peer.do("publish", topic=topic, texts=["b"])
    done(subscription, 8)
    traffic = subscription.traffic
    assert heard == ["a", "b"]
    assert (traffic.received, traffic.handled, traffic.failed, traffic.malformed) == (8, 2, 1, 5)
    assert STRING in traffic.last_error
    assert "not that one" in caplog.text and "malformed" in caplog.text


def test_raw_subscriptions_get_the_bytes(bus, peer, topic):
    heard = []
    bus.subscribe(STRING, topic, heard.append, QoS(50), raw=True)
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["x"])
    until(lambda: heard)
    assert heard == [bytes.fromhex("00010000 02000000 7800")]


def test_a_closed_subscription_is_silent(bus, peer, topic):
    heard = []
    subscription = bus.subscribe(STRING, topic, heard.append, QoS(50))
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    subscription.close()
    subscription.close()
    peer.do("matched", topic=topic, exactly=0)
    peer.do("publish", topic=topic, texts=["x"])
    other = bus.subscribe(STRING, f"{topic}/other", heard.append, QoS(50))
    peer.do("advertise", topic=f"{topic}/other")
    peer.do("matched", topic=f"{topic}/other")
    peer.do("publish", topic=f"{topic}/other", texts=["y"])
    done(other, 1)
    assert [m.data for m in heard] == ["y"]
    assert subscription.traffic.received == 0


def test_services_answer_both_ways(bus, peer, topic):
    peer.do("serve", name=topic)
    client = bus.client(SET_BOOL, topic)
    assert client.wait(10)
    for _ in range(3):
        response = client.call(bus.new(REQUEST, data=False))
        assert (response.success, response.message) == (True, "from the peer")

    bus.serve(SET_BOOL, "~/set", lambda r: bus.new(RESPONSE, success=r.data, message="here"))
    assert peer.do("call", name="/semfield/set", data=True) == [True, "here"]
    assert peer.do("call", name="/semfield/set", data=False) == [False, "here"]


def test_parallel_calls_are_answered_in_parallel(bus, peer, topic):
    """All four workers meet at a barrier, which one after the other could not."""
    barrier = threading.Barrier(4)

    def meet(request):
        barrier.wait(10)
        return bus.new(RESPONSE, success=request.data)

    bus.serve(SET_BOOL, topic, meet)
    client = bus.client(SET_BOOL, topic)
    assert client.wait(10)
    answers = []
    callers = [
        threading.Thread(target=lambda: answers.append(client.call(bus.new(REQUEST, data=True)).success))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == [True] * 4


def test_a_full_pool_refuses_at_once(bus, peer, topic):
    go, running = threading.Event(), threading.Semaphore(0)

    def held(request):
        running.release()
        go.wait(20)
        return bus.new(RESPONSE, success=True)

    bus.serve(SET_BOOL, topic, held)
    bus.serve("std_srvs/srv/Empty", f"{topic}/empty", lambda r: bus.new("std_srvs/srv/Empty_Response"))
    client, empty = bus.client(SET_BOOL, topic), bus.client("std_srvs/srv/Empty", f"{topic}/empty")
    assert client.wait(10) and empty.wait(10)
    answers = []
    callers = [
        threading.Thread(target=lambda: answers.append(client.call(bus.new(REQUEST, data=True)))) for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for _ in range(4):
        assert running.acquire(timeout=10)
    until(lambda: len(bus._pool._jobs) == 4)
    assert peer.do("call", name=topic, data=True)[0] is False
    refused = client.call(bus.new(REQUEST, data=True))
    assert not refused.success and "4 requests run and 4 wait" in refused.message
    with pytest.raises(RemoteError, match="busy"):
        empty.call(bus.new("std_srvs/srv/Empty_Request"))
    assert answers == []
    go.set()
    for caller in callers:
        caller.join(10)
    assert [a.success for a in answers] == [True] * 8


def test_nobody_serves(bus, topic):
    client = bus.client(SET_BOOL, topic)
    assert not client.wait(0.05)
    with pytest.raises(ServiceUnavailable, match=f"nobody serves {topic}"):
        client.call(bus.new(REQUEST), timeout_s=60)


def test_a_server_that_dies_mid_call_is_noticed(bus, topic):
    peer = Peer("--endpoint", bus.endpoint, "--name", "mortal")
    peer.do("serve", name=topic)
    client = bus.client(SET_BOOL, topic)
    assert client.wait(10)
    errors = []

    def call():
        try:
            client.call(bus.new(REQUEST, data=True), timeout_s=60)
        except WireError as error:
            errors.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    time.sleep(0.2)
    peer.kill()
    caller.join(10)
    assert [type(e) for e in errors] == [ServiceUnavailable]
    until(lambda: "/mortal" not in bus.graph().nodes)


def test_slow_failing_and_malformed_services(bus, peer, topic, caplog):
    peer.do("serve", name=topic)
    client = bus.client(SET_BOOL, topic)
    assert client.wait(10)
    with pytest.raises(ServiceTimeout, match=r"within 0\.1 s"):
        client.call(bus.new(REQUEST, data=True), timeout_s=0.1)
    assert client.call(bus.new(REQUEST, data=False)).success

    def fails(request):
        if request.data:
            raise KeyError("broken")
        return bus.new(REQUEST)

    bus.serve(SET_BOOL, f"{topic}/fails", fails)
    assert peer.do("call", name=f"{topic}/fails", data=True) == ["RemoteError", f"{topic}/fails: KeyError: 'broken'"]
    assert peer.do("call", name=f"{topic}/fails", data=False)[0] == "RemoteError"
    assert "broken" in caplog.text
    client = bus.client(SET_BOOL, f"{topic}/fails")
    assert client.wait(10)
    with pytest.raises(RemoteError, match="malformed request"):
        client.call(b"\0\1\0\0malformed")
    with pytest.raises(WireError, match="SetBool_Request, not"):
        client.call(bus.new(RESPONSE))


def test_the_graph_knows_everybody(bus, peer, topic):
    peer.do("advertise", topic=topic, type=IMAGE, depth=7, reliable=False)
    peer.do("listen", topic=f"{topic}/in", depth=42, transient_local=True)
    until(lambda: bus.graph().of(topic, "publisher") and bus.graph().of(f"{topic}/in", "subscription"))
    [publisher] = bus.graph().of(topic, "publisher")
    assert (publisher.type, publisher.node, publisher.qos) == (IMAGE, "/peer", QoS(7, reliable=False))
    assert publisher.type_hash == types().hash(IMAGE)
    [subscription] = bus.graph().of(f"{topic}/in", "subscription")
    assert subscription.qos == QoS(42, transient_local=True)
    until(lambda: {"/peer", "/semfield"} <= set(bus.graph().nodes) == set(peer.do("nodes")))


def test_silent_topics_are_explained(bus, peer, topic):
    subscriptions = {
        "nobody": bus.subscribe(STRING, f"{topic}/nobody", print),
        "type": bus.subscribe(STRING, f"{topic}/type", print),
        "qos": bus.subscribe(STRING, f"{topic}/qos", print, QoS()),
        "latched": bus.subscribe(STRING, f"{topic}/latched", print, LATCHED),
        "hash": bus.subscribe(STRING, f"{topic}/hash", print),
        "fine": bus.subscribe(STRING, f"{topic}/fine", print),
    }
    client = bus.client(SET_BOOL, f"{topic}/service")
    peer.do("advertise", topic=f"{topic}/type", type=IMAGE)
    peer.do("advertise", topic=f"{topic}/qos", reliable=False)
    peer.do("advertise", topic=f"{topic}/latched")
    peer.do("advertise", topic=f"{topic}/fine")
    other = Peer("--endpoint", bus.endpoint, "--name", "foreign", "--other-hash")
    other.do("advertise", topic=f"{topic}/hash")
    other.do("serve", name=f"{topic}/service")
    until(lambda: bus.graph().of(f"{topic}/service", "server") and bus.graph().of(f"{topic}/fine", "publisher"))
    assert bus.graph().of(f"{topic}/hash", "publisher")[0].type_hash == OTHER_HASH

    reasons = mismatches(bus.graph(), bus.node_name)
    of = {name: reasons.get(f"{topic}/{name}", "") for name in [*subscriptions, "service"]}
    assert of["fine"] == ""
    assert of["nobody"].startswith(f"nobody publishes {topic}/nobody")
    assert of["type"] == f"/peer offers {topic}/type as {IMAGE}, wanted is {STRING}"
    assert "best effort, wanted is reliable" in of["qos"] and "/peer" in of["qos"]
    assert "volatile, wanted is transient local" in of["latched"]
    assert "/foreign has another definition of std_msgs/msg/String (00000000..." in of["hash"]
    assert "another definition of std_srvs/srv/SetBool" in of["service"]
    with pytest.raises(ServiceUnavailable, match="another definition"):
        client.call(bus.new(REQUEST))

    other.do("publish", topic=f"{topic}/hash", texts=["x"])
    peer.do("publish", topic=f"{topic}/fine", texts=["x"])
    done(subscriptions["fine"], 1)
    assert subscriptions["hash"].traffic.received == 0
    assert other.close() == 0


def test_transforms_come_from_tf(bus, peer):
    for name, qos in (("/tf", {}), ("/tf_static", {"transient_local": True})):
        peer.do("advertise", topic=name, type="tf2_msgs/msg/TFMessage", depth=100, **qos)
        peer.do("matched", topic=name, exactly=2)
    peer.do("publish_tf", topic="/tf_static", parent="base", child="camera", x=0.5)
    peer.do("publish_tf", topic="/tf", parent="map", child="base", x=1.0, sec=10)
    peer.do("publish_tf", topic="/tf", parent="map", child="base", x=2.0, sec=11)

    until(lambda: _knows(bus, "map", "camera", 10.5))
    expected = np.eye(4)
    expected[0, 3] = 1.5 + 0.5
    np.testing.assert_allclose(bus.transforms.lookup("map", "camera", 10.5), expected, atol=1e-9)

    late = ZenohBus("late", mode="join", endpoint=bus.endpoint, domain=0)
    peer.do("matched", topic="/tf", exactly=3)
    peer.do("publish_tf", topic="/tf", parent="map", child="base", x=3.0, sec=12)
    until(lambda: _knows(late, "map", "camera", 12.0))
    with pytest.raises(TransformMissing, match="gripper"):
        late.transforms.lookup("map", "gripper", 12.0)
    late.close()


def _knows(bus, target, source, stamp_s):
    try:
        bus.transforms.lookup(target, source, stamp_s)
    except TransformMissing:
        return False
    return True


def test_time_follows_the_clock(bus, peer):
    simulated = ZenohBus("simulated", mode="join", endpoint=bus.endpoint, domain=0, use_sim_time=True)
    assert simulated.now_s() == 0.0
    peer.do("advertise", topic="/clock", type="rosgraph_msgs/msg/Clock", depth=1, reliable=False)
    peer.do("matched", topic="/clock")
    peer.do("publish_clock", topic="/clock", sec=12, nanosec=500_000_000)
    until(lambda: simulated.now_s() == 12.5)
    peer.do("publish_clock", topic="/clock", sec=3, nanosec=0)
    until(lambda: simulated.now_s() == 3.0)
    assert abs(bus.now_s() - time.time()) < 5
    simulated.close()


def test_names_are_resolved_and_remapped(bus, peer, topic):
    node = ZenohBus(
        "node", namespace="robot", mode="join", endpoint=bus.endpoint, domain=0,
        remappings={"rgb/image": topic, "/tf": "/other/tf", "~/objects": "found"},
    )  # fmt: skip
    assert node.node_name == "/robot/node"
    assert node.resolve("rgb/image") == node.resolve("/robot/rgb/image") == topic
    assert node.resolve("~/objects") == "/robot/found" and node.resolve("~/query") == "/robot/node/query"
    heard = []
    node.subscribe(STRING, "rgb/image", heard.append, QoS())
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["x"])
    until(lambda: heard)
    until(lambda: node.graph().of("/other/tf", "subscription"))
    node.close()


def test_what_cannot_work_is_refused(bus, topic):
    for make in (
        lambda: bus.publisher(STRING, "a b"),
        lambda: bus.subscribe(STRING, "/a//b", print),
        lambda: bus.serve(SET_BOOL, "1st", print),
        lambda: ZenohBus("no/name", mode="test"),
        lambda: ZenohBus("name", mode="test", remappings={"a": "?"}),
        lambda: ZenohBus("name", mode="join", endpoint="127.0.0.1:7447"),
        lambda: ZenohBus("name", mode="guess"),
        lambda: ZenohBus("name", mode="embedded", endpoint="tcp/192.0.2.1:7447"),
        lambda: ZenohBus("name", mode="test", config_file="missing.json5"),
        lambda: bus.publisher(STRING, topic).publish(bus.new(IMAGE)),
    ):
        with pytest.raises(WireError):
            make()
    with pytest.raises(ConfigError, match="did you mean std_msgs/msg/String"):
        bus.publisher("std_msgs/msg/Strin", topic)


def test_domains_do_not_hear_each_other(bus, peer, topic):
    other = ZenohBus("other", mode="join", endpoint=bus.endpoint, domain=7)
    subscription = other.subscribe(STRING, topic, print, QoS())
    peer.do("advertise", topic=topic)
    here = bus.subscribe(STRING, topic, lambda m: None, QoS())
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["x"])
    done(here, 1)
    assert subscription.traffic.received == 0 and "/peer" not in other.graph().nodes
    other.close()


def test_timers_keep_on(bus):
    calls = []

    def tick():
        calls.append(threading.current_thread().name)
        if len(calls) == 2:
            raise RuntimeError("once")

    timer = bus.timer(0.01, tick)
    until(lambda: len(calls) >= 4)
    timer.close()
    assert set(calls) == {"lane-timer"}


def test_subscriptions_have_what_the_protocol_says(bus, topic):
    subscription: Subscription = bus.subscribe(STRING, topic, print)
    assert (subscription.topic, subscription.type, subscription.qos) == (topic, STRING, SENSOR)
