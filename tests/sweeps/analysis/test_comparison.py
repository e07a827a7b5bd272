import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sweeps.analysis.comparison import COLUMNS, compare
from sweeps.table.columns import AnalysisError

LOSS, RANK, COSINE = "lm_loss/in_domain", "unembedding/effective_rank_percent", "unembedding/mean_cosine"


def sweep(values, seeds=(0, 1), name="a", **everywhere):
    """A table of final rows: `values[column]` is [configurations, seeds]; configurations differ in weight decay."""
    n = len(next(iter(values.values())))
    rows = [
        {
            "run_id": f"{name}-{i}-{seed}",
            "configuration": f"{name}-{i}",
            "step": 9,
            "final": True,
            "diverged_at": pd.NA,
            "config.init_seed": seed,
            "config.data_seed": 0,
            "config.optimizer.weight_decay": float(i),
            **{column: grid[i][j] for column, grid in values.items()},
            **everywhere,
        }
        for i in range(n)
        for j, seed in enumerate(seeds)
    ]
    return pd.DataFrame(rows)


def drawn(n, seeds=2, shift=0.0, seed=0, columns=(LOSS,)):
    rng = np.random.default_rng(seed)
    return {c: 5 + np.arange(n)[:, None] + shift + rng.normal(0, 0.1, (n, seeds)) for c in columns}


def row_of(table, column=LOSS):
    (row,) = table[table["column"] == column].itertuples(index=False)
    return row


def test_comparison_matches_a_paired_test_over_configurations():
    first, second = drawn(8), drawn(8, shift=0.1, seed=1)
    row = row_of(compare(sweep(first), sweep(second, name="b"), unit_of=lambda column: f"unit of {column}"))
    one, other = first[LOSS].mean(axis=1), second[LOSS].mean(axis=1)
    test = stats.ttest_rel(other, one)
    flips = stats.permutation_test(
        (other, one), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=999
    )
    assert row.pairs == 8
    assert (row.first, row.second) == pytest.approx((one.mean(), other.mean()))
    assert row.difference == pytest.approx(np.mean(other - one))
    assert (row.low, row.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert row.p_value == pytest.approx(flips.pvalue)
    assert row.spread == pytest.approx(one.std(ddof=1))
    noise = np.sqrt(np.mean([np.var(pair, ddof=1) for pair in (*first[LOSS], *second[LOSS])]))
    assert row.seed_deviation == pytest.approx(noise)
    assert row.seed_sds == pytest.approx(row.difference / noise)
    assert (row.kind, row.unit, row.note) == ("loss", f"unit of {LOSS}", "")


def test_q_values_are_benjamini_hochberg_over_rows_with_p_values():
    columns = [LOSS, RANK, COSINE, "final_states/isoscore"]
    first, second = drawn(9, columns=columns), drawn(9, shift=0.03, seed=3, columns=columns)
    second[COSINE] = first[COSINE] + 1
    second["final_states/isoscore"] = np.full((9, 2), np.nan)
    table = compare(sweep(first), sweep(second))
    known = table.dropna(subset="p_value")
    assert len(known) == 3 and known["p_value"].nunique() == 3
    assert known["q_value"].to_numpy() == pytest.approx(multipletests(known["p_value"], method="fdr_bh")[1])
    assert np.isnan(row_of(table, "final_states/isoscore").q_value)


def test_equal_seeds_are_compared_with_each_other():
    """The effect of a seed common to both sweeps cancels, and a seed missing in one sweep isn't used."""
    luck = np.array([0.0, 50.0, -20.0])
    one = sweep({LOSS: 5 + np.arange(6)[:, None] + luck[None]}, seeds=(0, 1, 2))
    other = sweep({LOSS: 5.25 + np.arange(6)[:, None] + luck[None, 1:]}, seeds=(1, 2))
    row = row_of(compare(one, other))
    assert (row.difference, row.low, row.high) == pytest.approx((0.25, 0.25, 0.25))
    assert row.first == pytest.approx(5 + 2.5 + luck[1:].mean())


def test_seeds_match_regardless_of_type():
    values = {LOSS: 5 + np.arange(4)[:, None] + np.array([[0.0, 7.0]])}
    other = sweep({LOSS: values[LOSS][:, 1:] + 0.5}, seeds=(1,))
    row = row_of(compare(sweep(values), other.assign(**{"config.init_seed": 1.0})))
    assert row.difference == pytest.approx(0.5)


@pytest.mark.parametrize("lack", [None, "config.init_seed"])
def test_without_common_seeds_means_over_seeds_are_compared(lack):
    first, second = drawn(5, seeds=3), drawn(5, seeds=2, shift=1.0)
    one, other = sweep(first, seeds=(0, 1, 2)), sweep(second, seeds=(3, 4))
    row = row_of(compare(one, other.drop(columns=[lack] if lack else [])))
    assert row.first == pytest.approx(first[LOSS].mean())
    assert row.difference == pytest.approx(second[LOSS].mean() - first[LOSS].mean())


def test_a_seed_that_lacks_the_value_in_one_sweep_is_left_out_of_both():
    luck = np.array([[0.0, 50.0]])
    one = sweep({LOSS: 5 + np.arange(6)[:, None] + luck, RANK: np.ones((6, 2))})
    other = sweep({LOSS: 6 + np.arange(6)[:, None] + luck, RANK: np.ones((6, 2)) * 3})
    other.loc[[0, 5], LOSS] = np.nan  # a seed of the first and one of the third configuration
    other.loc[[2, 3], LOSS] = np.inf  # both of the second
    table = compare(one, other)
    row = row_of(table)
    assert row.pairs == 5
    assert (row.difference, row.low, row.high) == pytest.approx((1, 1, 1))
    assert row_of(table, RANK).pairs == 6


def test_a_mean_over_configurations_needs_every_value():
    one, other = (sweep(drawn(4, shift=s), batch=8).assign(**{"config.data.batch_size": [8, 8, 8, 8, 16, 16, 16, 16]})
                  for s in (0, 1))  # fmt: skip
    assert row_of(compare(one, other, ["data.batch_size"])).difference == pytest.approx(1)
    other.loc[[0, 1], LOSS] = np.nan
    row = row_of(compare(one, other, ["data.batch_size"]))
    assert (row.pairs, row.difference) == (1, pytest.approx(1))


def test_a_mean_over_configurations_counts_each_once():
    """One configuration has three seeds, the other has one."""
    one = sweep({LOSS: [[0.0, 0.0, 0.0], [8.0, 8.0, 8.0]]}, seeds=(0, 1, 2)).head(4)
    other = sweep({LOSS: [[4.0], [6.0]]}, seeds=(0,))
    row = row_of(compare(one, other, []))
    assert (row.first, row.second) == (4.0, 5.0)


def test_swapping_sweeps_negates_differences_and_row_order_is_irrelevant():
    one, other = sweep(drawn(7, columns=(LOSS, RANK))), sweep(drawn(7, seed=5, columns=(LOSS, RANK)), seeds=(1, 2))
    table, swapped = compare(one, other), compare(other, one)
    for name in ("difference", "seed_sds"):
        assert swapped[name].to_numpy() == pytest.approx(-table[name].to_numpy())
    assert swapped["low"].to_numpy() == pytest.approx(-table["high"].to_numpy())
    assert swapped["p_value"].to_numpy() == pytest.approx(table["p_value"].to_numpy())
    shuffled = compare(one.sample(frac=1, random_state=0), other.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(shuffled, table)


def test_only_final_rows_count():
    one, other = sweep(drawn(6)), sweep(drawn(6, shift=1.0))
    early = one.assign(final=False, step=1, **{LOSS: 99.0})
    pd.testing.assert_frame_equal(compare(pd.concat([early, one]), other), compare(one, other))


def test_sampled_sign_flips_approximate_the_exact_p_value():
    """13 pairs are few enough to enumerate all 8,192 sign assignments here."""
    difference = np.random.default_rng(4).normal(0.3, 1, 13)
    one, other = sweep({LOSS: np.zeros((13, 1))}, seeds=(0,)), sweep({LOSS: difference[:, None]}, seeds=(0,))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 13)).reshape(13, -1)
    exact = np.mean(np.abs(difference @ signs) >= abs(difference.sum()) - 1e-12)
    row = row_of(compare(one, other))
    assert 0.05 < exact < 0.95
    assert row.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))
    assert row.p_value == row_of(compare(one, other)).p_value
    certain = sweep({LOSS: np.full((40, 1), 2.0)}, seeds=(0,))
    assert row_of(compare(sweep({LOSS: np.ones((40, 1))}, seeds=(0,)), certain)).p_value == pytest.approx(1e-4)


@pytest.mark.parametrize("n", [6, 20])
def test_intervals_cover_and_p_values_keep_their_level_over_1000_columns(n):
    """The planted difference is 0.5, it varies between configurations, and there are two seeds of each."""
    rng = np.random.default_rng(n)
    columns = [f"layer_{i}/m" for i in range(1000)]

    def table(shift):
        effect, seeds = rng.normal(shift, 0.3, (n, 1, 1000)), rng.normal(0, 0.5, (n, 2, 1000))
        values = pd.DataFrame((effect + seeds).reshape(n * 2, 1000), columns=columns)
        return pd.concat([sweep({LOSS: np.zeros((n, 2))}), values], axis=1)

    result = compare(table(0.0), table(0.5))
    result = result[result["kind"] == "metric"]
    assert 0.93 < ((result["low"] < 0.5) & (result["high"] > 0.5)).mean() < 0.97
    assert result["difference"].mean() == pytest.approx(0.5, abs=0.02)
    assert result["seed_deviation"].mean() == pytest.approx(0.5, rel=0.05)
    null = compare(table(0.0), table(0.0))
    level = (null.loc[null["kind"] == "metric", "p_value"] <= 0.05).mean()
    assert (0.02 if n == 6 else 0.035) < level < 0.065  # of 6, only 2/64 is under it
    assert (null.loc[null["kind"] == "metric", "q_value"] < 0.05).mean() < 0.01


def test_losses_come_before_geometry_and_the_declared_pair_before_all():
    columns = [COSINE, RANK, "gptq_3/in_domain", LOSS, "unembedding_spread/mean_cosine", "lm_loss/standard_error/x"]
    table = compare(*(sweep(drawn(3, seed=s, columns=columns)) for s in (0, 1)))
    assert list(table["column"]) == [LOSS, RANK, "gptq_3/in_domain", COSINE]
    assert list(table["kind"]) == ["loss", "metric", "loss", "metric"]
    assert tuple(table.columns) == COLUMNS


def test_a_column_that_one_sweep_lacks_is_listed():
    one, other = sweep(drawn(6, columns=(LOSS, COSINE))), sweep(drawn(6, columns=(LOSS, "gptq_3/in_domain")))
    table = compare(one, other)
    for column, which in ((COSINE, "first"), ("gptq_3/in_domain", "second")):
        row = row_of(table, column)
        assert (row.pairs, row.note) == (0, f"only the {which} sweep has this column")
        assert np.isnan([row.difference, row.p_value, row.q_value, row.seed_sds]).all()


@pytest.mark.parametrize(
    ("n", "seeds", "note", "missing"),
    [
        (1, 2, "1 pair gives no interval", ["low", "high", "p_value", "q_value", "spread"]),
        (2, 2, "2 pairs allow no p-value under 0.5", []),
        (5, 2, "5 pairs allow no p-value under 0.0625", []),
        (6, 1, "no configuration has replicates", ["seed_sds", "seed_deviation"]),
        (1, 1, "1 pair gives no interval; no configuration has replicates", ["low", "p_value", "seed_sds"]),
    ],
)
def test_undetermined_values_are_missing_with_a_reason(n, seeds, note, missing):
    one, other = (sweep(drawn(n, seeds, s), range(seeds)) for s in (0, 0.3))
    row = row_of(compare(one, other))
    assert row.note == note
    assert row.difference == pytest.approx(0.3)
    always = {"low", "high", "p_value", "q_value", "seed_sds", "seed_deviation", "spread"}
    assert {c for c in always if np.isnan(getattr(row, c))} >= set(missing)
    assert not missing or n == 1 or {c for c in always if np.isnan(getattr(row, c))} == set(missing)


def test_constant_columns_have_p_1_and_missing_columns_a_note():
    columns = {LOSS: np.full((6, 2), 3.0), RANK: np.full((6, 2), np.nan), COSINE: np.full((6, 2), None)}
    table = compare(sweep(columns), sweep(columns))
    row = row_of(table)
    assert (row.difference, row.low, row.high, row.p_value, row.note) == (0, 0, 0, 1, "all replicates are equal")
    assert np.isnan(row.seed_sds)
    for column in (RANK, COSINE):
        assert row_of(table, column).note == "no pair has a value in both sweeps"


def test_tables_without_a_metric_or_a_loss_give_no_rows():
    one = sweep(drawn(3)).drop(columns=LOSS)
    assert compare(one, one).empty
    assert tuple(compare(one, one).columns) == COLUMNS


def test_a_column_of_text_is_refused_by_name():
    one = sweep(drawn(3))
    with pytest.raises(AnalysisError, match=f"column '{LOSS}'.*isn't a number"):
        compare(one, one.assign(**{LOSS: "high"}))
