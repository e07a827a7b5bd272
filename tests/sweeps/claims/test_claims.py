"""Verdicts on published claims: right on planted effects, with bounded error rates, and honest about lacking runs."""

import collections
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps import cli
from sweeps.analysis.contrast import mean_estimate
from sweeps.analysis.estimate import Estimate
from sweeps.claims import registry
from sweeps.claims.claim import CONTRADICTED, SUPPORTED, UNCLEAR, UNTESTABLE, replicates_needed, verdict, verdict_on
from sweeps.claims.sources.annealing import QUANTISED
from sweeps.claims.sweep import Sweep, read_finished
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import point_config, read_sweep
from sweeps.table import table as tables
from sweeps.verbs import VERBS
from tests.sweeps.studies.paper_a.test_effects import LOSS, RANK, measured, suite_table
from tests.sweeps.studies.paper_b.test_claims import exhaustion, grokking, overfitting_courses, shift_courses, table_of
from tests.sweeps.studies.saturation.test_saturation import planted as planted_hazards

CLAIMS = {claim.id: claim for claim in registry.registered()}
FORGETTING = "finetune_code_lr0.001/forgetting"


def planted(seed, decay=0.0, tokens=0.0, sam=0.0, noise=1.0, seeds=6):
    """Return a table of branches whose relative rise has these effects, in units of the smallest that matters."""
    rng = np.random.default_rng(seed)
    unit = CLAIMS["decay-quantisation"].least
    rows = []
    for s, budget in itertools.product(range(seeds), (1e6, 4e6)):
        for share, rho in ((0, 0), (0.1, 0), (0.5, 0), (0.5, 0.05)):
            value = decay * (share > 0) + tokens * (budget > 1e6) + sam * (rho > 0) + noise * rng.normal()
            rows.append({
                "run_id": f"r{len(rows)}", "trunk": f"t{s}", "step": 10, "final": True, "diverged_at": pd.NA,
                "tokens": budget, "config.optimizer.learning_rate": 1e-3, "config.init_seed": s,
                "config.branch.parent": f"t{s}@5", "config.branch.average_last": int(not share),
                "config.branch.ema": False, "config.branch.start_step": 5,
                "config.optimizer.schedule": "wsd", "config.optimizer.decay_fraction": share,
                "config.optimizer.sam_rho": rho, QUANTISED: 0.05 + unit * value,
            })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("claim", "effects", "expected"),
    [
        ("decay-quantisation", {"decay": 5.0}, SUPPORTED),
        ("decay-quantisation", {"decay": -5.0}, CONTRADICTED),
        ("decay-quantisation", {"noise": 0.2}, CONTRADICTED),  # there is none, and this is precise enough to say so
        ("sam-quantisation", {"sam": -5.0}, SUPPORTED),
        ("tokens-no-quantisation", {"noise": 0.2}, SUPPORTED),
        ("tokens-no-quantisation", {"tokens": 7.0}, CONTRADICTED),
        ("tokens-quantisation", {"tokens": 5.0}, SUPPORTED),
        ("decay-quantisation", {"noise": 8.0}, UNCLEAR),
    ],
)
def test_what_was_planted_in_a_table_comes_back(claim, effects, expected):
    found = [verdict_on(CLAIMS[claim], {"w": Sweep(planted(seed, **effects))}).verdict for seed in range(10)]
    assert found.count(expected) >= 9


def verdicts(claim, effect, noise, seeds=6, draws=2000):
    """Return the shares of verdicts on an effect, in units of the smallest that matters, with this noise of a seed."""
    rng, unit = np.random.default_rng(0), CLAIMS[claim].least
    values = unit * (effect + noise * rng.normal(size=(draws, seeds)))
    counts = collections.Counter(verdict(CLAIMS[claim], mean_estimate(one)) for one in values)
    return {name: count / draws for name, count in counts.items()}


@pytest.mark.parametrize(
    ("claim", "effect", "noise", "expected"),
    [
        ("decay-quantisation", 4.0, 2.0, SUPPORTED),
        ("decay-quantisation", -4.0, 2.0, CONTRADICTED),
        ("decay-quantisation", 0.0, 0.4, CONTRADICTED),
        ("centring", 0.0, 0.4, SUPPORTED),
        ("centring", 5.0, 2.0, CONTRADICTED),
    ],
)
def test_where_power_is_high_the_verdict_is_right(claim, effect, noise, expected):
    assert verdicts(claim, effect, noise)[expected] >= 0.95


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize(("claim", "effect"), [("decay-quantisation", 0.0), ("centring", 1.0), ("centring", -1.5)])
def test_a_false_claim_is_rarely_supported(claim, effect, noise):
    assert verdicts(claim, effect, noise).get(SUPPORTED, 0.0) <= 0.05


def test_an_underpowered_sweep_says_how_many_seeds_would_do():
    found = verdict_on(CLAIMS["decay-quantisation"], {"w": Sweep(planted(0, noise=4.0))})
    assert found.verdict == UNCLEAR
    assert "underpowered for an effect of 0.001 of the loss" in found.note
    assert int(found.note.split(": ")[1].split()[0]) > 6


@pytest.mark.parametrize(("claim", "effect"), [("decay-quantisation", 1.0), ("centring", 0.0)])
def test_so_many_seeds_would_do_in_four_of_five_cases(claim, effect):
    # An estimate of which the spread is exactly that of the noise.
    noise, n = 2.0, 6
    half = stats.t.ppf(0.975, n - 1) * noise / np.sqrt(n) * CLAIMS[claim].least
    count = replicates_needed(CLAIMS[claim], Estimate(0.0, -half, half, 1.0, n))
    assert verdicts(claim, effect, noise, seeds=count)[SUPPORTED] == pytest.approx(0.8, abs=0.04)


def test_replicates_needed_shrink_the_interval_to_what_matters():
    claim = CLAIMS["centring"]
    wide = Estimate(0.0, -0.1, 0.1, 1.0, 5)
    count = replicates_needed(claim, wide)
    assert verdict(claim, wide) == UNCLEAR
    # Width goes with the root of n, and the quantiles shrink a little as well.
    assert 5 * (0.1 / claim.least) ** 2 * 0.5 < count <= 1000 or count == 0
    assert replicates_needed(claim, Estimate(0.0, -10.0, 10.0, 1.0, 5)) == 0


def test_what_a_sweep_lacks_is_named_with_the_command_that_makes_it():
    table = planted(0)
    found = verdict_on(CLAIMS["sam-forgetting"], {"runs/a": Sweep(table)})
    assert found.verdict == UNTESTABLE
    assert "runs/a: no forgetting was measured: set config.evaluation.finetune.targets" in found.note
    assert "`olmo-jax run --config=anneal:cpu` makes the runs" in found.note
    assert "no run has an intervention" in verdict_on(CLAIMS["narrow-head"], {"w": Sweep(table)}).note
    without = table[table["config.optimizer.sam_rho"] == 0]
    assert (
        "no run has end = decay over the last 50 % with SAM"
        in verdict_on(CLAIMS["sam-quantisation"], {"w": Sweep(without)}).note
    )
    short = verdict_on(CLAIMS["decay-quantisation"], {"w": Sweep(table.assign(tokens=1000.0))})
    assert "its runs saw at most 1,000 tokens, and 100,000 are needed" in short.note
    few = verdict_on(CLAIMS["decay-quantisation"], {"w": Sweep(planted(0, seeds=3))})
    assert few.verdict == UNTESTABLE and "3 replicates are too few" in few.note
    assert verdict_on(CLAIMS["centring"], {}).note == "`olmo-jax run --config=do_rank:cpu` makes the runs"


def test_a_table_without_its_sweep_tests_what_needs_no_curves(tmp_path):
    table = planted(0, decay=4.0).assign(**{"texts.train/loss": 1.0, "tokens": 1e7})
    tables.write_table(tmp_path, table)
    sweep = read_finished(tmp_path)
    assert verdict_on(CLAIMS["decay-quantisation"], {"w": sweep}).verdict == SUPPORTED
    assert "no sweep.json" in verdict_on(CLAIMS["dimension-shift"], {"w": sweep}).note


def test_the_sweep_with_most_replicates_decides():
    sweeps = {"few": Sweep(planted(0)), "many": Sweep(planted(1, decay=4.0, seeds=9))}
    found = verdict_on(CLAIMS["decay-quantisation"], sweeps)
    assert found.workdir == "many" and found.estimate.n == 9 and found.verdict == SUPPORTED
    table = planted(0)
    sweeps = {"short": Sweep(table), "long": Sweep(table.assign(tokens=2 * table["tokens"]))}
    assert verdict_on(CLAIMS["decay-quantisation"], sweeps).workdir == "long"


def test_every_claim_is_complete_and_can_be_run():
    for claim in CLAIMS.values():
        assert claim.statement.endswith(".") and "arXiv" in claim.source
        assert claim.direction in (-1, 0, 1, None)
        assert claim.least > 0 or claim.direction is None
    for config in {claim.config for claim in CLAIMS.values()}:
        plan = read_sweep(load_config([f"--config={config}"]))
        tokens = max(point_config(plan, i).tokens for i in range(len(plan.grid)))
        assert tokens >= max(claim.least_tokens for claim in CLAIMS.values() if claim.config == config)
    with pytest.raises(ValueError, match="registered twice"):
        registry.add(__import__("dataclasses").replace(CLAIMS["centring"]))


def test_the_command_lists_claims_and_tests_them_on_working_directories(tmp_path, capsys):
    assert cli.main(["claims", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["claims"]
    assert [one["id"] for one in listed] == [*CLAIMS]
    assert {one["verdict"] for one in listed} == {UNTESTABLE}
    assert all(one["estimate"] is None and one["n"] == 0 for one in listed)
    tables.write_table(tmp_path, planted(0, decay=4.0).assign(**{FORGETTING: 0.1}))
    assert cli.main(["claims", str(tmp_path), f"--to={tmp_path / 'page'}"]) == 0
    out = capsys.readouterr().out
    assert "supported    decay-quantisation (Catalan-Tatjer et al., arXiv 2510.06213)" in out
    record = {one["id"]: one for one in json.loads((tmp_path / "page" / "claims.json").read_text())["claims"]}
    supported = record["decay-quantisation"]
    assert supported["low"] > 0 and supported["n"] == 6 and supported["workdir"] == str(tmp_path)
    assert "| supported |" in (tmp_path / "page" / "claims.md").read_text()
    assert "At equal tokens, decaying" in (tmp_path / "page" / "index.html").read_text()
    assert cli.main(["claims", str(tmp_path / "nowhere")]) == 1
    assert "nowhere holds no results.parquet" in capsys.readouterr().err
    assert VERBS["claims"].example


@pytest.mark.parametrize(
    ("claim", "hazards", "expected"),
    [
        ("parallel-collapses", {"parallel": 4.0}, SUPPORTED),
        ("parallel-collapses", {"parallel": 0.25}, CONTRADICTED),
        ("narrow-collapses", {"width": 0.25}, SUPPORTED),
        ("narrow-saturates", {}, UNTESTABLE),  # no loss turns in these tables
    ],
)
def test_hazards_decide_on_saturation(claim, hazards, expected):
    table = planted_hazards(**hazards).assign(tokens=1e6)
    tested = verdict_on(CLAIMS[claim], {"w": Sweep(table)})
    assert tested.verdict == expected and "olmo-jax run" not in tested.note  # these are the runs that it would make
    few = verdict_on(CLAIMS["narrow-collapses"], {"w": Sweep(planted_hazards(seeds=3).assign(tokens=1e6))})
    assert few.verdict == UNTESTABLE and "olmo-jax run --config=saturation:cpu` makes the runs" in few.note
    assert "isn't a sweep of what makes models saturate" in verdict_on(CLAIMS[claim], {"w": Sweep(planted(0))}).note


@pytest.fixture(scope="module")
def suite():
    return suite_table().assign(tokens=1e6)


def zero(batch, decay, final):
    return 0 * batch


@pytest.mark.parametrize(
    ("claim", "rank", "loss", "expected"),
    [
        ("batch-rank", lambda b, d, f: 2 * b, zero, SUPPORTED),
        ("batch-rank", lambda b, d, f: -2 * b, zero, CONTRADICTED),
        ("batch-loss", zero, lambda b, d, f: 0.2 * b**2, SUPPORTED),
        ("batch-loss", zero, lambda b, d, f: 0.3 * b, CONTRADICTED),
        ("decay-rank", lambda b, d, f: 4 * d, zero, SUPPORTED),
        ("decay-rank", lambda b, d, f: -4 * d, zero, CONTRADICTED),
        ("annealing-rank", lambda b, d, f: 30 * f, zero, SUPPORTED),
        ("annealing-loss", zero, lambda b, d, f: 5 * f, SUPPORTED),
        ("annealing-loss", zero, lambda b, d, f: -5 * f, CONTRADICTED),
        ("low-rank-harmless", lambda b, d, f: 5 * b, lambda b, d, f: 0.4 * b, SUPPORTED),
        ("low-rank-harmless", lambda b, d, f: 5 * b, lambda b, d, f: -0.4 * b + 0.4 * abs(d), CONTRADICTED),
        ("low-rank-harmless", lambda b, d, f: 5 * b, zero, UNCLEAR),  # the noise leaves both open
        ("low-rank-harmless", zero, zero, UNCLEAR),  # no rank is surely lower
        ("rank-loss", lambda b, d, f: 5 * b, lambda b, d, f: -b, SUPPORTED),
        ("rank-loss", lambda b, d, f: 5 * b, lambda b, d, f: b, CONTRADICTED),
    ],
)
def test_the_directions_of_paper_a_are_found_in_its_suite(suite, claim, rank, loss, expected):
    assert verdict_on(CLAIMS[claim], {"w": Sweep(measured(suite, rank, loss))}).verdict == expected


def test_a_change_of_sign_with_size_is_supported_and_a_shift_is_not(suite):
    size = np.log2(suite["parameters_non_embedding"])
    size -= (size.min() + size.max()) / 2
    for slope, offset, expected in ((0.5, 0.0, SUPPORTED), (0.3, 3.0, CONTRADICTED), (0.0, 3.0, CONTRADICTED)):
        table = measured(suite, zero, lambda b, d, f, a=slope, c=offset: d * (a * size + c))
        assert verdict_on(CLAIMS["decay-loss"], {"w": Sweep(table)}).verdict == expected
    # The effect goes to 0 in the largest size, and no further.
    found = [
        verdict_on(CLAIMS["decay-loss"], {"w": Sweep(measured(suite, zero, effect, seed))}).verdict
        for effect in [lambda b, d, f: 0.3 * d * (size - size.max())]
        for seed in range(10)
    ]
    assert found.count(SUPPORTED) <= 1


def test_a_shared_cause_of_any_shape_is_no_relation_given_the_settings(suite):
    table = measured(suite, lambda b, d, f: -3 * b**2, lambda b, d, f: 0.5 * b**2)
    assert verdict_on(CLAIMS["rank-loss"], {"w": Sweep(table)}).verdict == SUPPORTED
    assert verdict_on(CLAIMS["rank-loss-given-settings"], {"w": Sweep(table)}).verdict != SUPPORTED


def test_what_rank_says_beyond_the_settings_is_tested(suite):
    table = measured(suite, zero, zero)
    states = np.random.default_rng(2).normal(0, 1, len(table))
    table = table.assign(**{
        "training_flops": table["config.tokens"] * 2.0, "tokens": table["config.tokens"],
        "final_states/effective_rank_percent": 30 + states, "finetune_code_lr0.001/target": table[LOSS] + 0.3 * states,
        "gptq_3/in_domain": table[LOSS] - 0.2 * table[RANK], "gptq_3/relative_rise/in_domain": -0.01 * table[RANK],
    })  # fmt: skip
    found = {claim: verdict_on(CLAIMS[claim], {"w": Sweep(table)}) for claim in CLAIMS}
    assert found["states-tuning"].verdict == SUPPORTED and found["states-tuning"].estimate.estimate > 0.5
    assert found["rank-tuning"].verdict == found["rank-adds-nothing"].verdict == SUPPORTED
    assert found["rank-gptq-given-settings"].verdict == found["low-rank-gptq"].verdict == SUPPORTED
    assert found["rank-loss-given-settings"].estimate.n == 108
    lacking = verdict_on(CLAIMS["states-tuning"], {"w": Sweep(table.drop(columns="finetune_code_lr0.001/target"))})
    assert "has no loss after fine-tuning: set config.evaluation.finetune.targets" in lacking.note


@pytest.mark.parametrize(("slope", "expected"), [(0.1, SUPPORTED), (-0.1, CONTRADICTED)])
def test_plasticity_is_the_gain_by_fine_tuning(suite, slope, expected):
    table = measured(suite, zero, zero)
    decay = np.log10(table["config.optimizer.weight_decay"])
    noise = 0.01 * np.random.default_rng(0).normal(size=len(table))
    table["lm_loss/code"] = 7 + decay  # a worse base model, whose gain counts
    table["finetune_code_lr0.001/target"] = 6 + decay * (1 - slope) + noise
    assert verdict_on(CLAIMS["decay-plasticity"], {"w": Sweep(table)}).verdict == expected
    without = Sweep(table.drop(columns="lm_loss/code"))
    assert "no domain was scored before and after" in verdict_on(CLAIMS["decay-plasticity"], {"w": without}).note


def low_rank_models(weight, seed=0):
    """Return runs of heads of many ranks whose states' rank moves the loss after fine-tuning with this weight."""
    rng = np.random.default_rng(seed)
    rows = []
    for rank, s in itertools.product((0, *range(4, 64, 4)), range(5)):
        states, loss = rng.normal(), 5 - rank / 100 + 0.02 * rng.normal()
        rows.append({
            "run_id": f"r{len(rows)}", "configuration": f"rank{rank}", "step": 10, "final": True, "diverged_at": pd.NA,
            "tokens": 1e6, "config.model.d_model": 64, "config.init_seed": s, "config.intervention.head_rank": rank,
            LOSS: loss, "final_states/effective_rank_percent": 30 + states,
            "finetune_code_lr0.001/target": loss + weight * states + 0.05 * rng.normal(),
        })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("weight", "expected"), [(0.3, SUPPORTED), (0.0, CONTRADICTED)])
def test_states_count_if_they_say_more_than_the_validation_loss(weight, expected):
    sweep = Sweep(low_rank_models(weight))
    assert verdict_on(CLAIMS["states-beyond-loss"], {"w": sweep}).verdict == expected


@pytest.mark.parametrize(
    ("claim", "corpus", "curves", "courses", "expected"),
    [
        ("grokking", "arithmetic", grokking(), None, SUPPORTED),
        ("grokking", "arithmetic", grokking(drop=-4.0), None, CONTRADICTED),
        ("grokking", "arithmetic", grokking(groks=0), None, UNTESTABLE),
        ("exhaustion", "python_packages", exhaustion(), None, SUPPORTED),
        ("shift", "python_packages", {}, shift_courses(), SUPPORTED),
        ("shift", "python_packages", {}, shift_courses(fine_tuned=0.0), UNCLEAR),
        ("overfitting", "python_packages", {}, overfitting_courses(valley=-50), CONTRADICTED),
    ],
)
def test_local_dimension_is_judged_by_its_study(claim, corpus, curves, courses, expected):
    table = table_of(curves or [f"run{i}" for i in range(8)], corpus).assign(tokens=1e7, **{"texts.train/loss": 1.0})
    sweep = Sweep(table, lambda: curves, lambda: courses)
    found = verdict_on(CLAIMS[f"dimension-{claim}"], {"w": sweep})
    assert found.verdict == expected
    assert found.note
    other = "shift" if claim != "shift" else "grokking"
    assert f"is no experiment on {other}" in verdict_on(CLAIMS[f"dimension-{other}"], {"w": sweep}).note


def test_no_claim_trips_over_the_table_of_another_sweep(suite):
    tables = {
        "branches": planted(0),
        "suite": measured(suite, zero, zero),
        "heads": low_rank_models(0.3),
        "hazards": planted_hazards(),
        "sums": table_of(["run0"], "arithmetic"),
    }
    controls = tables["heads"][tables["heads"]["config.intervention.head_rank"] == 0]
    tables |= {"controls": controls, "unevaluated": tables["suite"].drop(columns=LOSS)}
    tables |= {"one batch": tables["suite"].assign(**{"config.data.batch_size": 8})}
    sweeps = {name: Sweep(table.assign(tokens=1e7)) for name, table in tables.items()}
    for claim in CLAIMS.values():
        notes = {name: verdict_on(claim, {name: sweep}) for name, sweep in sweeps.items()}
        assert all(one.verdict != UNTESTABLE or one.note.startswith(f"{name}: ") for name, one in notes.items())
        assert notes["one batch"].verdict == notes["sums"].verdict == UNTESTABLE


def overtrained(rise, seeds=6):
    """Return branches of four budgets whose loss after fine-tuning falls, and then rises or not."""
    rng = np.random.default_rng(0)
    rows = []
    for s, (i, budget) in itertools.product(range(seeds), enumerate((1e6, 2e6, 4e6, 8e6))):
        table = planted(s, seeds=1)
        row = table[(table["tokens"] == 1e6) & (table["config.optimizer.decay_fraction"] == 0.1)].iloc[0].to_dict()
        value = 4.0 - 0.2 * min(i, 2) + rise * (i == 3) + 0.01 * rng.normal()
        row |= {"run_id": f"{s}-{i}", "trunk": f"t{s}", "config.init_seed": s, "tokens": budget}
        # The rise is at the higher rate only.
        rows.append(row | {"finetune_code_lr0.0001/target": 4.0 - 0.2 * i, "finetune_code_lr0.001/target": value,
                           LOSS: 4.0 - 0.2 * i, "finetune_code_lr0.001/forgetting": 0.2 * i + value - 4.0})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("rise", "expected"), [(0.1, SUPPORTED), (-0.1, CONTRADICTED)])
@pytest.mark.parametrize("claim", ["overtraining-target", "overtraining-old-text"])
def test_overtraining_is_a_rise_at_the_last_budget(claim, rise, expected):
    assert verdict_on(CLAIMS[claim], {"w": Sweep(overtrained(rise))}).verdict == expected
    two = overtrained(rise)
    two = two[two["tokens"] <= 2e6]
    assert "has no fine-tuned branches of 3 budgets" in verdict_on(CLAIMS[claim], {"w": Sweep(two)}).note
