"""Translation: beam search, batched and cached, against the naive loop; training, ours against a conventional loop.

No data needed: sentences are drawn at random, about as long as Multi30k's. Both searches get the same sentences in
turns, and must return the same translations. The conventional training loop draws batches of equally many sentences
in random order, padded to the longest; ours puts sentences of like length together. Both train the same network on the
same pairs for an epoch of as many steps, in turns; tokens of both languages are counted, padding is not.

Usage: python benchmarks/translation.py [TURNS] [THREADS] [PAIRS]
"""

import statistics
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from tabulate import tabulate

from lsbook import models, presets, text, translation
from lsbook.decoding import beam_search, naive_beam_search
from lsbook.transformer import Transformer, token_loss

VOCABULARY = 8_000
SIZES = {
    "width 128, 2 + 2 layers": {"width": 128, "heads": 4, "layers": 2, "hidden": 512},
    "width 256, 3 + 3 layers": {"width": 256, "heads": 4, "layers": 3, "hidden": 1024},
}


def random_pairs(count, seed=0, vocabulary=VOCABULARY):
    """Encoded pairs of 15 tokens a side on average, 5 at least and END at the end."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 5 + torch.poisson(torch.full((count, 2), 9.0), generator=generator).int()
    return [
        tuple([*torch.randint(4, vocabulary, (n,), generator=generator).tolist(), text.END] for n in pair)
        for pair in lengths.tolist()
    ]


def sharper(model):
    """Random networks hardly prefer any word; this one has preferences, so that no rounding decides between beams."""
    with torch.no_grad():
        model.head.bias.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
    return model.eval()


def measure_search(size, turns, beam=4, sentences=32, max_length=16):
    """Seconds of (batched, naive) search in each turn, the naive one on a quarter of the sentences and times four."""
    model = sharper(models.build(partial(Transformer, VOCABULARY, **size), 0, torch.float32))
    source = text.make_batch(random_pairs(sentences)).source
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        found = beam_search(model, source, beam, max_length=max_length).hypotheses
        between = time.perf_counter()
        expected = [naive_beam_search(model, row, beam, max_length=max_length) for row in source[: sentences // 4]]
        times.append((between - started, 4 * (time.perf_counter() - between)))
        for one, other in zip(found, expected, strict=False):
            assert [h.tokens for h in one] == [h.tokens for h in other]
    return times


def training_specs():
    """The book's smoke and laptop networks, smoothed, one epoch in float32."""
    found = {
        "smoke": presets.experiment("number-names", "smoke"),
        "laptop": presets.experiment("multi30k-transformer", "laptop"),
    }
    change = {"alpha": 0.1, "epochs": 1, "record_epochs": (), "dtype": "float32"}
    return {name: replace(specs[0], **change) for name, specs in found.items()}


def conventional_fit(spec, pairs):
    """What a reader would write after PyTorch's tutorials: a DataLoader that shuffles and pads."""
    torch.manual_seed(spec.seed)
    model = translation.model_of(spec).train()
    size = -(-len(pairs) // len(text.batch_indices(pairs, spec.batch_tokens, spec.seed)))  # as many steps as ours
    loader = torch.utils.data.DataLoader(pairs, size, shuffle=True, collate_fn=text.make_batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.learning_rate, betas=(0.9, 0.98), eps=1e-9)
    factor = translation.learning_rate_factor(spec, len(loader))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(min(step + 1, len(loader))))
    for batch in loader:
        optimizer.zero_grad()
        token_loss(model(batch.source, batch.inputs).logits, batch.labels, spec.alpha).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip_norm or float("inf"))
        optimizer.step()
        scheduler.step()


def our_fit(spec, pairs):
    """As `translation.train` does it."""
    translation.fit(spec, translation.Prepared(None, {"train": pairs}, []))


def tokens_per_second(fit, spec, pairs):
    """Tokens of both languages, without padding."""
    started = time.perf_counter()
    fit(spec, pairs)
    return sum(len(side) for pair in pairs for side in pair) / (time.perf_counter() - started)


def measure_training(spec, turns, count):
    """(conventional, ours) tokens a second in each turn, but the first, which also makes room in memory."""
    pairs = random_pairs(count, vocabulary=spec.vocabulary)
    sides = (conventional_fit, our_fit)
    return [tuple(tokens_per_second(fit, spec, pairs) for fit in sides) for _ in range(turns + 1)][1:]


def summary(values, digits=1):
    """Median [smallest, largest]."""
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def print_search(turns):
    rows = []
    for name, size in SIZES.items():
        times = measure_search(size, turns)
        ratios = [naive / batched for batched, naive in times]
        rows.append([name, *(summary(column) for column in zip(*times, strict=True)), summary(ratios)])
    print(tabulate(rows, ["beam 4, 32 sentences", "batched, cached (s)", "naive (s)", "naive / batched"], "github"))


def print_training(turns, count):
    rows = []
    for name, spec in training_specs().items():
        speeds = measure_training(spec, turns, count)
        ratios = [ours / usual for usual, ours in speeds]
        network = f"{name}: width {spec.width}, {spec.layers} + {spec.layers} layers, {spec.vocabulary:,} pieces"
        rows.append([network, *(summary(column, 0) for column in zip(*speeds, strict=True)), summary(ratios, 2)])
    headers = ["network", "conventional (tokens/s)", "lsbook (tokens/s)", "ratio"]
    print(f"\ntraining on {count:,} pairs, float32\n\n" + tabulate(rows, headers, "github"))


def main(turns=5, threads=1, count=2_000):
    torch.set_num_threads(threads)
    print(describe(), f"\n{threads} thread(s), {turns} turns: median [smallest, largest]\n")
    print_search(turns)
    print_training(turns, count)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
