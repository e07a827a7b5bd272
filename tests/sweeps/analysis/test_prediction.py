import functools

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict

from sweeps.analysis import AnalysisError, UnknownColumnError, prediction
from sweeps.analysis.features import geometry_candidates, setting_features
from sweeps.analysis.folds import out_of_fold, shares, shuffled_folds
from sweeps.analysis.prediction import COLUMNS, IMPORTANCE_COLUMNS, predict, predicted_losses
from sweeps.analysis.regressors import LENGTHS, NOISES_R, PENALTIES_A, boosting, gaussian_process, ridge

LOSS = "lm_loss/in_domain"
RANK = "unembedding/effective_rank_percent"
BATCH, DECAY = "config.data.batch_size", "config.optimizer.weight_decay"


@pytest.fixture
def linear_only(monkeypatch):
    """Use only the linear model, for tests that don't depend on the model."""
    monkeypatch.setattr(prediction, "MODELS", ("linear",))


def sweep(seeds=2, levels=6, seed=0):
    """A grid of two settings, three metrics of noise, and no loss yet."""
    rng = np.random.default_rng(seed)
    cell = np.repeat(np.arange(levels**2), seeds)
    table = pd.DataFrame({"run_id": [f"r{i}" for i in range(len(cell))], "configuration": [f"c{i}" for i in cell]})
    table = table.assign(step=100, final=True, diverged_at=pd.array([pd.NA] * len(cell), dtype="Int64"))
    table[BATCH], table[DECAY] = 8 + cell % levels, 1 + cell // levels / 10
    for metric in (RANK, "unembedding/mean_cosine", "final_states/isoscore"):
        table[metric] = rng.normal(size=len(cell))
    return table


def noise(table, sd=1.0, seed=1):
    return sd * np.random.default_rng(seed).normal(size=len(table))


def unit(column):
    return (column - column.mean()) / column.std()


def by_features(result, model="linear"):
    return result.prediction[result.prediction["model"] == model].set_index("features")


# Known answers.


def test_nonlinear_models_capture_an_interaction_of_settings():
    table = sweep(levels=8)
    table[LOSS] = unit(table[BATCH]) * unit(table[DECAY]) + noise(table, 0.1)
    result = predict(table)
    settings = {model: by_features(result, model).loc["settings"] for model in prediction.MODELS}
    assert settings["gradient boosting"].low > 0.5
    assert settings["Gaussian process"].low > 0.8
    assert settings["linear"].high < 0.2


def test_every_model_detects_the_gain_from_geometry():
    table = sweep()
    table[LOSS] = unit(table[BATCH]) + table[RANK] + noise(table, 0.2)
    result = predict(table)
    for model in prediction.MODELS:
        of = by_features(result, model)
        assert of.loc["geometry's gain"].low > 0.1, model
        assert of.r2["geometry's gain"] == pytest.approx(of.r2["settings and geometry"] - of.r2["settings"])
    assert (result.prediction["n"] == 72).all()
    assert (result.prediction["note"] == "").all()


def test_no_model_gains_from_geometry_that_is_noise():
    table = sweep()
    for i in range(9):
        table[f"unembedding/m{i}"] = noise(table, seed=50 + i)
    table[LOSS] = unit(table[BATCH]) + noise(table, 0.3)
    gain = predict(table).prediction.query('features == "geometry\'s gain"')
    assert (gain["low"] <= 0).all()
    assert (gain["r2"].abs() < 0.1).all()
    left_out = gain["note"] == "the fits leave geometry out"
    assert left_out.any()
    assert (left_out == (gain["r2"] == 0)).all()


def test_folds_never_split_a_configuration():
    table = sweep(seeds=4, levels=5)
    codes = pd.factorize(table["configuration"])[0]
    table[LOSS] = np.random.default_rng(3).normal(size=25)[codes]
    table[RANK] = np.random.default_rng(4).normal(size=25)[codes]
    by_configuration, by_run = predict(table), predict(table, groups="run_id")
    for model in ("gradient boosting", "Gaussian process"):
        assert by_features(by_configuration, model).r2["settings and geometry"] < 0.2
        assert by_features(by_run, model).r2["settings and geometry"] > 0.8  # the same, were folds to split them


def test_permutation_importance_of_a_perfect_predictor_is_two(linear_only):
    # With permuted values, the error is the difference of two draws, with twice the variance.
    table = sweep(seeds=3)
    table[LOSS] = unit(table[BATCH])
    lost = predict(table).importance.set_index("feature")
    assert lost.importance[BATCH] == pytest.approx(2, rel=0.1)
    assert lost.importance["all settings"] == pytest.approx(2, rel=0.1)
    assert lost.low[BATCH] > 1
    assert lost.importance.drop([BATCH, "all settings"]).abs().max() < 0.05


def test_collinear_metrics_share_an_importance_of_two(linear_only):
    table = sweep(seeds=3)
    table["final_states/isoscore"] = table[RANK] + noise(table, 0.05)
    table[LOSS] = table[RANK] + table["final_states/isoscore"]
    lost = predict(table).importance.set_index("feature").importance
    assert lost["all geometry"] == pytest.approx(2, rel=0.1)
    assert abs(lost["all settings"]) < 0.02


# Parts, against scikit-learn.


def made(n=60, k=4, seed=0):
    rng = np.random.default_rng(seed)
    x_NK, groups_N = rng.normal(size=(n, k)), np.arange(n) // 2
    y_NE = np.stack([x_NK[:, 0] + rng.normal(size=n), np.sin(2 * x_NK[:, 1]) + 0.1 * rng.normal(size=n)], axis=1)
    return x_NK, y_NE, groups_N, rng.normal(size=(7, k))


def test_ridge_matches_scikit_learn_grid_search_over_grouped_folds():
    x_NK, y_NE, groups_N, x_MK = made()
    inner = PredefinedSplit(shuffled_folds(groups_N, 4, 1)[0])
    result = ridge(x_NK, y_NE, groups_N, x_MK, n_first=4)
    for e in range(2):
        # The penalty is a share of the rows: as many as each fold's fit has, and all in the last.
        squares = dict.fromkeys(PENALTIES_A, 0.0)
        for train, test in inner.split():
            for a in PENALTIES_A:
                fit = Ridge(alpha=a * len(train)).fit(x_NK[train], y_NE[train, e])
                squares[a] += np.sum((fit.predict(x_NK[test]) - y_NE[test, e]) ** 2)
        best = min(squares, key=squares.get)
        expected = Ridge(alpha=best * len(x_NK)).fit(x_NK, y_NE[:, e]).predict(x_MK)
        assert result[:, e] == pytest.approx(expected, rel=1e-8)


def test_gaussian_process_matches_scikit_learn_at_maximum_likelihood():
    x_NK, y_NE, groups_N, x_MK = made()
    result = gaussian_process(x_NK, y_NE, groups_N, x_MK, n_first=4)
    n = len(x_NK)
    squared = np.sum((x_NK[:, None] - x_NK) ** 2, axis=2).sum() / (n * (n - 1))
    for e in range(2):
        y_N, fits = y_NE[:, e] - y_NE[:, e].mean(), []
        for length in LENGTHS[:-1]:
            for ratio in NOISES_R:
                shape = RBF(length * np.sqrt(squared))
                signal = y_N @ np.linalg.solve(shape(x_NK) + ratio * np.eye(n), y_N) / n
                kernel = signal * shape + WhiteKernel(signal * ratio)
                fits.append(GaussianProcessRegressor(kernel, alpha=0, optimizer=None).fit(x_NK, y_N))
        best = max(fits, key=lambda fit: fit.log_marginal_likelihood_value_)
        assert result[:, e] == pytest.approx(best.predict(x_MK) + y_NE[:, e].mean(), rel=1e-5, abs=1e-7)


def test_boosting_selects_the_same_number_of_trees_as_grid_search():
    x_NK, y_NE, groups_N, x_MK = made(n=60)
    shape = GradientBoostingRegressor(learning_rate=0.3, max_depth=3, min_samples_leaf=3, random_state=0)
    inner = PredefinedSplit(shuffled_folds(groups_N, 3, 1)[0])  # folds of one size, so means of errors order alike
    search = GridSearchCV(shape, {"n_estimators": range(1, 31)}, cv=inner, scoring="neg_mean_squared_error")
    expected = search.fit(x_NK, y_NE[:, 1]).predict(x_MK)
    assert boosting(x_NK, y_NE[:, 1:], groups_N, x_MK, n_first=4)[:, 0] == pytest.approx(expected)


@pytest.mark.parametrize("regress", [ridge, gaussian_process, boosting])
def test_models_fall_back_to_the_first_columns_if_the_rest_is_noise(regress):
    rng = np.random.default_rng(0)
    x_NK = rng.normal(size=(80, 22))
    y_N1 = np.tanh(2 * x_NK[:, :1]) + x_NK[:, 1:2] + 0.1 * rng.normal(size=(80, 1))

    def error(columns, n_first):
        return out_of_fold(functools.partial(regress, n_first=n_first), x_NK[:, :columns], y_N1, np.arange(80), 1).sum()

    separate, apart, together = error(2, 2), error(22, 2), error(22, 22)
    assert apart < 1.05 * separate
    assert together > 1.15 * separate


def test_errors_of_a_barely_penalised_fit_match_linear_r2():
    table = sweep(levels=10)
    table[LOSS] = unit(table[BATCH]) + unit(table[DECAY]) + noise(table)
    x_NK, groups_N = setting_features(table).x_NK, pd.factorize(table["configuration"], sort=True)[0]
    y_N = unit(table[LOSS]).to_numpy()
    error = out_of_fold(functools.partial(ridge, n_first=2), x_NK, y_N[:, None], groups_N, 20)[0].sum()
    folds = map(PredefinedSplit, shuffled_folds(groups_N))
    expected = np.mean([r2_score(y_N, cross_val_predict(LinearRegression(), x_NK, y_N, cv=fold)) for fold in folds])
    assert 1 - error / np.sum((y_N - y_N.mean()) ** 2) == pytest.approx(expected, abs=0.01)


def test_the_interval_is_r2_over_bootstrapped_groups():
    rng = np.random.default_rng(0)
    groups_N = np.repeat(np.arange(20), [1, 3] * 10)
    y_N = rng.normal(size=40)
    guess_N = y_N + 0.5 * rng.normal(size=40)
    drawn = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=60)
    picked = [np.repeat(np.arange(40), counts[groups_N]) for counts in drawn]
    expected = np.quantile([r2_score(y_N[rows], guess_N[rows]) for rows in picked], [0.025, 0.975])
    estimate, low, high = 1 + shares(-((y_N - guess_N) ** 2)[None], y_N, groups_N, 60)[0]
    assert estimate == pytest.approx(r2_score(y_N, guess_N))
    assert (low, high) == pytest.approx(tuple(expected))


# Which columns.


def test_one_loss_of_each_kind_is_predicted():
    names = ["lm_loss/code", LOSS, "lm_loss/macro", "lm_loss/out_of_domain", "round_to_nearest_3/in_domain",
             "gptq_8/in_domain", "gptq_3/in_domain", "gptq_3/macro", "finetune_code_lr0.1/target",
             "finetune_code_best/target", "finetune_code_best/forgetting"]  # fmt: skip
    expected = [LOSS, "lm_loss/out_of_domain", "gptq_3/in_domain", "finetune_code_best/target"]
    assert predicted_losses(pd.DataFrame(columns=names)) == expected
    assert predicted_losses(pd.DataFrame(columns=["lm_loss/macro", "gptq_4/macro"])) == ["lm_loss/macro"]


def test_metrics_are_ordered_to_keep_some_of_every_probe_target():
    names = [f"{t}/{m}" for t in ("final_states", "unembedding") for m in ("b", "a", "effective_rank_percent")]
    assert geometry_candidates([*names, "unembedding_spread/a", "layer_1/a", LOSS]) == [
        RANK, "final_states/effective_rank_percent", "unembedding/a", "final_states/a", "unembedding/b",
        "final_states/b",
    ]  # fmt: skip


def test_text_list_and_missing_settings_are_categories():
    table = sweep()
    table["config.optimizer.schedule"] = ["cosine", "linear", None] * 24
    table["config.data.files"] = [["a"], ["a", "b"]] * 36
    table["config.optimizer.clip"] = [1.0, np.nan, 2.0, 2.0] * 18
    result = setting_features(table)
    widths = dict(zip(result.names, np.bincount(result.owner_K), strict=True))
    assert widths == {BATCH: 1, DECAY: 1, "config.optimizer.schedule": 3, "config.data.files": 2,
                      "config.optimizer.clip": 3}  # fmt: skip
    assert np.isfinite(result.x_NK).all()


def test_equivalent_settings_are_merged():
    table = sweep().assign(tokens=lambda t: 1000 * t[BATCH], parameters_non_embedding=5)
    result = setting_features(table)
    assert result.names == ["tokens", DECAY]
    assert result.note == f"{BATCH} is equivalent to tokens"


def test_constant_duplicate_and_sparse_metrics_are_dropped_and_counted(linear_only):
    table = sweep()
    table["unembedding/effective_rank"] = 0.64 * table[RANK]
    table["unembedding/constant"] = 3.0
    table["unembedding/sparse"] = noise(table)
    table.loc[:20, "unembedding/sparse"] = np.nan
    table.loc[:1, "unembedding/mean_cosine"] = np.nan
    table[LOSS] = noise(table)
    result = predict(table)
    features = set(result.importance["feature"])
    assert features == {BATCH, DECAY, RANK, "unembedding/mean_cosine", "final_states/isoscore", "all settings",
                        "all geometry"}  # fmt: skip
    note = by_features(result).note["settings and geometry"]
    assert "1 (missing in over 20 % of the runs)" in note
    assert "1 (constant), 1 (copies of others)" in note
    assert set(result.prediction["n"]) == {70}


def test_at_most_twelve_metrics_are_used(linear_only):
    table = sweep()
    for i in range(15):
        table[f"unembedding/m{i}"] = noise(table, seed=50 + i)
    table[LOSS] = noise(table)
    result = predict(table)
    assert sum("/" in f for f in result.importance["feature"]) == 12
    assert "6 (beyond the first 12)" in by_features(result).note["settings and geometry"]


def test_targets_with_different_missing_runs_use_their_own_rows(linear_only):
    table = sweep()
    table[LOSS] = table[RANK]
    table["gptq_3/in_domain"] = table[RANK].where(table.index % 3 > 0)
    together = predict(table).prediction
    assert together.groupby("target")["n"].first().to_dict() == {LOSS: 72, "gptq_3/in_domain": 48}
    separate = predict(table, ["gptq_3/in_domain"]).prediction
    pd.testing.assert_frame_equal(together[together["target"] == "gptq_3/in_domain"].reset_index(drop=True), separate)


def test_diverged_and_unfinished_runs_are_left_out(linear_only):
    table = sweep()
    table[LOSS] = unit(table[BATCH]) + noise(table, 0.1)
    expected = predict(table.drop(index=[0, 5])).prediction
    table.loc[0, "diverged_at"] = 7
    table.loc[5, "final"] = False
    table.loc[[0, 5], LOSS] = 1e6
    pd.testing.assert_frame_equal(predict(table).prediction, expected)


# Undetermined values.


def degenerate():
    table = sweep()
    table[LOSS] = unit(table[BATCH]) + noise(table)
    geometry = geometry_candidates(table.columns)
    one = table[table["configuration"] == "c0"]
    return {
        "no finished run": (table.assign(final=False), "no finished run has the target"),
        "no row": (table.iloc[:0], "no finished run has the target"),
        "no value": (table.assign(**{LOSS: np.nan}), "no finished run has the target"),
        "infinite": (table.assign(**{LOSS: np.inf}), "no finished run has the target"),
        "one run": (table.iloc[:1], "fewer than 8 usable runs"),
        "one configuration": (pd.concat([one] * 6), "1 configurations are too few for nested folds, which need 10"),
        "constant loss": (table.assign(**{LOSS: 0.3}), "the target is the same in all runs"),
        "no geometry": (table.drop(columns=geometry), "no geometry metric varies"),
        "geometry missing": (
            table.assign(**dict.fromkeys(geometry, np.nan)),
            "no geometry metric varies; measurements left out: 3 (missing",
        ),
        "12 configurations": (table.iloc[:24], "12 configurations are too few for an interval"),
    }


@pytest.mark.parametrize("case", degenerate())
def test_undetermined_values_are_missing_with_a_reason(case, linear_only):
    table, note = degenerate()[case]
    result = predict(table)
    assert tuple(result.prediction.columns) == COLUMNS
    assert tuple(result.importance.columns) == IMPORTANCE_COLUMNS
    assert list(result.prediction["features"]) == ["settings", "settings and geometry", "geometry's gain"]
    gain = by_features(result).loc["geometry's gain"]
    assert gain.note.startswith(note)
    assert np.isnan(gain.low)
    assert np.isnan(gain.r2) == (case != "12 configurations")


@pytest.mark.parametrize("table", [pd.DataFrame(), sweep()], ids=["no columns", "no loss"])
def test_without_a_loss_the_tables_are_empty_with_their_columns(table):
    result = predict(table)
    assert result.prediction.empty and result.importance.empty
    assert tuple(result.prediction.columns) == COLUMNS
    assert tuple(result.importance.columns) == IMPORTANCE_COLUMNS


def test_without_varying_settings_geometry_is_still_evaluated():
    table = sweep().drop(columns=[BATCH, DECAY])
    table["<b>x</b>"] = table["run_id"]
    table[LOSS] = table[RANK] + noise(table, 0.1)
    result = predict(table)
    for model in prediction.MODELS:
        assert -0.2 < by_features(result, model).r2["settings"] <= 0
        assert by_features(result, model).r2["settings and geometry"] > 0.8
    assert "all settings" not in set(result.importance["feature"])


def test_an_unknown_column_is_an_error_that_names_it():
    table = sweep()
    table[LOSS] = noise(table)
    with pytest.raises(UnknownColumnError, match="in_domian.*did you mean 'lm_loss/in_domain'"):
        predict(table, ["lm_loss/in_domian"])
    with pytest.raises(UnknownColumnError, match="configurations"):
        predict(table, groups="configurations")
    with pytest.raises(AnalysisError, match="run_id"):
        predict(table, ["run_id"])
