import re

import numpy as np
import pandas as pd
import pytest

from sweeps import analysis
from sweeps.report.row_sentences import after_training, against_unigram, caveat, primary, strongest_setting


def sweep(decays=(0.1, 1.0, 4.0), batches=(8, 32), seeds=2):
    """Weight decay lowers effective rank by 10 a step, batch size raises loss by .2, 3 bits cost more at low rank."""
    rows = []
    for i, decay in enumerate(decays):
        for j, batch in enumerate(batches):
            for seed in range(seeds):
                rank, loss = 60.0 - 10 * i + j + 0.1 * seed, 5.0 + 0.01 * (i - 1) ** 2 + 0.2 * j + 0.001 * seed
                rows.append(
                    {
                        "run_id": f"run{len(rows)}",
                        "configuration": f"decay{i}batch{j}",
                        "final": True,
                        "diverged_at": None,
                        "weight_decay_dose": decay * 2,
                        "config.init_seed": seed,
                        "config.data.batch_size": batch,
                        "config.data.total_batches": 320 // batch,
                        "config.optimizer.weight_decay": decay,
                        "unembedding/effective_rank_percent": rank,
                        "lm_loss/in_domain": loss,
                        "round_to_nearest_8/in_domain": loss,
                        "round_to_nearest_3/in_domain": loss + 0.5 + 0.01 * (60 - rank),
                        "finetune_code_lr0.001/forgetting": 0.3 + 0.01 * i,
                        "finetune_code_lr0.0003/forgetting": 0.1,
                        "unigram/in_domain": 6.5,
                    }
                )
    return pd.DataFrame(rows)


def findings(table):
    rows = analysis.final_rows(table).rows
    return [primary(rows), strongest_setting(rows), after_training(rows)]


def test_the_first_sentence_gives_the_estimates_of_the_declared_pair():
    table = sweep()
    controls = analysis.controls_of(table)
    raw = analysis.spearman(table, *analysis.PRIMARY_PAIR, "configuration")
    partial = [
        analysis.partial_spearman(table, *analysis.PRIMARY_PAIR, controls, form, "configuration")
        for form in ("rank", "factor")
    ]
    sentence = findings(table)[0].replace("\N{MINUS SIGN}", "-")
    assert f"rho is {raw.estimate:.2f} (95 % interval {raw.low:.2f} to {raw.high:.2f}), n = 12 runs" in sentence
    assert "given batch size, total batches and weight decay" in sentence
    assert f"it is {partial[0].estimate:.2f} (95 % interval" in sentence
    assert f"{partial[1].estimate:.2f} (no interval: too few configurations) as factors" in sentence


def test_the_second_sentence_describes_the_setting_with_the_largest_effect():
    by_rank = findings(
        sweep().assign(**{"lm_loss/in_domain": lambda t: 9 - t["unembedding/effective_rank_percent"] / 20})
    )
    assert "The setting with the largest effect is weight decay, which explains" in by_rank[1]
    assert "from 0.1 to 4 (cumulative 0.20 to 8.00), mean effective rank went from 60.55 to 40.55 %" in by_rank[1]

    by_loss = findings(
        sweep(decays=(0.1, 0.11)).assign(**{"unembedding/effective_rank_percent": lambda t: t["lm_loss/in_domain"]})
    )
    assert "batch size (varied together with total batches)" in by_loss[1]
    assert "from 8 to 32, " in by_loss[1]


def test_a_non_monotonic_effect_is_described():
    sentence = findings(sweep(batches=(8,)))[1]
    assert "mean in-domain loss from 5.01 to 5.01, lowest at 1 (5.00)" in sentence


def test_the_third_sentence_uses_the_fewest_bits_and_the_worst_forgetting():
    sentence = findings(sweep())[2].replace("\N{MINUS SIGN}", "-")
    assert sentence.startswith(
        "Rounding weights to 3 bits changed in-domain loss by +0.59 nats on average (+0.49 to +0.70)"
    )
    assert "the rank correlation of that change with effective rank is -1.00 (95 % interval -1.00 to" in sentence
    assert (
        "fine-tuning on code at learning rate 0.001 changed in-domain loss by +0.31 nats on average (+0.30 to +0.32)"
        in sentence
    )


def test_quantisation_in_groups_says_so_and_where_groups_were_adapted():
    grouped = sweep().assign(**{
        "round_to_nearest_3_group128/in_domain": lambda t: t["lm_loss/in_domain"] + 0.2,
        "round_to_nearest_3_group128/smallest_group": 128,
    })  # fmt: skip
    sentence = findings(grouped)[2].replace("\N{MINUS SIGN}", "-")
    assert "Rounding weights to 3 bits changed in-domain loss by +0.59" in sentence
    assert "rounding weights to 3 bits in groups of 128 inputs changed in-domain loss by +0.20" in sentence
    assert "of the change without groups with effective rank is -1.00" in sentence
    adapted = findings(grouped.assign(**{"round_to_nearest_3_group128/smallest_group": 64}))[2]
    assert "in groups of 128 inputs (adapted to each matrix's width; the smallest has 64) changed" in adapted


def test_diverged_runs_are_excluded_from_sentences_and_counted():
    table = sweep()
    spoilt = table.copy()
    spoilt.loc[spoilt.run_id == "run0", ["lm_loss/in_domain", "unembedding/effective_rank_percent"]] = 1e9
    spoilt.loc[spoilt.run_id == "run0", "diverged_at"] = 5
    assert findings(spoilt) == findings(table[table.run_id != "run0"])
    assert caveat(analysis.final_rows(spoilt)).startswith("11 runs of 6 configurations; 1 diverged (left out). ")


@pytest.mark.parametrize(("decays", "demonstration"), [(14, True), (15, False)])
def test_few_configurations_are_called_a_demonstration(decays, demonstration):
    text = caveat(analysis.final_rows(sweep(decays=tuple(range(decays)))))
    assert f"{2 * decays} configurations; none diverged" in text
    assert ("demonstration of the laboratory, not evidence" in text) == demonstration
    assert ("corrected for the number of comparisons" in text) != demonstration


def test_the_loss_is_compared_with_the_unigram_model():
    text = against_unigram(sweep())
    assert "ended at 5.00 to 5.21 nats per token; a unigram model of the same tokens has 6.50" in text
    assert (
        "the runs lie 1.29 to 1.50 below it (at the lowest weight decay, 0.10, the runs lie 1.29 to 1.49 below it)"
        in text
    )
    assert "from 0.21 above to 0.00 below" in against_unigram(sweep().assign(**{"unigram/in_domain": 5.0}))
    assert "there is no unigram loss to compare it with: the table has no unigram/in_domain" in against_unigram(
        sweep().drop(columns="unigram/in_domain")
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.head(0), ["no finished run", "is unknown: no finished run", "is unknown"]),
        (lambda t: t.assign(final=False), ["no finished run", "no finished run", "is unknown"]),
        (lambda t: t.assign(diverged_at=3), ["no finished run", "no finished run", "is unknown"]),
        (
            lambda t: t.head(1),
            ["1 finished run has both numbers, and at least 4 are needed", "No setting differs", "+0.50 nats; "],
        ),
        (
            lambda t: t.drop(columns=analysis.loss_columns(t)),
            ["the table has no lm_loss/in_domain", "the table has no lm_loss/in_domain", "is unknown"],
        ),
        (
            lambda t: t.assign(**dict.fromkeys(analysis.geometry_columns(t), np.nan)),
            ["effective_rank_percent is missing", "effective_rank_percent is missing", "3 bits"],
        ),
        (lambda t: t.assign(**{"lm_loss/in_domain": 5.0}), ["is the same in every run", "is unknown", "3 bits"]),
        (
            lambda t: t[t["config.init_seed"] == 0].iloc[::4],
            [
                "finished runs have both numbers, and at least 4 are needed",
                "that takes two runs at one value",
                "3 bits",
            ],
        ),
        (lambda t: t.assign(**{c: np.nan for c in t if "round" in c}), ["rho", "batch size", "Fine-tuning on code"]),
    ],
    ids=["empty", "unfinished", "diverged", "one run", "no losses", "no geometry", "constant", "three", "no rounding"],
)
def test_missing_data_are_reported_in_all_three_sentences(change, expected):
    table = change(sweep())
    sentences = findings(table)
    assert len(sentences) == 3
    for sentence, part in zip(sentences, expected, strict=True):
        assert part in sentence
        assert sentence.endswith(".")
    texts = [*sentences, caveat(analysis.final_rows(table)), against_unigram(table)]
    assert not re.search(r"\b(nan|inf|None)\b", " ".join(texts))
