"""The public API of the packages exists, is documented, and imports no heavy library until used."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest

PACKAGES = ("olmo_jax", "geometry", "eval", "sweeps")
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]
# Further functions named in the documents, by module.
NAMED = [
    ("geometry.spectrum", "singular_values effective_rank stable_rank participation_ratio singular_entropy"),
    ("geometry.spectrum", "condition_number power_law_alpha"),
    ("geometry.isotropy", "mean_cosine partition_isotropy isoscore"),
    ("geometry.dimension", "two_nn local_two_nn"),
    ("geometry.similarity", "linear_cka"),
    ("geometry.probe", "summarize"),
    ("olmo_jax.model", "init hidden apply"),
    ("olmo_jax.hf", "import_checkpoint export_checkpoint"),
    ("olmo_jax.checkpoint", "load_run"),
    ("sweeps.analysis", "spearman partial_spearman incremental_r2"),
    ("sweeps.table", "read_table"),
    ("eval.quantize", "round_to_nearest"),
    ("eval.gptq", "gptq"),
]


@pytest.mark.parametrize("package, name", PUBLIC)
def test_public_names_exist_and_are_documented(package, name):
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or callable(value):
        assert inspect.getdoc(value), f"{package}.{name} has no docstring"
        assert len(inspect.getdoc(value)) > 20


@pytest.mark.parametrize("module, names", NAMED)
def test_documented_functions_are_in_the_named_modules(module, names):
    for name in names.split():
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", importlib.import_module("geometry").__all__)
def test_geometry_functions_document_array_shapes(name):
    """The names of its arguments, such as x_ND, hold their shapes."""
    value = getattr(importlib.import_module("geometry"), name)
    if inspect.isfunction(value) or hasattr(value, "__wrapped__"):
        shapes = [argument for argument in inspect.signature(value).parameters if re.fullmatch(r"\w+_[A-Z]+", argument)]
        assert shapes or name == "metric", f"geometry.{name}: no argument says its shape"


def test_importing_the_packages_imports_no_heavy_library():
    heavy = ("jax", "flax", "pandas", "orbax")
    code = f"import sys, {', '.join(PACKAGES)}; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
