import jax
import jax.numpy as jnp
import numpy as np
import pytest

from olmo_jax import model
from olmo_jax.config import ModelConfig, ProbeConfig
from olmo_jax.probe import choose_documents, make_probe, measure

CONFIG = ModelConfig(vocab_size=50, pad_vocab_to=64, d_model=16, n_layers=1, n_heads=2, d_ff=32)
VOCABULARY = 45
BOS = 0


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCABULARY, size=n) for n in (5, 1, 30, 3, 8, 12, 2)]


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


def roy_and_vetterli(w):
    s = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


def cosine(x):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    together = u @ u.T
    return (together.sum() - np.trace(together)) / (len(u) * (len(u) - 1))


def test_documents_start_with_a_bos_are_cut_and_one_token_is_none(documents):
    chosen = choose_documents(ProbeConfig(documents=4, document_tokens=10), documents, BOS)
    assert chosen.last_N.tolist() == [5, 9, 3, 8]
    assert (chosen.tokens_NL[:, 0] == BOS).all()
    for row, last, document in zip(chosen.tokens_NL, chosen.last_N, [documents[i] for i in (0, 2, 3, 4)], strict=True):
        np.testing.assert_array_equal(row[1 : last + 1], document[:9])


def test_the_unembedding_is_measured_without_the_rows_that_pad_the_vocabulary(params, documents):
    chosen = choose_documents(ProbeConfig(documents=4, document_tokens=10), documents, BOS)
    w = np.array(params["unembedding"])
    found = measure(CONFIG, VOCABULARY, chosen, params)
    assert float(found["unembedding/effective_rank"]) == pytest.approx(roy_and_vetterli(w[:VOCABULARY]), rel=1e-4)
    assert float(found["unembedding/effective_rank_percent"]) == pytest.approx(
        100 / 16 * roy_and_vetterli(w[:VOCABULARY]), rel=1e-4
    )
    fixed = w[:VOCABULARY] - w[:VOCABULARY].mean(axis=0)
    fixed -= fixed.mean(axis=1, keepdims=True)
    assert float(found["unembedding_gauge_fixed/effective_rank"]) == pytest.approx(roy_and_vetterli(fixed), rel=1e-4)
    w[VOCABULARY:] = 1e3
    again = measure(CONFIG, VOCABULARY, chosen, params | {"unembedding": jnp.asarray(w)})
    assert {k: float(v) for k, v in again.items()} == {k: float(v) for k, v in found.items()}


def test_h_is_the_state_of_each_documents_own_last_token(params, documents):
    """As if each document were read alone, without padding."""
    config = ProbeConfig(documents=6, document_tokens=10)
    found = measure(CONFIG, VOCABULARY, choose_documents(config, documents, BOS), params)
    h = []
    for document in (d for d in documents if len(d) > 1):
        alone = np.concatenate([[BOS], document[:9]])[None]
        h.append(np.asarray(model.hidden(CONFIG, params, alone).final_BLD[0, -1], np.float64))
    assert float(found["final_states/effective_rank"]) == pytest.approx(roy_and_vetterli(np.array(h)), rel=1e-3)
    assert float(found["final_states/mean_cosine"]) == pytest.approx(cosine(np.array(h)), rel=1e-3, abs=1e-5)


def test_members_are_measured_each_for_itself(params, documents):
    chosen = choose_documents(ProbeConfig(documents=4, document_tokens=10), documents, BOS)
    others = [model.init(CONFIG, jax.random.key(seed)) for seed in (1, 2)]
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), params, *others)
    together = make_probe(CONFIG, VOCABULARY, chosen)(stack)
    for m, member in enumerate([params, *others]):
        alone = measure(CONFIG, VOCABULARY, chosen, member)
        for name, values_M in together.items():
            np.testing.assert_allclose(values_M[m], alone[name], rtol=1e-4, atol=1e-6)
