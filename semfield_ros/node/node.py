"""The node: engine, inputs, outputs, services and diagnostics on one bus. Wiring only; the same on both wires."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..engine import Engine
from ..errors import SemfieldError
from ..objects.grasping import planner_of
from ..wire.bus import Bus
from .config import NodeConfig
from .diagnostics import Diagnostics
from .grasp_frames import GraspFrames
from .inputs import Inputs
from .locate import locate
from .maps import MapFolder
from .outputs import Outputs
from .services import Services
from .world import World

log = logging.getLogger(__name__)


class SemfieldNode:
    """An online semantic field on the ROS graph.

    `start` offers services and outputs and listens; `stop` only stops listening, so that the map still answers;
    `close` frees everything. All may be called twice.
    """

    def __init__(self, bus: Bus, config: NodeConfig, engine: Engine | None = None):
        planner_of(config.grasp)  # a robot should not learn at its first grasp that there is none
        self.bus, self.config = bus, config
        self.world = World(config.output.vocabulary, config.output.prompts)
        self.engine = engine or Engine(config.engine_config())
        self.maps = MapFolder(config.service.map_folder)
        self.inputs = Inputs(bus, self.engine, config, self.world)
        self.outputs = Outputs(bus, self.engine, lambda: self.config, self.world)
        self.frames = GraspFrames(bus, lambda: self.config)
        self.services = Services(
            self.engine, lambda: self.config, self.maps, self.world, show=self.outputs.show,
            frames=self.frames.publish,
        )  # fmt: skip
        self.diagnostics = Diagnostics(bus, self.engine, lambda: self.config, self.world, self.inputs)
        self.actions: dict[str, tuple[str, Callable[..., Any]]] = {
            "~/locate": ("semfield_ros/action/Locate", self._locate)
        }
        self._started = self._closed = False

    def start(self) -> None:
        """Go on from a saved map if one is configured, offer everything, listen.

        Raises:
            CheckpointError: the configured map cannot be loaded.
        """
        if not self._started:
            self.engine.start()
            if self.config.service.load_on_start:
                self.services.load(self.config.service.load_on_start)
                log.info("went on from map %r: %d voxels", self.config.service.load_on_start,
                         len(self.engine.snapshot().cloud))  # fmt: skip
            self.services.serve_all(self.bus)
            self.outputs.start()
            self.diagnostics.start()
            self._started = True
        self.inputs.start()

    def stop(self) -> None:
        """Stop listening. The map still answers."""
        self.inputs.stop()

    def close(self) -> None:
        """Stop, save if configured, free memory."""
        if self._closed:
            return
        self._closed = True
        self.inputs.stop()
        self.diagnostics.close()
        self.outputs.close()
        self.services.close()
        self.frames.close()
        if self._started and self.config.service.save_on_shutdown:
            self._save(self.config.service.save_on_shutdown)
        self.engine.stop()

    def _save(self, name: str) -> None:
        try:
            if not len(self.engine.snapshot(fresh=True).cloud):
                log.warning("the map is empty: it is not saved as %r, where an older one stays", name)
                return
            path = self.engine.save(self.maps.new(name, ".semfield", overwrite=True), overwrite=True)
            log.info("saved %s", path)
        except (SemfieldError, OSError) as error:
            log.error("the map could not be saved as %r: %s", name, error)

    def configure_live(self, config: NodeConfig) -> None:
        """Take over the settings that may change while everything runs: matching, objects, gripper, outputs."""
        before = self.config
        self.config = replace(
            before, query=config.query, objects=config.objects, gripper=config.gripper, grasp=config.grasp,
            output=config.output,
        )  # fmt: skip
        self.engine.set_matching(config.query, config.objects, config.gripper, config.grasp)
        if config.output.vocabulary != before.output.vocabulary:
            self.world.vocabulary = config.output.vocabulary
        if config.output.prompts != before.output.prompts:
            self.world.prompts = config.output.prompts
        self.outputs.reschedule()
        self.diagnostics.reschedule()

    def _locate(self, goal: Any, feedback: Callable[[Any], None], cancelled: Callable[[], bool]) -> Any:
        """Goal, feedback and result of semfield_ros/action/Locate, as messages."""
        new = self.bus.new

        def tell(elapsed_s: float, best: float, frames: int) -> None:
            feedback(
                new("semfield_ros/action/Locate_Feedback", elapsed=elapsed_s, best_score=best, frames=max(0, frames))
            )

        try:
            prompts = [] if len(goal.options.tasks) and not goal.prompt else [goal.prompt]
            question = self.services.question(prompts, goal.options)
            answer, message = locate(
                self.engine, question, float(goal.timeout), feedback=tell, cancelled=cancelled
            )
        except SemfieldError as error:
            return new("semfield_ros/action/Locate_Result", success=False, message=str(error))
        result = new("semfield_ros/action/Locate_Result", success=not message, message=message)
        if answer is not None:
            result.answer = self.services.reply(question, answer, goal.options)
            self.outputs.show(answer, question)
        return result
