"""The cases of the full scale, which no test runs, have valid models and batches."""

import pytest

from benchmarks.gpu import training
from benchmarks.gpu.part import all_parts
from benchmarks.gpu.parts import cohorts, processes
from olmo_jax.config import ComputeConfig
from olmo_jax.execution import plan

TRAINING = [
    pytest.param(case, id=f"{part.NAME}-{name}")
    for part in all_parts().values()
    for name, case in part.cases("full").items()
    if "width" in case
]


@pytest.mark.parametrize("case", TRAINING)
def test_every_case_is_a_model_that_cudnn_attention_supports(case):
    model = training.model_of(case)
    model.check("model")
    config = ComputeConfig(steps_per_call=case["steps"])
    chosen = plan.for_training(config, model, case["batch"], case["length"], "auto", case["members"], "gpu")
    assert chosen.attention == "cudnn"
    assert chosen.mapping == "vmap"
    assert case["length"] <= model.context_length


def test_cohort_cases_cover_every_width_and_number_of_members():
    assert len(cohorts.cases("full")) == 5 * 4
    case = cohorts.cases("full")["d256_M32"]
    assert (case["width"], case["members"]) == (256, 32)


def test_rates_count_all_members_and_the_matmul(monkeypatch):
    case = cohorts.tiny(members=2)
    monkeypatch.setattr(training, "matmul_flops", lambda dtype: 1e9)
    rates = training.rates(case, step_seconds=0.5)
    assert rates["tokens_per_s"] == 2 * 8 * 8 / 0.5
    assert rates["of_matmuls"] == pytest.approx(training.work(case) / 0.5 / 1e9)
    assert rates["of_nominal"] is None  # a CPU has no entry
    assert training.work(case) == 2 * training.work(case, members=1)


def test_a_failed_process_is_reported_with_its_last_output():
    with pytest.raises(RuntimeError, match="a process ended: ValueError: array split"):
        processes.measure(cohorts.tiny() | {"heads": 3, "processes": 1})
