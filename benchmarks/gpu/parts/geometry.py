"""Measure the share of training time that the in-loop probe takes by default: unembedding and final states."""

from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.part import Column
from benchmarks.gpu.parts import cohorts

NAME = "geometry"
TITLE = "The in-loop probe at its defaults, every 100 steps (`ProbeConfig()`)."
VERSION = 1
NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column("ms per probe", "probe_ms", ".1f"),
    Column("ms per step", "step_ms", ".2f"),
    Column("share of the time", "share", ".1%"),
    Column("s compiling", "compile_s", ".0f"),
)


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"d16_M2": cohorts.tiny(members=2) | {"documents": 4, "document_tokens": 8}}
    paper = {"vocabulary": 50280, "batch": 32, "length": 1024}
    documents = {"documents": 128, "document_tokens": 64}
    return {
        "d64_M32": cohorts.of_width(64, 32) | documents,
        "d256_M8_V50280": cohorts.of_width(256, 8) | paper | {"steps": 2} | documents,
        "d768_M1_V50280": cohorts.of_width(768, 1) | paper | {"layers": 8} | documents,
    }


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Time steps and probe separately; the share is that of one probe per interval of steps."""
    import dataclasses

    import numpy as np

    from olmo_jax.config.probe import ProbeConfig
    from olmo_jax.probes.geometry import choose_documents, make_probes

    ours = training.stack(case)
    step_seconds = training.timed(ours.seconds)[0] / case["steps"]
    config = dataclasses.replace(ProbeConfig(), documents=case["documents"], document_tokens=case["document_tokens"])
    random = np.random.default_rng(0)
    size = config.sets * config.documents, config.document_tokens
    documents = choose_documents(config, random.integers(1, case["vocabulary"], size), 0)
    probes = make_probes(config, training.model_of(case), case["vocabulary"], documents)
    (interval, probe), *_ = probes.items()
    first = training.finished(lambda: probe(ours.state.params))
    seconds, repeats = training.timed(lambda: training.finished(lambda: probe(ours.state.params)))
    return {
        "probe_ms": 1e3 * seconds,
        "step_ms": 1e3 * step_seconds,
        "share": seconds / (seconds + interval * step_seconds),
        "compile_s": first - seconds,
        "interval": interval,
        "repeats": repeats,
    }
