"""The Zenoh router of `semfield bench node --kill`, where it is to die alone: `... node_router ENDPOINT`."""

from __future__ import annotations

import json
import sys

from ..node.commands import WireConfig, open_bus, until_interrupted


def main(endpoint: str) -> None:
    """Be the router at an endpoint until interrupted or the standard input ends."""
    bus = open_bus("router", WireConfig(mode="embedded", endpoint=endpoint))
    try:
        with until_interrupted() as stop:
            print(json.dumps({"ready": True}), flush=True)
            stop.wait()
    finally:
        bus.close()


if __name__ == "__main__":
    main(sys.argv[1])
