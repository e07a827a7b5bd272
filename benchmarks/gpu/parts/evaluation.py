"""Measure the evaluation of a stack of models: loss by domain, and multiple choice like HellaSwag, on made-up text."""

import functools
from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.part import Column
from benchmarks.gpu.parts import cohorts

NAME = "evaluation"
TITLE = "Evaluation: loss on 4 domains of 65,536 tokens; 500 items of 4 choices, contexts of 96 tokens, endings of 32."
VERSION = 1
NEEDS = ("tokenizers",)
COLUMNS = (
    Column("s for the loss", "loss_s", ".2f"),
    Column("s for its first call", "loss_first_s", ".1f"),
    Column("s for the tasks", "tasks_s", ".2f"),
    Column("s for their first call", "tasks_first_s", ".1f"),
)


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"d16_M2": cohorts.tiny(members=2) | _text(domains=2, tokens=64, items=4)}
    text = _text(domains=4, tokens=65536, items=500) | {"length": 1024, "batch": 32}
    return {
        "d64_M32": cohorts.of_width(64, 32) | text,
        "d256_M8": cohorts.of_width(256, 8) | text | {"vocabulary": 50280},
        "d768_M1": cohorts.of_width(768, 1) | text | {"vocabulary": 50280, "layers": 8},
    }


def _text(domains: int, tokens: int, items: int) -> dict[str, Any]:
    return {"domains": domains, "tokens": tokens, "items": items, "choices": 4, "context": 96, "ending": 32}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from eval import lm_loss, tasks
    from olmo_jax.data.sources.task_items import Item

    model, params_M = training.models(case)
    random = np.random.default_rng(0)
    documents = {f"domain{i}": _documents(case, random) for i in range(case["domains"])}
    text = lm_loss.lay_out(documents, 0, case["length"])
    tokenizer = _tokenizer()

    def words(count: int) -> str:
        return "".join(f" {_WORDS[i]}" for i in random.integers(0, len(_WORDS), count))

    items = [
        Item(
            str(i),
            (words(case["context"]),) * case["choices"],
            tuple(words(case["ending"]) for _ in range(case["choices"])),
            0,
        )
        for i in range(case["items"])
    ]
    rows = tasks.prepare(items, tokenizer, case["length"])

    def loss() -> Any:
        return lm_loss.lm_loss(model, params_M, text, case["batch"]).nats_MK

    def choices() -> Any:
        return tasks.score(model, params_M, rows, case["batch"]).log_likelihood_MC

    seconds: dict[str, Any] = {}
    for name, call in {"loss": loss, "tasks": choices}.items():
        seconds[f"{name}_first_s"] = training.finished(call)
        seconds[f"{name}_s"], seconds[f"{name}_repeats"] = training.timed(functools.partial(training.finished, call))
    return seconds


# Each word, with the space before it, is one token of the tokenizer below.
_WORDS = ("the", "of", "and", "loss", "rank", "model", "token", "is", "weight", "matrix", "value", "norm")


def _tokenizer() -> Any:
    from olmo_jax.data.tokenizer import train_bpe

    return train_bpe([" " + " ".join(_WORDS)] * 8, 400, "<|endoftext|>")


def _documents(case: dict[str, Any], random: Any) -> list[Any]:
    """Return the documents of a domain, of random lengths up to a window, with `tokens` tokens of the case together."""
    documents, left = [], case["tokens"]
    while left:
        length = min(left, int(random.integers(2, case["length"] + 1)))
        documents.append(random.integers(1, case["vocabulary"], length))
        left -= length
    return documents
