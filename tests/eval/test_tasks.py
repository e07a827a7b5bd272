import collections
import dataclasses
import math

import jax
import numpy as np
import pytest

from eval import tasks
from olmo_jax import model
from olmo_jax.config import ConfigError
from olmo_jax.data import DataError
from olmo_jax.data.sources.task_items import Item
from olmo_jax.data.tokenizer import train_bpe
from tests.olmo_jax.variants import FAMILIES, VARIANTS
from tests.plain import plain

L = 24
MEMBERS = 3


def item(contexts, choices, gold=0):
    if isinstance(contexts, str):
        contexts = (contexts,) * len(choices)
    return Item("0", tuple(contexts), tuple(choices), gold)


ITEMS = [
    item("the cat sat on", (" the mat", " a dog", " the rank of the matrix, surely"), 2),
    item("in", (" we", " the loss is"), 1),
    item(("the cat so the cat", "the dog so the dog"), (" slept",) * 2, 1),  # like WinoGrande
    item("a context that is longer than the window " * 3, (" the mat", " Mädchen", " x"), 0),
    item("short", (" and a continuation that is longer than the window " * 4, " is"), 1),
    item("", ("the cat", " sat"), 0),
    item("Answer: ", ("yes", "no"), 0),
]
SINGLE = [item(i.context, i.choices[:1]) for i in ITEMS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat sat on the mat, the loss is the rank of the matrix"] * 10, 290, "<|endoftext|>")


@pytest.fixture(scope="module")
def stack(tiny):
    return jax.jit(jax.vmap(lambda seed: model.init(tiny.model, jax.random.key(seed))))(
        np.arange(MEMBERS, dtype=np.uint32)
    )


def scored(tiny, stack, items, tokenizer, batch_size=4, length=L):
    rows = tasks.prepare(items, tokenizer, length)
    return rows, tasks.score(tiny.model, stack, rows, batch_size)


def predictions(tokenizer, context, choice, length=L):
    """Return the prefix before each token of a choice, as a separate text, and the token."""
    spaces = context[len(context.rstrip()) :]
    context, choice = tokenizer.encode([context.rstrip(), spaces + choice])
    result = []
    for start in range(0, len(choice), length):
        piece = choice[start : start + length]
        before = np.concatenate([context, choice[:start]])
        before = before[max(0, len(before) + len(piece) - length) :]
        for i, token in enumerate(piece):
            result.append(((tokenizer.eos_id, *before.tolist(), *piece[:i].tolist()), int(token)))
    return result


def one_by_one(config, params, tokenizer, items, length=L):
    """Return the log-likelihood of each choice and whether it is the greedy one, computed one token at a time."""
    pairs = [pair for i in items for pair in zip(i.contexts, i.choices, strict=True)]
    of_choices = [predictions(tokenizer, *pair, length) for pair in pairs]
    texts = sorted({text for of_choice in of_choices for text, _ in of_choice})
    padded = np.array([text + (0,) * (length - len(text)) for text in texts], np.int32)
    logits_NLV = model.apply(config, params, padded).logits_BLV
    log_p = dict(
        zip(texts, jax.nn.log_softmax(logits_NLV[np.arange(len(texts)), [len(t) - 1 for t in texts]]), strict=True)
    )
    return [
        (
            sum(float(log_p[text][token]) for text, token in of_choice),
            all(int(np.argmax(log_p[text])) == token for text, token in of_choice),
        )
        for of_choice in of_choices
    ]


@pytest.mark.parametrize("family", plain([None, *FAMILIES, "learned positions", "gemma3"], None, "gemma3"))
def test_log_likelihoods_equal_scoring_each_choice_separately(tiny, stack, tokenizer, family):
    config = tiny.model
    if family is not None:
        config = dataclasses.replace(VARIANTS[family], vocab_size=300, context_length=L)
        stack = jax.vmap(lambda seed: model.init(config, jax.random.key(seed)))(np.arange(1, dtype=np.uint32))
    rows = tasks.prepare(ITEMS, tokenizer, L)
    scores = tasks.score(config, stack, rows, 4)
    assert scores.greedy_MC is None
    for m in range(len(scores.log_likelihood_MC)):
        params = jax.tree.map(lambda x, m=m: x[m], stack)
        separate = [total for total, _ in one_by_one(config, params, tokenizer, ITEMS)]
        np.testing.assert_allclose(scores.log_likelihood_MC[m], separate, rtol=1e-5)


def test_texts_longer_than_learned_positions_are_an_error(tokenizer):
    config = dataclasses.replace(VARIANTS["learned positions"], vocab_size=300, context_length=L - 1)
    rows = tasks.prepare(ITEMS, tokenizer, L)
    with pytest.raises(
        ConfigError, match=f"context_length = {L - 1}: is the number of learned positions, .* {L} tokens"
    ):
        tasks.score(config, jax.eval_shape(model.init, config, jax.random.key(0)), rows, 4)


def test_task_metrics_match_a_plain_loop(tiny, stack, tokenizer):
    rows, scores = scored(tiny, stack, ITEMS, tokenizer)
    for m, result in enumerate(tasks.metrics(rows, scores)):
        log_likelihoods = iter(scores.log_likelihood_MC[m])
        right = {"accuracy": [], "accuracy_per_token": [], "accuracy_per_character": []}
        bits = []
        for i in ITEMS:
            spaces = len(i.context) - len(i.context.rstrip())
            lengths = np.array([len(c) + spaces for c in i.choices])
            encoded = tokenizer.encode([" " * spaces + c for c in i.choices])
            ll = np.array([next(log_likelihoods) for _ in i.choices])
            for name, of in zip(right, (1, np.array([len(t) for t in encoded]), lengths), strict=True):
                right[name].append(np.argmax(ll / of) == i.gold)
            bits.append(-ll[i.gold] / math.log(2) / (len(i.choices[i.gold].encode()) + spaces))
        for name, values in right.items():
            p, n = np.mean(values), len(ITEMS)
            assert result[name] == pytest.approx(p)
            assert result[f"{name}_standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
        assert result["bits_per_byte"] == pytest.approx(np.mean(bits))
        assert result["bits_per_byte_standard_error"] == pytest.approx(np.std(bits, ddof=1) / math.sqrt(len(bits)))
        assert result["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 1 / 3 + 1 / 2 + 1 / 2 + 1 / 2) / 7)
        assert result["items"] == 7


def test_task_scores_do_not_depend_on_batch_size_or_order(tiny, stack, tokenizer):
    _, scores = scored(tiny, stack, ITEMS, tokenizer)
    for batch_size in (1, 100):
        _, others = scored(tiny, stack, ITEMS, tokenizer, batch_size)
        np.testing.assert_allclose(others.log_likelihood_MC, scores.log_likelihood_MC, rtol=1e-5)
    rows, backwards = scored(tiny, stack, ITEMS[::-1], tokenizer)
    ends = np.cumsum([len(i.choices) for i in ITEMS])
    for k, i in enumerate(ITEMS):
        np.testing.assert_allclose(
            backwards.log_likelihood_MC[:, rows.item_C == len(ITEMS) - 1 - k],
            scores.log_likelihood_MC[:, ends[k] - len(i.choices) : ends[k]],
            rtol=1e-5,
        )


def test_a_single_continuation_is_correct_if_greedy_decoding_yields_it(tiny, stack, tokenizer):
    # The first member's greedy two-token continuation of each context, and continuations that differ from it.
    params = jax.tree.map(lambda x: x[0], stack)
    continuations = []
    for i in SINGLE[:4]:
        (context,) = tokenizer.encode([i.context])
        text = [tokenizer.eos_id, *context[-(L - 2) :]]
        for _ in range(2):
            padded = np.array([text + [0] * (L - len(text))], np.int32)
            text.append(int(np.argmax(model.apply(tiny.model, params, padded).logits_BLV[0, len(text) - 1])))
        continuations.append(tokenizer.decode(text[-2:]))
    items = [item(i.context, (words,)) for i, words in zip(SINGLE, continuations, strict=False)] + SINGLE
    rows, scores = scored(tiny, stack, items, tokenizer)
    result = tasks.metrics(rows, scores)
    for m in range(MEMBERS):
        params = jax.tree.map(lambda x, m=m: x[m], stack)
        separate = one_by_one(tiny.model, params, tokenizer, items)
        np.testing.assert_array_equal(scores.greedy_MC[m], [greedy for _, greedy in separate])
        assert result[m]["accuracy"] == pytest.approx(np.mean([greedy for _, greedy in separate]))
        assert result[m]["nats"] == pytest.approx(-np.mean([total for total, _ in separate]), rel=1e-5)
        assert result[m]["chance"] == 0
        assert "accuracy_per_token" not in result[m]


def with_scores(log_likelihoods, gold):
    """Return rows of items with the given numbers of choices, all of the same length."""
    sizes = [len(of_item) for of_item in log_likelihoods]
    item_C = np.repeat(np.arange(len(sizes)), sizes)
    place_C = np.concatenate([np.arange(n) for n in sizes])
    eight_C = np.full(len(item_C), 8)
    rows = tasks.Rows((), item_C, place_C, eight_C, eight_C, eight_C, np.array(gold))
    return rows, tasks.Scores(np.concatenate(log_likelihoods)[None].astype(float), None)


def test_ties_choose_the_first():
    rows, scores = with_scores([[-2, -2], [-2, -2], [-3, -2, -2]], [0, 1, 1])
    (result,) = tasks.metrics(rows, scores)
    assert result["accuracy"] == result["accuracy_per_token"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_non_finite_scores_are_never_correct(place, bad):
    of_item = [-2.0, -2.0]
    of_item[place] = bad
    rows, scores = with_scores([of_item, [-2, -3]], [0, 0])
    (result,) = tasks.metrics(rows, scores)
    assert all(math.isnan(result[name]) for name in result if name not in ("chance", "items"))


@pytest.mark.parametrize("items", [ITEMS, SINGLE])
def test_nan_of_one_member_leaves_the_others_unchanged(tiny, stack, tokenizer, items):
    broken = jax.tree.map(lambda x: x.at[1].set(np.nan), stack)
    fine = tasks.metrics(*scored(tiny, stack, items, tokenizer))
    result = tasks.metrics(*scored(tiny, broken, items, tokenizer))
    assert [result[m] for m in (0, 2)] == [pytest.approx(fine[m]) for m in (0, 2)]
    assert all(math.isnan(result[1][name]) for name in result[1] if name not in ("chance", "items"))


def test_a_single_item_has_no_standard_error():
    rows, scores = with_scores([[-2, -3]], [0])
    (result,) = tasks.metrics(rows, scores)
    assert result["accuracy"] == 1
    assert math.isnan(result["accuracy_standard_error"])


def test_each_continuation_token_is_predicted_once_from_its_prefix(tokenizer):
    rows = tasks.prepare(ITEMS, tokenizer, L)
    result = collections.defaultdict(list)
    for bucket in rows.buckets:
        assert bucket.tokens_NL.shape[1] <= L
        position_NL = np.asarray(bucket.spans.position_BL)
        for n, place, target, c in zip(bucket.row_P, bucket.place_P, bucket.target_P, bucket.choice_P, strict=True):
            context, end, start = (span_NL[n, place] for span_NL in bucket.spans)
            prefix = [*range(context, end), *range(start, place + 1)]
            assert position_NL[n, prefix].tolist() == list(range(len(prefix)))
            result[c].append((tuple(bucket.tokens_NL[n, prefix].tolist()), int(target)))
    pairs = [pair for i in ITEMS for pair in zip(i.contexts, i.choices, strict=True)]
    for c, (context, choice) in enumerate(pairs):
        # Pieces of a long choice may lie in several rows.
        assert sorted(result[c]) == sorted(predictions(tokenizer, context, choice))
        choice = context[len(context.rstrip()) :] + choice
        assert (rows.characters_C[c], rows.bytes_C[c]) == (len(choice), len(choice.encode()))
        assert rows.tokens_C[c] == len(result[c])


def tokens_read(rows):
    """Count the tokens that aren't padding: a padded place is a separate text of one token that predicts nothing."""
    total = 0
    for bucket in rows.buckets:
        context_NL, end_NL, start_NL = bucket.spans
        place_NL = np.broadcast_to(np.arange(context_NL.shape[1])[None], context_NL.shape)
        alone_NL = (context_NL == end_NL) & (start_NL == place_NL)
        alone_NL[:, :-1] &= start_NL[:, 1:] != place_NL[:, :-1]
        alone_NL[bucket.row_P, bucket.place_P] = False
        total += int((~alone_NL).sum())
    return total


def test_choices_that_fit_into_a_row_share_one_reading_of_the_context(tokenizer):
    words = ("the cat sat on the mat",)
    (context,) = tokenizer.encode(words)
    choices = (" the mat", " a dog", " the loss is the rank")
    read = 1 + len(context) + sum(len(tokens) - 1 for tokens in tokenizer.encode(choices))
    assert tokens_read(tasks.prepare([item(*words, choices)], tokenizer, 128)) == read
    # If the choices of an item exceed a row, the context is read once for each of its rows.
    many = tasks.prepare([item(*words, choices * 20)], tokenizer, 128)
    (bucket,) = many.buckets
    each = read - 1 - len(context)
    assert len(bucket.tokens_NL) == -(-20 * each // (127 - len(context)))
    assert tokens_read(many) == 20 * each + len(bucket.tokens_NL) * (1 + len(context))


def test_rows_are_batched_in_few_shapes_with_little_padding(tokenizer):
    items = [item("the " * n, (" mat" * k, " dog")) for n in range(1, 60) for k in (1, 5, 30)]
    for length, shapes, used in ((24, {24}, 0.7), (128, {128}, 0.8), (300, {128, 256}, 0.8), (1000, {128, 256}, 0.8)):
        rows = tasks.prepare(items, tokenizer, length)
        lengths = [bucket.tokens_NL.shape[1] for bucket in rows.buckets]
        assert len(lengths) == len({*lengths})
        assert {*lengths} <= shapes
        assert np.unique(np.concatenate([b.choice_P for b in rows.buckets])).tolist() == list(range(2 * len(items)))
        assert tokens_read(rows) > used * sum(bucket.tokens_NL.size for bucket in rows.buckets)


def test_an_empty_choice_is_an_error():
    # A tokenizer with a vocabulary of words yields no tokens for unknown text.
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    from olmo_jax.data.tokenizer import Tokenizer

    words = Tokenizer(Backend(models.BPE(vocab={"<e>": 0, "a": 1}, merges=[])), "<e>", "words")
    with pytest.raises(DataError, match="item 0: the tokenizer makes no tokens of 'ß'"):
        tasks.prepare([item("a", ("a", "ß"))], words, L)
