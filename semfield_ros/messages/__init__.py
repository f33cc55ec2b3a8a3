"""ROS messages without ROS: types and their bytes, images, clouds, poses, and frames assembled from all of these."""
