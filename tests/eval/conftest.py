"""A small trained cohort and a configuration that requests every evaluation."""

import json
import shutil

import pytest
from etils import epath

from eval.config import (
    CurvatureConfig,
    DynamicsConfig,
    EvalConfig,
    FinetuneConfig,
    GroupsConfig,
    LlcConfig,
    MovementConfig,
    PerturbConfig,
    ProjectionsConfig,
    QuantizeConfig,
    TasksConfig,
)
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.train import train_cohort, write_run_files


@pytest.fixture(scope="session")
def quiz(tmp_path_factory):
    """A user-defined task: which of two words follows; one of them never does."""
    path = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    rows = [
        {"context": f"the model of {i}", "choices": [" the of and", " QQ%% QQ"], "gold": 0, "split": split}
        for split in ("train", "validation")
        for i in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def config(quiz):
    return EvalConfig(
        tokens_per_domain=300,
        batch_size=8,
        quantize=QuantizeConfig(
            bits=(8, 3),
            calibration_tokens=256,
            groups=GroupsConfig(bits=(3,), size=7, calibration_tokens=256, document_tokens=10),
        ),
        finetune=FinetuneConfig(
            targets=("code", f"task:{quiz}"),
            learning_rates=(1e-3, 1e-2),
            tokens=8 * 64,
            batch_size=4,
            points=2,
            item_tokens=16,
        ),
        perturb=PerturbConfig(relative=(0.5,), kept_ranks=(1.0, 0.25), draws=2),
        tasks=TasksConfig(names=(str(quiz),)),
        dynamics=DynamicsConfig(cka=True, cka_tokens=64),
        curvature=CurvatureConfig(sequences=4, draws=2, lanczos_steps=3, domains=("code",)),
        projections=ProjectionsConfig(sequences=3),
        movement=MovementConfig(pattern="unembedding|blocks_0/mlp/up"),
        llc=LlcConfig(chains=2, steps=8, epsilons=(1e-6, 1e-5), gammas=(100.0,), batch_size=4, sequences=8),
    )


@pytest.fixture(scope="session")
def cohort(tiny, index, vary):
    runs = [Run(f"run{i}", vary(tiny, {"init_seed": i})) for i in range(2)]
    return Cohort(shape_of(tiny, index.fingerprint), tuple(runs))


@pytest.fixture(scope="session")
def checkpoints(cohort, index, tmp_path_factory):
    """The working directory of the cohort, trained once; tests must not change it."""
    workdir = epath.Path(tmp_path_factory.mktemp("trained"))
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    return workdir


@pytest.fixture
def trained(checkpoints, tmp_path):
    """A copy of the trained working directory, without results."""
    shutil.copytree(checkpoints, tmp_path / "work")
    return epath.Path(tmp_path / "work")
