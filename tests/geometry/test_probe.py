import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry import isotropy, probe, spectrum
from geometry.gauge import gauge_fix


@pytest.fixture
def registry(monkeypatch):
    """The metrics, put back as they were."""
    monkeypatch.setattr(probe, "METRICS", dict(probe.METRICS))
    return probe.METRICS


def test_every_metric_is_the_library_function_of_that_name(matrices):
    w_VD = matrices["common vector"]
    summary = probe.summarize(w_VD, tuple(probe.METRICS))
    assert list(summary) == list(probe.METRICS)
    s_D = spectrum.singular_values(w_VD)
    for name, value in summary.items():
        assert value.shape == ()
        if name == "effective_rank_percent":
            expected = 100 * spectrum.effective_rank(s_D) / w_VD.shape[1]
        elif hasattr(spectrum, name):
            expected = getattr(spectrum, name)(s_D)
        else:
            expected = getattr(isotropy, name)(w_VD)
        assert float(value) == pytest.approx(float(expected), rel=1e-5), name


def test_the_unembedding_set_is_the_default(matrices):
    assert tuple(probe.summarize(matrices["gaussian"])) == (
        "effective_rank",
        "effective_rank_percent",
        "mean_cosine",
        "partition_isotropy",
    )


def test_inside_jit_and_vmap_and_after_another_transformation(matrices):
    stack = np.stack([matrices["gaussian"], matrices["common vector"]])

    def measure(w):
        return probe.summarize(gauge_fix(w, "layer_norm"), metrics=("effective_rank", "mean_cosine", "isoscore"))

    together = jax.jit(jax.vmap(measure))(stack)
    for i, w_VD in enumerate(stack):
        for name, value in measure(w_VD).items():
            np.testing.assert_allclose(together[name][i], value, rtol=1e-4, atol=1e-7)


def test_spectral_metrics_share_one_decomposition(matrices):
    names = [name for name in probe.METRICS if hasattr(spectrum, name)]
    assert len(names) == 6
    program = jax.jit(functools.partial(probe.summarize, metrics=tuple(names))).lower(matrices["gaussian"]).as_text()
    assert program.count("geqrf_ffi(") == 1
    assert program.count("gesdd_ffi(") == 1


def test_one_compilation_serves_every_matrix_of_a_shape(matrices):
    w_VD = matrices["square"]
    probe.summarize(w_VD, ("stable_rank",))
    compiled = probe._measure._cache_size()
    probe.summarize(2 * w_VD, ["stable_rank"])
    assert probe._measure._cache_size() == compiled


def test_a_decorated_function_is_a_metric(registry, matrices):
    @probe.metric
    def row_norm(measured):
        return jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

    expected = np.linalg.norm(matrices["gaussian"], axis=1).mean()
    assert float(probe.summarize(matrices["gaussian"], ("row_norm",))["row_norm"]) == pytest.approx(expected, rel=1e-5)

    @probe.metric
    def row_norm(measured):  # noqa: F811  a notebook cell, changed and run again
        return 2 * jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

    value = probe.summarize(matrices["gaussian"], ("row_norm",))["row_norm"]
    assert float(value) == pytest.approx(2 * expected, rel=1e-5)


def test_a_name_that_is_taken_is_refused(registry):
    with pytest.raises(ValueError, match="'stable_rank'.*already defined in geometry.probe"):

        @probe.metric
        def stable_rank(measured):
            return jnp.float32(0)


def test_an_unknown_metric_is_refused_with_the_nearest_name(matrices):
    with pytest.raises(ValueError, match="'efective_rank'; the nearest is 'effective_rank'"):
        probe.summarize(matrices["gaussian"], ("efective_rank",))
    with pytest.raises(ValueError, match=r"\('stable_rank',\)"):
        probe.summarize(matrices["gaussian"], "stable_rank")


def test_nan_gives_nan_and_zeros_are_measured(matrices):
    w_VD = matrices["gaussian"].copy()
    w_VD[0, 0] = np.nan
    assert all(np.isnan(value) for value in probe.summarize(w_VD, tuple(probe.METRICS)).values())
    zero = probe.summarize(np.zeros((20, 4)))
    assert float(zero["effective_rank"]) == 0
    assert float(zero["partition_isotropy"]) == pytest.approx(1)
