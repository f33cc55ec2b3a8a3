"""Tasks from demonstrations: shown on one box, found on it and on others like it, written down and read again."""

from dataclasses import replace

import analytic_scene
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

torch = pytest.importorskip("torch")

from semfield_ros import cli  # noqa: E402
from semfield_ros.answer import answer  # noqa: E402
from semfield_ros.atlas_files import save_map  # noqa: E402
from semfield_ros.config import EncoderConfig, QueryConfig  # noqa: E402
from semfield_ros.encoders import create  # noqa: E402
from semfield_ros.errors import CheckpointError, QueryError  # noqa: E402
from semfield_ros.query.prompt import PromptEncoder  # noqa: E402
from semfield_ros.query.scores import score_points  # noqa: E402
from semfield_ros.query.tasks import (  # noqa: E402
    FieldFeatures,
    TaskEmbedding,
    demonstrate,
    field_features,
    load_task,
    merged,
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


def test_a_pose_in_free_space_shows_nothing(snapshot):
    with pytest.raises(QueryError, match=r"demonstration 2 of 'x' at \[0.0, 0.0, 0.6\] is in free space"):
        demonstrate("x", [(snapshot, RED_TOP), (snapshot, AIR)])


def test_features_along_directions_are_those_of_the_field(snapshot):
    points = np.array([[-0.14, -0.02, 0.155], [0.15, 0.02, 0.095], [0.0, 0.0, 0.6]], np.float32)
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 5)))[0].T.astype(np.float32)
    alpha, along = FieldFeatures(snapshot)(points, directions)
    expected, features = field_features(snapshot.field, points)
    assert np.allclose(alpha, expected, atol=1e-6)
    assert np.allclose(along[:2], (features @ directions.T)[:2], atol=1e-4) and not along[2].any()
    with pytest.raises(QueryError, match="another encoder"):
        FieldFeatures(snapshot)(points, directions[:, :8])


def test_more_demonstrations_are_weighted_by_their_number(snapshot, task):
    one = demonstrate("again", [(snapshot, BLUE_TOP)])
    both = merged(task, one)
    assert both.demonstrations == 3 and both.name == task.name
    assert np.allclose(both.features, (2 * task.features + one.features) / 3, atol=1e-6)
    for other in (replace(one, head="teacher_dino"), replace(one, encoder="else"), replace(one, points=one.points + 1)):
        with pytest.raises(QueryError, match="another name"):
            merged(task, other)


GREEN = analytic_scene.Block((-0.17, -0.03, 0.0), (-0.12, 0.05, 0.12), "green")
THIN_RED = analytic_scene.Block((0.1, -0.05, 0.0), (0.15, 0.03, 0.14), "red")


SETTINGS = replace(analytic_scene.SMALL, encoder=EncoderConfig(name="stub"))


def slender(blocks):
    return analytic_scene.mapped_frames(analytic_scene.stream(12, blocks), SETTINGS, steps=250)


@pytest.fixture(scope="module")
def elsewhere():
    """Another scene: a red and a green thing that a gripper can span, at other places than those shown."""
    return slender((THIN_RED, GREEN))


def test_a_task_shown_in_one_scene_is_done_in_another(elsewhere):
    shown = slender((analytic_scene.Block((-0.05, -0.1, 0.0), (0.0, -0.02, 0.1), "red"),)).snapshot()
    task = demonstrate("by the top", [(shown, gripper_at(-0.025, -0.06, 0.096))])
    snapshot = elsewhere.snapshot()
    texts = PromptEncoder(create(EncoderConfig(name="stub")), QueryConfig())
    question = with_tasks(texts, ["red", "green"], [task])
    assert question.tasks == (task, task, task)
    red, _, again = answer(snapshot, texts, question, config=analytic_scene.SMALL).prompts
    for prompt in (red, again):
        grasps = prompt.objects[0].grasps
        assert grasps and prompt.objects[0].centroid[0] > 0.08
        best = grasps[0]
        assert best.contacts.mean(0)[2] > 0.09, "shown at the top"
        alike = task.similarity(snapshot, np.stack([g.T_world_gripper for g in grasps]))
        at_green = task.similarity(snapshot, gripper_at(-0.145, 0.01, 0.116))
        assert alike[0] > 0.8 and alike[0] > at_green + 0.2
    with_two = with_tasks(texts, ["red"], [task, task])
    assert with_two.tasks == (None, task, task)


@pytest.fixture(scope="module")
def map_file(elsewhere, tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "scene.semfield"
    save_map(path, elsewhere, create(EncoderConfig(name="stub")))
    return path


AT_RED = ["0.125", "-0.01", "0.13", "1", "0", "0", "0"]


def test_tasks_are_recorded_listed_and_asked_for(map_file, tmp_path, capfd):
    out = tmp_path / "top.task"
    arguments = ["task", "record", "by the top", "--map", str(map_file), "--out", str(out), "--pose", *AT_RED]
    assert cli.main(arguments) == 0 and load_task(out).demonstrations == 1
    assert cli.main([*arguments, "--pose", "0.125", "0.01", "0.13", "1", "0", "0", "0"]) == 0
    assert load_task(out).demonstrations == 3, "added"
    assert cli.main([*arguments, "--overwrite"]) == 0 and load_task(out).demonstrations == 1
    assert cli.main(["task", "show", str(out)]) == 0
    (tmp_path / "torn.task").write_bytes(out.read_bytes()[:100])
    assert cli.main(["task", "list", str(tmp_path)]) == 0
    assert cli.main(["query", str(map_file), "red", "--task", str(out)]) == 0
    said = capfd.readouterr()
    assert "by the top" in said.out and "torn.task" in said.out and "by the top" in said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pose", *AT_RED[:2], "0.6", *AT_RED[3:]], "free space"),
        (["--pose", *AT_RED[:6], "0.5"], "quaternion"),
        (["--pose", *AT_RED[:6], "nan"], "finite"),
        ([], "--pose"),
        (["--pose", *AT_RED, "--object", "mug"], "--simulator"),
        (["--simulator", "45", "--object", "mug"], "either"),
        (["--pose", *AT_RED, "--head", "teacher_x"], "not learnt"),
    ],
)
def test_records_that_cannot_be_are_refused(map_file, tmp_path, arguments, message, capfd):
    out = tmp_path / "x.task"
    assert cli.main(["task", "record", "x", "--map", str(map_file), "--out", str(out), *arguments]) == 2
    assert message in " ".join(capfd.readouterr().err.split()) and not out.exists()


def test_files_that_are_no_tasks_are_refused_by_the_commands(map_file, task, tmp_path, capfd):
    other = save_task(tmp_path / "other", replace(task, encoder="another"))
    torn = tmp_path / "torn.task"
    torn.write_bytes(b"not a task")
    for arguments in (
        ["task", "show", str(torn)], ["task", "list", str(tmp_path / "none")],
        ["query", str(map_file), "red", "--task", str(other)], ["query", str(map_file), "red", "--task", str(torn)],
        ["task", "record", "x", "--map", str(map_file), "--out", str(other), "--pose", *AT_RED],
    ):  # fmt: skip
        assert cli.main(arguments) == 2, arguments
        assert "Error" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["record", "--help"], ["show", "--help"], ["list", "--help"]])
def test_help_of_tasks_teaches(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["task", *arguments])
    assert stop.value.code == 0 and len(capsys.readouterr().out) > 250
