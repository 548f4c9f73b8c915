"""Translation: beam search, batched and cached, against the naive loop; and tokens a second in training.

No data needed: sentences are drawn at random, about as long as Multi30k's. Both searches get the same sentences in
turns, and must return the same translations. Usage: python benchmarks/translation.py [TURNS] [THREADS]
"""

import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import describe
from tabulate import tabulate

from lsbook import models, text
from lsbook.decoding import beam_search, naive_beam_search
from lsbook.transformer import Transformer, token_loss

VOCABULARY = 8_000
SIZES = {
    "width 128, 2 + 2 layers": {"width": 128, "heads": 4, "layers": 2, "hidden": 512},
    "width 256, 3 + 3 layers": {"width": 256, "heads": 4, "layers": 3, "hidden": 1024},
}


def random_pairs(count, seed=0):
    """Encoded pairs of 15 tokens a side on average, 5 at least and END at the end."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 5 + torch.poisson(torch.full((count, 2), 9.0), generator=generator).int()
    return [
        tuple([*torch.randint(4, VOCABULARY, (n,), generator=generator).tolist(), text.END] for n in pair)
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


def measure_training(size, steps, max_tokens=4_096, precision=torch.float32):
    """Target tokens a second of each training step (forward, smoothed loss, backward, Adam)."""
    model = models.build(partial(Transformer, VOCABULARY, **size), 0, precision)
    optimizer, speeds = torch.optim.Adam(model.parameters(), lr=1e-4), []
    for batch, _ in zip(text.batches(random_pairs(2_000), max_tokens, seed=0), range(steps + 1), strict=False):
        started = time.perf_counter()
        loss = token_loss(model(batch.source, batch.inputs).logits, batch.labels, 0.1, validate=False)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        speeds.append(batch.num_tokens / (time.perf_counter() - started))
    return speeds[1:]  # the first step also makes room in memory


def summary(values):
    """Median [smallest, largest]."""
    return f"{statistics.median(values):,.1f} [{min(values):,.1f}, {max(values):,.1f}]"


def main(turns=3, threads=1):
    torch.set_num_threads(threads)
    print(describe(), f"\n{threads} thread(s), {turns} turns: median [smallest, largest]\n")
    rows = []
    for name, size in SIZES.items():
        times = measure_search(size, turns)
        ratios = [naive / batched for batched, naive in times]
        rows.append([name, *(summary(column) for column in zip(*times, strict=True)), summary(ratios)])
    print(tabulate(rows, ["beam 4, 32 sentences", "batched, cached (s)", "naive (s)", "naive / batched"], "github"))
    rows = [[name, summary(measure_training(size, 2 * turns))] for name, size in SIZES.items()]
    print("\n" + tabulate(rows, ["training, float32, 8,000 pieces", "target tokens a second"], "github"))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
