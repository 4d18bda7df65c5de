from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from noderuntime.api.config import Config
from noderuntime.cli import places
from noderuntime.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path


def config(tmp_path: Path) -> Config:
    return Config(state_dir=tmp_path / "lib" / "nr", run_dir=tmp_path / "run")


def test_only_one_makes_folders_that_others_can_search_but_not_list(tmp_path: Path) -> None:
    with places.only_one(config(tmp_path)):
        for folder in (tmp_path / "lib" / "nr", tmp_path / "run"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o711


def test_only_one_refuses_a_second_on_the_same_folders(tmp_path: Path) -> None:
    first = config(tmp_path)
    shares_only_the_run_dir = Config(state_dir=tmp_path / "other", run_dir=first.run_dir)
    with (
        places.only_one(first),
        pytest.raises(UnavailableError, match="another noderuntime uses"),
        places.only_one(shares_only_the_run_dir),
    ):
        pass


def test_only_one_lets_a_second_in_after_the_first_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with places.only_one(config(tmp_path)):
            pass


def test_only_one_takes_one_folder_for_both(tmp_path: Path) -> None:
    with places.only_one(Config(state_dir=tmp_path / "x", run_dir=tmp_path / "x")):
        pass


@pytest.mark.parametrize("mode", [0o777, 0o731, 0o713])
def test_prepare_refuses_a_folder_that_others_can_write(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(ConfigError, match="can be written by others"):
        places.prepare(tmp_path)


def test_prepare_refuses_what_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/tmp")
    with pytest.raises(ConfigError, match="is not a folder"):
        places.prepare(tmp_path / "link")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make"):
        places.prepare(tmp_path / "file")


def test_only_one_does_not_follow_a_link_in_place_of_the_lock(tmp_path: Path) -> None:
    places.prepare(tmp_path / "run")
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(ConfigError, match="cannot open"),
        places.only_one(config(tmp_path)),
    ):
        pass
    assert not (tmp_path / "elsewhere").exists()
