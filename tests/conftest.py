"""Set up every test: eight virtual devices, and a small corpus in a user's format, prepared once."""

import dataclasses
import importlib.metadata
import json
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# There is one process per core; threads of BLAS and OpenMP would only compete by busy waiting.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# Tests compile many small programs and run each a few times: unoptimised code, in one piece and without fusion
# emitters, compiles eight times faster. Later versions of jaxlib have other flags, and abort on an unknown one.
FASTER_COMPILING = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) >= (0, 11):
    del FASTER_COMPILING[2:]
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    *FASTER_COMPILING,
    # Eight devices share few cores: one that waits 40 s for the others hasn't failed.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
]
# Child processes must not repeat the flags that they inherit: the cache's key of a program includes them verbatim.
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*os.environ.get("XLA_FLAGS", "").split(), *FLAGS]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from olmo_jax import config as configs  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# The same small programs recur in other tests, in the processes that tests start, and in the next call of pytest.
KEPT_PROGRAMS = {
    "compilation_cache_dir": os.path.join(os.path.dirname(__file__), "..", ".cache", "jax"),
    "persistent_cache_min_compile_time_secs": 0.0,
    "persistent_cache_min_entry_size_bytes": -1,
}
for option, value in KEPT_PROGRAMS.items():
    jax.config.update(f"jax_{option}", value)
    os.environ[f"JAX_{option.upper()}"] = str(value)

WORDS = (
    "the", "of", "and", "loss", "rank", "weight", "model", "token", "is", "in", "we", "measure", "matrix", "value",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def small_matmul_peak():
    """Measure the peak rate of matmuls, the denominator of MFU, on small matrices."""
    from olmo_jax.logs import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(timing._PEAK_SIZE, "cpu", 256)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A .jsonl file of three domains; each word depends on the previous one, so that there is something to learn."""
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    rng = np.random.default_rng(0)
    follows = rng.dirichlet(np.full(len(WORDS), 0.2), size=len(WORDS))
    with path.open("w") as file:
        for i in range(300):
            words = [int(rng.integers(len(WORDS)))]
            for _ in range(60 + i % 40):
                words.append(int(rng.choice(len(WORDS), p=follows[words[-1]])))
            domain = ("prose", "code", "other")[i % 3]
            file.write(json.dumps({"text": " ".join(WORDS[w] for w in words), "domain": domain}) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny(corpus):
    """The configuration of a run that trains within seconds: one layer, 12 steps of 4 x 16 tokens, on one device."""
    return configs.TrainConfig(
        name="tiny",
        tokens=12 * 4 * 16,
        model=configs.ModelConfig(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32),
        optimizer=configs.OptimizerConfig(learning_rate=1e-2, warmup_fraction=0.2),
        data=configs.DataConfig(
            corpus="text_files",
            files=(str(corpus),),
            domain_field="domain",
            bpe_vocab_size=300,
            train_domains=("prose",),
            sequence_length=16,
            batch_size=4,
        ),
        probe=configs.ProbeConfig(every=4, documents=10, document_tokens=12),
        checkpoint=configs.CheckpointConfig(every=5),
        mesh=configs.MeshConfig(member=1),
    )


@pytest.fixture(scope="session")
def index(tiny, tmp_path_factory):
    """The prepared corpus."""
    from olmo_jax.data.prepare import prepare

    return prepare(tiny.data, tmp_path_factory.mktemp("data"), lambda line: None)


@pytest.fixture(scope="session")
def vary():
    """`vary(config, {"optimizer.weight_decay": 1.0})` returns a copy with fields replaced by dotted key."""

    def varied(config, changes):
        for key, value in changes.items():
            head, _, rest = key.partition(".")
            value = varied(getattr(config, head), {rest: value}) if rest else value
            config = dataclasses.replace(config, **{head: value})
        return config

    return varied


@pytest.fixture
def registry():
    """The registry of metrics, restored after the test."""
    from geometry.probe import COUNTS, METRICS

    metrics, counts = dict(METRICS), set(COUNTS)
    yield METRICS
    for live, before in ((METRICS, metrics), (COUNTS, counts)):
        live.clear()
        live.update(before)


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Return a function that serves folders of revisions as repositories, by OWNER/NAME, and returns the hub."""
    from tests.fake_hub import FakeHub

    running = []
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def start(**repositories):
        listed = {
            name.replace("__", "/"): {path.name: path for path in folder.iterdir() if path.is_dir()}
            for name, folder in repositories.items()
        }
        context = FakeHub(listed).serve()
        running.append(context)
        hub = context.__enter__()
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        return hub

    yield start
    for context in running:
        context.__exit__(None, None, None)
