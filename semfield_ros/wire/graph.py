"""Why a topic stays silent, or a service away, told from the graph in words. Knows no middleware."""

from __future__ import annotations

from collections.abc import Iterable

from .bus import Endpoint, Graph, QoS

_OFFERED_BY: dict[str, str] = {"subscription": "publisher", "client": "server"}


def mismatches(graph: Graph, node: str) -> dict[str, str]:
    """Everything a node listens to or calls that cannot work as things stand: {absolute name: why}."""
    reasons = {}
    for endpoint in graph.endpoints:
        if endpoint.node == node and endpoint.kind in _OFFERED_BY:
            reason = why_silent(graph, endpoint)
            if reason:
                reasons[endpoint.name] = reason
    return reasons


def why_silent(graph: Graph, wanted: Endpoint) -> str:
    """Why a subscription or client gets nothing: nobody is there, another type, another definition of the type, or an
    incompatible quality of service. Empty when somebody fits, who then merely says nothing."""
    offered_by = _OFFERED_BY[wanted.kind]
    offers = graph.of(wanted.name, offered_by)
    if not offers:
        near = _elsewhere(graph, wanted, offered_by)
        verb = "publishes" if offered_by == "publisher" else "serves"
        return f"nobody {verb} {wanted.name}" + (f"; {wanted.type} is on {near}" if near else "")
    reasons = [_why_not(wanted, offer) for offer in offers]
    return "" if "" in reasons else "; ".join(dict.fromkeys(reasons))


def _elsewhere(graph: Graph, wanted: Endpoint, kind: str) -> str:
    """Names under which the wanted type can be had: most silent topics want a remapping."""
    names = sorted(
        {e.name for e in graph.endpoints if e.kind == kind and e.type == wanted.type and e.node != wanted.node}
    )
    return _listed(names, 4)


def _listed(names: Iterable[str], at_most: int) -> str:
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _why_not(wanted: Endpoint, offer: Endpoint) -> str:
    """Why one offer does not reach who wants it; empty if it does."""
    if offer.type != wanted.type:
        return f"{offer.node} offers {wanted.name} as {offer.type}, wanted is {wanted.type}"
    if offer.type_hash and wanted.type_hash and offer.type_hash != wanted.type_hash:
        return (
            f"{offer.node} has another definition of {offer.type} ({_short(offer.type_hash)}, wanted is "
            f"{_short(wanted.type_hash)}); build both sides from the same version of its package"
        )
    if wanted.kind == "subscription":
        return _qos_conflict(wanted.qos, offer.qos, offer.node)
    return ""


def _qos_conflict(wanted: QoS, offered: QoS, publisher: str) -> str:
    """The rule of DDS: a publisher must offer at least what a subscription asks for."""
    conflicts = []
    if wanted.reliable and not offered.reliable:
        conflicts.append("best effort, wanted is reliable: ask for best effort")
    if wanted.transient_local and not offered.transient_local:
        conflicts.append("volatile, wanted is transient local: ask for volatile")
    return f"{publisher} offers {' and '.join(conflicts)}" if conflicts else ""


def _short(type_hash: str) -> str:
    return type_hash.removeprefix("RIHS01_")[:8] + "..." if type_hash.startswith("RIHS01_") else type_hash
