import dataclasses

import pytest

from olmo_jax.config import ConfigError, TrainConfig, from_config_dict, to_config_dict
from olmo_jax.config.identity import run_id


def build(**sections):
    return from_config_dict(TrainConfig, sections)


def test_the_config_dict_round_trip_keeps_every_field():
    config = dataclasses.replace(TrainConfig(), tokens=123_456_789, init_seed=7)
    assert from_config_dict(TrainConfig, to_config_dict(config)) == config


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"optimizer": {"weigth_decay": 0.1}}, ["config.optimizer", "weigth_decay", "did you mean 'weight_decay'"]),
        ({"modl": {}}, ["modl", "did you mean 'model'"]),
        ({"model": {"d_model": "64"}}, ["config.model.d_model", "'64'", "int", "str"]),
        ({"model": {"d_model": 64.0}}, ["config.model.d_model", "int"]),
        ({"model": {"n_layers": True}}, ["config.model.n_layers", "bool"]),
        ({"model": {"n_layers": 0}}, ["config.model.n_layers", "0", "positive"]),
        ({"model": {"d_ff": -4}}, ["config.model.d_ff", "-4", "positive"]),
        ({"data": {"batch_size": 0}}, ["config.data.batch_size", "positive"]),
        ({"model": {"d_model": 64, "n_heads": 5}}, ["config.model.n_heads", "5", "64", "divisor"]),
        ({"model": {"d_model": 6, "n_heads": 2}}, ["config.model.n_heads", "even"]),
        ({"model": {"compute_dtype": "float16"}}, ["config.model.compute_dtype", "bfloat16"]),
        (
            {"optimizer": {"schedule": "wsd", "decay_fraction": 1e-9}},
            ["config.optimizer.decay_fraction", "leaves none of", "raise it", "0 for a rate that stays"],
        ),
        ({"optimizer": {"decay_fraction": 0.2}}, ["config.optimizer.decay_fraction", "schedule = 'wsd'"]),
        ({"optimizer": {"muon_beta": 0.9}}, ["config.optimizer.muon_beta", "name = 'muon'"]),
        ({"optimizer": {"sam_rho": -0.1}}, ["config.optimizer.sam_rho", "0 or more"]),
        ({"optimizer": {"name": "sgd"}}, ["config.optimizer.name", "adamw, muon"]),
        ({"optimizer": {"learning_rate": float("nan")}}, ["config.optimizer.learning_rate", "finite"]),
        ({"optimizer": {"learning_rate": 10**400}}, ["config.optimizer.learning_rate", "finite"]),
        ({"optimizer": {"final_fraction": 10}}, ["config.optimizer.final_fraction", "[0, 1]"]),
        ({"data": {"train_domains": "prose"}}, ["config.data.train_domains", "tuple"]),
        ({"tokens": 1}, ["config.tokens", "less than one step"]),
        ({"init_seed": -1}, ["config.init_seed", "-1"]),
        ({"data": {"corpus": "text_files"}}, ["config.data.files", "path or glob"]),
        ({"model": {"vocab_size": 300}}, ["config.model.vocab_size", "300", "4096", "outside the vocabulary"]),
    ],
)
def test_bad_values_are_refused_with_key_value_and_remedy(sections, words):
    with pytest.raises(ConfigError) as error:
        build(**sections)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_run_ids_depend_on_identity_fields_only(vary):
    base = TrainConfig()
    same = vary(base, {"probe.every": 7, "checkpoint.every": 3, "mesh.data": 2, "data.root": "x", "tensorboard": True})
    assert run_id(same, "print") == run_id(base, "print")
    for key, value in {
        "optimizer.weight_decay": 0.2,
        "model.rope_theta": 5e5,
        "data.batch_size": 64,
        "data_seed": 1,
        "init_seed": 1,
        "tokens": 10**9,
    }.items():
        assert run_id(vary(base, {key: value}), "print") != run_id(base, "print"), key
    assert run_id(base, "other print") != run_id(base, "print")
