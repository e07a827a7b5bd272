import dataclasses

import pandas as pd
import pytest

from geometry.probe import METRICS
from olmo_jax.columns import NATS, NOT_DESCRIBED, Column
from olmo_jax.config import ConfigError, TrainConfig
from olmo_jax.probes.columns import metric_meaning
from sweeps.planning.plan import leaves
from sweeps.studies.paper_b.shift import dimension_columns
from sweeps.table.catalog import catalog_of, declare, describe, from_schema, heads, schema
from sweeps.table.columns import geometry_columns, loss_columns

KINDS = {"identity", "setting", "geometry", "loss", "change", "task", "evaluation", "training", "count"}
COLUMNS = [
    "sweep", "run_id", "cohort", "configuration", "step", "final", "diverged_at", "parameters", "tokens",
    "parameters_non_embedding", "training_flops", "weight_decay_dose", "train/loss", "train/grad_norm",
    "train/learning_rate", "unembedding/effective_rank", "unembedding_gauge_fixed_centred/two_nn",
    "layer_3/local_two_nn_q90", "final_states_spread/isoscore", "blocks_0/mlp/up/stable_rank",
    "unembedding_spectrum/12", "final_states/points", "lm_loss/in_domain", "lm_loss/my_domain",
    "lm_loss/perplexity/macro", "lm_loss/bits_per_byte/code", "lm_loss/standard_error/out_of_domain",
    "unigram/in_domain", "gptq_3/in_domain", "gptq_3_blocks+unembedding/rise/in_domain", "gptq_4/error/damping",
    "round_to_nearest_8/rise_standard_error/macro", "round_to_nearest_8/error/weight", "noise_relative_0.01/in_domain",
    "noise_absolute_1e-05/rise/macro", "truncation_0.25/in_domain", "task_hellaswag/accuracy",
    "task_hellaswag/accuracy_per_token_standard_error", "task_lambada/nats", "task_x/bits_per_byte", "task_x/chance",
    "task_x/items", "cka/layer_0", "cka/final_states", "saturation/best_step", "saturation/saturated",
    "saturation/rise_standard_error", "saturation/highest_rank_step", "saturation/collapse_step",
    "saturation/rank_fall", "saturation/learning_rate_at_best", "finetune_code_lr0.001/forgetting",
    "finetune_code_lr0.001/target", "finetune_code_lr0.001/train_loss", "finetune_code_lr0.001/diverged",
    "finetune_code_lr0.001/best/step", "finetune_code_lr0.001/best/in_domain", "finetune_code_lr0.001/spread/target",
    "finetune_code_lr0.001/geometry/unembedding/effective_rank", "finetune_task_sciq_best/learning_rate",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_has_a_description_and_a_kind(column):
    entry = describe(column)
    assert entry.kind in KINDS
    assert entry.meaning[0].isupper() or not entry.meaning[0].isalpha()
    assert entry.meaning.endswith(".") and "{" not in entry.meaning and NOT_DESCRIBED not in entry.meaning


def test_settings_are_described_by_their_config_class():
    for key in leaves(dataclasses.asdict(TrainConfig())):
        entry = describe(f"config.{key}")
        words, _, text = entry.meaning.partition(": ")
        assert entry.kind == "setting" and words.lower() == key.replace(".", " ").replace("_", " ").lower()
        assert len(text) > 3, key
    decay, length = describe("config.optimizer.weight_decay"), describe("config.data.sequence_length")
    assert decay.meaning.endswith(": decoupled weight decay, multiplied by the learning rate.")
    assert length.meaning == "Data sequence length: L, the tokens in a window of training text."
    assert describe("config.data.max_megabytes").unit == "1e6 bytes"


def test_every_built_in_metric_is_described():
    assert [name for name in METRICS if metric_meaning(name) == NOT_DESCRIBED] == []
    assert "entropy of the normalised singular values" in metric_meaning("effective_rank")
    assert describe("final_states/points").kind == "count"


def test_a_user_metric_is_described_by_its_docstring(monkeypatch):
    def blueness(measured):
        """How blue the rows are.  Of all of them.

        And more.
        """

    def silent(measured):
        return 0.0

    monkeypatch.setitem(METRICS, "blueness", blueness)
    monkeypatch.setitem(METRICS, "silent", silent)
    assert describe("layer_0/blueness").meaning == "Of the states after block 0: how blue the rows are."
    assert describe("layer_0/silent").meaning == describe("layer_0/from_another_process").meaning == NOT_DESCRIBED
    # A user's function with the name of a built-in metric takes precedence.
    monkeypatch.setitem(METRICS, "energy_top_1", silent)
    assert metric_meaning("energy_top_1") == NOT_DESCRIBED


@pytest.mark.parametrize(
    ("column", "meaning", "unit", "kind"),
    [
        ("lm_loss/code", "Loss on code.", NATS, "loss"),
        ("gptq_3_all/rise/code", "After GPTQ to 3 bits, all: rise of the loss on code.", NATS, "change"),
        ("unembedding_spectrum/2", "Singular value 2 of the unembedding, counted from the largest.", "", "geometry"),
        ("task_a_b/chance", "On the task a_b: accuracy of guessing.", "share", "evaluation"),
        (
            "finetune_code_lr0.001/best/forgetting",
            "After fine-tuning on code at learning rate 0.001, at the step of the lowest target loss: rise of the "
            "in-domain loss.",
            NATS,
            "evaluation",
        ),
        ("final_states/points", "Of the states after the final norm: number of rows, N.", "rows", "count"),
        # A domain may have the name of another result.
        ("lm_loss/items", "Loss on items.", NATS, "loss"),
    ],
)
def test_columns_have_the_expected_meanings_units_and_kinds(column, meaning, unit, kind):
    entry = describe(column)
    assert (entry.name, entry.meaning, entry.unit, entry.kind) == (column, meaning, unit, kind)


@pytest.mark.parametrize("column", ["config.gone.setting", "config.model.gone", "wild", "lm_loss", "gptq_3/a/b/c", ""])
def test_undescribed_columns_are_marked(column):
    assert describe(column).meaning == NOT_DESCRIBED


def test_loss_columns_match_those_of_the_analysis():
    table = pd.DataFrame(columns=COLUMNS)
    catalog = catalog_of(table)
    assert list(catalog) == COLUMNS
    losses = {*catalog.select(kind="loss"), *catalog.select(kind="change", measure="forgetting")}
    assert losses == {*loss_columns(table), "unigram/in_domain"}


def test_an_evaluation_that_nobody_lists_is_not_taken_for_geometry():
    table = pd.DataFrame(columns=["calibration/ece", "unembedding/stable_rank", "mine/part/score"])
    assert geometry_columns(table) == ["unembedding/stable_rank"] and loss_columns(table) == []


def test_a_metric_whose_name_ends_like_a_quantile_is_analysed():
    table = pd.DataFrame(columns=["unembedding/mine_q2", "layer_0/local_two_nn_q25", "layer_0/local_two_nn_median"])
    assert geometry_columns(table) == ["unembedding/mine_q2", "layer_0/local_two_nn_median"]
    assert catalog_of(table).select(statistic="quantile") == ["layer_0/local_two_nn_q25"]


def test_a_parameter_is_not_read_as_states_on_a_text():
    names = ["blocks_0.mlp.up/local_two_nn", "blocks_0/mlp/up/local_two_nn", "layer_0.mlp.up/local_two_nn"]
    catalog = catalog_of(pd.DataFrame(columns=names))
    assert [catalog[name].of.get("parameter") for name in names] == ["blocks_0.mlp.up", "blocks_0/mlp/up", None]
    assert dimension_columns(names) == ["layer_0.mlp.up/local_two_nn"]
    assert catalog.select(states="layer_0", text="mlp.up") == ["layer_0.mlp.up/local_two_nn"]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"kind": "loss", "after": "quantize", "method": "gptq", "bits": 3, "scope": "blocks"}, ["gptq_3/in_domain"]),
        ({"kind": "change", "after": "quantize", "domain": "in_domain"}, ["gptq_3_blocks+unembedding/rise/in_domain"]),
        ({"kind": "loss", "after": "perturb", "method": "noise", "scale": 0.01}, ["noise_relative_0.01/in_domain"]),
        ({"kind": "loss", "after": "finetune", "domain": "target", "rate": 0.001}, ["finetune_code_lr0.001/target"]),
        ({"kind": "loss", "after": None, "model": None}, ["lm_loss/in_domain", "lm_loss/my_domain"]),
        ({"kind": "task", "task": "hellaswag"}, ["task_hellaswag/accuracy"]),
        ({"statistic": "spread"}, ["final_states_spread/isoscore", "finetune_code_lr0.001/spread/target"]),
        ({"statistic": "singular_value", "target": "unembedding"}, ["unembedding_spectrum/12"]),
        ({"kind": "geometry", "metric": "two_nn", "centred": True}, ["unembedding_gauge_fixed_centred/two_nn"]),
        ({"kind": "geometry", "target": "nowhere"}, []),
    ],
)
def test_columns_are_selected_by_what_they_are_of(wanted, names):
    assert catalog_of(pd.DataFrame(columns=COLUMNS)).select(**wanted) == names


OWN_LOSS = Column("prune_0.5/in_domain", "loss", NATS, "Loss.", {"after": "prune", "domain": "in_domain"})


def test_declared_columns_enter_the_statistics_and_survive_selections_of_rows():
    table = declare(pd.DataFrame({OWN_LOSS.name: [1.0, 2.0], "lm_loss/code": [3.0, 4.0]}), [OWN_LOSS])
    assert loss_columns(table) == [OWN_LOSS.name, "lm_loss/code"]
    part = table[table["lm_loss/code"] > 3].reset_index(drop=True)
    assert catalog_of(part)[OWN_LOSS.name] == OWN_LOSS
    assert loss_columns(heads(part, pd.DataFrame(columns=["lm_loss/other"]))) == [*table.columns, "lm_loss/other"]
    assert describe(OWN_LOSS.name).kind == "evaluation"


def test_what_this_code_describes_itself_is_not_overridden():
    stale = dataclasses.replace(OWN_LOSS, name="lm_loss/code", kind="geometry")
    assert catalog_of(declare(pd.DataFrame(columns=["lm_loss/code"]), [stale]))["lm_loss/code"].kind == "loss"


def test_a_column_declared_with_two_units_is_refused():
    other = dataclasses.replace(OWN_LOSS, unit="bits")
    with pytest.raises(
        ConfigError, match="'prune_0.5/in_domain' is declared with the units 'nats per token' and 'bits'"
    ):
        declare(pd.DataFrame(columns=[OWN_LOSS.name]), [OWN_LOSS, other])


def test_the_schema_gives_the_catalog_back_but_for_what_older_code_wrote():
    entries = schema(catalog_of(declare(pd.DataFrame(columns=[OWN_LOSS.name, "step"]), [OWN_LOSS])))
    assert from_schema(entries) == [OWN_LOSS, describe("step")]
    del entries["step"]["of"]
    assert from_schema(entries | {"wild": 3}) == [OWN_LOSS]
