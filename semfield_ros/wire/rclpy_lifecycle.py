"""The node under rclpy: a lifecycle node whose parameters are its configuration.

unconfigured -configure-> inactive (built, silent) -activate-> active -deactivate-> inactive -cleanup-> unconfigured
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from ..errors import ConfigError, SemfieldError
from .locate_action import Handler, RclpyAction
from .parameters import Parameter, apply, flatten
from .rclpy_bus import RclpyBus
from .rclpy_executor import end, spin

SUCCESS, FAILURE, ERROR = (
    TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE, TransitionCallbackReturn.ERROR,
)  # fmt: skip
_NOT_OURS = ("qos_overrides.", "use_sim_time", "start_type_description_service")


class Runnable(Protocol):
    """What `build` makes of a bus and a configuration. May have `actions`: {name: (type, handler)}."""

    def start(self) -> None:
        """Listen, answer and publish; also after `stop`."""

    def stop(self) -> None:
        """Listen to nothing until `start`; what is known may still be asked."""

    def close(self) -> None:
        """Stop for good and let go of all memory. Safe when the ROS context is gone."""

    def configure_live(self, config: Any) -> None:
        """Live settings have changed."""


Build = Callable[[RclpyBus, Any], Runnable]


class ManagedNode(LifecycleNode):
    """A lifecycle node around a Runnable, which is built when it is configured and closed when it is cleaned up.

    Args:
        build: (bus, configuration) -> Runnable.
        config: settings with their defaults, a dataclass; each is a parameter.

    Raises:
        rclpy.exceptions.InvalidParameterException and its like: a parameter of the wrong type or out of its range.
    """

    def __init__(self, name: str, build: Build, config: Any, **options: Any):
        super().__init__(name, **options)
        self.failed = False
        self._build, self._default = build, config
        self._config: Any = None
        self._bus: RclpyBus | None = None
        self._runnable: Runnable | None = None
        self._actions: list[RclpyAction] = []
        self._active = False
        self._parameters_of = {parameter.name: parameter for parameter in flatten(config)}
        for parameter in self._parameters_of.values():
            self.declare_parameter(parameter.name, parameter.default, descriptor(parameter))
        self.declare_parameter("autostart", True, ParameterDescriptor(description="Configure and activate at once.",
                                                                      read_only=True))  # fmt: skip
        self._warn_of_unknown()
        self.add_on_set_parameters_callback(self._on_set)
        if hasattr(self, "add_post_set_parameters_callback"):  # not before Iron
            self.add_post_set_parameters_callback(self._after_set)

    def autostart(self, stop: threading.Event) -> None:
        """Configure and activate, if the parameter says so; `failed` then tells whether that went wrong."""
        if self.get_parameter("autostart").value:
            configured = self.trigger_configure() == SUCCESS
            if configured and stop.is_set():
                return
            self.failed = not (configured and self.trigger_activate() == SUCCESS)

    def close(self) -> None:
        """Close the Runnable and the bus, whatever the state."""
        self._active = False
        for part in [*self._actions, self._runnable, self._bus]:
            if part is not None:
                try:
                    part.close()
                except Exception as error:
                    self._complain("while closing", error)
        self._actions, self._runnable, self._bus, self._config = [], None, None, None
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Build from the parameters as they are now."""

        def configure() -> None:
            self._config = apply(self._default, self._values(self._parameters_of))
            service = getattr(self._config, "service", None)
            pool = {} if service is None else {"workers": service.workers, "max_waiting": service.max_waiting}
            self._bus = RclpyBus(self, executor=self.executor, **pool)
            self._runnable = self._build(self._bus, self._config)
            actions: Mapping[str, tuple[str, Handler]] = getattr(self._runnable, "actions", {})
            for name, (type, handler) in actions.items():
                action = RclpyAction(self._bus, type, name, handler, accepting=lambda: self._active)
                self._actions.append(action)

        result = self._guarded("cannot be configured", configure)
        if result != SUCCESS:
            self.close()
        return result if result != SUCCESS else super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen, answer and publish."""
        assert self._runnable is not None
        result = self._guarded("cannot be activated", self._runnable.start)
        self._active = result == SUCCESS
        return result if result != SUCCESS else super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to nothing; what is known may still be asked."""
        assert self._runnable is not None
        self._active = False
        result = self._guarded("cannot be deactivated", self._runnable.stop)
        return result if result != SUCCESS else super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the map, free its memory, also the GPU's."""
        self.close()
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, for good. The process stays, as ROS has it, until it gets a signal."""
        self.close()
        return super().on_shutdown(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an unexpected failure: clean, and ready to be configured again."""
        self.close()
        return SUCCESS

    def _guarded(self, what: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except SemfieldError as error:  # expected: it says what to do
            self._complain(what, error)
            return FAILURE
        except Exception as error:
            if self.context.ok():
                logging.getLogger(__name__).exception("%s %s", self.get_name(), what)
            else:
                self._complain(what, error)
            return ERROR
        return SUCCESS

    def _complain(self, what: str, error: Exception) -> None:
        logging.getLogger(__name__).error("%s %s: %s", self.get_name(), what, error)

    def _values(self, names: Any) -> dict[str, Any]:
        return {name: _plain(self.get_parameter(name).value) for name in names}

    def _on_set(self, changed: Sequence[Any]) -> SetParametersResult:
        ours = {p.name: _plain(p.value) for p in changed if p.name in self._parameters_of}
        try:
            if ours:
                apply(self._default, {**self._values(self._parameters_of), **ours})
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if ours and not hasattr(self, "add_post_set_parameters_callback"):
            self._set_live(ours)
        return SetParametersResult(successful=True)

    def _after_set(self, changed: Sequence[Any]) -> None:
        self._set_live({p.name: _plain(p.value) for p in changed if p.name in self._parameters_of})

    def _set_live(self, values: Mapping[str, Any]) -> None:
        if values and self._runnable is not None:
            self._config = apply(self._config, values)
            try:
                self._runnable.configure_live(self._config)
            except Exception as error:
                self._complain("did not take the new parameters", error)

    def _warn_of_unknown(self) -> None:
        """ROS ignores a mistyped parameter without a word."""
        for name in getattr(self, "_parameter_overrides", {}):
            if not self.has_parameter(name) and not name.startswith(_NOT_OURS):
                try:
                    apply(self._default, {name: None})
                except ConfigError as error:
                    self.get_logger().warning(f"{error}; it is ignored")


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """What ROS tools show of a parameter, and what rclpy enforces by itself."""
    number = parameter.range if not parameter.nullable else None  # rclpy's ranges refuse NaN
    return ParameterDescriptor(
        description=parameter.description,
        additional_constraints=parameter.constraints,
        read_only=not parameter.live,
        # rclpy cannot tell what an empty list is a list of; `apply` checks instead.
        dynamic_typing=parameter.kind.endswith("[]"),
        integer_range=[IntegerRange(from_value=int(number.low), to_value=int(number.high))]
        if number and parameter.kind == "int" else [],
        floating_point_range=[FloatingPointRange(from_value=float(number.low), to_value=float(number.high))]
        if number and parameter.kind == "float" else [],
    )  # fmt: skip


def run(build: Build, config: Any, name: str, args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; its exit status. Call from the main thread.

    0 after a stop, 1 if autostart failed, 2 if the ROS arguments or parameters are not usable.
    """
    asked_to_stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # `ros2 launch` and the terminal both send SIGINT: a second one is no reason to drop what is being saved.
        signal.signal(number, lambda number, _: asked_to_stop.append(number))
    # With rclpy's own handlers the context would be gone before we can say goodbye, in the middle of anything.
    try:
        rclpy.init(args=None if args is None else list(args), signal_handler_options=SignalHandlerOptions.NO)
        node = ManagedNode(name, build, config)
    except Exception as error:  # RCLError, UnknownROSArgsError, ParameterException: no common ancestor
        rclpy.logging.get_logger(name).fatal(f"{type(error).__name__}: {error}")
        rclpy.try_shutdown()
        return 2
    _log_to_ros(node)
    executor, stop = SingleThreadedExecutor(), threading.Event()
    executor.add_node(node)
    executor.create_task(lambda: node.autostart(stop))
    thread = threading.Thread(target=spin, args=(executor, stop), name="rclpy", daemon=True)
    thread.start()
    # Not Event.wait: setting an event from a signal handler may lock up with the wait it interrupts.
    while not asked_to_stop and not node.failed and thread.is_alive():
        thread.join(0.1)
    end(executor, stop)
    thread.join()
    node.close()
    executor.shutdown(timeout_sec=0)
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if node.failed else 0


class _ToRos(logging.Handler):
    """Python's log records as ROS log messages."""

    def __init__(self, node: Any):
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        # rclpy wants each severity on a line of its own.
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


def _log_to_ros(node: Any) -> None:
    package = logging.getLogger(__package__.split(".")[0])
    package.addHandler(_ToRos(node))
    package.propagate = False
    debug = node.get_logger().get_effective_level() <= rclpy.logging.LoggingSeverity.DEBUG
    package.setLevel(logging.DEBUG if debug else logging.INFO)


def _plain(value: Any) -> Any:
    """A parameter's value without array types."""
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "tolist") else value
