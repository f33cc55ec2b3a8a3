"""The ROS graph as rclpy tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from .bus import Endpoint, Graph, QoS


def profile_of(qos: QoS, depth: int | None = None) -> QoSProfile:
    """Our QoS as rclpy's; `depth` in place of its own."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_ALL if qos.keep_all else HistoryPolicy.KEEP_LAST,
        depth=max(1, depth or qos.depth),
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.transient_local else DurabilityPolicy.VOLATILE,
    )


def qos_of(profile: QoSProfile) -> QoS:
    """rclpy's QoS as ours. DDS does not tell the depth of others: 0 then."""
    return QoS(
        depth=profile.depth,
        reliable=profile.reliability == ReliabilityPolicy.RELIABLE,
        transient_local=profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
        keep_all=profile.history == HistoryPolicy.KEEP_ALL,
    )


def read_graph(node: Node) -> Graph:
    """Topics with their endpoints, services with their servers and clients, and the nodes."""
    nodes = sorted(set(node.get_node_names_and_namespaces()))
    endpoints = [*_of_topics(node), *_of_services(node, nodes)]
    return Graph(tuple(endpoints), tuple(_join(namespace, name) for name, namespace in nodes))


def _of_topics(node: Node) -> Iterator[Endpoint]:
    for topic, _ in node.get_topic_names_and_types():
        for info in node.get_publishers_info_by_topic(topic):
            yield _endpoint("publisher", topic, info)
        for info in node.get_subscriptions_info_by_topic(topic):
            yield _endpoint("subscription", topic, info)


def _endpoint(kind: Any, topic: str, info: Any) -> Endpoint:
    known = str(getattr(info, "topic_type_hash", "INVALID"))  # not before Iron
    return Endpoint(
        kind=kind,
        name=topic,
        type=info.topic_type,
        type_hash=known if known.startswith("RIHS") else "",
        qos=qos_of(info.qos_profile),
        node=_join(info.node_namespace, info.node_name),
    )


def _of_services(node: Node, nodes: list[tuple[str, str]]) -> Iterator[Endpoint]:
    for name, namespace in nodes:
        try:
            served = node.get_service_names_and_types_by_node(name, namespace)
            called = node.get_client_names_and_types_by_node(name, namespace)
        except RuntimeError:  # NodeNameNonExistentError: it left meanwhile
            continue
        for kind, found in (("server", served), ("client", called)):
            for service, types in found:
                for type in types:
                    yield Endpoint(kind, service, type, "", QoS(), _join(namespace, name))  # type: ignore[arg-type]


def _join(namespace: str, name: str) -> str:
    return f"{namespace.rstrip('/')}/{name}"
