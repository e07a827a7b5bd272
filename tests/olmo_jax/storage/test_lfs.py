import pytest

from olmo_jax.storage import lfs

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(POINTER, True), (b"", False), (b"version 1\n", False), (POINTER + b"text " * 1000, False)],
)
def test_only_git_lfs_pointers_are_recognised_as_such(tmp_path, content, expected):
    (tmp_path / "a").write_bytes(content)
    assert lfs.pointer(tmp_path / "a") == expected
