"""The port to ROS 2: one Bus protocol, spoken by rclpy or by a Zenoh session without ROS."""
