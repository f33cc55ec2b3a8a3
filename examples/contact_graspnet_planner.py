"""Contact-GraspNet as the planner: what it is handed, and how its answer comes back.

    PYTHONPATH=examples:PATH_OF_CONTACT_GRASPNET semfield node --grasp.planner contact_graspnet_planner:ContactGraspNet

The network itself is not part of this package. Put its repository on the path, and say in `load` how yours is started;
everything else stays. GPD and AnyGrasp go the same way, with `planners.gpd` and `planners.anygrasp`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from semfield_ros.config import GraspConfig, GripperConfig
from semfield_ros.objects import GraspPlan, GraspScene, reasons
from semfield_ros.planners import contact_graspnet, foreign_plan, view_of

Predict = Callable[..., tuple[dict[int, Any], dict[int, Any], dict[int, Any], dict[int, Any]]]
"""`GraspEstimator.predict_scene_grasps` without its session: clouds -> grasps, scores, contacts, openings."""


def load() -> Predict:
    """The network, with the checkpoint that comes with it."""
    import config_utils  # type: ignore[import-not-found]
    import tensorflow.compat.v1 as tf  # type: ignore[import-not-found]
    from contact_grasp_estimator import GraspEstimator  # type: ignore[import-not-found]

    checkpoint = "checkpoints/scene_test_2048_bs3_hor_sigma_001"
    estimator = GraspEstimator(config_utils.load_config(checkpoint, batch_size=1, arg_configs=[]))
    estimator.build_network()
    session = tf.Session()
    estimator.load_weights(session, tf.train.Saver(save_relative_paths=True), checkpoint, mode="test")

    def predict(pc_full: np.ndarray, pc_segments: dict[int, np.ndarray]) -> Any:
        return estimator.predict_scene_grasps(
            session, pc_full, pc_segments=pc_segments, local_regions=True, filter_grasps=True
        )

    return predict


class ContactGraspNet:
    """One object at a time, seen from the nearest place a camera was."""

    def __init__(self, predict: Predict | None = None):
        self._predict = predict or load()

    def plan(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig) -> GraspPlan:
        """See `semfield_ros.objects.GraspPlanner`."""
        if not len(scene.target):
            return GraspPlan(rejected={reasons.NOTHING_SEEN: 1})
        T_world_camera = view_of(scene)
        cloud, segments = contact_graspnet.cloud_input(scene, T_world_camera)
        grasps, scores, _, openings = self._predict(cloud, segments)
        if not len(grasps.get(1, ())):
            return GraspPlan(rejected={"Contact-GraspNet found none": 1})
        poses = contact_graspnet.poses_of(grasps[1], T_world_camera)
        return foreign_plan(
            poses, scores[1], scene, gripper, config, openings_m=np.minimum(openings[1], gripper.max_width_m)
        )
