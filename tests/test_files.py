from __future__ import annotations

import os
import stat

import pytest

from secateur.files import replacing, write_text


def interrupted(path):
    with replacing(path) as part:
        part.write_text("half of the ne")
        raise KeyboardInterrupt


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        interrupted(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_changes_hands_only_at_the_end(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="permissions are another matter there")
def test_others_may_read_the_file_if_they_may_read_new_files(tmp_path):
    (tmp_path / "usual.txt").touch()
    path = tmp_path / "a.txt"
    with replacing(path) as part:
        part.unlink()  # as a library may do that writes for the owner alone
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual.txt").stat().st_mode)


def test_an_absent_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "absent" / "a.txt", "")
