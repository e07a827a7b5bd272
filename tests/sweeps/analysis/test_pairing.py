import itertools

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.pairing import pair
from sweeps.table.columns import AnalysisError, UnknownColumnError

WD, LR, BATCH, TIED = (
    "config.optimizer.weight_decay",
    "config.optimizer.learning_rate",
    "config.data.batch_size",
    "config.model.tied",
)


def sweep(points, name="run", seeds=(0,), **everywhere):
    """Return a table of final rows: each grid point with the given seeds; settings by short name or by column."""
    columns = {"tied": TIED, "wd": WD, "lr": LR, "batch": BATCH, "width": "config.model.d_model"}
    rows = []
    for i, point in enumerate(points):
        settings = {columns.get(k, k): v for k, v in (everywhere | point).items()}
        for seed in seeds:
            row = {"run_id": f"{name}-{i}-{seed}", "configuration": f"{name}-{i}", "step": 9, "final": True}
            rows.append(row | {"diverged_at": pd.NA, "config.init_seed": seed} | settings)
    return pd.DataFrame(rows)


def grid(**values):
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def together(pairing, column):
    """Return the values of a column in each pair, for the first and the second sweep."""
    first = pairing.first.rows[column].groupby(pairing.first_N).agg(list)
    second = pairing.second.rows[column].groupby(pairing.second_N).agg(list)
    return [(first[i], second[i]) for i in range(pairing.pairs)]


def test_sweeps_that_differ_in_one_setting_pair_at_every_point_of_their_grid():
    points = grid(wd=[0.1, 1.0], batch=[8, 16, 32])
    result = pair(sweep(points, "a", tied=False), sweep(points[::-1], "b", tied=True, seeds=(0, 1)))
    assert result.pairs == 6
    assert result.paired_by == [WD, BATCH]
    assert result.differs == {TIED: ("False", "True")}
    assert result.unpaired == (0, 0)
    assert result.same == result.averaged == 0
    for column in (WD, BATCH):
        assert all(set(one) == set(other) for one, other in together(result, column))
    assert [len(other) for _, other in together(result, WD)] == [2] * 6


def test_names_paths_and_seeds_are_ignored_in_pairing():
    points = grid(wd=[0.1, 1.0])
    places = ("config.name", "config.data.root", "config.probe.every", "config.mesh.member")
    one, other = (sweep(points, n, **dict.fromkeys(places, n), seeds=s) for n, s in (("a", (0, 1)), ("b", (2, 3))))
    result = pair(one, other)
    assert (result.pairs, result.paired_by, result.differs) == (2, [WD], {})


def test_runs_without_a_partner_are_counted():
    result = pair(sweep(grid(wd=[0.1, 0.5, 1.0]), "a", seeds=(0, 1)), sweep(grid(wd=[1.0, 10.0]), "b"))
    assert result.pairs == 1
    assert result.unpaired == (4, 1)
    assert result.apart == [WD]
    assert together(result, WD) == [([1.0, 1.0], [1.0])]


def test_unmatched_values_of_both_sweeps_are_not_paired():
    """0.5 in one and 5.0 in the other are the only ones without a partner; nothing indicates that they correspond."""
    result = pair(sweep(grid(wd=[0.1, 0.5])), sweep(grid(wd=[0.1, 5.0])))
    assert (result.pairs, result.unpaired, result.differs) == (1, (1, 1), {})
    assert result.apart == [WD]


def test_unpaired_runs_that_differ_in_two_settings_list_no_separating_setting():
    one, other = ([{"wd": 0.1, "batch": 8}, {"wd": wd, "batch": b}] for wd, b in ((0.5, 16), (5.0, 32)))
    result = pair(sweep(one), sweep(other), [WD, BATCH])
    assert (result.unpaired, result.apart) == ((1, 1), [])


def test_a_grid_in_one_sweep_pairs_with_a_single_value_in_the_other():
    result = pair(sweep(grid(wd=[0.1, 1.0]), "a", tied=False), sweep([{"wd": 1.0}], "b", tied=True))
    assert (result.pairs, result.paired_by, result.unpaired, result.apart) == (1, [WD], (1, 0), [])
    assert together(result, WD) == [([1.0], [1.0])]


@pytest.mark.parametrize("exponents", [(0.0, 0.5), (0.5, 1.0), (0.0, 1.0)])
def test_a_learning_rate_set_by_another_rule_may_differ_within_pairs(exponents):
    """The rates agree at batch 8 only; all batch sizes are paired nevertheless."""

    def ruled(exponent):
        return [{"batch": b, "lr": 1e-3 * (b / 8) ** exponent, "wd": wd} for b in (8, 32, 128) for wd in (0.1, 1.0)]

    one, other = (sweep(ruled(e), f"rule{e}") for e in exponents)
    for result in (pair(one, other), pair(other, one)):
        assert (result.pairs, set(result.paired_by)) == (6, {WD, BATCH})
        assert list(result.differs) == [LR]
        assert all(set(a) == set(b) for a, b in together(result, BATCH))


def test_several_rule_based_settings_may_differ_within_pairs():
    """Learning rate and weight decay agree at one batch size only; either of them would restrict the pairs to it."""
    one = sweep([{"batch": b, "lr": 1e-3, "wd": 1.0} for b in (8, 16, 32)])
    other = sweep([{"batch": b, "lr": 1e-3 * b / 8, "wd": 8 / b} for b in (8, 16, 32)])
    result = pair(one, other)
    assert (result.pairs, result.paired_by) == (3, [BATCH])
    assert result.differs == {WD: ("1", "0.25, 0.5, 1"), LR: ("0.001", "0.001, 0.002, 0.004")}


def ruled_with_arms(exponent):
    """A reduced suite of paper A: learning rates by a rule of batch size, and multiples of it at the default."""
    points = [{"batch": b, "lr": 1e-3 * (b / 8) ** exponent} for b in (2, 8, 32)]
    return sweep(points + [{"batch": 8, "lr": lr} for lr in (1e-4, 1e-2)], f"rule{exponent}")


def test_settings_that_distinguish_configurations_must_agree_within_pairs():
    result = pair(ruled_with_arms(0.0), ruled_with_arms(0.5))
    assert (result.pairs, result.unpaired) == (3, (2, 2))
    assert all(one == other for one, other in together(result, LR))
    assert result.apart == [LR]


def test_pair_by_overrides_automatic_pairing_and_averages_over_the_rest():
    for name in ("data.batch_size", BATCH):
        result = pair(ruled_with_arms(0.0), ruled_with_arms(0.5), [name])
        assert (result.pairs, result.paired_by, result.unpaired) == (3, [BATCH], (0, 0))
        assert result.averaged == 1
        assert list(result.differs) == [LR]
    assert pair(ruled_with_arms(0.0), ruled_with_arms(0.5), []).pairs == 1
    tables = [sweep(grid(wd=[1.0, wd]), "a", **{"config.name": "x"}) for wd in (2.0, 3.0)]
    assert pair(*tables, ["name"]).pairs == 1


def test_pair_by_an_unknown_name_suggests_the_nearest():
    one, other = sweep(grid(wd=[1.0])), sweep(grid(wd=[1.0])).drop(columns=WD)
    with pytest.raises(UnknownColumnError, match=r"no column 'config.optimizer.weigth_decay'.*weight_decay'"):
        pair(one, one, ["optimizer.weigth_decay"])
    for tables in ((one, other), (other, one)):
        with pytest.raises(UnknownColumnError, match="no column 'config.optimizer.weight_decay'"):
            pair(*tables, [WD])


def test_without_pairs_the_unmatched_settings_are_named():
    one = sweep(grid(wd=[0.1, 1.0], batch=[8, 16]))
    with pytest.raises(AnalysisError, match=r"weight_decay is 0\.1, 1 in the first, 0\.5, 2 in the second; pair_by"):
        pair(one, sweep(grid(wd=[2.0, 0.5], batch=[8, 16])))
    with pytest.raises(AnalysisError, match=r"weight_decay is 0\.1, 1 in the first, 5 in the second; pair_by"):
        pair(one, sweep(grid(wd=[5.0], batch=[8, 16])))
    apart = [{"wd": 0.1, "batch": 8}, {"wd": 0.1, "batch": 16}, {"wd": 1.0, "batch": 8}]
    with pytest.raises(AnalysisError, match="weight_decay, .*batch_size have common values, but no combination"):
        pair(sweep(apart), sweep([{"wd": 1.0, "batch": 16}]))
    many = sweep(grid(wd=[float(i) for i in range(10)]))
    with pytest.raises(AnalysisError, match="0, 1, 2, 3, 4, 5 and 4 more in the first"):
        pair(many, sweep(grid(wd=[-1.0])))


def test_a_varying_setting_of_only_one_table_prevents_pairs():
    """A constant setting is ignored (as of a later version); if it varies, its runs have no partner."""
    one, other = sweep(grid(wd=[0.1, 1.0])), sweep(grid(wd=[0.1, 1.0]), **{"config.model.qk_norm": False})
    assert pair(one, other).pairs == pair(other, one).pairs == 2
    varied = sweep(grid(**{"wd": [0.1, 1.0], "config.model.qk_norm": [False, True]}))
    with pytest.raises(AnalysisError, match="qk_norm is missing in the first, False, True in the second"):
        pair(one, varied)
    assert pair(one, varied, [WD]).averaged == 2


def test_equal_values_pair_regardless_of_type():
    files = "config.data.files"
    one = sweep([{"wd": 1, files: ("a", "b"), "lr": 0.3}, {"wd": 2, files: ("c",), "lr": 0.1}])
    other = sweep([{"wd": 1.0, files: np.array(["a", "b"]), "lr": 0.1 + 0.2}, {"wd": 2.0, files: ["c"], "lr": 0.1}])
    result = pair(one, other)
    assert (result.pairs, result.differs) == (2, {})


def test_missing_settings_pair_with_missing_ones():
    values = [np.nan, 0.1, 1.0]
    result = pair(sweep(grid(wd=values)), sweep(grid(wd=[*values, 2.0])))
    assert (result.pairs, result.unpaired) == (3, (0, 1))


def test_single_configurations_pair_regardless_of_settings():
    result = pair(sweep([{"wd": 0.1, "width": 64}]), sweep([{"wd": 1.0, "width": 128}], seeds=(5, 6)))
    assert (result.pairs, result.paired_by) == (1, [])
    assert result.differs == {WD: ("0.1", "1"), "config.model.d_model": ("64", "128")}


def test_identical_configurations_are_counted():
    one = sweep(grid(wd=[0.1, 1.0]), "a")
    other = sweep(grid(wd=[0.1, 1.0]), "a", seeds=(3,)).assign(configuration=["a-0", "changed"])
    assert pair(one, other).same == 1


def test_indistinguishable_configurations_are_averaged():
    one = sweep([{"wd": 0.1}, {"wd": 0.1}, {"wd": 1.0}])
    result = pair(one, sweep(grid(wd=[0.1, 1.0])))
    assert (result.pairs, result.averaged, result.unpaired) == (2, 1, (0, 0))


def test_diverged_and_unfinished_runs_are_left_out_and_counted():
    one = sweep(grid(wd=[0.1, 0.5, 1.0, 2.0]))
    one["diverged_at"] = pd.array([pd.NA, 3, pd.NA, pd.NA], dtype="Int64")
    one["final"] = [True, True, True, False]
    result = pair(one, sweep(grid(wd=[0.1, 0.5, 1.0, 2.0])))
    assert (result.pairs, result.unpaired) == (2, (0, 2))
    assert (result.first.diverged, result.first.unfinished) == (1, 1)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame(), "the second sweep has no run"),
        (sweep([{"wd": 1.0}]).head(0), "the second sweep has no finished run: 0 diverged, 0 aren't"),
        (sweep([{"wd": 1.0}]).assign(final=False), "second sweep has no finished run: 0 diverged, 1 aren't finished"),
        (sweep([{"wd": 1.0}]).assign(diverged_at=3), "second sweep has no finished run: 1 diverged"),
    ],
)
def test_a_sweep_without_a_finished_run_is_reported(table, words):
    with pytest.raises(AnalysisError, match=words):
        pair(sweep([{"wd": 1.0}]), table)
