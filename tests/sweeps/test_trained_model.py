"""Effects that need a trained model: that of the demo, shallower and trained twice as long."""

import json
import os
import subprocess
import sys

import pytest

CONFIG = """
import dataclasses

from eval.config import EvalConfig, QuantizeConfig
from olmo_jax.config import ProbeConfig, TrainConfig, from_config_dict
from sweeps.configs import demo
from sweeps.planning.plan import sweep_config

def get_config():
    train = from_config_dict(TrainConfig, demo.get_config().train)
    train = dataclasses.replace(
        train,
        tokens=500_000,
        model=dataclasses.replace(train.model, n_layers=2, vocab_size=512),
        data=dataclasses.replace(train.data, batch_size=8, max_epochs=9.0, max_megabytes=1.0, bpe_vocab_size=512),
        probe=ProbeConfig(every=0),
    )
    evaluation = EvalConfig(all_checkpoints=False, quantize=QuantizeConfig(bits=(3,)))
    return sweep_config(train, [{}], evaluation)
"""


@pytest.mark.slow
def test_gptq_at_3_bits_loses_less_than_rounding_to_nearest(tmp_path):
    (tmp_path / "longer.py").write_text(CONFIG)
    fast = os.environ | {"XLA_FLAGS": ""}  # the tests' own flags leave programs unoptimised
    for verb in ("train", "evaluate"):
        command = [verb, f"--config={tmp_path}/longer.py", f"--workdir={tmp_path}/work"]
        done = subprocess.run([sys.executable, "-m", "sweeps.cli", *command], env=fast, capture_output=True, text=True,
                              timeout=600, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
    rounded, gptq = (
        json.loads(next(tmp_path.glob(f"work/runs/*/results/{name}_3@*.json")).read_text())
        for name in ("round_to_nearest", "gptq")
    )
    rise, error = gptq["metrics"]["rise/in_domain"], gptq["metrics"]["rise_standard_error/in_domain"]
    assert rise + 3 * error < rounded["metrics"]["rise/in_domain"]
    for of in gptq["matrices"].values():
        assert of["output"] < of["output_rounded"]
