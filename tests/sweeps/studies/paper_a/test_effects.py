"""The table of effects on synthetic suites with known effects."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from olmo_jax.model import parameter_count
from sweeps.analysis import AnalysisError
from sweeps.planning.plan import configuration, leaves, read_sweep, resolve
from sweeps.studies.paper_a import paper
from sweeps.studies.paper_a.effects import FIXED_RANK, LOSS, RANK, as_markdown, effects

SEED_DEVIATION = 0.5


def suite_table():
    """The final rows of the reduced suite with replicates, nothing measured yet."""
    plan = resolve(
        read_sweep(paper.get_config("cpu,seeds=5,tied,pythia,pair_seeds=3")), fingerprint=lambda data: "text"
    )
    rows = []
    for run in plan.runs:
        settings = {f"config.{k}": v for k, v in leaves(dataclasses.asdict(run.config)).items()}
        rows.append({"run_id": run.id, "configuration": configuration(run.config), "step": run.config.total_steps,
                     "final": True, "diverged_at": pd.NA, "parameters_non_embedding":
                     parameter_count(run.config.model)[1]} | settings)  # fmt: skip
    table = pd.DataFrame(rows)
    table["diverged_at"] = table["diverged_at"].astype("Int64")
    return table


@pytest.fixture(scope="module")
def suite():
    return suite_table()


def measured(suite, rank, loss, seed=0):
    """The suite with metrics: functions of log2 batch and log10 decay beside the default, and final fraction."""
    rng = np.random.default_rng(seed)
    batch = np.log2(suite["config.data.batch_size"] / 4)
    decay = np.log10(suite["config.optimizer.weight_decay"] / 4.58)
    final = suite["config.optimizer.final_fraction"]
    noise = rng.normal(0, SEED_DEVIATION, (2, len(suite)))
    ranks = 50 + rank(batch, decay, final) + noise[0]
    return suite.assign(**{RANK: ranks, FIXED_RANK: ranks, LOSS: 5 + loss(batch, decay, final) + noise[1] / 10})


def by_claim(results):
    return {(d.claim, d.metric): d for d in results}


def test_planted_effects_are_found_with_their_size_and_sign(suite):
    table = measured(suite, lambda b, d, f: 2 * b + 4 * d - 30 * f, lambda b, d, f: 0.2 * b**2 + 5 * f)
    results = by_claim(effects(table))
    batch = results["a larger batch raises R(W)", RANK]
    assert batch.verdict == "agrees"
    assert batch.effect == pytest.approx(8, abs=0.6)  # 32 to 512 is a factor of 2^4
    assert batch.low < batch.effect < batch.high
    assert batch.n == 6
    assert batch.effect_in_seed_sd == pytest.approx(16, rel=0.4)
    decay = results["stronger weight decay keeps R(W) high", RANK]
    assert (decay.verdict, decay.effect) == ("agrees", pytest.approx(4 * math.log10(50), abs=0.9))
    annealing = results["weaker annealing keeps R(W) high", RANK]
    assert (annealing.verdict, annealing.effect) == ("disagrees", pytest.approx(-3, abs=0.9))
    assert results["weaker annealing gives a worse loss", LOSS].effect == pytest.approx(0.5, abs=0.1)
    valley = results["loss is U-shaped in batch size", LOSS]
    assert (valley.verdict, valley.effect) == ("agrees", pytest.approx(0.8, abs=0.15))


def test_a_monotonic_decrease_is_no_valley(suite):
    table = measured(suite, lambda b, d, f: 0 * b, lambda b, d, f: 0.3 * b)
    valley = by_claim(effects(table))["loss is U-shaped in batch size", LOSS]
    assert valley.effect < 0
    assert valley.verdict == "disagrees"


def test_noise_gives_mostly_unclear_verdicts(suite):
    """Without any effect, about five per cent of the claims get a definite verdict."""
    verdicts = []
    for seed in range(16):
        results = effects(measured(suite, lambda b, d, f: 0 * b, lambda b, d, f: 0 * b, seed))
        verdicts += [d.verdict for d in results if d.metric == RANK and d.n]
    assert np.mean([v == "unclear" for v in verdicts]) > 0.88


def test_diverged_runs_and_ablations_are_excluded(suite):
    table = measured(suite, lambda b, d, f: 2 * b, lambda b, d, f: 0 * b)
    wild = table["config.optimizer.weight_decay"] > 20
    table.loc[wild, [RANK, FIXED_RANK]] = 1e6
    table.loc[wild, "diverged_at"] = 3
    table.loc[table["config.name"] == "4m-tied", RANK] = -1e6
    results = by_claim(effects(table))["stronger weight decay keeps R(W) high", RANK]
    assert abs(results.effect) < 2


def test_without_replicates_effects_have_no_seed_sd(suite):
    table = measured(suite, lambda b, d, f: 2 * b, lambda b, d, f: 0 * b)
    first_seed = table[table["config.init_seed"] == 0]
    results = by_claim(effects(first_seed))["a larger batch raises R(W)", RANK]
    assert math.isnan(results.effect_in_seed_sd)
    assert math.isfinite(results.effect)


def test_sizes_with_missing_configurations_are_excluded(suite):
    table = measured(suite, lambda b, d, f: 2 * b, lambda b, d, f: 0 * b)
    default = np.isclose(table["config.optimizer.weight_decay"], 4.58) & (table["config.tokens"] == 81_920)
    missing = default & (table["config.data.batch_size"] == 4) & (table["config.name"] == "8m")
    largest = (table["config.optimizer.weight_decay"] > 20) & (table["config.name"] == "14m")
    results = by_claim(effects(table[~missing & ~largest]))
    assert results["loss is U-shaped in batch size", LOSS].n == 5
    assert results["stronger weight decay keeps R(W) high", RANK].n == 5
    assert results["a larger batch raises R(W)", RANK].n == 6


def test_a_learning_rate_rule_does_not_count_as_another_setting(suite):
    table = measured(suite, lambda b, d, f: 2 * b, lambda b, d, f: 0 * b)
    rate = table["config.optimizer.learning_rate"] * np.sqrt(table["config.data.batch_size"] / 4)
    batch = by_claim(effects(table.assign(**{"config.optimizer.learning_rate": rate})))
    assert batch["a larger batch raises R(W)", RANK].effect == pytest.approx(8, abs=0.6)


def test_a_sign_change_with_size_is_detected(suite):
    size = np.log2(suite["parameters_non_embedding"] / suite["parameters_non_embedding"].median())
    table = measured(suite, lambda b, d, f: 0 * b, lambda b, d, f: d * (0.3 * size + 0.02))
    results = {d.claim.split(" (")[0]: d for d in effects(table)}[
        "weight decay's effect on loss changes sign with size"
    ]
    assert results.verdict == "agrees"
    assert results.effect == pytest.approx(0.3 * math.log10(50), rel=0.2)
    table = measured(suite, lambda b, d, f: 0 * b, lambda b, d, f: d * (0.3 * size + 3))
    results = {d.claim.split(" (")[0]: d for d in effects(table)}[
        "weight decay's effect on loss changes sign with size"
    ]
    assert results.verdict == "disagrees"


def test_pairs_are_compared_by_seed(suite):
    table = measured(suite, lambda b, d, f: 0 * b, lambda b, d, f: 0 * b)
    noise = np.random.default_rng(1).normal(0, 5, len(table))  # of a seed, the same for both models of a pair
    seed_noise = table["config.init_seed"].map(dict(enumerate(noise[:5])))
    tied = table["config.name"] == "4m-tied"
    table = table.assign(**{RANK: 40 + seed_noise + np.where(tied, 8 + 0.2 * table["config.init_seed"], 0)})
    results = by_claim(effects(table))
    of_tied = results["tied embeddings raise R(W)", RANK]
    assert (of_tied.effect, of_tied.n, of_tied.of) == (pytest.approx(8.2, abs=1e-6), 3, "pairs")
    assert of_tied.high - of_tied.low < 2
    assert of_tied.verdict == "agrees"
    of_twin = results["the rank of Pythia-14M collapses, that of its sequential twin doesn't", RANK]
    assert (of_twin.effect, of_twin.verdict) == (pytest.approx(0, abs=1e-6), "unclear")
    fewer = effects(table[~tied | (table["config.init_seed"] == 0)])
    assert by_claim(fewer)["tied embeddings raise R(W)", RANK].verdict == "untestable"


def test_correlations_are_found_in_the_smallest_size(suite):
    table = measured(suite, lambda b, d, f: 4 * b, lambda b, d, f: 0 * b)
    small = table["config.name"] == "4m"
    harm = np.where(small, -0.01 * table[RANK], 0.01 * table[RANK])
    noise = np.random.default_rng(4).normal(0, 1, len(table))
    table = table.assign(**{
        "gptq_3/in_domain": table[LOSS] + harm, "gptq_3/relative_rise/in_domain": harm,
        "gptq_3_group128/in_domain": table[LOSS] + noise, "gptq_3_group128/relative_rise/in_domain": noise,
    })  # fmt: skip
    results = {d.claim: d for d in effects(table)}
    channel, group = (results[f"GPTQ hurts small models of very low rank, {name}"] for name in
                      ("gptq_3", "gptq_3_group128"))  # fmt: skip
    assert (channel.verdict, channel.n, channel.of) == ("agrees", 18, "configurations")
    assert channel.effect == pytest.approx(-1)
    assert group.verdict == "unclear"
    assert group.low < 0 < group.high


def test_a_gain_of_prediction_is_told_from_none(suite):
    table = measured(suite, lambda b, d, f: 0 * b, lambda b, d, f: 0 * b)
    states = np.random.default_rng(2).normal(0, 1, len(table))
    table = table.assign(**{
        "tokens": table["config.tokens"], "training_flops": table["config.tokens"] * 2.0,
        "final_states/effective_rank_percent": 30 + states, "finetune_code_lr0.001/target": table[LOSS] + 0.3 * states,
    })  # fmt: skip
    results = {d.claim: d for d in effects(table)}
    gain = results["R(H) adds to a prediction of the loss after fine-tuning, finetune_code_lr0.001"]
    assert (gain.verdict, gain.effect > 0.5) == ("agrees", True)
    none = results["the same for the loss after fine-tuning, finetune_code_lr0.001"]
    assert none.verdict == "agrees"
    assert none.effect < 0.02


def test_a_small_model_can_be_low_rank_without_harm(suite):
    claim = "a small model can be low-rank without degrading (the lowest R(W) at no worse a loss)"
    harmless = by_claim(effects(measured(suite, lambda b, d, f: 5 * b, lambda b, d, f: 0 * b)))[claim, RANK]
    assert harmless.verdict == "agrees"
    assert harmless.effect == pytest.approx(-10, abs=1.5)  # batch 32, two doublings below the default
    table = measured(suite, lambda b, d, f: 5 * b, lambda b, d, f: 1.0 * (b < 0))
    assert by_claim(effects(table))[claim, RANK].verdict == "unclear"


def test_the_default_is_found_by_its_settings_not_by_its_replicates(suite):
    table = measured(suite, lambda b, d, f: 5 * b, lambda b, d, f: 0 * b)
    everywhere = pd.concat([table] + [table.assign(run_id=table["run_id"] + f"-{i}") for i in range(4)])
    claim = "a small model can be low-rank without degrading (the lowest R(W) at no worse a loss)"
    assert by_claim(effects(everywhere))[claim, RANK].effect == pytest.approx(-10, abs=1.5)


def test_a_table_of_another_sweep_is_refused(suite):
    table = measured(suite, lambda b, d, f: b, lambda b, d, f: b).assign(**{"config.name": "mine"})
    with pytest.raises(AnalysisError, match="no finished run of 4m"):
        effects(table)


def test_the_markdown_has_one_line_per_claim(suite):
    results = effects(measured(suite, lambda b, d, f: 2 * b, lambda b, d, f: 0 * b))
    lines = as_markdown(results).splitlines()
    assert len(lines) == 2 + len(results)
    assert all(line.count("|") == 8 for line in lines)
    assert lines[-1].endswith("untestable |")
