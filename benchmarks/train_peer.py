"""Train the peer of benchmarks/train.py in a separate process: transformers' OlmoForCausalLM in torch, with AdamW.

    python -m benchmarks.train_peer '{"vocabulary": 50304, "width": 256, "layers": 4, "heads": 4, "batch": 8,
      "length": 128, "threads": 2, "compiled": false}'

It reads a number of steps per line, takes them, and writes the seconds that they took.
"""

import argparse
import json
import logging
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", type=json.loads, metavar="JSON", help="a model and a batch, as above")
    case = parser.parse_args().case
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    logging.disable(logging.WARNING)
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    config = OlmoConfig(
        vocab_size=case["vocabulary"],
        hidden_size=case["width"],
        intermediate_size=4 * case["width"],
        num_hidden_layers=case["layers"],
        num_attention_heads=case["heads"],
        max_position_embeddings=case["length"],
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )
    model = OlmoForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if case["compiled"] else model
    tokens = torch.randint(0, case["vocabulary"], (case["batch"], case["length"] + 1))

    def step() -> None:
        logits = forward(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
