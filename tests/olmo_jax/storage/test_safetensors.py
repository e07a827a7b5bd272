"""Headers of .safetensors files against the library that writes them, and each way in which a file can be damaged."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from olmo_jax.storage.safetensors import HeaderError, read_header

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.normal(size=(5, 3)).astype(np.float32),
    "b.weight": RNG.normal(size=(4, 7)).astype(ml_dtypes.bfloat16),
    "c": RNG.normal(size=6).astype(np.float16),
    "d": np.arange(3),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 4), np.float32),
}


class Counted:
    """Reads of a file's content, with their number and the bytes read."""

    def __init__(self, content):
        self.content, self.calls, self.bytes = content, 0, 0

    def __call__(self, start, stop):
        self.calls += 1
        part = self.content[start:stop]
        self.bytes += len(part)
        return part


def test_tensors_are_read_from_their_own_bytes():
    content = save(TENSORS, metadata={"format": "pt"})
    read = Counted(content)
    header = read_header(read)
    assert header.size == len(content)
    assert header.tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(header.tensors[name].read(read), expected)
    before = read.bytes
    np.testing.assert_array_equal(header.tensors["b.weight"].read(read, rows=2), TENSORS["b.weight"][:2])
    assert read.bytes - before == 2 * 7 * 2


@pytest.mark.parametrize(("guess", "calls"), [(0, 2), (20, 2), (10**6, 1)])
def test_a_long_enough_guess_needs_one_read(guess, calls):
    read = Counted(save(TENSORS))
    assert read_header(read, guess).tensors["a"].shape == (5, 3)
    assert read.calls == calls


def damaged(content):
    length = 8 + int.from_bytes(content[:8], "little")
    return {
        b"": "is empty",
        content[:5]: "ends within its header",
        content[: length - 1]: "ends within its header",
        b"version https://git-lfs": "is a Git LFS pointer",
        b"\xff" * 50: "doesn't begin as",
        b"<html>guest</html>": "doesn't begin as",
        content[:8] + b"[" + content[9:]: "doesn't begin as",
        content.replace(b'"shape":[5,3]', b'"shape":[5,4]'): "doesn't begin as",
        content.replace(b"[0,60]", b"[-60,0]"): "doesn't begin as",
    }


def test_a_damaged_header_is_refused():
    content = save({"a": TENSORS["a"]})
    for spoilt, words in damaged(content).items():
        with pytest.raises(HeaderError, match=words):
            read_header(Counted(spoilt))


def test_a_tensor_that_the_file_lacks_is_refused():
    content = save({"a": TENSORS["a"]})
    header = read_header(Counted(content))
    with pytest.raises(HeaderError, match="has 56 of the 60 bytes of 'a'"):
        header.tensors["a"].read(Counted(content[:-4]))
