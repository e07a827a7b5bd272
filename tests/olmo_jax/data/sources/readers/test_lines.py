import gzip
import io

import pytest
import zstandard

from olmo_jax.data import DataError
from olmo_jax.data.sources.readers.lines import opened

CONTENT = b"".join(b"line %d, of about thirty bytes\n" % i for i in range(20_000))


def read(path, content):
    path.write_bytes(content)
    with opened(path, path.name) as (stream, _):
        return stream.read()


def members(pack, content, count):
    size = -(-len(content) // count)
    return [pack(content[at : at + size]) for at in range(0, len(content), size)]


def zstd_stream(content):
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    return packer.compress(content) + packer.flush()


def zstd_long(content):
    """Compress like `zstd --long=31`, with a window of 2 GiB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, write_content_size=0)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(content) + packer.flush()


PACKERS = {"gz": gzip.compress, "zst": zstandard.compress, "ZST": zstd_stream}


@pytest.mark.parametrize("size", [40, len(CONTENT)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files_are_read_completely_and_truncated_ones_refused(tmp_path, suffix, count, size):
    packed = b"".join(members(PACKERS[suffix], CONTENT[:size], count))
    path = tmp_path / f"a.jsonl.{suffix}"
    assert read(path, packed) == CONTENT[:size]
    last = len(members(PACKERS[suffix], CONTENT[:size], count)[-1])
    for cut in (1, 5, last // 2, last - 5, last - 1):  # within the last member or frame, its header and its end too
        with pytest.raises(DataError, match="can't be unpacked .*; fetch or compress it again"):
            read(path, packed[:-cut])
    with pytest.raises(DataError, match="can't be unpacked"):
        read(path, packed + b"something else")


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_corrupt_compressed_files_are_refused(tmp_path, suffix):
    checked = zstandard.ZstdCompressor(write_checksum=True).compress  # as the command zstd writes it
    packed = bytearray(gzip.compress(CONTENT) if suffix == "gz" else checked(CONTENT))
    middle = len(packed) // 2
    packed[middle : middle + 32] = bytes(32)
    with pytest.raises(DataError, match="can't be unpacked") as raised:
        read(tmp_path / f"a.jsonl.{suffix}", bytes(packed))
    assert "\n" not in str(raised.value)


def test_zstd_long_windows_skippable_frames_and_gzip_padding_are_read(tmp_path):
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"  # as pzstd and seekable zstd write
    assert read(tmp_path / "a.zst", zstd_long(CONTENT)) == CONTENT
    assert read(tmp_path / "b.zst", skippable + zstandard.compress(CONTENT) + skippable) == CONTENT
    assert read(tmp_path / "c.gz", gzip.compress(CONTENT) + bytes(512)) == CONTENT


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding, suffix):
    text = "naïve 東京 🐈\n" * 10_000
    raw = (text if encoding != "utf-16-be" else "\ufeff" + text).encode(encoding)
    packed = gzip.compress(raw) if suffix == ".txt.gz" else raw
    assert read(tmp_path / f"a{suffix}", packed).decode() == text
    with pytest.raises(DataError, match=r"isn't UTF-\d\d.* despite its byte-order mark"):
        read(tmp_path / "cut.txt", raw[:-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text".encode("utf-16-le"), "too many NUL bytes.*iconv -f UTF-16LE"),
        (bytes(100), "too many NUL bytes: it is damaged"),
        (gzip.compress(b"text", mtime=0), "isn't text but gzip; rename it to end in .gz"),
        (zstandard.compress(b"text"), "isn't text but zstd"),
        (b"%PDF-1.7", "isn't text but PDF"),
    ],
)
def test_files_that_are_not_text_are_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path / "a.txt", content)
    assert "LATIN1" not in str(raised.value)


def test_the_position_reports_bytes_read(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(CONTENT))
    with opened(path, path.name) as (stream, file):
        stream.read()
        assert file.tell() == path.stat().st_size
    assert isinstance(stream, io.BufferedReader)
