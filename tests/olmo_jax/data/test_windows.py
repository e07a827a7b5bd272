import itertools
import pickle

import numpy as np
import pytest

from olmo_jax.data import DataError, windows

L = 16


def stream(index, batch_size, count, seed=3, domains=("fable",)):
    """The first `count` windows of training, [count, L + 1]."""
    ds = windows.train_windows(index, domains, L, batch_size, seed)
    return np.concatenate([ds[step] for step in range(count // batch_size)])


def windows_an_epoch(index, domains=("fable",)):
    return (sum(index.shard("train", d).tokens for d in domains) - 1) // L


def test_batches_have_shape_and_dtype(stories):
    batch = windows.train_windows(stories, (), L, 5, 0)[7]
    assert batch.shape == (5, L + 1)
    assert batch.dtype == np.int32


def test_each_token_but_the_first_is_predicted_once_per_epoch(stories):
    for domains in (("fable",), ("news", "fable"), ()):
        tokens = np.concatenate([stories.tokens("train", d) for d in sorted(domains or stories.domains)])
        count = windows_an_epoch(stories, domains or stories.domains)
        windows_NL = stream(stories, 1, count, domains=domains)
        expected = np.stack([tokens[i * L : (i + 1) * L + 1] for i in range(count)])
        np.testing.assert_array_equal(np.unique(windows_NL, axis=0), np.unique(expected, axis=0))
        np.testing.assert_array_equal(np.sort(windows_NL[:, 1:].ravel()), np.sort(tokens[1 : count * L + 1]))


def test_the_stream_is_the_same_for_every_batch_size_and_across_epochs(stories):
    count = 3 * windows_an_epoch(stories) // 24 * 24
    np.testing.assert_array_equal(stream(stories, 4, count), stream(stories, 8, count))
    np.testing.assert_array_equal(stream(stories, 4, count), stream(stories, 3, count))


def test_each_epoch_holds_the_same_windows_in_another_order(stories):
    n = windows_an_epoch(stories)
    windows_NL = stream(stories, 1, 2 * n)
    assert not np.array_equal(windows_NL[:n], windows_NL[n:])
    np.testing.assert_array_equal(np.unique(windows_NL[:n], axis=0), np.unique(windows_NL[n:], axis=0))


def test_a_step_is_a_pure_function_of_seed_and_step(stories):
    ds = windows.train_windows(stories, ("fable",), L, 4, 3)
    late = ds[50]
    np.testing.assert_array_equal(windows.train_windows(stories, ("fable",), L, 4, 3)[50], late)
    assert not np.array_equal(windows.train_windows(stories, ("fable",), L, 4, 4)[50], late)


def test_epochs_of_different_seeds_differ(stories):
    n = windows_an_epoch(stories)
    epochs = [stream(stories, 1, 2 * n, seed=s)[e * n : (e + 1) * n].tobytes() for s in range(3) for e in range(2)]
    assert len(set(epochs)) == 6


def test_the_window_source_pickles_to_a_small_size(stories):
    source = windows._TokenWindows([stories.token_file("train", "fable")], L)
    again = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000
    np.testing.assert_array_equal(again[3], source[3])


def test_the_number_of_epochs_matches_the_token_budget(stories):
    assert windows.epochs(stories, ("fable",), L, 3 * L * windows_an_epoch(stories)) == pytest.approx(3)


def test_too_little_text_and_unknown_domains_are_refused(stories):
    with pytest.raises(DataError, match="fewer than one window"):
        windows.train_windows(stories, ("fable",), 10**6, 4, 0)
    with pytest.raises(DataError, match="no domain 'novel'"):
        windows.train_windows(stories, ("novel",), L, 4, 0)


@pytest.mark.parametrize("lengths", [(1,), (4,), (5, 0, 4, 1, 9), (0,), ()])
def test_evaluation_counts_every_token_once(lengths):
    counter = itertools.count(1)
    documents = [np.array([next(counter) for _ in range(n)], np.uint16) for n in lengths]
    evaluated = windows.evaluation_windows(documents, eos_id=0, sequence_length=4)
    counted = evaluated.weights_NL == 1
    assert evaluated.targets_NL[counted].tolist() == list(range(1, sum(lengths) + 1))
    for i, document in enumerate(documents):
        rows = evaluated.document_N == i
        # A document's inputs are BOS and the document without its last token; nothing of another document.
        assert evaluated.inputs_NL[rows][counted[rows]].tolist() == [0, *document.tolist()][: len(document)]
        assert not evaluated.inputs_NL[rows][~counted[rows]].any()
    assert evaluated.inputs_NL.shape == evaluated.targets_NL.shape == (sum(-(-n // 4) for n in lengths), 4)
    assert (evaluated.inputs_NL.dtype, evaluated.weights_NL.dtype) == (np.int32, np.float32)


def test_validation_documents_are_the_first_ones_cut_at_the_limit(stories):
    everything = [d.tolist() for d in stories.documents("validation", "fable")]
    total = sum(map(len, everything))
    assert [d.tolist() for d in windows.first_documents(stories, "fable", 10**9)] == everything
    some = windows.first_documents(stories, "fable", total // 2)
    assert sum(map(len, some)) == total // 2
    assert np.concatenate(some).tolist() == list(itertools.chain(*everything))[: total // 2]


def test_a_bound_on_each_document_lets_more_documents_in(stories):
    everything = [d.tolist() for d in stories.documents("validation", "fable")]
    most = min(map(len, everything)) + 2
    cut = windows.first_documents(stories, "fable", 10**9, most_per_document=most)
    assert [d.tolist() for d in cut] == [d[:most] for d in everything]
    assert len({len(d) for d in cut}) > 1
    few = windows.first_documents(stories, "fable", 2 * most + 1, most_per_document=most)
    assert sum(map(len, few)) == 2 * most + 1 and len(few) > 2


def test_a_domain_that_is_not_trained_on_can_be_evaluated_whole(stories):
    whole = windows.first_documents(stories, "news", 10**9, splits=("validation", "train"))
    assert len(whole) == sum(stories.shard(s, "news").documents for s in ("train", "validation"))


def test_unigram_loss_of_the_training_text_is_its_entropy(stories):
    tokens = stories.tokens("train", "fable")
    counts = np.bincount(tokens, minlength=stories.vocab_size) + 1
    p = counts / counts.sum()
    expected = -np.mean([np.log(p[t]) for t in tokens])
    assert windows.unigram_loss(stories, ("fable",), [np.asarray(tokens)]) == pytest.approx(expected)
