import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps import analysis
from sweeps.analysis import Estimate, associations, incremental_r2, partial_spearman, spearman
from sweeps.analysis.association import METHODS
from sweeps.analysis.mixed import mixed_effects
from sweeps.analysis.r2 import baseline_columns


def sweep_table(n=24):
    """Twelve configurations, batch x weight decay, of two seeds each; each run has one row before the final one."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "run_id": [f"run{i}" for i in range(n)],
            "configuration": [f"c{i // 2}" for i in range(n)],
            "final": True,
            "step": 100,
            "parameters_non_embedding": 1000 * (1 + np.arange(n) // 2 % 2),
            "tokens": 6400,
            "diverged_at": pd.array([pd.NA] * n, dtype="Int64"),
            "config.name": [f"name{i}" for i in range(n)],
            "config.init_seed": np.arange(n) % 2,
            "config.data.root": [f"/data/{i}" for i in range(n)],
            "config.data.batch_size": np.arange(n) // 2 % 2 * 24 + 8,
            "config.data.files": [("a", "b")] * n,
            "config.optimizer.weight_decay": np.arange(n) // 4 % 3 * 0.1,
            "config.probe.every": np.arange(n),
            "unembedding/mean_cosine": rng.normal(size=n),
            "unembedding/effective_rank_percent": rng.normal(size=n),
            "final_states/effective_rank": 5.0,
            "lm_loss/in_domain": rng.normal(size=n),
            "round_to_nearest_3/in_domain": rng.normal(size=n),
            "finetune_code_lr0.001/forgetting": [np.nan] * (n - 6) + rng.normal(size=6).tolist(),
            "unigram/in_domain": 6.5,
        }
    )
    return pd.concat([table.assign(final=False, step=50), table], ignore_index=True)


def test_controls_are_the_settings_that_vary():
    assert analysis.controls_of(sweep_table()) == ["config.data.batch_size", "config.optimizer.weight_decay"]


def test_a_setting_that_some_runs_lack_varies_and_its_rows_are_used():
    table = sweep_table().assign(**{"config.clip": np.where(np.arange(48) % 4 < 2, 1.0, np.nan)})
    assert "config.clip" in analysis.controls_of(table)
    assert analysis.controls_of(table.assign(**{"config.clip": np.nan})) == analysis.controls_of(sweep_table())
    declared = associations(table).iloc[:3]
    assert set(declared.n) == {24}
    worded = table.assign(**{"config.clip": table["config.clip"].map({1.0: "on"}).fillna("off")})
    pd.testing.assert_frame_equal(associations(worded).iloc[:3], declared)


def test_columns_of_probe_targets_are_geometry_except_spreads_and_counts():
    metrics = [
        "unembedding/my_metric",
        "unembedding_gauge_fixed/effective_rank",
        "final_states/two_nn",
        "layer_0/mean_cosine",
        "unembedding_centred/mean_cosine",
        "blocks_0.mlp.up/stable_rank",
    ]
    other = ["run_id", "config.model.d_model", "train/loss", "lm_loss/in_domain", "unigram/in_domain"]
    other += ["round_to_nearest_3/in_domain", "finetune_code_lr0.001/forgetting"]
    other += ["final_states_spread/two_nn", "final_states/points", "layer_0/rank_cap", "layer_0_centred/duplicates"]
    mixed = [other[0], metrics[3], *other[1:6], *metrics[4:], *metrics[2::-1], *other[6:]]
    assert sorted(mixed) == sorted(metrics + other)
    assert analysis.geometry_columns(pd.DataFrame(columns=mixed)) == metrics


def test_each_spread_column_belongs_to_its_metric():
    spread = analysis.spread_column("final_states_centred/effective_rank")
    assert spread == "final_states_centred_spread/effective_rank"
    assert analysis.geometry_columns(pd.DataFrame(columns=[spread])) == []


def test_spreads_and_counts_are_not_correlated_and_new_metrics_are():
    known = sweep_table()
    added = {"final_states/points": 128, "final_states_spread/effective_rank": 0.1, "layer_1/my_metric": known.index}
    result = associations(known.assign(**added))
    assert set(result.metric) - set(associations(known).metric) == {"layer_1/my_metric"}


def test_associations_list_every_pair_and_form_with_the_declared_pair_first():
    result = associations(sweep_table())
    assert len(result) == 3 * 3 * 4 + 2
    assert list(dict.fromkeys(result.method)) == list(METHODS)
    assert set(result.metric[result.method == "mixed effects"]) == {
        "unembedding/mean_cosine",
        "unembedding/effective_rank_percent",
    }
    assert not result.duplicated(["metric", "target", "method"]).any()
    assert set(result.target) == {
        "lm_loss/in_domain",
        "round_to_nearest_3/in_domain",
        "finetune_code_lr0.001/forgetting",
    }
    assert tuple(result.loc[0, ["metric", "target"]]) == analysis.PRIMARY_PAIR


def test_associations_equal_single_estimates_with_missing_values():
    table = sweep_table()
    final = table[table.final]
    controls = analysis.controls_of(table)
    single = {
        "raw": lambda m, t: spearman(final, m, t, "configuration"),
        "partial rank": lambda m, t: partial_spearman(final, m, t, controls, "rank", "configuration"),
        "partial factor": lambda m, t: partial_spearman(final, m, t, controls, "factor", "configuration"),
        "incremental R2": lambda m, t: incremental_r2(final, m, t, baseline_columns(final), "configuration"),
        "mixed effects": lambda m, t: mixed_effects(final, m, t, controls),
    }
    for _, row in associations(table).iterrows():
        expected = single[row["method"]](row["metric"], row["target"])
        assert tuple(row[list(Estimate._fields)]) == pytest.approx(tuple(expected), rel=1e-9, nan_ok=True)


def test_notes_accompany_exactly_the_missing_values():
    result = associations(sweep_table())
    missing = result[list(Estimate._fields)].isna().any(axis=1)
    assert ((result.note != "") == missing).all()
    few = result[(result.target == "finetune_code_lr0.001/forgetting") & (result.method == "partial factor")]
    assert few.note.str.contains("too few|same in all rows").all()
    constant = result[(result.metric == "final_states/effective_rank") & (result.n >= 24)]
    assert (constant.note == "the metric is the same in all rows").all()


def test_diverged_and_unfinished_runs_are_left_out_and_counted():
    table = sweep_table()
    table.loc[table.run_id == "run3", "diverged_at"] = 7
    table = table[~(table.final & (table.run_id == "run5"))]
    result = associations(table)
    assert (result.left_out == 2).all()
    assert result.n.max() == 22
    included = analysis.final_rows(table)
    assert (included.diverged, included.unfinished) == (1, 1)
    assert not {"run3", "run5"} & set(included.rows.run_id)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_associations_of_too_few_runs_are_noted(rows):
    result = associations(sweep_table()[lambda t: t.final].head(rows))
    assert result.estimate.isna().all()
    assert (result.note != "").all()


def test_q_values_are_benjamini_hochberg_over_all_but_the_declared_pair():
    result = associations(sweep_table())
    declared = (result.metric == analysis.PRIMARY_PAIR[0]) & (result.target == analysis.PRIMARY_PAIR[1])
    assert declared.sum() == 5 and result.q_value[declared].isna().all() and result.p_value[declared].notna().any()
    rest = result[~declared & result.p_value.notna()].sort_values("p_value")
    rank = np.arange(1, len(rest) + 1)
    by_hand = np.minimum.accumulate((rest.p_value.to_numpy() * len(rest) / rank)[::-1])[::-1]
    assert rest.q_value.to_numpy() == pytest.approx(np.minimum(by_hand, 1))


def test_effects_are_given_in_standard_deviations_over_seeds():
    rng = np.random.default_rng(0)
    rank = np.repeat(rng.normal(size=40), 2)
    loss = 3.0 * rank + np.tile([0.1, -0.1], 40)  # the standard deviation over seeds is .1 sqrt 2
    table = pd.concat([sweep_table(80)[lambda t: t.final]]).assign(
        **{"unembedding/effective_rank_percent": rank, "lm_loss/in_domain": loss}
    )
    result = associations(table).query("metric == @analysis.PRIMARY_PAIR[0] and target == @analysis.PRIMARY_PAIR[1]")
    by_method = result.set_index("method").seed_sds
    assert by_method["raw"] == pytest.approx(3 * rank.std(ddof=1) / (0.1 * 2**0.5), rel=1e-6)
    assert by_method["incremental R2"] == pytest.approx((loss.std() - 0.1) / (0.1 * 2**0.5), rel=0.1)
    without_replicates = associations(table.assign(configuration=table.run_id))
    assert without_replicates.seed_sds.isna().all()


def test_values_with_diverged_runs_are_listed_beside_those_without():
    table = sweep_table()
    assert associations(table).with_diverged.isna().all()
    table.loc[table.run_id == "run3", "diverged_at"] = 7
    lost = table[~(table.final & (table.run_id == "run3"))]
    lost.loc[lost.run_id == "run3", ["unembedding/effective_rank_percent", "lm_loss/in_domain"]] = [100.0, 100.0]
    raw = associations(lost).iloc[0]
    included = lost[lost.final | (lost.run_id == "run3")]
    both = stats.spearmanr(included["unembedding/effective_rank_percent"], included["lm_loss/in_domain"]).statistic
    assert raw.with_diverged == pytest.approx(both)
    assert raw.estimate < raw.with_diverged
