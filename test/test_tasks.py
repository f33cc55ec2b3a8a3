"""Tasks from demonstrations: shown on one box, found on it and on others like it, written down and read again."""

from dataclasses import replace

import analytic_scene
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

torch = pytest.importorskip("torch")

from semfield_ros.answer import answer  # noqa: E402
from semfield_ros.config import EncoderConfig, QueryConfig  # noqa: E402
from semfield_ros.encoders import create  # noqa: E402
from semfield_ros.errors import CheckpointError, QueryError  # noqa: E402
from semfield_ros.query.prompt import PromptEncoder  # noqa: E402
from semfield_ros.query.scores import score_points  # noqa: E402
from semfield_ros.query.tasks import (  # noqa: E402
    TaskEmbedding,
    demonstrate,
    field_features,
    load_task,
    pose_features,
    query_points,
    save_task,
    with_tasks,
)


def gripper_at(x, y, z, turn=0.0):
    """Pointing down (z approaches)."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("zx", [turn, 180], degrees=True).as_matrix()
    T[:3, 3] = x, y, z
    return T


RED_TOP, BLUE_TOP = gripper_at(-0.14, -0.02, 0.16), gripper_at(0.15, 0.02, 0.10)
TABLE, AIR = gripper_at(0.0, -0.3, 0.0), gripper_at(0.0, 0.0, 0.6)


@pytest.fixture(scope="module")
def snapshot():
    return analytic_scene.mapped(12, steps=300).snapshot()


@pytest.fixture(scope="module")
def task(snapshot):
    return demonstrate("lift the red one", [(snapshot, RED_TOP), (snapshot, gripper_at(-0.12, -0.04, 0.16, 40))])


def test_query_points_are_the_published_cloud():
    points = query_points()
    assert points.shape == (100, 3) and np.array_equal(points, query_points())
    many = query_points(200_000)
    assert np.allclose(many.std(0), 0.0075, rtol=0.01) and np.abs(many.mean(0)).max() < 1e-4
    assert not np.array_equal(points, query_points(seed=1))


def test_features_are_weighted_by_alpha(snapshot):
    points = np.array([[-0.14, -0.02, 0.155], [0.0, 0.0, 0.6]], np.float32)
    alpha, features = field_features(snapshot.field, points)
    assert alpha[0] > 0.5 and alpha[1] < 0.05
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    found = pose_features(snapshot, np.eye(4), points, "language")
    assert np.allclose(found, alpha[:, None] * features, atol=1e-6)


def test_the_embedding_is_the_mean_over_demonstrations(snapshot, task):
    points = query_points()
    parts = [pose_features(snapshot, T, points, "language") for T in (RED_TOP, gripper_at(-0.12, -0.04, 0.16, 40))]
    assert np.allclose(task.features, np.mean(parts, 0), atol=1e-6) and task.demonstrations == 2
    assert np.allclose(pose_features(snapshot, np.stack([RED_TOP, TABLE]), points, "language")[0], parts[0])


def test_poses_like_those_shown_score_higher(snapshot, task):
    poses = np.stack([RED_TOP, gripper_at(-0.1, 0.0, 0.16, 10), BLUE_TOP, TABLE, AIR])
    similarity = task.similarity(snapshot, poses)
    assert similarity.shape == (5,) and (similarity <= 1 + 1e-5).all()
    assert similarity[:2].min() > similarity[2:].max() + 0.2


def test_a_task_is_a_prompt(snapshot, task):
    encoder = create(EncoderConfig(name="stub"))
    texts = PromptEncoder(encoder, QueryConfig())
    negatives = texts.vectors(["white", "object"])
    prompts = task.prompts(negatives)
    red, blue = (np.array([b.low, b.high]).mean(0) for b in analytic_scene.BLOCKS)
    points = np.array([[red[0], red[1], 0.16], [blue[0], blue[1], 0.1], [0.0, -0.3, 0.0]], np.float32)
    scores = score_points(snapshot, prompts, points)
    assert scores.seen.all() and scores.relevancy[0, 0] > 0.7 and scores.relevancy[1:, 0].max() < 0.5
    found = answer(snapshot, texts, prompts, config=analytic_scene.SMALL, grasps=False).prompts[0]
    assert found.label == "lift the red one" and found.matched
    centre = found.objects[0].box.centre
    assert (centre > np.array(analytic_scene.RED.low) - 0.02).all()
    assert (centre < np.array(analytic_scene.RED.high) + 0.02).all()
    cosine = score_points(snapshot, task.prompts(), points).cosine[:, 0]
    assert cosine[0] > 0.8 and cosine[0] > cosine[1:].max() + 0.2


def test_texts_and_tasks_are_one_question(snapshot, task):
    texts = PromptEncoder(create(EncoderConfig(name="stub")), QueryConfig(negatives=("white",)))
    both = with_tasks(texts, ["blue", "green; cyan"], [task])
    assert [p.label for p in both.prompts] == ["blue", "green", "lift the red one"]
    assert both.owner.tolist() == [0, 1, 1, 2] and both.negatives.shape == (1, 32)
    points = np.array([[-0.14, -0.02, 0.16], [0.15, 0.02, 0.1]], np.float32)
    assert score_points(snapshot, both, points).relevancy.argmax(1).tolist() == [2, 0]
    assert len(with_tasks(texts, [], [task]).prompts) == 1
    with pytest.raises(QueryError, match="0 prompts"):
        with_tasks(texts, [], [])


def test_files_round_trip(task, tmp_path):
    kept = replace(task, encoder="key")
    path = save_task(tmp_path / "new" / "lift", kept)
    assert path.suffix == ".task" and path.stat().st_size < 100_000
    again = load_task(path, "key")
    assert np.array_equal(again.points, task.points) and np.array_equal(again.features, task.features)
    assert (again.name, again.demonstrations, again.head, again.encoder) == ("lift the red one", 2, "language", "key")
    with pytest.raises(CheckpointError, match="exists"):
        save_task(path, task)
    assert save_task(path, task, overwrite=True) == path
    assert load_task(path, "other").encoder == "", "unknown fits all"
    assert [p.name for p in path.parent.iterdir()] == ["lift.task"]
    save_task(path, kept, overwrite=True)
    with pytest.raises(CheckpointError, match="another encoder"):
        load_task(path, "other")


def test_torn_and_foreign_files_are_refused(task, tmp_path):
    path = save_task(tmp_path / "a", task)
    data = path.read_bytes()
    from safetensors.numpy import save

    nan = task.features.copy()
    nan[0, 0] = np.nan
    header = {"semfield_task": "1", "name": "x", "head": "language", "encoder": "", "demonstrations": "1"}
    whole = {"points": task.points, "features": task.features}
    for bad in (
        data[: len(data) // 2], b"", b"\x80\x04pickle", save(whole), save(whole, {**header, "semfield_task": "2"}),
        save({"points": task.points}, header), save({**whole, "features": nan}, header),
        save({**whole, "points": task.points[:3]}, header), save(whole, {**header, "demonstrations": "none"}),
    ):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="no task that can be read"):
            load_task(path)
    with pytest.raises(CheckpointError):
        load_task(tmp_path / "nothing")


def test_bad_demonstrations_are_refused(snapshot, task):
    with pytest.raises(QueryError, match="no demonstrations"):
        demonstrate("x", [])
    with pytest.raises(QueryError, match="needs a name"):
        demonstrate(" ", [(snapshot, RED_TOP)])
    with pytest.raises(QueryError, match="rigid"):
        demonstrate("x", [(snapshot, 2 * np.eye(4))])
    with pytest.raises(QueryError, match="expected finite"):
        demonstrate("x", [(snapshot, np.eye(3))])
    with pytest.raises(QueryError, match="free space"):
        _ = replace(task, features=np.zeros_like(task.features)).feature
    with pytest.raises(QueryError, match="the same space"):
        task.prompts(np.zeros((2, 5), np.float32))
    with pytest.raises(QueryError, match="another encoder"):
        TaskEmbedding("x", task.points, np.ones((100, 8), np.float32), 1).similarity(snapshot, RED_TOP)
    with pytest.raises(QueryError, match="not learnt"):
        demonstrate("x", [(analytic_scene.mapped(2).snapshot(), RED_TOP)])
    with pytest.raises(QueryError, match="not learnt 'teacher_dino'"):
        demonstrate("x", [(snapshot, RED_TOP)], head="teacher_dino")
    with pytest.raises(QueryError, match="sigma"):
        query_points(sigma_m=0)
