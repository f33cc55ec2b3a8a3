"""Conformance of the Zenoh wire: zenoh-ros2-sdk, written by others after rmw_zenoh, is the other side."""

import re
import zlib
from pathlib import Path

import pytest

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
pytest.importorskip("zenoh_ros2_sdk", reason="zenoh-ros2-sdk (or the git it needs) is not here", exc_type=ImportError)
from wire_peer import IMAGE, SET_BOOL, STRING, Peer, pixels, until

from semfield_ros.messages.types import types
from semfield_ros.wire.bus import LATCHED, QoS
from semfield_ros.wire.zenoh_bus import ZenohBus
from semfield_ros.wire.zenoh_graph import write_qos

REQUEST, RESPONSE = f"{SET_BOOL}_Request", f"{SET_BOOL}_Response"


def write_definitions(folder):
    """Definitions as files: it would clone repositories to find them."""
    for name in (STRING, IMAGE, "service_msgs/msg/ServiceEventInfo"):
        text, _ = types().store.generate_msgdef(name, ros_version=2)
        first, *rest = re.split(r"=+\nMSG: (.*)\n", text)
        for each, definition in [(name, first), *zip(rest[::2], rest[1::2])]:
            package, *_, base = each.split("/")
            write(folder / package / "msg" / f"{base}.msg", definition)
    write(folder / "std_srvs" / "srv" / "SetBool.srv", "bool data\n---\nbool success\nstring message\n")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(scope="module")
def bus():
    bus = ZenohBus("semfield", mode="test", domain=0)
    yield bus
    bus.close()


@pytest.fixture(scope="module")
def sdk(bus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("definitions")
    write_definitions(folder)
    peer = Peer(bus.endpoint.rpartition(":")[2], str(folder), script=str(Path(__file__).parent / "sdk_peer.py"))
    yield peer
    assert peer.close() == 0


def publish_until_heard(sdk, publisher, message):
    """It announces a subscription before it has it: what is sent at once may be lost."""

    def heard():
        publisher.publish(message)
        return sdk.do("received", topic=publisher.topic, count=0)

    until(lambda: publisher.subscribers == 1)
    until(heard)


def test_type_hashes_agree(sdk):
    assert sdk.do("hashes") == {name: types().hash(name) for name in (STRING, IMAGE)}


def test_texts_go_both_ways(bus, sdk):
    heard = []
    bus.subscribe(STRING, "/to_us", lambda m: heard.append(m.data), QoS())
    sdk.do("advertise", topic="/to_us")
    sdk.do("matched", topic="/to_us")
    sdk.do("publish", topic="/to_us", texts=["a", "grüße"])
    until(lambda: len(heard) == 2)
    assert heard == ["a", "grüße"]

    publisher = bus.publisher(STRING, "/to_them")
    sdk.do("listen", topic="/to_them")
    publish_until_heard(sdk, publisher, bus.new(STRING, data="grüße"))
    assert sdk.do("received", topic="/to_them", count=1)[0] == "grüße"


def test_images_go_both_ways(bus, sdk):
    heard = []
    bus.subscribe(IMAGE, "/image_to_us", heard.append, QoS())
    sdk.do("advertise", topic="/image_to_us", type=IMAGE)
    sdk.do("matched", topic="/image_to_us")
    sdk.do("publish_image", topic="/image_to_us", height=480, width=640, seed=3)
    [image] = until(lambda: heard)
    assert (image.header.frame_id, image.header.stamp.nanosec, image.encoding) == ("camera", 2, "rgb8")
    assert image.data.tobytes() == pixels(480 * 640 * 3, 3).tobytes()

    publisher = bus.publisher(IMAGE, "/image_to_them")
    sdk.do("listen", topic="/image_to_them", type=IMAGE)
    image.header.frame_id = "back"
    publish_until_heard(sdk, publisher, image)
    assert sdk.do("received", topic="/image_to_them", count=1)[0] == ["back", zlib.crc32(image.data)]


def test_a_late_joiner_gets_what_is_latched(bus, sdk):
    bus.publisher(STRING, "/latched", LATCHED).publish(bus.new(STRING, data="last"))
    until(lambda: "/latched" in sdk.do("topics"))
    sdk.do("listen", topic="/latched", qos=write_qos(LATCHED))
    assert sdk.do("received", topic="/latched", count=1) == ["last"]


def test_services_answer_both_ways(bus, sdk):
    bus.serve(SET_BOOL, "/ours", lambda request: bus.new(RESPONSE, success=request.data, message="from us"))
    assert sdk.do("call", name="/ours", data=True) == [True, "from us"]

    sdk.do("serve", name="/theirs")
    client = bus.client(SET_BOOL, "/theirs")
    assert client.wait(10)
    response = client.call(bus.new(REQUEST, data=True))
    assert (response.success, response.message) == (False, "from the sdk")


def test_each_side_sees_the_other_in_the_graph(bus, sdk):
    sdk.do("advertise", topic="/seen", qos=write_qos(QoS(3, reliable=False)))
    bus.publisher(IMAGE, "~/seen", QoS(2))
    [publisher] = until(lambda: bus.graph().of("/seen", "publisher"))
    assert (publisher.type, publisher.node, publisher.qos) == (STRING, "/sdk_publisher", QoS(3, reliable=False))
    assert publisher.type_hash == types().hash(STRING)
    until(lambda: sdk.do("topics").get("/semfield/seen") == [IMAGE])
