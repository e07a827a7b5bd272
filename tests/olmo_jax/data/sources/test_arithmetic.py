"""Equations are correct, each run has its split, and batches are drawn from it with replacement by seed and step."""

import itertools

import numpy as np
import pytest

from olmo_jax.config import ArithmeticConfig, ConfigError, DataConfig, TrainConfig, from_config_dict
from olmo_jax.config.identity import run_id
from olmo_jax.data.prepare import fingerprint, prepare
from olmo_jax.data.sources import arithmetic
from olmo_jax.data.tokenizer import load

OPERATIONS = {
    "add": lambda p, a, b: (a + b) % p,
    "subtract": lambda p, a, b: (a - b) % p,
    "divide": lambda p, a, b: next(c for c in range(p) if c * b % p == a),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("p", [2, 7, 11])
def test_every_pair_has_its_right_answer_once(operation, p):
    equations = arithmetic.equations(ArithmeticConfig(operation, p))
    least = 1 if operation == "divide" else 0
    expected = [(a, p, b, p + 1, OPERATIONS[operation](p, a, b)) for a in range(p) for b in range(least, p)]
    assert equations.tolist() == [list(row) for row in expected]
    assert len(equations) == ArithmeticConfig(operation, p).equations


def test_permutations_multiply_as_composed_maps():
    equations = arithmetic.equations(ArithmeticConfig("permute", 3))
    permutations = list(itertools.permutations(range(3)))
    assert len(equations) == 36
    for a, _, b, _, c in equations:
        assert permutations[c] == tuple(permutations[a][permutations[b][i]] for i in range(3))
    by_pair = {(a, b): c for a, _, b, _, c in equations.tolist()}
    assert any(by_pair[a, b] != by_pair[b, a] for a, b in by_pair)  # S3 isn't commutative
    for a, b, c in itertools.product(range(6), repeat=3):
        assert by_pair[by_pair[a, b], c] == by_pair[a, by_pair[b, c]]


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.93])
def test_equations_are_split_into_training_share_and_validation(fraction):
    config = ArithmeticConfig("add", 13, fraction)
    train, validation = arithmetic.split(config, 5)
    assert len(train) == round(fraction * 169)
    assert sorted([*train, *validation]) == list(range(169))
    again, other = arithmetic.split(config, 5).train, arithmetic.split(config, 6).train
    np.testing.assert_array_equal(train, again)
    assert set(train) != set(other)


def test_a_larger_training_share_contains_the_smaller():
    small, large = (set(arithmetic.split(ArithmeticConfig("add", 13, f), 0).train) for f in (0.2, 0.6))
    assert small < large


def test_batches_are_a_function_of_seed_and_step_drawn_with_replacement():
    config = ArithmeticConfig("add", 5, 0.4)  # ten equations, so that a batch of 64 repeats some
    batches = arithmetic.Batches(config, 64, 3)
    forward = [batches[step].copy() for step in range(200)]
    fresh = arithmetic.Batches(config, 64, 3)
    for step in (199, 0, 64, 63, 130):
        np.testing.assert_array_equal(fresh[step], forward[step])
    drawn = np.concatenate(forward)
    train = arithmetic.split(config, 3).train
    counts = np.array([np.sum(drawn == number) for number in train])
    assert counts.sum() == len(drawn)  # nothing else is drawn
    expected = len(drawn) / len(train)
    assert np.sum((counts - expected) ** 2 / expected) < 27.9  # chi-square of 9 degrees of freedom, p = .001
    assert any((forward[0] != forward[step]).any() for step in (1, 64))
    assert (arithmetic.Batches(config, 64, 4)[0] != forward[0]).any()


@pytest.mark.parametrize("operation, sign, modulus", [("add", "+", 7), ("divide", "/", 7), ("permute", "*", 3)])
def test_prepared_data_decode_to_equations(tmp_path, operation, sign, modulus):
    data = DataConfig(corpus="arithmetic", sequence_length=4, arithmetic=ArithmeticConfig(operation, modulus))
    index = prepare(data, tmp_path, lambda line: None)
    assert index.fingerprint == str(fingerprint(data))
    assert index.vocab_size == data.arithmetic.elements + 3
    documents = list(index.documents("train", arithmetic.DOMAIN))
    np.testing.assert_array_equal(documents, arithmetic.equations(data.arithmetic))
    tokenizer = load(tmp_path / "main" / "tokenizer.json", arithmetic.EOS)
    a, operator, _, equals, _ = tokenizer.decode(documents[5]).split()
    assert (operator, equals) == (sign, "=")
    np.testing.assert_array_equal(tokenizer.encode([tokenizer.decode(documents[5])])[0], documents[5])
    assert a == {"permute": "012"}.get(operation, "0")


def test_the_training_share_changes_the_run_id_and_not_the_data():
    def run(**changes):
        values = {"operation": "add", "modulus": 7} | changes
        data = {"corpus": "arithmetic", "sequence_length": 4, "batch_size": 8, "arithmetic": values}
        model = {"vocab_size": 40, "d_model": 8, "n_heads": 2, "d_ff": 16}
        probe = {"final_states": {"metrics": ()}}
        return from_config_dict(TrainConfig, {"tokens": 3200, "data": data, "model": model, "probe": probe})

    half, less, other = run(), run(train_fraction=0.3), run(modulus=5)
    assert half.data.source == less.data.source != other.data.source
    prints = {str(fingerprint(config.data)) for config in (half, less, other)}
    assert len(prints) == 2
    assert run_id(half, "x") != run_id(less, "x")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"train_fraction": 0.999}, "config.train_fraction = 0.999: trains on 49 of 49 equations"),
        ({"train_fraction": 0.0}, "trains on 0 of 49"),
        ({"train_fraction": 1.5}, "leaves at least one for training and one for validation"),
        ({"operation": "multiply"}, "config.operation = 'multiply': needs one of add"),
        ({"operation": "divide", "modulus": 9}, "config.modulus = 9: isn't prime"),
        ({"modulus": 1}, "config.modulus = 1: needs a whole number from 2"),
        ({"operation": "permute"}, "config.modulus = 7: needs a whole number from 2 to 6"),
    ],
)
def test_invalid_arithmetic_settings_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        from_config_dict(ArithmeticConfig, {"modulus": 7} | changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": {"sequence_length": 8}}, "config.data.sequence_length = 8: must be 4"),
        ({"probe": {"final_states": {"metrics": ("isoscore",)}}}, "config.probe.final_states.metrics"),
    ],
)
def test_run_settings_that_do_not_fit_equations_are_refused(changes, words):
    values = {
        "tokens": 3200,
        "data": {"corpus": "arithmetic", "sequence_length": 4, "batch_size": 8},
        "model": {"vocab_size": 100, "d_model": 8, "n_heads": 2, "d_ff": 16},
        "probe": {"final_states": {"metrics": ()}},
    }
    for section, change in changes.items():
        values[section] = values[section] | change
    with pytest.raises(ConfigError, match=words):
        from_config_dict(TrainConfig, values)
