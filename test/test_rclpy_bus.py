"""The Bus on rclpy, held against plain rclpy in another process: the behaviours of `test_zenoh_bus.py` over DDS."""

import threading
import time
import zlib

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 is sourced, or one for another Python", exc_type=ImportError)
import rclpy
from rclpy.parameter import Parameter
from ros_world import RosPeer, ros  # noqa: F401 (a fixture)
from wire_peer import IMAGE, SET_BOOL, STRING, pixels, until

from semfield_ros.errors import ConfigError, WireError
from semfield_ros.messages.poses import TransformMissing
from semfield_ros.messages.types import types
from semfield_ros.wire.bus import LATCHED, Bus, QoS, ServiceTimeout, ServiceUnavailable
from semfield_ros.wire.graph import mismatches
from semfield_ros.wire.rclpy_bus import RclpyBus, open_rclpy_bus

pytestmark = pytest.mark.ros
REQUEST, RESPONSE = f"{SET_BOOL}_Request", f"{SET_BOOL}_Response"


@pytest.fixture(scope="module")
def context(ros):  # noqa: F811
    rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope="module")
def bus(context):
    yield from a_bus("semfield", workers=4, max_waiting=4)


@pytest.fixture(scope="module")
def peer(context):
    peer = RosPeer()
    yield peer
    assert peer.close() == 0


@pytest.fixture
def topic(request):
    """A name of the test's own."""
    return "/" + request.node.name.replace("[", "_").replace("]", "").replace("-", "_")


def a_bus(name, *, workers=4, max_waiting=32, **options):
    node = rclpy.create_node(name, **options)
    bus = RclpyBus(node, workers=workers, max_waiting=max_waiting)
    yield bus
    bus.close()
    bus.close()
    node.destroy_node()


def text(bus, data):
    return bus.new(STRING, data=data)


def matched(peer, subscription):
    """Both sides know of each other: before that, best effort is lost."""
    peer.do("matched", topic=subscription.topic)
    until(lambda: subscription.publishers)


def done(subscription, received):
    """Everything that came was handled, dropped, malformed or failed."""
    traffic = subscription.traffic
    until(lambda: traffic.received >= received)
    until(lambda: traffic.handled + traffic.dropped + traffic.malformed + traffic.failed == traffic.received)


def test_the_bus_is_a_bus(bus):
    """Checked by mypy, too."""
    same: Bus = bus
    assert same.node_name == "/semfield"
    for name in vars(Bus):
        assert name.startswith("_") or hasattr(bus, name)


@pytest.mark.parametrize(("offered", "wanted"), [(True, True), (True, False), (False, False)])
def test_texts_go_both_ways_in_order(bus, peer, topic, offered, wanted):
    sent = [f"grüße {i}" for i in range(20)]
    heard = []
    subscription = bus.subscribe(STRING, topic, lambda m: heard.append(m.data), QoS(50, wanted))
    peer.do("advertise", topic=topic, reliable=offered, depth=50)
    matched(peer, subscription)
    peer.do("publish", topic=topic, texts=sent)
    done(subscription, 20)
    assert heard == sent
    assert (subscription.traffic.handled, subscription.traffic.dropped, subscription.lost) == (20, 0, 0)

    peer.do("listen", topic=f"{topic}/back", depth=50, reliable=wanted)
    publisher = bus.publisher(STRING, f"{topic}/back", QoS(50, offered))
    until(lambda: publisher.subscribers == 1)
    peer.do("offered", topic=f"{topic}/back")
    for data in sent:
        publisher.publish(text(bus, data))
    assert peer.do("received", topic=f"{topic}/back", count=20) == sent
    subscription.close()
    publisher.close()


def test_best_effort_does_not_reach_who_asks_for_reliable_and_says_so(bus, peer, topic, caplog):
    subscription = bus.subscribe(STRING, topic, print, QoS(10))
    peer.do("advertise", topic=topic, reliable=False)
    until(lambda: topic in caplog.text)
    assert "offer less reliability than is asked for" in subscription.traffic.last_error
    until(lambda: bus.graph().of(topic, "publisher"))
    assert "best effort, wanted is reliable" in mismatches(bus.graph(), bus.node_name)[topic]
    assert subscription.traffic.received == 0


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
    for start in range(1, 50, 7):
        peer.do("publish", topic=topic, texts=[str(i) for i in range(start, start + 7)])
        until(lambda start=start: subscription.traffic.received == start + 7)
    assert subscription.traffic.dropped == 49 - 3
    until(lambda: len(quick) == 50)
    until(lambda: bus.lanes_busy() == ["slow"])
    go.set()
    done(subscription, 50)
    assert heard == ["0", "47", "48", "49"]
    assert subscription.traffic.handled == 4 and bus.lanes_busy() == []


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
    for malformed in ("00010000ffffffff", "000100001000000041424344"):
        peer.do("publish_bytes", topic=topic, hexadecimal=malformed)
    peer.do("publish", topic=topic, texts=["b"])
    done(subscription, 5)
    traffic = subscription.traffic
    assert heard == ["a", "b"]
    assert (traffic.received, traffic.handled, traffic.failed, traffic.malformed) == (5, 2, 1, 2)
    assert "not that one" in caplog.text and "malformed" in caplog.text


def test_raw_subscriptions_get_the_bytes(bus, peer, topic):
    heard = []
    bus.subscribe(STRING, topic, heard.append, QoS(50), raw=True)
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["x"])
    until(lambda: heard)
    assert types().decode(heard[0], STRING).data == "x"


def test_a_closed_subscription_is_silent(bus, peer, topic):
    heard = []
    subscription = bus.subscribe(STRING, topic, heard.append, QoS(50))
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    subscription.close()
    subscription.close()
    peer.do("matched", topic=topic, exactly=0)
    peer.do("publish", topic=topic, texts=["x"])
    other = bus.subscribe(STRING, topic, heard.append, QoS(50))
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["y"])
    done(other, 1)
    assert [m.data for m in heard] == ["y"] and subscription.traffic.received == 0


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


def test_parallel_calls_are_answered_in_parallel_while_topics_flow(bus, peer, topic):
    """All four workers meet at a barrier, which one after the other could not; meanwhile messages arrive."""
    barrier, heard = threading.Barrier(5), []
    bus.subscribe(STRING, f"{topic}/chat", lambda m: heard.append(m.data), QoS(50))
    peer.do("advertise", topic=f"{topic}/chat")
    peer.do("matched", topic=f"{topic}/chat")

    def meet(request):
        barrier.wait(20)
        return bus.new(RESPONSE, success=request.data)

    bus.serve(SET_BOOL, topic, meet)
    client = bus.client(SET_BOOL, topic)
    assert client.wait(10)
    answers = []
    callers = called(client, bus, answers, 4)
    until(lambda: barrier.n_waiting == 4)
    peer.do("publish", topic=f"{topic}/chat", texts=["while they wait"])
    until(lambda: heard)
    assert answers == []
    barrier.wait(20)
    for caller in callers:
        caller.join()
    assert answers == [(True, "")] * 4


def called(client, bus, answers, count):
    def call():
        response = client.call(bus.new(REQUEST, data=True), timeout_s=30)
        answers.append((response.success, response.message))

    callers = [threading.Thread(target=call) for _ in range(count)]
    for caller in callers:
        caller.start()
    return callers


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
    callers = called(client, bus, answers, 8)
    for _ in range(4):
        assert running.acquire(timeout=10)
    until(lambda: len(bus.pool._jobs) == 4)
    success, message = peer.do("call", name=topic, data=True)
    assert not success and "4 requests run and 4 wait" in message
    assert empty.call(bus.new("std_srvs/srv/Empty_Request")) is not None  # there is nothing in it that could say no
    assert answers == []
    go.set()
    for caller in callers:
        caller.join(10)
    assert answers == [(True, "")] * 8


def test_nobody_serves(bus, topic):
    client = bus.client(SET_BOOL, topic)
    assert not client.wait(0.05)
    with pytest.raises(ServiceUnavailable, match=f"nobody serves {topic}"):
        client.call(bus.new(REQUEST), timeout_s=60)


def test_a_server_that_dies_mid_call_is_noticed(bus, topic):
    """DDS notices when the lease of the dead runs out."""
    mortal = RosPeer("--name", "mortal")
    mortal.do("serve", name=topic)
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
    mortal.kill()
    caller.join(20)
    assert [type(e) for e in errors] == [ServiceUnavailable] and "went away" in str(errors[0])
    until(lambda: "/mortal" not in bus.graph().nodes)


def test_a_client_that_dies_mid_call_harms_nobody(bus, peer, topic):
    go, running = threading.Event(), threading.Semaphore(0)

    def held(request):
        running.release()
        go.wait(20)
        return bus.new(RESPONSE, success=True)

    bus.serve(SET_BOOL, topic, held)
    mortal = RosPeer("--name", "mortal_client")
    mortal.do("call_and_forget", name=topic, data=True)
    assert running.acquire(timeout=10)
    mortal.kill()
    until(lambda: "/mortal_client" not in bus.graph().nodes)
    go.set()
    assert peer.do("call", name=topic, data=True) == [True, ""]


def test_slow_and_failing_services(bus, peer, topic, caplog):
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
    assert peer.do("call", name=f"{topic}/fails", data=True) == [False, "KeyError: 'broken'"]
    assert peer.do("call", name=f"{topic}/fails", data=False)[0] is False
    assert "broken" in caplog.text
    with pytest.raises(WireError, match="SetBool_Request, not"):
        client.call(bus.new(RESPONSE))


def test_the_graph_knows_everybody(bus, peer, topic):
    peer.do("advertise", topic=topic, type=IMAGE, depth=7, reliable=False)
    peer.do("listen", topic=f"{topic}/in", depth=42, transient_local=True)
    peer.do("serve", name=f"{topic}/service")
    bus.client(SET_BOOL, f"{topic}/service")
    expected = (("", "publisher"), ("/in", "subscription"), ("/service", "server"), ("/service", "client"))
    until(lambda: all(bus.graph().of(f"{topic}{name}", kind) for name, kind in expected))
    graph = bus.graph()
    [publisher] = graph.of(topic, "publisher")
    assert (publisher.type, publisher.node, publisher.qos.reliable) == (IMAGE, "/peer", False)
    [subscription] = graph.of(f"{topic}/in", "subscription")
    assert subscription.qos.reliable and subscription.qos.transient_local
    [server], [client] = graph.of(f"{topic}/service", "server"), graph.of(f"{topic}/service", "client")
    assert (server.type, server.node, client.node) == (SET_BOOL, "/peer", "/semfield")
    until(lambda: {"/peer", "/semfield"} <= set(bus.graph().nodes) == set(peer.do("nodes")))


def test_type_hashes_are_those_of_ros(bus, peer):
    """The hash of every topic there is, as DDS announces it, is the one computed from the definition."""
    graph = until(lambda: (g := bus.graph()) and any(e.node == "/peer" for e in g.endpoints) and g)
    found = {e.type: e.type_hash for e in graph.endpoints if e.kind in ("publisher", "subscription")}
    assert {"rcl_interfaces/msg/ParameterEvent", "rcl_interfaces/msg/Log"} <= set(found)
    assert found == {name: types().hash(name) for name in found}


def test_silent_topics_are_explained(bus, peer, topic):
    for name, qos in (("nobody", QoS()), ("type", QoS()), ("latched", LATCHED), ("fine", QoS())):
        bus.subscribe(STRING, f"{topic}/{name}", print, qos)
    peer.do("advertise", topic=f"{topic}/type", type=IMAGE)
    peer.do("advertise", topic=f"{topic}/latched")
    peer.do("advertise", topic=f"{topic}/fine")
    until(lambda: bus.graph().of(f"{topic}/fine", "publisher"))
    reasons = mismatches(bus.graph(), bus.node_name)
    of = {name: reasons.get(f"{topic}/{name}", "") for name in ("nobody", "type", "latched", "fine")}
    assert of["fine"] == ""
    assert of["nobody"].startswith(f"nobody publishes {topic}/nobody")
    assert of["type"] == f"/peer offers {topic}/type as {IMAGE}, wanted is {STRING}"
    assert "volatile, wanted is transient local" in of["latched"]


def test_transforms_come_from_tf2(bus, peer):
    with pytest.raises(TransformMissing) as unknown:
        bus.transforms.lookup("map", "camera", 10.0)
    assert unknown.value.kind == "unknown_frame"
    for name, qos in (("/tf", {}), ("/tf_static", {"transient_local": True})):
        peer.do("advertise", topic=name, type="tf2_msgs/msg/TFMessage", depth=100, **qos)
    peer.do("matched", topic="/tf")
    peer.do("publish_tf", topic="/tf_static", parent="base", child="camera", x=0.5)
    peer.do("publish_tf", topic="/tf_static", parent="island", child="palm", x=0.5)
    peer.do("publish_tf", topic="/tf", parent="map", child="base", x=1.0, sec=10)
    peer.do("publish_tf", topic="/tf", parent="map", child="base", x=2.0, sec=11)
    until(lambda: kind(bus, "map", "camera", 10.5) == "")
    until(lambda: kind(bus, "map", "palm", 10.5) == "not_connected")
    expected = np.eye(4)
    expected[0, 3] = 1.5 + 0.5
    np.testing.assert_allclose(bus.transforms.lookup("map", "camera", 10.5), expected, atol=1e-9)
    np.testing.assert_allclose(bus.transforms.lookup("/camera", "/map", 10.5), np.linalg.inv(expected), atol=1e-9)
    assert kind(bus, "map", "camera", 12.0) == "too_late"
    assert kind(bus, "map", "camera", 9.0) == "too_early"
    assert kind(bus, "map", "camera", 0.0) == "too_early"
    assert kind(bus, "map", "gripper", 10.5) == "unknown_frame"
    with pytest.raises(TransformMissing, match="gripper"):
        bus.transforms.lookup("gripper", "map", 10.5)
    bus.transforms.clear()
    assert kind(bus, "map", "camera", 10.5) == "empty"
    assert kind(bus, "base", "camera", 10.5) == ""


def kind(bus, target, source, stamp_s):
    try:
        bus.transforms.lookup(target, source, stamp_s)
    except TransformMissing as error:
        return error.kind
    return ""


def test_time_follows_the_clock(bus, peer):
    simulated_bus = a_bus("simulated", parameter_overrides=[Parameter("use_sim_time", value=True)])
    simulated = next(simulated_bus)
    assert simulated.now_s() == 0.0
    peer.do("advertise", topic="/clock", type="rosgraph_msgs/msg/Clock", depth=1, reliable=False)
    for sec, nanosec in ((12, 500_000_000), (3, 0)):

        def ticked(sec=sec, nanosec=nanosec):
            peer.do("publish_clock", topic="/clock", sec=sec, nanosec=nanosec)
            return simulated.now_s() == sec + nanosec * 1e-9

        until(ticked)
    assert abs(bus.now_s() - time.time()) < 5
    assert list(simulated_bus) == []


def test_names_are_resolved_remapped_and_qos_overridden(context, peer, topic):
    arguments = ["--ros-args", "-r", f"rgb/image:={topic}", "-r", "/tf:=/other/tf", "-r", "~/objects:=found"]
    arguments += ["-p", f"qos_overrides.{topic}.subscription.depth:=7"]
    arguments += ["-p", f"qos_overrides.{topic}.subscription.reliability:=best_effort"]
    buses = a_bus("node", namespace="robot", cli_args=arguments)
    bus = next(buses)
    assert bus.node_name == "/robot/node"
    assert bus.resolve("rgb/image") == bus.resolve("/robot/rgb/image") == topic
    assert bus.resolve("~/objects") == "/robot/found" and bus.resolve("~/query") == "/robot/node/query"
    heard = []
    subscription = bus.subscribe(STRING, "rgb/image", heard.append, QoS(3))
    assert (subscription.topic, subscription.qos) == (topic, QoS(7, reliable=False))
    peer.do("advertise", topic=topic, reliable=False)
    matched(peer, subscription)
    peer.do("publish", topic=topic, texts=["x"])
    until(lambda: heard)
    until(lambda: bus.graph().of("/other/tf", "subscription"))
    assert list(buses) == []


def test_a_bus_can_bring_its_own_node(context, peer, topic):
    own = open_rclpy_bus("own", namespace="/robot", remappings={"rgb/image": topic}, use_sim_time=True)
    assert (own.node_name, own.resolve("rgb/image"), own.now_s()) == ("/robot/own", topic, 0.0)
    heard = []
    own.subscribe(STRING, "rgb/image", lambda m: heard.append(m.data), QoS())
    peer.do("advertise", topic=topic)
    peer.do("matched", topic=topic)
    peer.do("publish", topic=topic, texts=["x"])
    until(lambda: heard == ["x"])
    own.close()
    own.close()
    peer.do("matched", topic=topic, exactly=0)
    for wrong in ({"name": "a b"}, {"name": "a", "namespace": "b c"}, {"name": "a", "remappings": {"q q": "x"}}):
        with pytest.raises(WireError):
            open_rclpy_bus(**wrong)
    assert rclpy.ok()


def test_what_cannot_work_is_refused(bus, topic):
    for make in (
        lambda: bus.publisher(STRING, "a b"),
        lambda: bus.subscribe(STRING, "/a//b", print),
        lambda: bus.serve(SET_BOOL, "1st", print),
        lambda: bus.publisher(STRING, topic).publish(bus.new(IMAGE)),
    ):
        with pytest.raises(WireError):
            make()
    with pytest.raises(ConfigError, match="did you mean std_msgs/msg/String"):
        bus.publisher("std_msgs/msg/Strin", topic)


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


def test_closing_in_the_middle_of_everything(context, peer, topic):
    """A handler runs, a request waits, a call of ours waits: close returns, the caller is told, threads end."""
    buses = a_bus("leaving", workers=1)
    bus = next(buses)
    go, running, outcome = threading.Event(), threading.Event(), []

    def held(request):
        running.set()
        go.wait(30)
        return bus.new(RESPONSE, success=True)

    bus.serve(SET_BOOL, topic, held)
    peer.do("serve", name=f"{topic}/slow")
    client = bus.client(SET_BOOL, f"{topic}/slow")
    assert client.wait(10)

    def call():
        try:
            client.call(bus.new(REQUEST, data=True), timeout_s=60)
        except WireError as error:
            outcome.append(error)

    for _ in range(2):
        peer.do("call_and_forget", name=topic, data=True)
    caller = threading.Thread(target=call)
    caller.start()
    assert running.wait(10)
    publisher = bus.publisher(STRING, topic + "/out")
    assert list(buses) == []
    caller.join(10)
    assert not caller.is_alive() and isinstance(outcome[0], ServiceUnavailable)
    publisher.publish(text(bus, "too late"))
    assert publisher.subscribers == 0 and bus.graph().endpoints == ()
    with pytest.raises(WireError, match="closed"):
        bus.publisher(STRING, topic)
    go.set()
    assert not [t for t in threading.enumerate() if t.name == "rclpy" and not t.daemon]
