"""What rmw_zenoh's liveliness tokens say; the formats are from its sources."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("zenoh", reason="the extra `zenoh` is not installed")
from semfield_ros.wire.bus import Endpoint, QoS
from semfield_ros.wire.zenoh_graph import (
    NodeTokens,
    dds_type,
    gid_of,
    graph_of,
    key_expression,
    read_attachment,
    read_qos,
    read_token,
    ros_type,
    write_attachment,
)

NODE = "/robot/semfield"
IMAGE, HASH = "sensor_msgs/msg/Image", "RIHS01_" + "ab" * 32

part = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
names = st.lists(part, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
qualities = st.builds(QoS, st.integers(0, 10_000), st.booleans(), st.booleans(), st.booleans())


def test_they_look_as_rmw_zenoh_writes_them():
    tokens = NodeTokens(3, "aabb", NODE)
    assert tokens.of_node() == "@ros2_lv/3/aabb/0/0/NN/%/%robot/semfield"
    assert NodeTokens(3, "aabb", "/lone").of_node() == "@ros2_lv/3/aabb/0/0/NN/%/%/lone"
    endpoint = Endpoint("publisher", "/rgb/image", IMAGE, HASH, QoS(5, reliable=False), NODE)
    assert tokens.of_endpoint(7, endpoint) == (
        "@ros2_lv/3/aabb/0/7/MP/%/%robot/semfield/%rgb%image/sensor_msgs::msg::dds_::Image_/" + HASH + "/2::,5:,:,:,,"
    )
    key = key_expression(3, "/rgb/image", IMAGE, HASH)
    assert key == f"3/rgb/image/sensor_msgs::msg::dds_::Image_/{HASH}"


@given(names, names, qualities, st.sampled_from(["publisher", "subscription", "server", "client"]))
def test_they_are_read_back(name, node, qos, kind):
    endpoint = Endpoint(kind, name, IMAGE, HASH, qos, node)
    tokens = NodeTokens(0, "1", node)
    assert read_token(tokens.of_endpoint(1, endpoint)) == endpoint
    assert read_token(tokens.of_node()) == node


def test_what_is_default_is_left_out():
    assert read_qos("::,:,:,:,,") == QoS(42)
    assert read_qos("2:1:2,:,:,:,,") == QoS(42, False, True, True)
    assert read_qos("1:2:1,3:1,2:,:1,,") == QoS(3)


@given(st.text(max_size=80))
def test_foreign_tokens_are_skipped(text):
    prefix = "@ros2_lv/0/1/2/3/MP/%/%/node/"
    foreign = (text, prefix + text, prefix + "%a/b::c/h/" + text, prefix + "%a/t/h/x:y:z")
    graph = graph_of(foreign)
    assert all(e.kind == "publisher" for e in graph.endpoints)


def test_attachments_go_there_and_back():
    gid = gid_of("@ros2_lv/0")
    assert len(gid) == 16
    data = write_attachment(2**40, gid)
    assert len(data) == 33 and data[16] == 16
    assert read_attachment(data) == (2**40, gid)


def test_type_names_have_two_forms():
    assert dds_type("std_srvs/srv/Trigger") == "std_srvs::srv::dds_::Trigger_"
    assert ros_type("std_srvs::srv::dds_::Trigger_") == "std_srvs/srv/Trigger"
    assert ros_type("foreign") == "foreign"
