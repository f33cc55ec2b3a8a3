"""Configuration: constructors refuse what cannot work, YAML round trips, and the shipped file is the defaults."""

import dataclasses
import inspect
import math
import re

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semfield_ros import config as config_module
from semfield_ros.config import (
    EncoderConfig,
    FieldConfig,
    FrameConfig,
    GridConfig,
    MemoryConfig,
    QueryConfig,
    SemfieldConfig,
    TrainConfig,
)
from semfield_ros.config_io import field_docs, from_dict, from_yaml, to_yaml
from semfield_ros.errors import ConfigError
from semfield_ros.node.config import NodeConfig


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (FrameConfig, {"min_depth_m": 0.0}),
        (FrameConfig, {"min_depth_m": 7.0}),
        (FrameConfig, {"max_depth_m": float("nan")}),
        (FrameConfig, {"rigid_tolerance": 0.0}),
        (FrameConfig, {"min_valid_fraction": 1.5}),
        (MemoryConfig, {"voxel_size_m": 0.0}),
        (MemoryConfig, {"max_keyframes": 0}),
        (MemoryConfig, {"max_voxels": 10}),
        (MemoryConfig, {"replay_mb": 0.5}),
        (MemoryConfig, {"pixels_per_keyframe": 1}),
        (GridConfig, {"levels": 17}),
        (GridConfig, {"features": 3}),
        (GridConfig, {"log2_table": 30}),
        (GridConfig, {"max_resolution": 8}),
        (TrainConfig, {"free_samples": 12, "surface_samples": 9}),
        (TrainConfig, {"recent_fraction": -0.1}),
    ],
)
def test_constructors_quote_the_value_and_what_is_allowed(kind, values):
    with pytest.raises(ConfigError, match=r"is .+; allowed: "):
        kind(**values)


def test_the_shipped_file_is_what_the_dataclasses_say(root):
    text = (root / "config/semfield.yaml").read_text(encoding="utf-8")
    assert text == to_yaml(SemfieldConfig()), (
        "the dataclasses have changed: python -m semfield_ros.config_io > config/semfield.yaml"
    )


def test_the_shipped_file_reads_back_as_the_defaults(root):
    assert from_yaml(root / "config/semfield.yaml") == SemfieldConfig()


def test_yaml_agrees_with_plain_yaml_and_asdict():
    def lists(value):
        if isinstance(value, dict):
            return {key: lists(item) for key, item in value.items()}
        return [lists(item) for item in value] if isinstance(value, tuple) else value

    assert yaml.safe_load(to_yaml(SemfieldConfig())) == lists(dataclasses.asdict(SemfieldConfig()))


names = st.text(min_size=1, max_size=20)
lengths = st.floats(1e-6, 1e6, allow_nan=False)


@settings(max_examples=30)
@example("?", ("0?", "?K", "a\nb", "null", "1e-2", "é\u2028", "#", ": "), 1e-2, None, "yes")
@given(names, st.lists(names, max_size=4), lengths, st.one_of(st.none(), st.tuples(lengths, lengths, lengths)), names)
def test_any_configuration_round_trips(tmp_path_factory, frame, negatives, learning_rate, centre_m, model):
    config = SemfieldConfig(
        global_frame=frame,
        encoder=EncoderConfig(model=model, neighbourhood=True),
        field=FieldConfig(centre_m=centre_m, extent_m=centre_m and centre_m[0], feature_grid=GridConfig(levels=3)),
        train=TrainConfig(learning_rate=learning_rate),
        query=QueryConfig(negatives=tuple(negatives), source="points", no_match=learning_rate),
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert from_yaml(path) == config


def test_what_is_left_out_keeps_the_default_of_its_place(tmp_path):
    config = from_dict({"field": {"feature_grid": {"levels": 4}}, "train": {"learning_rate": 1}})
    default = SemfieldConfig()
    assert config.field.feature_grid == dataclasses.replace(default.field.feature_grid, levels=4)
    assert config.field.geometry_grid == default.field.geometry_grid
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\n")
    assert from_yaml(empty) == default


@pytest.mark.parametrize("written", ["1e-2", "1.0e-2", "0.01", "1E-2"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, written):
    path = tmp_path / "exponent.yaml"
    path.write_text(f"train:\n  learning_rate: {written}\n")
    assert from_yaml(path).train.learning_rate == 0.01


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"memory": {"voxel_size": 0.1}}, r"memory\.voxel_size is not a setting; did you mean voxel_size_m\?"),
        ({"zebra": 1}, r"zebra is not a setting\. Allowed: global_frame, frame, encoder"),
        ({3: 1}, r"3 is not a setting"),
        ({"memory": {"voxel_size_m": "small"}}, r"memory\.voxel_size_m is 'small'; allowed: a finite number"),
        ({"memory": {"voxel_size_m": True}}, r"memory\.voxel_size_m is True; allowed: a finite number"),
        ({"memory": {"voxel_size_m": math.inf}}, r"memory\.voxel_size_m is inf; allowed: a finite number"),
        ({"memory": {"voxel_size_m": None}}, r"memory\.voxel_size_m is None; allowed: a finite number"),
        ({"memory": {"voxel_size_m": -1}}, r"memory: voxel_size_m is -1\.0; allowed: > 0"),
        ({"memory": {"max_keyframes": 2.5}}, r"memory\.max_keyframes is 2\.5; allowed: a whole number"),
        ({"memory": [1, 2]}, r"memory is \[1, 2\]; allowed: a mapping"),
        ({"encoder": {"neighbourhood": "yes"}}, r"encoder\.neighbourhood is 'yes'; allowed: true or false"),
        ({"encoder": {"name": 7}}, r"encoder\.name is 7; allowed: text"),
        ({"query": {"score": "cos"}}, r"query\.score is 'cos'; allowed: 'relevancy', 'cosine'"),
        ({"query": {"negatives": "object"}}, r"query\.negatives is 'object'; allowed: a list of text"),
        ({"query": {"negatives": ["object", 3]}}, r"query\.negatives\[1\] is 3; allowed: text"),
        ({"field": {"centre_m": [0, 1]}}, r"field\.centre_m is \[0, 1\]; allowed: a list of 3"),
        ({"field": {"geometry_grid": {"levels": 99}}}, r"field\.geometry_grid: levels is 99; allowed: 1 to 16"),
        ([], r"the configuration is \[\]; allowed: a mapping"),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("memory: [", "is not YAML"),
        ("memory:\n  voxel: 1\n", r"bad\.yaml: memory\.voxel"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        from_yaml(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration '.*none\.yaml'"):
        from_yaml(tmp_path / "none.yaml")


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("global_frame: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        from_yaml(path)


def test_every_documented_setting_is_explained_in_the_file(root):
    text = re.sub(r"\s*#\s*", " ", (root / "config/semfield.yaml").read_text(encoding="utf-8"))
    kinds = [kind for _, kind in inspect.getmembers(config_module, dataclasses.is_dataclass)]
    assert SemfieldConfig in kinds
    for kind in kinds:
        for doc in field_docs(kind).values():
            assert re.sub(r"\bNone\b", "null", doc) in text


def test_docs_are_those_under_the_field():
    docs = field_docs(FrameConfig)
    assert docs["min_depth_m"] == "Nearer depth is no measurement."
    assert "levels" not in field_docs(GridConfig)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("semantic", {"semantic_classes": 40}),
        ("panoptic", {"semantic_classes": 40, "instances": "slots", "semantic_compositing": "probability"}),
        ("lerf", {"teachers": ("pyramid", "dino"), "teacher_period": 2}),
    ],
)
def test_presets_are_for_runs_and_for_nodes(root, name, heads):
    path = root / f"config/{name}.yaml"
    config, node = from_yaml(path), from_yaml(path, NodeConfig())
    assert {key: getattr(config.heads, key) for key in heads} == heads
    assert node.engine_config() == config and node.camera == NodeConfig().camera
