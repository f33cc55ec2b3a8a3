"""The map folder: whatever name comes from outside, nothing else is read or written."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semfield_ros.errors import ConfigError
from semfield_ros.node.maps import MAX_NAME, MapFolder

SUFFIX = ".semfield"
HOSTILE = [
    "", ".", "..", "../x", "a/b", "a\\b", "/etc/passwd", "~/x", ".hidden", "a..b", "a\0b", "a\n", "a b", "x;rm", "ä",
    "a" * 101, "a" * 1_000_000, "CON:", "$HOME", "*", "a/../../b", "%2e%2e", ".semfield",
]  # fmt: skip


@pytest.fixture
def maps(tmp_path):
    return MapFolder(tmp_path / "maps")


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_hostile_names_are_refused_with_what_is_allowed(maps, name):
    for use in (lambda: maps.existing(name, SUFFIX), lambda: maps.new(name, SUFFIX, overwrite=True)):
        with pytest.raises(ConfigError, match="cannot be used in the map folder; allowed: letters, digits") as error:
            use()
        assert len(str(error.value)) < 300
    assert not maps.path.exists()


@given(st.text(max_size=120))
def test_whatever_is_accepted_lies_in_the_folder(tmp_path_factory, name):
    maps = MapFolder(tmp_path_factory.getbasetemp() / "maps")
    try:
        path = maps.resolve(name, SUFFIX)
    except ConfigError:
        return
    assert path.parent == maps.path.resolve() and path.name == name.removesuffix(SUFFIX) + SUFFIX
    assert len(path.name) <= MAX_NAME + len(SUFFIX) and not path.name.startswith(".")


@pytest.mark.parametrize("name", ["kitchen", "kitchen-2.1_b", "7", "a" * MAX_NAME, "kitchen.semfield"])
def test_good_names_are_taken_with_and_without_the_suffix(maps, name):
    path = maps.new(name, SUFFIX, overwrite=False)
    assert path.suffix == SUFFIX and not path.name.endswith(SUFFIX + SUFFIX) and maps.path.is_dir()


def test_what_is_there_is_not_overwritten_unless_asked(maps):
    path = maps.new("kitchen", SUFFIX, overwrite=False)
    path.write_text("old")
    with pytest.raises(ConfigError, match=r"kitchen\.semfield is in the map folder already; allow overwriting"):
        maps.new("kitchen", SUFFIX, overwrite=False)
    assert maps.new("kitchen", SUFFIX, overwrite=True) == path == maps.existing("kitchen", SUFFIX)
    (maps.path / "folder.semfield").mkdir()
    with pytest.raises(ConfigError, match="already"):
        maps.new("folder", SUFFIX, overwrite=True)


def test_what_is_missing_is_said_with_what_there_is(maps):
    with pytest.raises(ConfigError, match=r"no kitchen\.semfield in the map folder; it holds nothing"):
        maps.existing("kitchen", SUFFIX)
    for name in ("b.semfield", "a.semfield", ".hidden.semfield", "c.ply"):
        maps.path.mkdir(exist_ok=True)
        (maps.path / name).touch()
    with pytest.raises(ConfigError, match=r"it holds a, b$"):
        maps.existing("kitchen", SUFFIX)


def test_links_do_not_lead_out(maps, tmp_path):
    maps.path.mkdir()
    secret = tmp_path / "secret.semfield"
    secret.write_text("secret")
    links = {"out": secret, "dangling": tmp_path / "new", "up": "../secret.semfield", "me": "me.semfield"}
    for name, target in links.items():
        os.symlink(target, maps.path / f"{name}.semfield")
        with pytest.raises(ConfigError, match="leads out of the map folder"):
            maps.existing(name, SUFFIX)
        with pytest.raises(ConfigError, match="leads out of the map folder"):
            maps.new(name, SUFFIX, overwrite=True)
    (maps.path / "real.semfield").touch()
    os.symlink("real.semfield", maps.path / "alias.semfield")
    assert maps.existing("alias", SUFFIX).name == "alias.semfield"
    assert secret.read_text() == "secret" and not (tmp_path / "new").exists()


def test_the_folder_itself_may_be_a_link_and_lie_at_home(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "maps")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = MapFolder("~/maps").new("kitchen", SUFFIX, overwrite=False)
    assert path == tmp_path / "disk" / "kitchen.semfield"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be made.*set service\.map_folder"):
        MapFolder(tmp_path / "file" / "maps").new("kitchen", SUFFIX, overwrite=False)
