"""The wire without a wire: names, and why a topic is silent."""

import pytest

from semfield_ros.errors import WireError
from semfield_ros.wire.bus import Endpoint, Graph, QoS
from semfield_ros.wire.graph import mismatches, why_silent
from semfield_ros.wire.names import expand, node_name, remapped

NODE = "/robot/semfield"
IMAGE, HASH = "sensor_msgs/msg/Image", "RIHS01_" + "ab" * 32
DEFAULT = QoS()


@pytest.mark.parametrize(
    ("name", "absolute"),
    [
        ("/a/b", "/a/b"),
        ("a", "/robot/a"),
        ("a/b_2", "/robot/a/b_2"),
        ("~/a", "/robot/semfield/a"),
        ("~", "/robot/semfield"),
        ("/_hidden", "/_hidden"),
    ],
)
def test_names_become_absolute(name, absolute):
    assert expand(name, NODE) == absolute


@pytest.mark.parametrize("name", ["", "/", "a/", "//a", "a//b", "1a", "a/1", "a b", "a-b", "a/~", "~a", "ä", "a\n"])
def test_names_that_ros_does_not_allow_are_refused(name):
    with pytest.raises(WireError, match="no topic or service name"):
        expand(name, NODE)


def test_node_names():
    assert node_name("semfield") == node_name("semfield", "/") == "/semfield"
    assert node_name("a", "robot") == node_name("a", "/robot/") == "/robot/a"
    assert node_name("a", "/x/y") == "/x/y/a"
    for name, space in (("", ""), ("a/b", ""), ("1", ""), ("a" * 256, ""), ("a", "/x//y"), ("a", "x y"), ("a", "~")):
        with pytest.raises(WireError):
            node_name(name, space)


def test_remappings_are_matched_as_absolute_names_and_applied_once():
    rules = {"rgb/image": "/camera/color", "/tf": "tf", "~/objects": "found", "/robot/found": "/elsewhere"}
    assert remapped("rgb/image", NODE, rules) == "/camera/color"
    assert remapped("/robot/rgb/image", NODE, rules) == "/camera/color"
    assert remapped("/tf", NODE, rules) == "/robot/tf"
    assert remapped("~/objects", NODE, rules) == "/robot/found"
    assert remapped("~/query", NODE, rules) == "/robot/semfield/query"


def wanted(qos=DEFAULT, type_hash=HASH, kind="subscription", name="/rgb"):
    return Endpoint(kind, name, IMAGE, type_hash, qos, NODE)


def offered(qos=DEFAULT, type_hash=HASH, type=IMAGE, name="/rgb", kind="publisher", node="/camera"):
    return Endpoint(kind, name, type, type_hash, qos, node)


def test_somebody_who_fits_is_no_reason():
    for graph in (
        Graph((offered(),)),
        Graph((offered(type="std_msgs/msg/String"), offered())),
        Graph((offered(type_hash=""),)),
    ):
        assert why_silent(graph, wanted()) == ""
        assert why_silent(graph, wanted(type_hash="")) == ""


@pytest.mark.parametrize("wanted_latched", [True, False])
@pytest.mark.parametrize("wanted_reliable", [True, False])
@pytest.mark.parametrize("latched", [True, False])
@pytest.mark.parametrize("reliable", [True, False])
def test_qualities_are_compared_as_dds_does(reliable, latched, wanted_reliable, wanted_latched):
    graph = Graph((offered(QoS(1, reliable, latched)),))
    reason = why_silent(graph, wanted(QoS(1, wanted_reliable, wanted_latched)))
    assert ("best effort, wanted is reliable" in reason) == (wanted_reliable and not reliable)
    assert ("volatile, wanted is transient local" in reason) == (wanted_latched and not latched)
    assert bool(reason) == ((wanted_reliable and not reliable) or (wanted_latched and not latched))


def test_reasons_are_told_in_words():
    assert why_silent(Graph(), wanted()) == "nobody publishes /rgb"
    elsewhere = Graph(tuple(offered(name=f"/camera/{i}/color") for i in range(6)))
    assert why_silent(elsewhere, wanted()).startswith(
        f"nobody publishes /rgb; {IMAGE} is on /camera/0/color, /camera/1/color, /camera/2/color, /camera/3/color and 2"
    )
    other = why_silent(Graph((offered(type_hash="RIHS01_" + "cd" * 32),)), wanted())
    assert "/camera has another definition of sensor_msgs/msg/Image (cdcdcdcd..., wanted is abababab...)" in other
    both = Graph((offered(type="std_msgs/msg/String"), offered(QoS(reliable=False), node="/other")))
    assert why_silent(both, wanted()).count(";") == 1
    assert why_silent(Graph(), wanted(kind="client", name="/q")) == "nobody serves /q"


def test_only_what_a_node_wants_is_looked_at():
    mine, fine = wanted(name="/missing"), wanted()
    foreign = Endpoint("subscription", "/theirs", IMAGE, HASH, QoS(), "/other")
    graph = Graph((mine, fine, foreign, offered(), offered(name="/extra", node=NODE)))
    assert list(mismatches(graph, NODE)) == ["/missing"]
