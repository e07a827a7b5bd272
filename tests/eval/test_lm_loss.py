import jax
import numpy as np
import pytest

from eval.lm_loss import lay_out, lm_loss, read_documents, summary
from olmo_jax import model

L = 16


@pytest.fixture(scope="module")
def stack(tiny):
    seeds = np.arange(3, dtype=np.uint32)
    return jax.vmap(lambda seed: model.init(tiny.model, jax.random.key(seed)))(seeds)


@pytest.fixture(scope="module")
def documents(index):
    return read_documents(index, 400, ("prose", "code"))


def test_the_loss_is_that_of_scoring_documents_one_by_one(tiny, index, stack, documents):
    losses = lm_loss(tiny.model, stack, lay_out(documents, index.eos_id, L), batch_size=8)
    for domain, of_domain in documents.items():
        for m in range(3):
            params = jax.tree.map(lambda x, m=m: x[m], stack)
            nats = count = 0
            for document in of_domain:
                # Windows of L targets without overlap; the first one starts from the BOS.
                before = np.concatenate([[index.eos_id], document[:-1]])
                for start in range(0, len(document), L):
                    inputs, targets = before[start : start + L], document[start : start + L]
                    logits = model.apply(tiny.model, params, inputs[None]).logits_BLV[0]
                    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
                    nats -= log_p[np.arange(len(targets)), targets].sum()
                    count += len(targets)
            assert losses.by_domain[domain][m] == pytest.approx(nats / count, rel=1e-5)
            assert losses.tokens[domain] == count == sum(map(len, of_domain))


def test_the_batch_size_changes_nothing(tiny, index, stack, documents):
    text = lay_out(documents, index.eos_id, L)
    losses = [lm_loss(tiny.model, stack, text, batch_size).by_domain for batch_size in (1, 7, 1000)]
    for domain in documents:
        for other in losses[1:]:
            np.testing.assert_allclose(other[domain], losses[0][domain], rtol=1e-6)


def test_domains_trained_on_are_scored_on_validation_text_alone(index):
    trained = read_documents(index, 10**6, ("prose", "code"))
    for domain in ("prose", "code"):
        assert sum(map(len, trained[domain])) == sum(map(len, index.documents("validation", domain)))
    everything = sum(len(d) for split in ("train", "validation") for d in index.documents(split, "other"))
    assert sum(map(len, trained["other"])) == everything


def test_macro_averages_count_domains_alike_and_set_one_apart():
    losses = {"prose": 2.0, "code": 9.0, "law": 4.0, "verse": 6.0}
    assert summary(losses, ("prose",), "code") == {
        "in_domain": 2.0,
        "out_of_domain": 5.0,
        "macro": 21 / 4,
        **losses,
    }
    assert "out_of_domain" not in summary({"prose": 2.0}, (), "")
