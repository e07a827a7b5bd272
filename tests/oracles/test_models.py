"""Our decoder and its conversions against transformers as installed, on random models; `make oracles` runs these."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from olmo_jax import generate, hf, loss, model
from olmo_jax.config.presets import OLMO, OLMO2, PYTHIA
from tests.oracles import models

pytestmark = pytest.mark.oracle

LENGTHS = (1, 2, 7, 33, 128, 512)
CASES = [(family, seed, length) for family in models.FAMILIES for seed, length in enumerate(LENGTHS)]


def imported(reference, folder):
    reference.save_pretrained(folder)
    return hf.import_checkpoint(folder)


@pytest.mark.parametrize(("family", "seed", "length"), CASES)
def test_logits_match_transformers(family, seed, length, tmp_path):
    reference = models.random_model(family, seed)
    config, params = imported(reference, tmp_path / "model")
    tokens = models.random_tokens(reference, seed, length)
    theirs = models.states(reference, tokens)
    assert hf.first_drift(config, params, tokens, theirs, tolerance=2e-4) is None
    ours = np.asarray(model.apply(config, params, tokens).logits_BLV)
    share = np.abs(ours - theirs["logits"]).max() / np.ptp(theirs["logits"])
    print(f"{family} {seed} length {length}: {share:.1e} of the logits' range")
    assert share <= 2e-4


@pytest.mark.parametrize(("family", "seed", "length"), [case for case in CASES if case[2] > 1])
def test_loss_and_gradient_match_transformers(family, seed, length, tmp_path):
    reference = models.random_model(family, seed)
    config, params = imported(reference, tmp_path / "model")
    tokens = models.random_tokens(reference, seed, length)
    theirs, gradient = models.loss_and_gradient(reference, tokens)
    # Their gradient by our names: as if it were the weights.
    save_file({n: np.ascontiguousarray(g) for n, g in gradient.items()}, tmp_path / "model" / "model.safetensors")
    _, expected = hf.import_checkpoint(tmp_path / "model")

    def objective(params):
        final_BLD = model.hidden(config, params, tokens[:, :-1]).final_BLD
        return loss.cross_entropy(final_BLD, model.unembedding(params), tokens[:, 1:]).objective

    ours, our_gradient = jax.jit(jax.value_and_grad(objective))(jax.tree.map(jax.numpy.asarray, params))
    assert float(ours) == pytest.approx(theirs, rel=1e-4)
    pairs = list(zip(jax.tree_util.tree_leaves_with_path(our_gradient), jax.tree.leaves(expected), strict=True))
    largest = max(np.abs(other).max() for _, other in pairs)
    for (path, mine), other in pairs:
        name = jax.tree_util.keystr(path)
        if length == 2 and ("query" in name or "key" in name):
            # A softmax over one key has no gradient. Torch's is the rounding of what cancels, by processor.
            assert not np.any(mine) and np.abs(other).max() <= 1e-6 * largest, name
            continue
        if "key_bias" in name and not config.layers[int(name.split("_")[1].split("'")[0])].rope_theta:
            # Without rotary embedding it adds the same to all scores of a query, so what is there is rounding.
            assert max(np.abs(mine).max(), np.abs(other).max()) <= 1e-6 * largest, name
            continue
        assert np.abs(np.asarray(mine) - other).max() <= 1e-4 * max(np.abs(other).max(), 1e-6), name


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_round_trip_is_bit_equal_and_transformers_loads_it(family, seed, tmp_path):
    import torch
    import transformers

    reference = models.random_model(family, seed)
    config, params = imported(reference, tmp_path / "theirs")
    hf.export_checkpoint(config, params, tmp_path / "ours", shard_bytes=[5e9, 20e3, 5e9][seed])
    opened, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(opened) is type(reference)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = opened.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    again, params_again = hf.import_checkpoint(tmp_path / "ours")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params_again, params)
    tokens = models.random_tokens(reference, seed, 20)
    np.testing.assert_array_equal(models.states(opened, tokens)["logits"], models.states(reference, tokens)["logits"])

    hf.export_checkpoint(config, params, tmp_path / "half", dtype="bfloat16")
    half = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16
    assert all(torch.equal(x, theirs[name].bfloat16()) for name, x in half.state_dict().items())


@pytest.mark.parametrize("preset", [OLMO["4m"], OLMO["1b"], OLMO2["14m"], PYTHIA["14m"], PYTHIA["14m-sequential"]])
def test_models_of_ours_match_in_transformers(preset, tmp_path):
    import transformers

    small = {"vocab_size": 200, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96, "context_length": 64}
    config = dataclasses.replace(preset, **small)
    params = jax.tree.map(lambda x: 3 * x, model.init(config, jax.random.key(0)))
    hf.export_checkpoint(config, params, tmp_path / "ours")
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    tokens = models.random_tokens(opened, 0, 40)
    assert hf.first_drift(config, params, tokens, models.states(opened, tokens)) is None


@pytest.mark.parametrize("family", models.FAMILIES)
def test_cached_greedy_generation_matches_transformers(family, tmp_path):
    import torch

    reference = models.random_model(family, 3, num_hidden_layers=2)
    config, params = imported(reference, tmp_path / "model")
    prompt = models.random_tokens(reference, 0, 9)
    with torch.no_grad():
        said = reference.generate(
            torch.tensor(prompt, dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    ours = generate.generate(config, params, prompt, 64, jax.random.key(0))
    np.testing.assert_array_equal(np.concatenate([prompt, ours], axis=1), said.numpy())


@pytest.mark.parametrize("family", models.FAMILIES)
def test_the_checker_names_the_first_layer_that_differs(family, tmp_path):
    reference = models.random_model(family, 4, num_hidden_layers=3, tie_word_embeddings=False)
    config, params = imported(reference, tmp_path / "model")
    tokens = models.random_tokens(reference, 4, 16)
    theirs = models.states(reference, tokens)
    assert hf.first_drift(config, params, tokens, theirs) is None
    wrong = params | {"blocks_1": params["blocks_1"] | {"mlp": params["blocks_0"]["mlp"]}}
    name, share = hf.first_drift(config, wrong, tokens, theirs)
    assert name == "blocks_1"
    assert share > 2e-4
    assert hf.first_drift(config, params | {"unembedding": params["embedding"]}, tokens, theirs)[0] == "logits"


def test_an_exported_tokenizer_loads_and_gives_the_same_tokens(tmp_path):
    import transformers

    from olmo_jax.data.tokenizer import train_bpe

    tokenizer = train_bpe(["the rank of the matrix", "weights and states"] * 9, 300, "<|endoftext|>")
    tokenizer.save(tmp_path / "tokenizer.json")
    reference = models.random_model("olmo", 0, vocab_size=300)
    config, params = imported(reference, tmp_path / "theirs")
    hf.export_checkpoint(config, params, tmp_path / "ours", tokenizer=tmp_path / "tokenizer.json")
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = "the rank of states\n  and weights é"
    assert opened(text)["input_ids"] == tokenizer.encode([text])[0].tolist()
    assert (opened.eos_token, opened.eos_token_id) == ("<|endoftext|>", tokenizer.eos_id)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").eos_token_id == tokenizer.eos_id


def test_stored_results_match_transformers_on_the_stored_models():
    import transformers

    folders = [folder for folder in models.STORED.iterdir() if folder.is_dir()]
    assert len(folders) == 13
    for folder in folders:
        expected = load_file(folder.with_suffix(".safetensors"))
        opened = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        said = models.states(opened, expected["tokens"])["logits"]
        np.testing.assert_allclose(expected["logits"], said, rtol=1e-4, atol=1e-4)
