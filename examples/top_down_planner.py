"""A grasp planner of your own: straight down onto the middle of what was asked for, turned every which way.

    python examples/top_down_planner.py                                    # asks a simulated table, seconds
    PYTHONPATH=examples semfield node --grasp.planner top_down_planner:TopDownPlanner

Any class with this one method takes the place of the package's planner, in Python, on both ROS wires and in the command
line tools. It is made once, without arguments, and asked from several threads at a time.
"""

import numpy as np

from semfield_ros.config import GraspConfig, GripperConfig
from semfield_ros.objects import GraspPlan, GraspScene, reasons
from semfield_ros.planners import foreign_plan

DEEPEST_M = 0.03


class TopDownPlanner:
    """Sixteen poses a height; `foreign_plan` measures what each would hold, and drops what would hit something."""

    def plan(self, scene: GraspScene, gripper: GripperConfig, config: GraspConfig) -> GraspPlan:
        """See `semfield_ros.objects.GraspPlanner`."""
        if not len(scene.target):
            return GraspPlan(rejected={reasons.NOTHING_SEEN: 1})
        heights = scene.target @ scene.up
        middle = (scene.target.min(0) + scene.target.max(0)) / 2
        poses, scores = [], []
        for depth_m in (DEEPEST_M, DEEPEST_M / 2):
            for angle in np.arange(16) * np.pi / 16:
                sideways = np.array([np.cos(angle), np.sin(angle), 0.0])
                x = sideways - (sideways @ scene.up) * scene.up
                x, z = x / np.linalg.norm(x), -scene.up
                T = np.eye(4)
                T[:3, :3] = np.stack([x, np.cross(z, x), z], axis=1)
                T[:3, 3] = middle + (heights.max() - depth_m - middle @ scene.up) * scene.up
                across = scene.target @ x
                poses.append(T)
                scores.append(1.0 - np.ptp(across) / (np.ptp(across) + gripper.max_width_m))
        return foreign_plan(np.array(poses), scores, scene, gripper, config)


def main(source: str = "simulator:46", train_s: float = 5.0) -> None:
    """Map a simulated table and ask for grasps of some of what stands there."""
    from dataclasses import replace

    import semfield_ros as sf

    config = sf.demo_config()
    config = replace(config, grasp=replace(config.grasp, planner=f"{__name__}:TopDownPlanner"))
    with sf.Engine(config) as engine:
        for frame in sf.open_source(source, stride=4):
            engine.submit(frame, block=True)
        engine.drain()
        engine.train(seconds=train_s)
        answer = engine.query(["bottle", "mug", "bowl", "screwdriver", "ball"])
    for thing in answer.objects:
        best = thing.grasps[0] if thing.grasps else None
        said = f"{best.width_m:.3f} m wide, score {best.score:.2f}" if best else f"no grasp: {thing.rejected}"
        print(f"{thing.prompt} at {thing.centroid.round(2)}: {said}")


if __name__ == "__main__":
    main()
