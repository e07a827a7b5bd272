"""The study of real models, on a small Llama in place of one."""

import numpy as np
import pandas as pd
import pytest

from olmo_jax.config import ConfigError
from sweeps import cli
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import read_sweep
from sweeps.studies.real_models.real_models import TASKS


def test_the_parts_are_valid_and_measure_what_they_say():
    paper_a = read_sweep(load_config(["--config=real_models"])).evaluation
    assert paper_a.quantize.bits == (8, 4, 3)
    assert (paper_a.tasks.names, paper_a.tasks.most_items) == (TASKS, 500)
    finetune = read_sweep(load_config(["--config=real_models:finetune"])).evaluation
    assert finetune.finetune.targets == ("code",)
    assert len(finetune.finetune.seeds) == 3
    with pytest.raises(ConfigError, match=r"no argument 'x'; use paper_a, finetune"):
        load_config(["--config=real_models:x"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "columns"),
    [
        ("paper_a", ["gptq_3/in_domain", "noise_relative_0.1/in_domain", "truncation_0.5/in_domain",
                     "task_piqa/accuracy", "unembedding_gauge_fixed/effective_rank_percent",
                     "blocks_0.mlp.up/stable_rank"]),
        ("finetune", ["finetune_code_lr0.0002/geometry/final_states.code/local_two_nn",
                      "final_states.prose/local_two_nn"]),
    ],
)  # fmt: skip
def test_each_part_runs_on_an_imported_model(part, columns, small_llama, tmp_path):
    work = tmp_path / "work"
    assert (
        cli.main(["import", str(small_llama), f"--config=real_models:{part},smoke", f"--workdir={work}", "--run"]) == 0
    )
    (row,) = pd.read_parquet(work / "results.parquet").to_dict("records")
    assert [name for name in columns if not np.isfinite(row.get(name, np.nan))] == []


@pytest.fixture
def small_llama(tmp_path):
    import jax

    from olmo_jax import hf, model
    from olmo_jax.config import ModelConfig
    from olmo_jax.data.tokenizer import train_bpe

    train_bpe(["def f(x): return x\n", "a sentence of prose about arrays"] * 9, 280, "<|endoftext|>").save(
        tmp_path / "tokenizer.json"
    )
    config = ModelConfig(vocab_size=280, d_model=32, n_layers=2, n_heads=2, d_ff=64, context_length=64, norm="rms_norm")
    params = model.init(config, jax.random.key(0))
    hf.export_checkpoint(config, params, tmp_path / "llama", tokenizer=tmp_path / "tokenizer.json")
    return tmp_path / "llama"
