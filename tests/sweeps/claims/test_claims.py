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
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import point_config, read_sweep
from sweeps.table import table as tables
from sweeps.verbs import VERBS
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
    found = [verdict_on(CLAIMS[claim], {"w": planted(seed, **effects)}).verdict for seed in range(10)]
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
    found = verdict_on(CLAIMS["decay-quantisation"], {"w": planted(0, noise=4.0)})
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
    found = verdict_on(CLAIMS["sam-forgetting"], {"runs/a": table})
    assert found.verdict == UNTESTABLE
    assert "runs/a: no forgetting was measured: set config.evaluation.finetune.targets" in found.note
    assert "`olmo-jax run --config=anneal:cpu` makes the runs" in found.note
    assert "no run has an intervention" in verdict_on(CLAIMS["narrow-head"], {"w": table}).note
    without = table[table["config.optimizer.sam_rho"] == 0]
    assert (
        "no run has end = decay over the last 50 % with SAM"
        in verdict_on(CLAIMS["sam-quantisation"], {"w": without}).note
    )
    short = verdict_on(CLAIMS["decay-quantisation"], {"w": table.assign(tokens=1000.0)})
    assert "its runs saw at most 1,000 tokens, and 100,000 are needed" in short.note
    few = verdict_on(CLAIMS["decay-quantisation"], {"w": planted(0, seeds=3)})
    assert few.verdict == UNTESTABLE and "3 replicates are too few" in few.note
    assert verdict_on(CLAIMS["centring"], {}).note == "`olmo-jax run --config=do_rank:cpu` makes the runs"


def test_the_sweep_with_most_replicates_decides():
    found = verdict_on(CLAIMS["decay-quantisation"], {"few": planted(0), "many": planted(1, decay=4.0, seeds=9)})
    assert found.workdir == "many" and found.estimate.n == 9 and found.verdict == SUPPORTED


def test_every_claim_is_complete_and_can_be_run():
    for claim in CLAIMS.values():
        assert claim.statement.endswith(".") and "arXiv" in claim.source
        assert claim.least > 0 and claim.direction in (-1, 0, 1)
    for config in {claim.config for claim in CLAIMS.values()}:
        plan = read_sweep(load_config([f"--config={config}"]))
        tokens = point_config(plan, 0).tokens
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
    assert verdict_on(CLAIMS[claim], {"w": table}).verdict == expected
    assert "isn't a sweep of what makes models saturate" in verdict_on(CLAIMS[claim], {"w": planted(0)}).note
