"""Evaluations that can't be done are refused or reported, with the remedy."""

import dataclasses
import pathlib

import pytest

from eval.check import check_evaluation
from eval.config import EvalConfig, QuantizeConfig
from eval.eval_data import EvalData, ModelBatch
from eval.evaluate import Choice, evaluate
from olmo_jax import checkpoint
from olmo_jax.checkpoint import CheckpointError
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import ConfigError, from_config_dict, to_config_dict
from tests.eval.stored import metrics, stored


def test_a_checkpoint_that_mismatches_its_configuration_is_named(cohort, trained, index, config, vary):
    wider = [Run(run.id, vary(run.config, {"model.d_ff": 64})) for run in cohort.runs]
    other = Cohort(shape_of(wider[0].config, index.fingerprint), tuple(wider))
    eval_data = EvalData(trained, dataclasses.replace(other), index, config)
    moved = pathlib.Path(checkpoint.directory(trained, other.folder))
    moved.parent.mkdir(parents=True)
    moved.symlink_to(checkpoint.directory(trained, cohort.folder))
    with pytest.raises(CheckpointError, match=r"blocks_0/mlp/down has shape \(32, 16\), and .* expects \(64, 16\)"):
        ModelBatch(eval_data, (("run0", 12),)).params_M  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize.bits": (9,)}, "quantize.bits = .*needs widths of 2 to 8"),
        ({"quantize.granularity": "group"}, "quantize.group_size = 0: contradicts"),
        ({"quantize.granularity": "group", "quantize.group_size": 7}, "group_size = 7: doesn't divide the 16 inputs"),
        ({"quantize.scopes": ("head",)}, "scopes = 'head': matches no matrix; the matrices are blocks_0/attention/key"),
        ({"quantize.scopes": ("(",)}, "is none of blocks, .* no valid regular expression"),
        (
            {"finetune.targets": ("poetry",)},
            "targets = 'poetry': isn't a domain of the data, which have code, other, prose",
        ),
        ({"finetune.targets": ("task:copa",)}, "targets = 'copa': has no train items; these tasks have: arc_challenge"),
        ({"tasks.names": ("trivia",)}, "tasks.names: task 'trivia' isn't known"),
        ({"perturb.absolute": (0.1,), "perturb.pattern": "w"}, "perturb.pattern = 'w': matches no matrix"),
        ({"perturb.kept_ranks": (0.0,)}, r"kept_ranks = \(0.0,\): needs shares"),
        ({"domains": ("verse",)}, "domains = 'verse': isn't a domain of the data"),
        ({"dynamics.collapse": 1.5}, "collapse = 1.5: needs a share between 0 and 1"),
    ],
)
def test_impossible_evaluations_are_refused_before_training(cohort, index, changes, message):
    values = to_config_dict(EvalConfig())
    values.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        check_evaluation(from_config_dict(EvalConfig, values, "config.evaluation"), cohort, index)


def test_few_calibration_tokens_are_reported_and_raise_the_damping(cohort, index, trained, config, capsys):
    quantize = QuantizeConfig(bits=(4,), methods=("gptq",), calibration_tokens=16, damping=0.0)
    few = dataclasses.replace(config, quantize=quantize)
    assert evaluate(trained, cohort, index, few, lambda job: True, Choice(only=("gptq",)))
    message = capsys.readouterr().err
    assert "calibration has 16 tokens, fewer than the 32 inputs of a matrix" in message
    assert "gptq_4: with damping = 0 the Hessians of" in message
    assert max(of["damping"] for of in stored(trained, "run0", "gptq_4")["matrices"].values()) > 0.009
    assert metrics(trained, "run0", "gptq_4")["macro"] > 0
