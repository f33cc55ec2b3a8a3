"""Run by test_launch with the colcon overlay: configures, maps and cleans up twice; says what of it is gone then."""

import weakref
from pathlib import Path

import rclpy
from analytic_scene import stream
from node_peer import node_config
from rclpy.executors import SingleThreadedExecutor

from semfield_ros.node.node import SemfieldNode
from semfield_ros.wire.rclpy_lifecycle import SUCCESS, ManagedNode

context = rclpy.Context()
rclpy.init(args=[], context=context)
node = ManagedNode("short", SemfieldNode, node_config(Path("maps")), context=context)
executor = SingleThreadedExecutor(context=context)
executor.add_node(node)
for _ in range(2):
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    engine = node._runnable.engine
    for frame in stream(6, first_s=1000.0):
        engine.submit(frame, block=True)
    assert engine.drain(60)
    engine.train(steps=5)
    assert len(engine.query(["red"]).cloud)
    held = [
        weakref.ref(each) for each in (
            engine, engine.snapshot(), engine.snapshot().field, node._runnable, node._runnable.outputs, node._bus,
        )
    ]  # fmt: skip
    del engine, frame
    assert node.trigger_deactivate() == SUCCESS and node.trigger_cleanup() == SUCCESS
    print(sum(each() is None for each in held), "of", len(held), "let go", flush=True)
executor.shutdown(timeout_sec=0)
node.destroy_node()
context.try_shutdown()
