"""The ROS node, written once over the Bus: inputs, outputs, services, diagnostics."""
