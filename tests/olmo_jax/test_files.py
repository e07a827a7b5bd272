"""Files are written atomically, also by concurrent writers, and reading damaged ones gives a clear error."""

import json
import os
import threading

import pytest

from olmo_jax.files import DamagedFileError, read_json, whole_folder, write_json, write_whole


def test_concurrent_writers_of_one_file_do_not_conflict(tmp_path):
    path, failed = tmp_path / "a.json", []

    def write(number):
        try:
            for _ in range(100):
                write_json(path, {"number": number}, durable=False)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert json.loads(path.read_text())["number"] in range(4)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_file(tmp_path):
    path = write_whole(tmp_path / "a.txt", "before")
    os.mkdir(tmp_path / "folder")
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", "after")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_folder_appears_whole_in_place_of_an_empty_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "left by a kill").touch()
    with whole_folder(tmp_path / "a") as partial:
        (partial / "b.txt").write_text("text")
        assert list((tmp_path / "a").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_folder_that_fails_leaves_what_was_in_its_place(tmp_path):
    with pytest.raises(ValueError, match="stop"), whole_folder(tmp_path / "a") as partial:
        (partial / "b.txt").write_text("text")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "before").touch()
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "a") as partial:
        (partial / "b.txt").write_text("text")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["before"]


def test_a_lone_surrogate_is_written_as_an_escape(tmp_path):
    assert write_whole(tmp_path / "a.txt", os.fsdecode(b"caf\xe9")).read_bytes() == b"caf\\udce9"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\0" * 50, "is filled with NUL, as after a power cut"),
        (b'{"a": 1', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"1" * 5000, "is not JSON"),
    ],
)
def test_damaged_json_is_one_line_with_a_remedy(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as raised:
        read_json(path, "put it back")
    assert str(raised.value) == f"{path}: {words}; put it back"
