"""Tensors are read from every file format, and each broken file gives a one-line error that names it."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from olmo_jax.checkpoint import CheckpointError, directory, load_run
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.train import train_cohort, write_run_files
from olmo_jax.weights import WeightsError, models


@pytest.fixture(scope="module")
def workdir(tiny, index, vary, tmp_path_factory):
    """Two trained runs, the second ended at step 7 of 12, and a third that hasn't started."""
    workdir = epath.Path(tmp_path_factory.mktemp("weights"))
    runs = [Run("long", tiny), Run("short", vary(tiny, {"init_seed": 1, "tokens": 7 * 64}))]
    cohort = Cohort(shape_of(tiny, index.fingerprint), tuple(runs))
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    waiting = Cohort(shape_of(vary(tiny, {"model.d_ff": 64}), index.fingerprint), (Run("waiting", tiny),))
    write_run_files(workdir, waiting)
    return workdir


def arrays(path, **of):
    (model,) = models(path, **of)
    return {tensor.name: tensor.read() for tensor in model.tensors()}


def random(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(dtype)


def test_every_run_of_a_working_directory_is_read_at_its_last_checkpoint(workdir):
    assert [(model.run_id, model.step) for model in models(workdir)] == [("long", 12), ("short", 7)]
    assert [(model.run_id, model.step) for model in models(workdir, step=10)] == [("long", 10)]
    assert [(model.run_id, model.step) for model in models(workdir, run_id="short", step=5)] == [("short", 5)]


def test_our_parameters_are_named_by_path_and_lack_padding_rows(workdir):
    results = arrays(workdir, run_id="long", step=5)
    config, params = load_run(workdir, "long", 5)
    assert params["unembedding"].shape == (304, 16)
    assert config.vocab_size == 300
    for name in ("embedding", "unembedding"):
        np.testing.assert_array_equal(results[name], params[name][:300])
    np.testing.assert_array_equal(results["blocks_0/mlp/up"], params["blocks_0"]["mlp"]["up"])
    assert not np.array_equal(results["unembedding"], arrays(workdir, run_id="long")["unembedding"])


@pytest.mark.parametrize(
    ("of", "error", "words"),
    [
        ({"run_id": "lnog"}, CheckpointError, ["lnog", "long, short, waiting"]),
        ({"run_id": "short", "step": 12}, WeightsError, ["'short'", "at step 12", "steps: 5, 7"]),
        ({"run_id": "waiting"}, WeightsError, ["'waiting'", "none yet", "train first"]),
        ({"step": 11}, WeightsError, ["at step 11", "steps: 5, 7, 10, 12"]),
    ],
)
def test_a_missing_run_or_step_is_refused_with_the_existing_ones(workdir, of, error, words):
    with pytest.raises(error) as raised:
        models(workdir, **of)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_broken_checkpoint_is_named(workdir, tmp_path):
    broken = epath.Path(shutil.copytree(workdir, tmp_path / "copy"))
    cohort = json.loads((broken / "runs" / "long" / "config.json").read_text())["cohort"]
    shutil.rmtree(directory(broken, cohort) / "12" / "params")
    (model,) = models(broken, run_id="long")
    with pytest.raises(CheckpointError, match="12: can't be read: .* choose another step"):
        model.tensors()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_safetensors_of_every_dtype_are_read_as_stored(tmp_path, dtype):
    stored = {"w": random(5, 3, dtype=dtype), "bias": random(4, dtype=dtype)}
    save_file(stored, tmp_path / "m.safetensors")
    (model,) = models(tmp_path / "m.safetensors")
    bias, w = model.tensors()
    assert (w.name, w.shape, w.dtype, w.is_matrix) == ("w", (5, 3), np.dtype(dtype).name, True)
    assert (bias.name, bias.is_matrix) == ("bias", False)
    np.testing.assert_array_equal(w.read(), stored["w"])
    assert w.read().dtype == dtype


def test_matrices_are_real_and_not_empty(tmp_path):
    save_file({"complex": np.ones((2, 2), np.complex64), "empty": np.ones((0, 2)), "mask": np.ones((2, 2), bool)},
              tmp_path / "m.safetensors")  # fmt: skip
    (model,) = models(tmp_path / "m.safetensors")
    assert [tensor.is_matrix for tensor in model.tensors()] == [False, False, False]


def test_tensors_are_in_numeric_order(tmp_path):
    save_file({f"layers.{i}.w": random(2, 2) for i in (10, 9, 0)}, tmp_path / "m.safetensors")
    assert list(arrays(tmp_path / "m.safetensors")) == ["layers.0.w", "layers.9.w", "layers.10.w"]


@pytest.fixture
def sharded(tmp_path):
    """A folder in Hugging Face's layout, with a file beside it that the index doesn't name."""
    shards = {"a.safetensors": {"x": random(4, 2)}, "b.safetensors": {"y": random(5, 2), "z": random(6)}}
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    save_file({"x": random(9, 9)}, tmp_path / "consolidated.safetensors")
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_a_sharded_folder_holds_the_tensors_named_by_its_index(sharded):
    results = arrays(sharded)
    assert list(results) == ["x", "y", "z"]
    np.testing.assert_array_equal(results["x"], random(4, 2))
    np.testing.assert_array_equal(results["y"], random(5, 2))


def test_a_single_file_takes_precedence_over_a_stale_index(sharded, capsys):
    """transformers looks for model.safetensors first; here a sharded model was later saved again as one file."""
    save_file({"x": random(7, 7)}, sharded / "model.safetensors")
    save_file({"x": random(2, 2)}, sharded / "model.fp16.safetensors")
    save_file({"lora": random(2, 2)}, sharded / "adapter_model.safetensors")
    (sharded / "original").mkdir()
    save_file({"x": random(3, 3)}, sharded / "original" / "consolidated.safetensors")
    results = arrays(sharded)
    assert list(results) == ["x"]
    np.testing.assert_array_equal(results["x"], random(7, 7))
    line = capsys.readouterr().err
    assert "uses model.safetensors, as transformers does, and model.safetensors.index.json" in line
    (sharded / "model.safetensors.index.json").write_text("{")  # which transformers doesn't read
    assert list(arrays(sharded)) == ["x"]


def test_macos_metadata_files_are_ignored(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "._a.safetensors").write_bytes(b"\0\5\x16\7" * 9)
    assert "a:x" in arrays(sharded)


def test_weights_are_read_through_links_of_a_hugging_face_cache(sharded, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, file in enumerate(["a.safetensors", "b.safetensors", "model.safetensors.index.json"]):
        (sharded / file).rename(blobs / f"{i}")
        (snapshot / file).symlink_to(f"../../blobs/{i}")
    assert list(arrays(snapshot)) == ["x", "y", "z"]
    assert list(arrays(snapshot / "a.safetensors")) == ["x"]
    (blobs / "1").unlink()
    with pytest.raises(WeightsError, match=r"b\.safetensors: is a link to a file that doesn't exist"):
        arrays(snapshot)


@pytest.mark.parametrize("name", ["lr[1e-2].safetensors", "\udcff.safetensors", "a b%20#1.npy"])
def test_weight_files_may_have_any_name_and_home_paths(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    if name.endswith(".npy"):
        np.save(tmp_path / name, random(3, 2))
    else:
        save_file({"w": random(3, 2)}, tmp_path / "plain")
        (tmp_path / "plain").rename(tmp_path / name)
    for path in (tmp_path / name, f"~/{name}"):
        (array,) = arrays(path).values()
        np.testing.assert_array_equal(array, random(3, 2))


def test_a_runs_folder_of_another_program_is_no_working_directory(sharded, tmp_path):
    """A folder of transformers' Trainer logs, and one with another program's config.json."""
    (sharded / "runs" / "Nov24_host").mkdir(parents=True)
    (sharded / "runs" / "Nov24_host" / "events.out.tfevents.1").touch()
    for content in (None, "{}", "[]", "7", "\0\0", "[" * 99999):
        if content is not None:
            (sharded / "runs" / "Nov24_host" / "config.json").write_text(content)
        assert list(arrays(sharded)) == ["x", "y", "z"]
    shutil.rmtree(sharded / "runs")
    (sharded / "runs").touch()
    assert list(arrays(sharded)) == ["x", "y", "z"]


def test_a_working_directory_needs_no_sweep_json(workdir):
    assert not (workdir / "sweep.json").exists()
    assert len(models(workdir)) == 2


def test_names_with_any_digits_are_sorted(tmp_path):
    names = ["\u00b2", "\u0663.w", f"w.{'9' * 5000}", "w.10", "w.9", "w.09", "9"]
    save_file({name: random(2, 2) for name in names}, tmp_path / "m.safetensors")
    results = list(arrays(tmp_path / "m.safetensors"))
    assert sorted(results) == sorted(names)
    assert results.index("w.9") < results.index("w.10") < results.index(f"w.{'9' * 5000}")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 268435456\n"


@pytest.mark.parametrize("name", ["m.safetensors", "w.npy", "model.safetensors.index.json"])
def test_a_git_lfs_pointer_is_reported(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(WeightsError, match=rf"{name}: is a Git LFS pointer.*git lfs pull"):
        models(tmp_path if name.endswith("json") else tmp_path / name)[0].tensors()


def header(tensors, length=None):
    text = json.dumps(tensors).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(24)


OF_24 = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    "content",
    [
        header({"w": OF_24}, length=2**63),
        header({"w": OF_24}, length=0),
        header({"w": OF_24 | {"dtype": "F33"}}),
        header({"w": OF_24 | {"shape": [2**40, 2**40]}}),
        header({"w": OF_24 | {"shape": "x" * 5000}}),
        header({"w": OF_24, "again": OF_24}),
        header({"w": OF_24 | {"data_offsets": [0, 2**62]}}),
        header([]),
        b"[" * 100000,
        bytes(4096),
    ],
)
def test_a_garbled_safetensors_header_is_one_short_line(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"m\.safetensors: not a complete") as raised:
        models(tmp_path / "m.safetensors")[0].tensors()
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [("(10**9, 10**9)", "'<f4'"), ("(4294967296, 4294967296)", "'<f4'"), ("(9223372036854775807, 2)", "'<f4'"),
     ("(-1, 8)", "'<f4'"), ("(2.0, 3)", "'<f4'"), ("(2, 3)", "'<f99'"), ("(2, 3)", "(1, 2)"), ("(1,) * 70", "'<f4'"),
     ("(" * 300 + ")" * 300, "'<f4'"), ("(1" + ",1" * 69 + ")", "'<f4'")],
)  # fmt: skip
def test_a_garbled_npy_header_is_one_short_line(tmp_path, shape, dtype):
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode()
    (tmp_path / "w.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(24))
    with pytest.raises(WeightsError, match=r"w\.npy: not a complete") as raised:
        models(tmp_path / "w.npy")[0].tensors()
    assert len(str(raised.value)) < 1000
    assert "\n" not in str(raised.value)


def test_a_folder_may_have_any_name(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    moved = sharded.rename(sharded.parent / "50%20 [new] #1")
    assert len(arrays(moved)) == 4


def test_a_folder_without_an_index_holds_all_its_files(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert list(arrays(sharded)) == ["a:x", "b:y", "b:z", "consolidated:x"]
    (sharded / "consolidated.safetensors").unlink()
    assert list(arrays(sharded)) == ["x", "y", "z"]


def test_reading_one_tensor_reads_only_its_bytes(tmp_path):
    """A file with a hole of 64 GiB: reading more than the small tensor would exhaust the memory."""
    big = 2**36
    header = {
        "big": {"dtype": "F32", "shape": [2**17, 2**17], "data_offsets": [0, big]},
        "small": {"dtype": "F32", "shape": [1, 2], "data_offsets": [big, big + 8]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "m.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(big, 1)
        file.write(np.array([1, 2], np.float32).tobytes())
    (model,) = models(tmp_path / "m.safetensors")
    _, small = model.tensors()
    assert small.read().tolist() == [[1, 2]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_npy_array_is_named_after_its_file(tmp_path, order):
    np.save(tmp_path / "states.npy", np.asarray(random(6, 3), order=order))
    (model,) = models(tmp_path / "states.npy")
    (tensor,) = model.tensors()
    assert (tensor.name, tensor.shape, tensor.dtype) == ("states", (6, 3), "float32")
    np.testing.assert_array_equal(tensor.read(), random(6, 3))


def spoil_npy(path):
    np.save(path / "whole.npy", random(6, 3))
    whole = (path / "whole.npy").read_bytes()
    np.save(path / "objects.npy", np.array([[1, None]], object), allow_pickle=True)
    np.save(path / "bfloat16.npy", random(6, 3).astype(ml_dtypes.bfloat16))
    (path / "truncated.npy").write_bytes(whole[:-4])
    (path / "header.npy").write_bytes(whole[:40])
    (path / "garbled.npy").write_bytes(whole[:10] + b"{'descr': (".ljust(118) + whole[128:])
    (path / "empty.npy").write_bytes(b"")
    (path / "headerless.npy").write_bytes(np.arange(99, dtype=np.uint16).tobytes())


def spoil_safetensors(path):
    save_file({"x": random(6, 3)}, path / "whole.safetensors")
    whole = (path / "whole.safetensors").read_bytes()
    (path / "truncated.safetensors").write_bytes(whole[:-4])
    (path / "header.safetensors").write_bytes(whole[:20])
    (path / "empty.safetensors").write_bytes(b"")
    (path / "page.safetensors").write_bytes(b"<html>404 Not Found</html>")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("objects.npy", ["Python objects"]),
        ("bfloat16.npy", ["bfloat16", "float32"]),
        ("truncated.npy", ["not a complete .npy"]),
        ("header.npy", ["not a complete .npy"]),
        ("garbled.npy", ["not a complete .npy"]),
        ("empty.npy", ["not a complete .npy"]),
        ("headerless.npy", ["magic", "headerless"]),
        ("truncated.safetensors", ["not a complete .safetensors"]),
        ("header.safetensors", ["not a complete .safetensors"]),
        ("empty.safetensors", ["not a complete .safetensors"]),
        ("page.safetensors", ["not a complete .safetensors"]),
        ("missing.safetensors", ["no such file or folder"]),
        ("notes.txt", ["can't be read as weights", ".npy"]),
        ("nothing", ["neither a working directory", ".safetensors"]),
    ],
)
def test_a_bad_file_is_one_sentence_with_its_name(tmp_path, name, words):
    spoil_npy(tmp_path)
    spoil_safetensors(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(WeightsError) as raised:
        models(tmp_path / name)[0].tensors()
    message = str(raised.value)
    assert all(word in message for word in [name, *words]), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", ["index.json", "not an index"]),
        ("{}", ["index.json", "not an index"]),
        ('{"weight_map": []}', ["index.json", "not an index"]),
        ('{"weight_map": {"x": ["a.safetensors"]}}', ["index.json", "not an index"]),
        ('{"weight_map": {"x": "a\\u0000.safetensors"}}', ["index.json", "not an index"]),
        (json.dumps({"weight_map": {"x": "a" * 9999}}), ["index.json", "not an index"]),
        ("\0" * 50, ["index.json", "not an index"]),
        ("[" * 100000, ["index.json", "not an index"]),
        ('{"weight_map": {"x": "c.safetensors"}}', ["c.safetensors", "missing"]),
        ('{"weight_map": {"x": "a.safetensors", "w": "a.safetensors"}}', ["a.safetensors", "lacks 'w'"]),
    ],
)
def test_an_inconsistent_index_is_named(sharded, index, words):
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError) as raised:
        models(sharded)[0].tensors()
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_run_is_chosen_only_in_a_working_directory(sharded):
    with pytest.raises(WeightsError, match="only in a working directory"):
        models(sharded, run_id="long")
