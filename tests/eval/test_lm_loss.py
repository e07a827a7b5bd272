import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from eval.batches import over_batches
from eval.lm_loss import (
    Losses,
    lay_out,
    lm_loss,
    read_bytes,
    read_documents,
    standard_error,
    summary,
    summary_of_errors,
)
from olmo_jax import model
from olmo_jax.data import tokenizer
from olmo_jax.data.shards import ShardWriter, TokenIndex
from olmo_jax.data.windows import evaluation_windows

L = 16


@pytest.fixture(scope="module")
def stack(tiny):
    seeds = np.arange(3, dtype=np.uint32)
    return jax.jit(jax.vmap(lambda seed: model.init(tiny.model, jax.random.key(seed))))(seeds)


@pytest.fixture(scope="module")
def documents(index):
    return read_documents(index, 400, ("prose", "code"))


def test_the_loss_equals_scoring_documents_one_by_one(tiny, index, stack, documents):
    losses = lm_loss(tiny.model, stack, lay_out(documents, index.eos_id, L), batch_size=8)
    for domain, of_domain in documents.items():
        for m in range(3):
            params = jax.tree.map(lambda x, m=m: x[m], stack)
            nats = count = 0
            for document in of_domain:
                # Windows of L targets without overlap; the first one starts at the BOS.
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


def test_documents_of_like_length_share_a_batch_and_few_shapes(tiny, index, stack, monkeypatch):
    """The losses equal those of windows that are all padded to full length."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(1, 9, 100), *rng.integers(9, 17, 20), 64, 64, 50, 3]
    documents = {"notes": [rng.integers(0, index.vocab_size, n).astype(np.int32) for n in rng.permutation(lengths)]}
    text = lay_out(documents, index.eos_id, 64)
    shapes = []

    def recorded(config, call, batches):
        shapes.extend(batch[0].shape for batch in batches)
        return over_batches(config, call, batches)

    monkeypatch.setattr("eval.lm_loss.over_batches", recorded)
    losses = lm_loss(tiny.model, stack, text, 8)
    assert len({*shapes}) <= 4
    assert sum(rows * width for rows, width in shapes) < 0.4 * text.inputs_NL.size
    final_BLD = jax.vmap(lambda params: model.hidden(tiny.model, params, text.inputs_NL).final_BLD)(stack)
    logits = jnp.einsum("mnld,mvd->mnlv", final_BLD, stack["unembedding"])
    hits = jnp.take_along_axis(jax.nn.log_softmax(logits), text.targets_NL[None, ..., None], axis=-1)[..., 0]
    nats_MN = -(np.asarray(hits, np.float64) * text.weights_NL[None]).sum(axis=2)
    expected = [[nats_N[text.document_N == k].sum() for k in range(len(lengths))] for nats_N in nats_MN]
    np.testing.assert_allclose(losses.nats_MK, expected, rtol=1e-6)


def test_training_domains_are_scored_on_validation_text_only(index):
    trained = read_documents(index, 10**6, ("prose", "code"))
    for domain in ("prose", "code"):
        assert sum(map(len, trained[domain])) == sum(map(len, index.documents("validation", domain)))
    everything = sum(len(d) for split in ("train", "validation") for d in index.documents(split, "other"))
    assert sum(map(len, trained["other"])) == everything


def test_macro_averages_weight_domains_equally_and_exclude_the_held_out_domain():
    losses = {"prose": 2.0, "code": 9.0, "law": 4.0, "verse": 6.0}
    assert summary(losses, ("prose",), ("code",)) == {
        "in_domain": 2.0,
        "out_of_domain": 5.0,
        "macro": 21 / 4,
        **losses,
    }
    assert "out_of_domain" not in summary({"prose": 2.0}, (), ())


def test_every_token_of_every_document_is_counted_once(index, documents):
    text = lay_out(documents, index.eos_id, L)
    assert text.weights_NL.sum() == sum(len(d) for of in documents.values() for d in of) == text.tokens_K.sum()
    assert (np.bincount(text.document_N, weights=text.weights_NL.sum(axis=1)) == text.tokens_K).all()


def test_the_order_of_documents_and_domains_changes_nothing(tiny, index, stack, documents):
    turned = {d: documents[d][::-1] for d in reversed(documents)}
    one, other = (lm_loss(tiny.model, stack, lay_out(of, index.eos_id, L), 8) for of in (documents, turned))
    for domain in documents:
        np.testing.assert_allclose(one.by_domain[domain], other.by_domain[domain], rtol=1e-6)
        np.testing.assert_allclose(one.standard_errors()[domain], other.standard_errors()[domain], rtol=1e-5)


def test_bits_per_byte_use_the_byte_count_of_the_text(tiny, index, stack, documents):
    known = tokenizer.of_prepared(index.directory, index.eos_id)
    losses = lm_loss(tiny.model, stack, lay_out(documents, index.eos_id, L, known), 8)
    for domain, of in documents.items():
        size = sum(len(known.decode(document).encode()) for document in of)
        nats = losses.by_domain[domain] * losses.tokens[domain]
        np.testing.assert_allclose(losses.bits_per_byte[domain], nats / np.log(2) / size, rtol=1e-9)


@pytest.mark.parametrize("stored", [True, False])
def test_stored_byte_counts_match_byte_level_tokens(index, documents, stored):
    """Both ways of counting bytes agree on the demo's data, truncated documents included."""
    known = tokenizer.of_prepared(index.directory, index.eos_id)
    older = dataclasses.replace(index, shards=tuple(dataclasses.replace(s, sizes=None) for s in index.shards))
    bytes_K = read_bytes(index if stored else older, documents, ("prose", "code"), known)
    np.testing.assert_array_equal(bytes_K, lay_out(documents, index.eos_id, L, known).bytes_K)
    prose = [document for document in index.documents("validation", "prose") if len(document)]
    assert len(documents["prose"][-1]) < len(prose[len(documents["prose"]) - 1])


TEXTS = ("hello world", "a   <m>   b", "東京 and <m>", "the last one, which is cut")


def prepared(directory, backend, stored=True):
    """Return TEXTS as prepared data of one domain, and the tokenizer."""
    backend.add_special_tokens(["<|endoftext|>"])
    known = tokenizer.Tokenizer(backend, "<|endoftext|>", "")
    with ShardWriter(directory, known.vocab_size, known.eos_id) as writer:
        for text, tokens in zip(TEXTS, known.encode(TEXTS), strict=True):
            writer.add("validation", "prose", tokens, len(text.encode()))
    shards = tuple(dataclasses.replace(s, sizes=s.sizes if stored else None) for s in writer.shards())
    return TokenIndex(directory, writer.dtype, known.vocab_size, known.eos_id, "", "", {}, shards), known


def byte_level(**how):
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(**how), decoders.ByteLevel()
    return backend


def stripping():
    backend = byte_level(add_prefix_space=False)
    backend.add_tokens([AddedToken("<m>", lstrip=True, rstrip=True)])
    return backend


def sentencepiece():
    vocab = {c: i for i, c in enumerate(sorted({"?", "\u2581", *"".join(TEXTS)}))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="?"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


@pytest.mark.parametrize(
    ("backend", "of_tokens"),
    [
        (byte_level, False),
        (stripping, False),
        (sentencepiece, False),
        (lambda: byte_level(add_prefix_space=False), True),
    ],
    ids=["prefix space", "stripping", "sentencepiece", "plain"],
)
def test_byte_counts_are_those_of_the_text_for_any_tokenizer(tmp_path, backend, of_tokens):
    (tmp_path / "older").mkdir()
    index, known = prepared(tmp_path, backend())
    older, _ = prepared(tmp_path / "older", backend(), stored=False)
    sizes = [len(text.encode()) for text in TEXTS]
    every = read_documents(index, 10**6, ())
    np.testing.assert_array_equal(read_bytes(index, every, (), known), sizes)
    np.testing.assert_array_equal(read_bytes(older, every, (), known), sizes if of_tokens else [np.nan] * 4)

    cut = read_documents(index, sum(map(len, every["prose"])) - 10, ())
    bytes_K = read_bytes(index, cut, (), known)
    np.testing.assert_array_equal(bytes_K, [*sizes[:3], sizes[3] - 10 if of_tokens else np.nan])
    # A document with unknown byte count enters neither numerator nor denominator.
    nats_MK = np.array([[1.0, 2.0, 3.0, 4.0]])
    losses = Losses(lay_out(cut, index.eos_id, L, bytes_K=bytes_K), nats_MK)
    n = 4 if of_tokens else 3
    expected = nats_MK[:, :n].sum() / np.log(2) / bytes_K[:n].sum()
    np.testing.assert_allclose(losses.bits_per_byte["prose"], [expected], rtol=1e-12)
    unknown = Losses(lay_out(cut, index.eos_id, L), nats_MK)
    assert np.isnan(unknown.bits_per_byte["prose"]).all()


def test_documents_stored_as_tokens_have_no_byte_counts(tmp_path):
    with ShardWriter(tmp_path, 300, 299) as writer:
        writer.add("validation", "sums", np.array([1, 2, 3]), 0)
    index = TokenIndex(tmp_path, writer.dtype, 300, 299, "", "", {}, writer.shards())
    backend = byte_level()
    backend.add_special_tokens(["<|endoftext|>"])
    bytes_K = read_bytes(index, read_documents(index, 9, ()), (), tokenizer.Tokenizer(backend, "<|endoftext|>", ""))
    assert np.isnan(bytes_K).all()


def test_the_standard_error_matches_a_bootstrap_over_documents():
    rng = np.random.default_rng(0)
    tokens_K = rng.integers(5, 200, 300).astype(float)
    nats_MK = tokens_K * (3 + rng.normal(0, 0.5, (1, 300))) + rng.normal(0, 2, (1, 300))
    drawn = rng.integers(0, 300, (4000, 300))
    bootstrap = np.std(nats_MK[0][drawn].sum(axis=1) / tokens_K[drawn].sum(axis=1))
    assert standard_error(nats_MK, tokens_K)[0] == pytest.approx(bootstrap, rel=0.05)
    equal = standard_error(np.array([[1.0, 2.0, 6.0]]), np.full(3, 1.0))
    assert equal[0] == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    assert np.isnan(standard_error(np.ones((2, 1)), np.ones(1))).all()


def test_a_paired_error_cancels_variation_shared_by_models(tiny, index, stack, documents):
    losses = lm_loss(tiny.model, stack, lay_out(documents, index.eos_id, L), 8)
    paired, unpaired = losses.standard_errors(losses), losses.standard_errors()
    assert all((paired[d] == 0).all() and (unpaired[d] > 0).all() for d in documents)


def test_errors_of_averages_treat_domains_as_independent():
    average_errors = summary_of_errors({"prose": 0.3, "code": 9.0, "law": 0.4}, ("prose", "law"), ("code",))
    assert average_errors["in_domain"] == pytest.approx(0.25)
    assert "out_of_domain" not in average_errors


def test_long_documents_are_split_into_windows_without_overlap():
    inputs_NL, targets_NL, weights_NL, document_N = evaluation_windows([np.arange(1, 8), np.array([9])], 0, 3)
    assert targets_NL.tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 0], [9, 0, 0]]
    assert inputs_NL.tolist() == [[0, 1, 2], [3, 4, 5], [6, 0, 0], [0, 0, 0]]
    assert weights_NL.sum(axis=1).tolist() == [3, 3, 1, 1]
    assert document_N.tolist() == [0, 0, 0, 1]
