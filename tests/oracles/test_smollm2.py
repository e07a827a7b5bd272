"""SmolLM2-135M, really trained, from its GGUF file: against transformers' own reading of the same file.

OLMO_JAX_ITEMS=100 compares the predictions on as many items of each task; the default is what CI has time for.
"""

import os
import pathlib

import jax
import numpy as np
import pytest

from eval import tasks
from olmo_jax import hf, model
from olmo_jax.data import tokenizer as tokenizers
from olmo_jax.data.sources import task_items
from olmo_jax.hf.families.llama import LLAMA
from olmo_jax.hf.gguf_tokenizer import tokenizer_of
from olmo_jax.hf.layout import our_shapes, their_tensors
from tests.oracles.test_tasks import their_scores

pytestmark = pytest.mark.oracle

ITEMS = int(os.environ.get("OLMO_JAX_ITEMS", "4"))
TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "lambada")
EOS = "<|im_end|>"


@pytest.fixture(scope="module")
def ours(smollm2_file):
    return hf.import_checkpoint(smollm2_file)


@pytest.fixture(scope="module")
def theirs(smollm2_file):
    import transformers

    folder, name = smollm2_file.parent, smollm2_file.name
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).eval()
    return reference, transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)


def test_weights_are_bit_equal_and_logits_agree(ours, theirs):
    import torch

    config, params = ours
    reference, _ = theirs
    state = reference.state_dict()
    tensors = dict(their_tensors(config, params, LLAMA, "float32"))
    assert tensors.keys() == state.keys() - {"lm_head.weight"}  # which is the embedding's
    for name, x in tensors.items():
        np.testing.assert_array_equal(x, state[name].numpy(), err_msg=name)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 200))
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    logits = np.asarray(model.apply(config, params, tokens).logits_BLV)
    share = np.abs(logits - expected).max() / np.ptp(expected)
    print(f"{share:.1e} of the logits' range, {sum(np.prod(s) for s in our_shapes(config).values()):,} parameters")
    assert share <= 1e-5


def test_the_tokenizer_gives_the_same_tokens(smollm2_file, theirs):
    """Of text without digits, which SmolLM2 takes one by one and transformers' reading of GGUF doesn't."""
    from tokenizers import Tokenizer

    rebuilt = Tokenizer.from_str(tokenizer_of(smollm2_file))
    for text in (
        pathlib.Path(model.__file__).read_text(),
        pathlib.Path("README.md").read_text(),
        "été 日本語 😀 don't",
    ):
        words = "".join(c for c in text if not c.isdigit())
        assert (
            rebuilt.encode(words, add_special_tokens=False).ids
            == theirs[1](words, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize("task", TASKS)
def test_predictions_match_transformers(task, ours, theirs, smollm2_file, tmp_path):
    """Both score the tokens of our tokenizer, since transformers' splits numbers otherwise."""
    config, params = ours
    (tmp_path / "tokenizer.json").write_text(tokenizer_of(smollm2_file))
    tokenizer = tokenizers.load(tmp_path / "tokenizer.json", EOS)
    every = task_items.items(task, "validation")
    items = [every[i] for i in np.random.default_rng(0).choice(len(every), ITEMS, replace=False)]
    scores, tokens, characters, greedy = their_scores(theirs[0], _Encoder(tokenizer), items)
    rows = tasks.prepare(items, tokenizer, 512)
    found = tasks.score(config, jax.tree.map(lambda x: x[None], params), rows, batch_size=16)
    print(f"{task}: off by {np.abs(found.log_likelihood_MC[0] - scores).max():.1e} nats of up to {-scores.min():.0f}")
    np.testing.assert_allclose(found.log_likelihood_MC[0], scores, rtol=0, atol=2e-3)
    if found.greedy_MC is not None:
        np.testing.assert_array_equal(found.greedy_MC[0], greedy)
    ends = np.cumsum([len(item.choices) for item in items])[:-1]
    for lengths in (1, tokens, characters):
        expected = [of_item.argmax() for of_item in np.split(scores / lengths, ends)]
        assert [of_item.argmax() for of_item in np.split(found.log_likelihood_MC[0] / lengths, ends)] == expected


class _Encoder:
    """Our tokenizer, called as one of transformers is."""

    def __init__(self, tokenizer):
        self._tokenizer, self.eos_token_id = tokenizer, tokenizer.eos_id

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [int(token) for token in self._tokenizer.encode([text])[0]]}
