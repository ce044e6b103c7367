"""Print the `delta_digest` of many short runs, to see that a change of the code changes no number.

    python scripts/digests.py --to before.json          # 120 runs, a few minutes
    python scripts/digests.py --against before.json     # after the change, on the same machine

Five methods x privacy none, central, local, example (noise from the seed) x one by one, four
clients in a pass, two workers, on the bundled ViT and on a tiny BERT that the script makes. Digests
depend on the processor and on the versions of torch and its libraries: compare on one machine.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import fedpeft
from fedpeft.experiment.read import DIGITS

METHODS: Mapping[str, Sequence[str]] = {
    "vit": ("full", "bias", "adapter", "prompt", "lora"),
    "bert": ("full", "bias", "adapter", "head", "lora"),
}
PRIVACY: Mapping[str, Mapping[str, object]] = {
    "none": {},
    "central": {"privacy.mode": "central"},
    "local": {"privacy.mode": "local"},
    "example": {"privacy.mode": "example", "privacy.example_sampling": "shuffle"},
}
WAYS: Mapping[str, Mapping[str, object]] = {
    "one": {"engine.workers": 1, "engine.clients_per_pass": 1},
    "pass": {"engine.workers": 1, "engine.clients_per_pass": 4},
    "workers": {"engine.workers": 2, "engine.clients_per_pass": 1},
}
WORDS = ("red", "green", "blue", "warm", "cold", "sky", "sea", "tree", "stone", "wind")
SHORT = {
    "seed": 3,
    "data.partition.scheme": "dirichlet-plain",
    "data.partition.alpha": 1.0,
    "data.partition.clients": 10,
    "data.partition.min_examples": 4,
    "federation.rounds": 2,
    "federation.clients_per_round": 4,
    "client.epochs": 1,
    "client.batch_size": 8,
    "client.lr": 0.05,
}
NOISE = {
    "privacy.clip_norm": 0.5,
    "privacy.noise_multiplier": 0.3,
    "privacy.reproducible_noise": True,
}


def tiny_text(folder: Path) -> Mapping[str, object]:
    """Write a tiny BERT with its tokenizer and a table of texts; return the keys that name them."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    model, vocab = folder / "tiny-bert", folder / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=15,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
            num_labels=2,
        )
        BertForSequenceClassification(config).save_pretrained(model)
    BertTokenizer(str(vocab), model_max_length=24).save_pretrained(model)
    source = folder / "texts"
    source.mkdir()
    draw = random.Random(0)
    for split, rows in (("train", 160), ("test", 40)):
        with (source / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            for _ in range(rows):
                words = draw.choices(WORDS, k=draw.randint(3, 12))
                table.writerow([" ".join(words), "warm" if "warm" in words else "cold"])
    return {
        "model.name": str(model),
        "model.task": "text-classification",
        "data.source": str(source),
        "data.max_length": 16,
    }


def main() -> None:
    """Run all, print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, help="write the digests to this file")
    parser.add_argument("--against", type=Path, help="compare with the digests of this file")
    parser.add_argument("--only", default="", help="cases whose name holds this, e.g. vit/lora/")
    chosen = parser.parse_args()
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        models = {"vit": {}, "bert": tiny_text(Path(folder))}
        cases = (
            case
            for name, methods in METHODS.items()
            for case in itertools.product([name], methods, PRIVACY, WAYS)
        )
        for case in cases:
            if chosen.only not in "/".join(case):
                continue
            model, method, privacy, way = case
            keys = {**SHORT, "tuning.method": method, **models[model], **WAYS[way]}
            keys |= {**PRIVACY[privacy], **(NOISE if privacy != "none" else {})}
            summary = fedpeft.run(DIGITS, keys, out=Path(folder) / "-".join(case))
            digests["/".join(case)] = str(summary["delta_digest"])[:16]
            print("/".join(case), digests["/".join(case)], flush=True)
    if chosen.to:
        chosen.to.write_text(json.dumps(digests, indent=1) + "\n")
    if chosen.against:
        before = json.loads(chosen.against.read_text())
        changed = [name for name, digest in digests.items() if digest != before[name]]
        print(f"{len(digests) - len(changed)} of {len(digests)} equal", *changed, sep="\n  ")
        sys.exit(bool(changed))


if __name__ == "__main__":
    main()
