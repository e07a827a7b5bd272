import gzip
import io
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard
from safetensors.numpy import save

from tests.fuzz.mutations import KINDS, mutate

ROWS = [{"text": f"a small text {i}", "domain": "prose", "numbers": [i, 0.5]} for i in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


CONTENTS = {
    "bytes": bytes(range(256)),
    "text": b"one text\nof 2 lines\n",
    "json": json.dumps(ROWS[0]).encode(),
    "jsonl": LINES,
    "yaml": yaml.safe_dump(ROWS[0]).encode(),
    "gz": gzip.compress(LINES, mtime=0),
    "zst": zstandard.ZstdCompressor().compress(LINES),
    "parquet": parquet(ROWS),
    "safetensors": save({"a.weight": np.ones((4, 3), np.float32)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutation_changes_the_content_and_is_determined_by_its_seed(kind):
    names = set()
    for content in (CONTENTS[kind], b"", b"\0"):
        for i in range(25):
            name, changed = mutate(content, kind, random.Random(i))
            assert (name, changed) == mutate(content, kind, random.Random(i))
            assert changed != content
            names.add(name)
    assert len(names) > 5


def test_mutations_reach_into_compressed_files():
    changed = [mutate(CONTENTS["gz"], "gz", random.Random(i)) for i in range(60)]
    readable = [content for name, content in changed if {"other_type", "odd_string"} & set(name.split("+"))]
    assert len([gzip.decompress(content) for content in readable if content.startswith(b"\x1f\x8b")]) > 5
