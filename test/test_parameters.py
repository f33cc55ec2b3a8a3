"""A configuration as ROS parameters and back: names, kinds, ranges, and what is refused."""

import math
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from semfield_ros.config import Between, Live, SemfieldConfig, require
from semfield_ros.errors import ConfigError
from semfield_ros.node.config import NodeConfig
from semfield_ros.wire.parameters import apply, flatten, to_ros_yaml, values_of


@dataclass(frozen=True)
class Inner:
    """What is inside."""

    gain: Annotated[float, Between(0, 10), Live()] = 1.0
    """How much."""
    limit: Annotated[float | None, Between(-1, 1)] = None
    """No more than this; None = no limit."""
    words: Annotated[tuple[str, ...], Live()] = ()
    centre: tuple[float, float, float] | None = None
    low: int = 1
    high: int = 9

    def __post_init__(self):
        require(self.low < self.high, "low", self.low, "< high")


@dataclass(frozen=True)
class Outer:
    """Everything."""

    name: str = "map"
    mode: Literal["slow", "quick"] = "slow"
    """How fast."""
    first: Inner = field(default_factory=Inner)
    second: Inner = field(default_factory=lambda: Inner(gain=2.0, words=("a", "b"), centre=(1.0, 2.0, 3.0)))


def test_parameters_by_hand():
    found = {p.name: p for p in flatten(Outer())}
    assert list(found)[:3] == ["name", "mode", "first.gain"] and len(found) == 2 + 2 * 6
    gain, limit, words = found["first.gain"], found["first.limit"], found["first.words"]
    assert (gain.kind, gain.default, gain.range) == ("float", 1.0, Between(0, 10))
    assert gain.live and not gain.nullable
    assert gain.description == "How much."
    assert math.isnan(limit.default) and limit.nullable and limit.range == Between(-1, 1) and not limit.live
    assert limit.description == "No more than this; nan = no limit." and limit.constraints == "nan, or -1 to 1."
    assert (words.kind, words.default, words.live, words.nullable) == ("str[]", [], True, False)
    assert (found["mode"].kind, found["mode"].choices) == ("str", ("slow", "quick"))
    assert found["mode"].constraints == "One of: slow, quick."
    centre = found["first.centre"]
    assert (centre.kind, centre.default, centre.length, centre.nullable) == ("float[]", [], 3, True)
    assert centre.constraints == "3 entries or none."
    assert found["second.gain"].default == 2.0 and found["second.centre"].default == [1.0, 2.0, 3.0]
    assert found["first.low"].kind == "int"


def test_values_come_back_as_fields():
    changed = apply(
        Outer(),
        {
            "name": "odom", "mode": "quick", "first.gain": 3, "first.limit": 0.5, "first.words": ["x", "y"],
            "first.centre": [1, 2.5, 3], "second.centre": [], "second.words": [""], "second.limit": math.nan,
            "second.low": 4,
        },
    )  # fmt: skip
    first = Inner(gain=3.0, limit=0.5, words=("x", "y"), centre=(1.0, 2.5, 3.0))
    second = Inner(gain=2.0, words=("",), low=4)
    assert changed == Outer(name="odom", mode="quick", first=first, second=second)
    assert isinstance(changed.first.gain, float)
    # ROS says "not set" for [] in a parameter file, and [""] where it cannot say [].
    assert apply(Outer(), {"first.words": None, "second.words": None}).second.words == ()
    assert apply(Outer(), {"first.words": [""]}).first.words == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gain": 1.0}, "gain is not a parameter"),
        ({"first.gian": 1.0}, "did you mean first.gain"),
        ({"first.gain": 10.5}, "first.gain is 10.5; allowed: 0 to 10"),
        ({"first.gain": "1"}, "first.gain is '1'; allowed: a finite number"),
        ({"first.gain": True}, "first.gain is True"),
        ({"first.gain": math.nan}, "first.gain is nan"),
        ({"first.limit": -2.0}, "first.limit is -2.0; allowed: -1 to 1"),
        ({"first.limit": math.inf}, "first.limit is inf"),
        ({"first.low": 1.0}, "first.low is 1.0; allowed: a whole number"),
        ({"first.low": 9}, "first.low is 9; allowed: < high"),
        ({"name": 1}, "name is 1; allowed: text"),
        ({"mode": "fast"}, "mode is 'fast'; allowed: slow, quick"),
        ({"first.words": "x"}, "first.words is 'x'; allowed: a list of texts"),
        ({"first.words": ["x", 1]}, r"first.words\[1\] is 1"),
        ({"first.centre": [1.0]}, r"first.centre is \[1.0\]; allowed: 3 entries"),
        ({"second.centre": [1.0, 2.0, math.nan]}, r"second.centre\[2\] is nan"),
        ({"first": 1}, "first is not a parameter"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        apply(Outer(), values)


def test_the_whole_configuration_goes_there_and_back():
    config = NodeConfig()
    assert apply(config, values_of(config)) == config
    other = replace(config, query=replace(config.query, no_match=0.5, negatives=("a",)), global_frame="odom")
    assert apply(config, values_of(other)) == other
    names = [p.name for p in flatten(config)]
    assert len(set(names)) == len(names)
    assert {"global_frame", "memory.voxel_size_m", "field.feature_grid.levels", "camera.namespaces"} <= set(names)


def test_ranges_agree_with_what_the_constructors_check():
    """The ends of a range are allowed unless another setting forbids them; every default is inside."""
    config = NodeConfig()
    defaults = values_of(config)
    for parameter in (p for p in flatten(config) if p.range):
        value = defaults[parameter.name]
        assert math.isnan(value) or parameter.range.low <= value <= parameter.range.high, parameter
        for end in (parameter.range.low, parameter.range.high):
            try:
                apply(config, {parameter.name: int(end) if parameter.kind == "int" else end})
            except ConfigError as error:
                others = ("min", "max", "small", "16, 32", "1, 2, 4", "surface")
                assert any(word in str(error) for word in others), error


def test_numbers_of_the_engine_have_ranges():
    unlimited = {"seed", "device"}
    for parameter in flatten(SemfieldConfig()):
        if parameter.kind in ("int", "float"):
            assert parameter.range or parameter.name.split(".")[-1] in unlimited, parameter.name


def test_what_is_live_is_how_questions_are_answered_and_shown():
    sections = {p.name.split(".")[0] for p in flatten(NodeConfig()) if p.live}
    assert sections == {"query", "objects", "gripper", "grasp", "output"}
    matching = ("query", "objects", "gripper", "grasp")
    assert all(p.live for p in flatten(NodeConfig()) if p.name.split(".")[0] in matching)


def test_annotations_are_no_more_than_marks():
    """Every mark is a Between or a Live: anything else would be silently ignored."""

    def marks(kind):
        for name, hint in get_type_hints(kind, include_extras=True).items():
            if get_origin(hint) is Annotated:
                yield from ((name, mark) for mark in get_args(hint)[1:])
            elif is_dataclass(hint):
                yield from marks(hint)

    found = list(marks(NodeConfig))
    assert len(found) > 60 and all(isinstance(mark, (Between, Live)) for _, mark in found)


def test_the_parameter_file_reads_back():
    config = replace(NodeConfig(), global_frame="no", memory=replace(NodeConfig().memory, replay_mb=8))
    data = yaml.safe_load(to_ros_yaml(config))["/**"]["ros__parameters"]

    def flat(data, prefix=""):
        for key, value in data.items():
            yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]

    assert apply(NodeConfig(), dict(flat(data))) == config
    assert isinstance(data["memory"]["replay_mb"], float)
    assert len(dict(flat(data))) == len(flatten(config))


def test_the_shipped_parameter_file_is_current(root):
    """python -c "from semfield_ros.node.config import NodeConfig; from semfield_ros.wire.parameters import to_ros_yaml
    print(to_ros_yaml(NodeConfig()), end='')" > config/semfield_node.yaml"""
    assert (root / "config/semfield_node.yaml").read_text(encoding="utf-8") == to_ros_yaml(NodeConfig())


def test_every_line_of_the_parameter_file_fits():
    for line in to_ros_yaml(NodeConfig()).splitlines():
        assert len(line) <= 120, line
