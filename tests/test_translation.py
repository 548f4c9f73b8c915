"""From a spec to a run of translation: the corpus, shares of batches, training, what a run keeps, several processes."""

import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import strategies  # noqa: F401 (one thread)
import torch
import torch.nn.functional as F

from lsbook import (
    cli,
    datasets,
    decoding,
    experiments,
    number_names,
    presets,
    runs,
    text,
    training,
    translation,
    translation_metrics,
)
from lsbook.text import BEGIN, PADDING, UNKNOWN, CorpusError
from lsbook.translation import Shares, TranslationSpec

TINY = TranslationSpec(
    experiment="tiny",
    preset="live",
    dataset="few_numbers",
    network="transformer",
    alpha=0.1,
    vocabulary=300,
    width=16,
    heads=2,
    layers=1,
    hidden=32,
    epochs=4,
    batch_tokens=600,
    learning_rate=0.01,
    warmup=10,
    seed=0,
    clip_norm=1.0,
    record_epochs=(0, 2, 4),
    beams=(1, 2),
)
# A corpus that `train` is done with in a moment: number names' own test split has 500 pairs.
NUMBERS = number_names.pairs(train=250, val=30, test=30)


def write_corpus(folder, data, zipped=False):
    """The six files of a corpus of one's own."""
    folder.mkdir(parents=True)
    for split, pairs in data.items():
        for language, sentences in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            content = "".join(f"{sentence}\n" for sentence in sentences).encode()
            path = folder / f"{split}.{language}{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture(scope="module", autouse=True)
def data_folder(tmp_path_factory):
    """LSBOOK_DATA with one corpus in it, few_numbers."""
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "few_numbers", NUMBERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSBOOK_DATA", str(folder))
        yield folder


@pytest.fixture(scope="module")
def prepared():
    return translation.prepare(TINY)


@pytest.fixture(scope="module")
def fitted(prepared):
    """(model, history) of TINY."""
    return translation.fit(TINY, prepared)


@pytest.fixture(scope="module")
def run(data_folder):
    return experiments.train(TINY, "cpu")


def everything(model):
    """All weights, as bytes by name."""
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


# --- the spec


BAD = [
    ("experiment", "Tiny", ValueError),
    ("experiment", 3, ValueError),
    ("dataset", "a/b", ValueError),
    ("dataset", "", ValueError),
    ("dataset", "../secret", ValueError),
    ("preset", "labtop", ValueError),
    ("preset", None, TypeError),
    ("network", "resnet20", ValueError),
    ("alpha", 1.5, ValueError),
    ("alpha", -0.1, ValueError),
    ("alpha", math.nan, ValueError),
    ("alpha", "0.1", TypeError),
    ("vocabulary", 260, ValueError),
    ("vocabulary", 300.0, TypeError),
    ("width", 0, ValueError),
    ("width", 18, ValueError),
    ("heads", 0, ValueError),
    ("heads", True, TypeError),
    ("layers", 0, ValueError),
    ("hidden", 0, ValueError),
    ("hidden", (32,), TypeError),
    ("epochs", -1, ValueError),
    ("epochs", 1.0, TypeError),
    ("batch_tokens", 1, ValueError),
    ("learning_rate", 0, ValueError),
    ("learning_rate", math.inf, ValueError),
    ("learning_rate", "fast", TypeError),
    ("warmup", 0, ValueError),
    ("seed", -1, ValueError),
    ("seed", 2**31, ValueError),
    ("seed", "one", TypeError),
    ("dropout", 1.1, ValueError),
    ("norm", "past", ValueError),
    ("sharing", "some", ValueError),
    ("convention", "other", ValueError),
    ("receivers", "no special", ValueError),
    ("schedule", "cosine", ValueError),
    ("clip_norm", -1.0, ValueError),
    ("clip_norm", math.inf, ValueError),
    ("train_pairs", -1, ValueError),
    ("longest", -1, ValueError),
    ("longest", 1, ValueError),
    ("dtype", "float23", ValueError),
    ("record_epochs", (0, -1), ValueError),
    ("record_epochs", 3, TypeError),
    ("record_epochs", (0.5,), TypeError),
    ("beams", (), ValueError),
    ("beams", (0,), ValueError),
    ("beams", (1, 256), ValueError),
    ("beams", 4, TypeError),
    ("beams", "14", TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=lambda value: str(value))
def test_a_bad_value_is_named_with_its_field(name, value, error):
    with pytest.raises(error) as caught:
        replace(TINY, **{name: value})
    expected, _, given = str(caught.value).rpartition(", got ")
    assert expected.startswith(f"{name} must")
    assert any(repr(part) in given for part in (value, *(value if isinstance(value, tuple) else ())))


def test_every_field_has_a_bad_value_above():
    assert {name for name, *_ in BAD} == set(TranslationSpec.__dataclass_fields__)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [("preset", "labtop", "laptop"), ("network", "transfomer", "transformer"), ("norm", "prep", "pre")]
    + [("sharing", "outputs", "output"), ("schedule", "liner", "linear"), ("dtype", "float23", "float32")]
    + [("receivers", "no special", "no specials")],
)
def test_an_unknown_name_comes_with_the_nearest(name, value, nearest):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
        replace(TINY, **{name: value})


def test_number_names_need_a_number_of_pairs():
    with pytest.raises(ValueError, match="train_pairs must be at least 1 on number_names, got 0"):
        replace(TINY, dataset="number_names")


def test_a_spec_equals_its_own_json():
    values = TINY.as_dict()
    assert TranslationSpec.from_dict(json.loads(json.dumps(values))) == TINY
    assert (values["record_epochs"], values["beams"]) == ([0, 2, 4], [1, 2])
    assert not {"dropout", "norm", "sharing", "longest", "dtype"} & set(values)  # at their defaults
    assert TINY.name == f"tiny-live-alpha0.1-seed0-{runs.spec_hash(values)}"


def test_numbers_of_numpy_and_lists_give_the_same_name():
    same = replace(TINY, alpha=np.float64(0.1), seed=np.int64(0), beams=[np.int32(1), 2], clip_norm=1)
    assert (same.name, same) == (TINY.name, TINY)
    assert replace(TINY, alpha=-0.0).name == replace(TINY, alpha=0).name


def test_other_values_give_other_names():
    others = [replace(TINY, **change) for change in ({"beams": (2, 1)}, {"seed": 1}, {"longest": 9}, {"norm": "post"})]
    assert len({spec.name for spec in (TINY, *others)}) == 5


@pytest.mark.parametrize(("change", "message"), [({"alhpa": 0}, "did you mean 'alpha'"), ({"loss": "margin"}, "loss")])
def test_a_key_that_is_no_field(change, message):
    with pytest.raises(ValueError, match=f"a spec's key must be one of .*{message}"):
        TranslationSpec.from_dict(TINY.as_dict() | change)
    with pytest.raises(ValueError, match="a spec must have warmup, got experiment"):
        TranslationSpec.from_dict({key: value for key, value in TINY.as_dict().items() if key != "warmup"})


# --- the corpus


def test_number_names_are_as_many_as_asked_for():
    spec = replace(TINY, dataset="number_names", train_pairs=7, seed=3)
    assert translation.corpus(spec) == number_names.pairs(train=7, val=500, test=500, seed=3)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_corpus_of_ones_own(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path))
    write_corpus(tmp_path / "mine", NUMBERS, zipped)
    assert translation.corpus(replace(TINY, dataset="mine")) == NUMBERS
    some = translation.corpus(replace(TINY, dataset="mine", train_pairs=9))
    assert some == NUMBERS | {"train": NUMBERS["train"][:9]}
    with pytest.raises(ValueError, match="train_pairs must be at most 250 on mine, got 251"):
        translation.corpus(replace(TINY, dataset="mine", train_pairs=251))


def test_a_corpus_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path))
    spec = replace(TINY, dataset="mine")
    with pytest.raises(datasets.MissingDataError, match=f"no corpus file {tmp_path}/mine/train.en .*one sentence a"):
        translation.corpus(spec)
    write_corpus(tmp_path / "mine", NUMBERS)
    (tmp_path / "mine" / "val.de").unlink()
    with pytest.raises(datasets.MissingDataError, match=r"mine/val\.de \(or val\.de\.gz\)"):
        translation.corpus(spec)


def test_multi30k_is_three_of_its_splits(monkeypatch):
    splits = {name: [(name, name)] for name in ("train", "val", "test_2016_flickr", "test_2017_flickr")}
    monkeypatch.setattr(datasets, "multi30k", lambda progress: splits)
    expected = {"train": splits["train"], "val": splits["val"], "test": splits["test_2016_flickr"]}
    assert translation.corpus(replace(TINY, dataset="multi30k")) == expected


def test_multi30k_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("LSBOOK_OFFLINE", "1")
    with pytest.raises(datasets.MissingDataError, match="multi30k"):
        translation.corpus(replace(TINY, dataset="multi30k"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"eins\nzwei\n", r"val\.de ends after line 2, .*val\.en has 30"),
        (b"eins\nf\xfcnf\n", r"val\.de line 2 is not UTF-8: byte 0xfc at position 2"),
        (b"eins\n\nzwei\n", r"val\.de line 2 is empty"),
        (b"", r"val\.de must hold at least one sentence"),
        (b"\x1f\x8bnonsense", r"val\.de is a damaged gzip file"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, monkeypatch, content, message):
    monkeypatch.setenv("LSBOOK_DATA", str(tmp_path))
    write_corpus(tmp_path / "mine", NUMBERS)
    (tmp_path / "mine" / "val.de").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        translation.corpus(replace(TINY, dataset="mine"))


def test_over_long_pairs_are_left_out_of_training_alone(prepared):
    lengths = {split: [max(map(len, pair)) for pair in pairs] for split, pairs in prepared.pairs.items()}
    limit = sorted(lengths["train"])[100]
    assert max(lengths["test"]) > limit
    shorter = translation.prepare(replace(TINY, longest=limit))
    assert (prepared.left_out, shorter.left_out) == (0, sum(length > limit for length in lengths["train"]))
    assert 0 < shorter.left_out < len(lengths["train"])
    assert shorter.tokenizer.pieces == prepared.tokenizer.pieces  # which are learnt from all
    assert shorter.pairs["train"] == [p for p in prepared.pairs["train"] if max(map(len, p)) <= limit]
    assert (shorter.pairs["val"], shorter.pairs["test"]) == (prepared.pairs["val"], prepared.pairs["test"])


def test_prepared_tokens_are_those_of_the_sentences(prepared):
    assert len(prepared.tokenizer) == TINY.vocabulary
    assert prepared.test == NUMBERS["test"]
    for split, pairs in prepared.pairs.items():
        decoded = [tuple(map(prepared.tokenizer.decode, pair)) for pair in pairs]
        assert decoded == NUMBERS[split]


def test_a_limit_that_leaves_nothing():
    with pytest.raises(CorpusError, match="few_numbers train must hold at least one pair of at most 2 tokens"):
        translation.prepare(replace(TINY, longest=2))


# --- shares of a batch


def as_process(monkeypatch, rank, number):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(number))


def all_shares(monkeypatch, pairs, spec, number, epoch=1):
    """The shares of an epoch's batches in each of `number` processes: a list over processes of lists over batches."""
    shares = []
    for rank in range(number):
        as_process(monkeypatch, rank, number)
        shares.append(list(Shares(pairs, spec, epoch, "cpu")))
    as_process(monkeypatch, 0, 1)
    return shares


def rows_of(shares):
    """(source, target) of each row that weighs something, without padding."""
    return [
        tuple(tuple(t for t in row.tolist() if t != PADDING) for row in pair)
        for part in shares
        if part.weight
        for pair in zip(part.arguments[0], part.labels, strict=True)
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("epoch", [1, 2])
def test_every_pair_is_seen_once_an_epoch(monkeypatch, prepared, number, epoch):
    pairs = prepared.pairs["train"]
    shares = all_shares(monkeypatch, pairs, TINY, number, epoch)
    seen = [row for process in shares for row in rows_of(process)]
    assert sorted(seen) == sorted(tuple(map(tuple, pair)) for pair in pairs)


def test_epochs_have_equally_many_batches_in_another_order(prepared):
    epochs = [Shares(prepared.pairs["train"], TINY, epoch, "cpu") for epoch in range(1, 8)]
    assert len({len(shares) for shares in epochs}) == 1
    assert len({json.dumps(shares.indices) for shares in epochs}) == 7
    assert len(epochs[0]) == len(list(epochs[0])) > 5


@pytest.mark.parametrize("batch_tokens", [120, 600])
@pytest.mark.parametrize("number", [2, 3, 5])
def test_weighted_shares_make_the_loss_of_the_whole_batch(monkeypatch, prepared, number, batch_tokens):
    """Also where a batch has fewer rows than there are processes: the idle ones then weigh nothing."""
    spec = replace(TINY, batch_tokens=batch_tokens)
    model, loss, pairs = translation.model_of(spec).eval(), translation.loss_of(spec), prepared.pairs["train"][:60]
    (whole,) = all_shares(monkeypatch, pairs, spec, 1)
    parts = all_shares(monkeypatch, pairs, spec, number)
    assert {part.weight for part in whole} == {1.0}
    idle = sum(part.weight == 0 for process in parts for part in process)
    assert (idle > 0) == (batch_tokens == 120)
    with torch.no_grad():
        expected = [loss(model(*part.arguments).logits, part).item() for part in whole]
        losses = [[loss(model(*part.arguments).logits, part).item() for part in process] for process in parts]
    assert np.allclose(np.mean(losses, axis=0), expected, rtol=1e-12, atol=0)


# --- training


@pytest.mark.parametrize(("warmup", "steps"), [(1, 1), (1, 10), (10, 40), (40, 40), (100, 30)])
def test_the_linear_schedule_is_a_triangle(warmup, steps):
    factor = translation.learning_rate_factor(replace(TINY, warmup=warmup), steps)
    values, peak = [factor(step) for step in range(1, steps + 1)], min(warmup, steps)
    assert max(values) == values[peak - 1] == 1
    assert np.allclose(np.diff(values[:peak]), 1 / peak)
    assert np.allclose(np.diff(values[peak - 1 :]), -1 / (steps + 1 - peak))
    assert values[-1] == (1 if peak == steps else pytest.approx(1 / (steps + 1 - peak)))
    assert values[0] > 0


def test_the_schedule_of_vaswani():
    """width^−½ min(step^−½, step × warmup^−1.5), divided by its largest value."""
    spec = replace(TINY, schedule="inverse square root", warmup=20)
    factor, steps = translation.learning_rate_factor(spec, 8_000), np.arange(1, 8_001)
    values = [factor(int(step)) for step in steps]
    assert np.allclose(values, np.minimum(steps**-0.5, steps * 20**-1.5) / 20**-0.5, rtol=1e-12)
    assert (max(values), values[19], values[-1]) == (1, 1, pytest.approx(0.05))


def test_training_takes_the_rates_of_the_schedule(monkeypatch, prepared):
    """Every step of every epoch, counted on from epoch to epoch."""
    steps, real = [], translation.learning_rate_factor

    def noting(spec, total):
        factor = real(spec, total)
        return lambda step: steps.append((step, total)) or factor(step)

    monkeypatch.setattr(translation, "learning_rate_factor", noting)
    spec = replace(TINY, epochs=2, record_epochs=())
    assert translation.fit(spec, prepared)[1] == []
    total = 2 * len(Shares(prepared.pairs["train"], spec, 1, "cpu"))
    assert steps == [(step, total) for step in range(1, total + 1)]


def test_the_loss_falls(fitted):
    history = fitted[1]
    assert [row["epoch"] for row in history] == [0, 2, 4]
    for name in ("train_nll", "val_nll"):
        values = [row[name] for row in history]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.7 * values[0]
    assert history[-1]["val_accuracy"] > history[0]["val_accuracy"]
    assert set(history[0]) == {f"{s}_{m}" for s in ("train", "val") for m in ("nll", "accuracy")} | {
        "epoch",
        "val_bleu",
    }


def test_same_seed_same_weights_to_the_last_bit(prepared, fitted):
    torch.randn(5)  # other use of the global generator has no influence
    again, history = translation.fit(TINY, prepared)
    assert (everything(again), history) == (everything(fitted[0]), fitted[1])
    other, _ = translation.fit(replace(TINY, seed=1, record_epochs=()), prepared)
    assert everything(other) != everything(again)


def test_recording_changes_no_weight(prepared, fitted):
    silent, history = translation.fit(replace(TINY, record_epochs=()), prepared)
    assert (everything(silent), history) == (everything(fitted[0]), [])


class Stopped(Exception):
    """In place of a kill, where a real one would only take longer."""


def stop_in(epoch, spec, prepared, checkpoint):
    """Train until the checkpoint of the epoch before lies there, and stop."""

    def stopping(spec, prepared, at, model, real=translation._record):
        if at == epoch:
            raise Stopped
        return real(spec, prepared, at, model)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(translation, "_record", stopping)
        translation.fit(spec, prepared, checkpoint=checkpoint, checkpoint_seconds=0)


@pytest.mark.parametrize(
    "change",
    [{}, {"dtype": "bfloat16"}, {"dtype": "float16", "clip_norm": 0.0}, {"sharing": "none", "norm": "post"}],
    ids=str,
)
def test_two_parts_are_one_training_to_the_last_bit(tmp_path, prepared, change):
    spec, checkpoint = replace(TINY, epochs=3, record_epochs=(0, 3), **change), tmp_path / "c.safetensors"
    whole, history = translation.fit(spec, prepared)
    stop_in(2, spec, prepared, checkpoint)
    torch.randn(5)
    part, resumed = translation.fit(spec, prepared, checkpoint=checkpoint)
    assert resumed == history
    assert [row["epoch"] for row in history] == [0, 3]
    assert everything(part) == everything(whole)


KILLED = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import test_translation as t
real = t.translation._record
def record(spec, prepared, epoch, model):
    print(epoch, flush=True)
    time.sleep(0.02)
    return real(spec, prepared, epoch, model)
t.translation._record = record
t.translation.fit(t.TINY, t.translation.prepare(t.TINY, t.NUMBERS), checkpoint={checkpoint!r}, checkpoint_seconds=0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_killed_at_a_random_moment_and_resumed(tmp_path, prepared, fitted):
    here, checkpoint = Path(__file__).parent, tmp_path / "c.safetensors"
    code = KILLED.format(root=str(here.parent), tests=str(here), checkpoint=str(checkpoint))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert [int(next(process.stdout)) for _ in range(3)] == [0, 1, 2]
        time.sleep(random.uniform(0, 0.1))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.exists()
    model, history = translation.fit(TINY, prepared, checkpoint=checkpoint)
    assert history == fitted[1]
    assert everything(model) == everything(fitted[0])


def test_a_damaged_checkpoint_is_named(tmp_path, prepared):
    spec, path = replace(TINY, record_epochs=()), tmp_path / "c.safetensors"
    message = f"the checkpoint {path} does not belong to this run or is damaged"
    stop_in(2, spec, prepared, path)
    for change in ({"epochs": 5}, {"width": 20}, {"batch_tokens": 500}, {"alpha": 0.0}, {"sharing": "none"}):
        with pytest.raises(training.DamagedCheckpointError, match=message):
            translation.fit(replace(spec, **change), prepared, checkpoint=path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(training.DamagedCheckpointError, match=message):
        translation.fit(spec, prepared, checkpoint=path)


def test_out_of_memory_says_which_batch_to_try(monkeypatch, prepared):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(translation.transformer.Transformer, "forward", full)
    with pytest.raises(training.DeviceMemoryError, match="hold a batch of 600; try batch_tokens 300"):
        translation.fit(TINY, prepared)


def test_a_pair_larger_than_a_batch(prepared):
    with pytest.raises(CorpusError, match="max_tokens must hold every pair"):
        translation.fit(replace(TINY, batch_tokens=5), prepared)


# --- what a run keeps


def direct(model, pairs):
    """Logits of every target token, (n, V), one sentence at a time, and the labels (n,)."""
    logits, labels = [], []
    with torch.no_grad():
        for source, target in pairs:
            logits.append(model(torch.tensor([[*source]]), torch.tensor([[BEGIN, *target[:-1]]])).logits[0])
            labels.append(torch.tensor([*target]))
    return torch.cat(logits), torch.cat(labels)


def test_arrays_of_a_run(run, prepared):
    tokens, temperatures = sum(len(target) for _, target in prepared.pairs["test"]), len(translation.TEMPERATURES)
    searches = 1 + len(translation.SEARCH_TEMPERATURES)
    shown = {split: len(run.arrays[f"shown_{split}_labels"]) for split in ("train", "test")}
    assert {name: (array.shape, array.dtype.name) for name, array in run.arrays.items()} == {
        "temperatures": ((temperatures,), "float64"),
        "fitted_temperature": ((1,), "float64"),
        "val_nll": ((temperatures,), "float64"),
        "val_ece": ((temperatures,), "float64"),
        "test_confidence": ((temperatures + 1, tokens), "float16"),
        "test_nll": ((temperatures + 1, tokens), "float16"),
        "test_correct": ((tokens,), "bool"),
        "test_sentence": ((tokens,), "uint16"),
        "test_special_mass": ((3,), "float64"),
        "search_beams": ((searches,), "uint8"),
        "search_temperatures": ((searches,), "float64"),
        "search_counts": ((searches, 2, 30, 10), "uint16"),
        "search_exact": ((searches, 30), "bool"),
        "shown_pieces": ((3,), "int32"),
        "head_weight": ((3, 16), "float64"),
        "head_bias": ((3,), "float64"),
        **{f"shown_{split}_features": ((count, 16), "float64") for split, count in shown.items()},
        **{f"shown_{split}_labels": ((count,), "uint8") for split, count in shown.items()},
    }
    assert run.spec == TINY.as_dict()
    assert run.arrays["temperatures"].tolist() == list(translation.TEMPERATURES)


def test_what_made_a_run(run, prepared):
    made_by = run.provenance
    assert (made_by["device"], made_by["precision"], made_by["translations"]) == ("cpu", "float64", {})
    assert made_by["sacrebleu"].startswith("nrefs:1|case:mixed|")
    pieces = [prepared.tokenizer.pieces[i] for i in run.arrays["shown_pieces"]]
    assert made_by["shown_words"] == [piece.replace("▁", "") for piece in pieces]
    assert "resumed" not in made_by
    assert made_by["left_out_pairs"] == 0


def test_a_run_says_how_many_pairs_were_left_out(prepared):
    lengths = [max(map(len, pair)) for pair in prepared.pairs["train"]]
    limit = sorted(lengths)[100]
    spec = replace(TINY, longest=limit, epochs=0, record_epochs=(), beams=(1,))
    assert experiments.train(spec, "cpu").provenance["left_out_pairs"] == sum(length > limit for length in lengths)


def test_the_last_row_of_the_history_has_the_test_set(run, fitted):
    *first, last = run.history
    *expected, end = fitted[1]
    at_one = run.arrays["test_nll"][translation.TEMPERATURES.index(1.0)].astype(float)
    assert first == expected
    assert last == end | {"test_accuracy": run.arrays["test_correct"].mean(), "test_nll": at_one.mean()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_stored_predictions_are_those_of_the_model(run, fitted, prepared, temperature):
    """The smoothed network's plain likelihood, by PyTorch's loss on the logits over T; half a float16 ulp is 2^-11."""
    logits, labels = direct(fitted[0], prepared.pairs["test"])
    row = translation.TEMPERATURES.index(temperature)
    nll = F.cross_entropy(logits / temperature, labels, reduction="none").numpy()
    assert np.allclose(run.arrays["test_nll"][row], nll, rtol=2.0**-11, atol=1e-6)
    confidence = (logits / temperature).softmax(-1).max(-1).values.numpy()
    assert np.allclose(run.arrays["test_confidence"][row], confidence, rtol=2.0**-11, atol=1e-6)
    assert (run.arrays["test_correct"] == (logits.argmax(-1) == labels).numpy()).all()


def test_what_a_run_keeps_is_found_by_temperature_and_beam(run):
    arrays = run.arrays
    for place, temperature in [(0, 0.5), (5, 1.0), (len(translation.TEMPERATURES), "fitted")]:
        tokens = translation.kept_tokens(run, temperature)
        assert (tokens.nll == arrays["test_nll"][place]).all()
        assert (tokens.confidence == arrays["test_confidence"][place]).all()
        assert (tokens.nll.dtype, tokens.accuracy) == (np.float64, arrays["test_correct"].mean())
    for place, beam, temperature in [(0, 1, 1.0), (0, 1, 0.7), (1, 2, 0.6), (len(arrays["search_beams"]) - 1, 2, 2.0)]:
        for lowercase in (False, True):
            counts = translation.kept_counts(run, beam, temperature, lowercase)
            assert (counts == arrays["search_counts"][place, int(lowercase)]).all()
    with pytest.raises(ValueError, match=r"temperature must be one of 0\.5, .*, fitted, got 0\.55"):
        translation.kept_tokens(run, 0.55)
    with pytest.raises(ValueError, match=r"\(beam, temperature\) must be one of .*, got \(3, 1\.0\)"):
        translation.kept_counts(run, 3)


def test_tokens_know_their_sentence(run, prepared):
    lengths = [len(target) for _, target in prepared.pairs["test"]]
    assert run.arrays["test_sentence"].tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]


def test_sentences_of_a_large_test_set_keep_their_index(monkeypatch):
    """Regression: in uint16, sentence 65,536 was sentence 0 again."""

    def later(model, pairs, real=translation_metrics.token_features):
        tokens = real(model, pairs)
        return tokens._replace(sentence=tokens.sentence + first)

    monkeypatch.setattr(translation_metrics, "token_features", later)
    for first, kind in ((2**16 - 30, np.uint16), (2**16 - 29, np.uint32)):  # the last of 30 is 65,535, or one more
        spec = replace(TINY, epochs=0, record_epochs=(), beams=(1,))
        sentence = experiments.train(spec, "cpu").arrays["test_sentence"]
        assert sentence.dtype == kind
        assert np.unique(sentence).tolist() == list(range(first, first + 30))


def test_the_fitted_temperature_is_the_best_on_val(run, fitted, prepared):
    (temperature,) = run.arrays["fitted_temperature"]
    logits, labels = direct(fitted[0], prepared.pairs["val"])
    swept = [F.cross_entropy(logits / t, labels).item() for t in translation.TEMPERATURES]
    assert np.allclose(run.arrays["val_nll"], swept)
    assert F.cross_entropy(logits / temperature, labels).item() <= min(swept)
    test_logits, test_labels = direct(fitted[0], prepared.pairs["test"])
    last = F.cross_entropy(test_logits / temperature, test_labels, reduction="none").numpy()
    assert np.allclose(run.arrays["test_nll"][-1], last, rtol=2.0**-11, atol=1e-6)


def test_the_ece_on_val_by_hand(run, fitted, prepared):
    logits, labels = direct(fitted[0], prepared.pairs["val"])
    confidence, guess = logits.softmax(-1).max(-1)
    place, right = np.ceil(15 * confidence.numpy()).astype(int), (guess == labels).numpy()
    gaps = [abs((right[place == b] - confidence.numpy()[place == b]).sum()) for b in range(1, 16)]
    assert run.arrays["val_ece"][translation.TEMPERATURES.index(1.0)] == pytest.approx(sum(gaps) / len(right))


def test_the_mass_of_tokens_that_are_never_right(run, fitted, prepared):
    probs = direct(fitted[0], prepared.pairs["test"])[0].softmax(-1)
    assert np.allclose(run.arrays["test_special_mass"], probs[:, [PADDING, BEGIN, UNKNOWN]].mean(0))


def test_bleu_of_the_counts_is_sacrebleus_of_the_translations(run, fitted, prepared):
    sources, references = [s for s, _ in prepared.pairs["test"]], [target for _, target in NUMBERS["test"]]
    beams, temperatures = run.arrays["search_beams"], run.arrays["search_temperatures"]
    assert [(1, 1.0)] + [(2, t) for t in translation.SEARCH_TEMPERATURES] == list(zip(beams, temperatures, strict=True))
    for search in (0, 1, len(beams) - 1):
        said = decoding.translate_tokens(fitted[0], sources, int(beams[search]), temperature=temperatures[search])
        translations = [prepared.tokenizer.decode(tokens) for tokens in said]
        assert run.arrays["search_exact"][search].tolist() == [
            t == r for t, r in zip(translations, references, strict=True)
        ]
        for row, lowercase in enumerate((False, True)):
            sums = run.arrays["search_counts"][search, row].sum(0, dtype=int)[None]
            expected = sacrebleu.corpus_bleu(translations, [references], lowercase=lowercase).score
            assert translation_metrics.bleu_of_counts(sums) == [pytest.approx(expected, abs=1e-9)]


@pytest.mark.parametrize("split", ["train", "test"])
def test_shown_features_times_head_rows_are_the_models_logits(run, fitted, prepared, split):
    """The first tokens in the corpus whose label is one of the three pieces."""
    arrays, pieces = run.arrays, run.arrays["shown_pieces"].tolist()
    logits, labels = direct(fitted[0], prepared.pairs[split])
    rows = torch.cat([(labels == piece).nonzero().flatten()[: translation.SHOWN_EXAMPLES] for piece in pieces])
    assert [pieces[label] for label in arrays[f"shown_{split}_labels"]] == labels[rows].tolist()
    assert set(arrays[f"shown_{split}_labels"]) == {0, 1, 2}
    by_hand = arrays[f"shown_{split}_features"] @ arrays["head_weight"].T + arrays["head_bias"]
    assert np.allclose(by_hand, logits[rows][:, pieces], rtol=1e-9, atol=1e-9)


def test_shown_pieces_are_the_most_frequent_of_three_letters_or_more(prepared):
    pieces = prepared.tokenizer.pieces
    said = [token for _, target in prepared.pairs["train"] for token in target]
    long = {i for i in range(text.BYTES + 4, len(pieces)) if len(pieces[i].strip("▁")) >= 3}
    found = translation._shown_pieces(TINY, prepared)
    counts = [said.count(i) for i in found]
    assert set(found) <= long
    assert counts == sorted((said.count(i) for i in long), reverse=True)[:3]


def test_the_books_words_are_shown_where_they_are_pieces():
    """And pieces of which the test set has none take no part, rather than end a long training with an error."""
    sentence = ("A man, a woman and a dog.", "Mann Frau Hund Mann Frau Hund Mann Frau Hund")
    spec = replace(TINY, dataset="multi30k", vocabulary=290)
    data = {"train": [sentence] * 20, "val": [sentence], "test": [("A.", "B.")]}
    prepared = translation.prepare(spec, data)
    pieces = [prepared.tokenizer.pieces[i] for i in translation._shown_pieces(spec, prepared)]
    assert pieces == ["▁Mann", "▁Frau", "▁Hund"]
    arrays = translation._shown_arrays(spec, translation.model_of(spec), prepared)
    assert arrays["shown_train_features"].shape == (180, 16)
    assert arrays["shown_test_features"].shape == (0, 16)


def test_our_own_sentences_are_translated(fitted, prepared, run):
    spec = replace(TINY, dataset="number_names", train_pairs=1)
    said = translation._words(spec, fitted[0], prepared, run.arrays)["translations"]
    sentences = list(translation.SENTENCES["number_names"])
    assert list(said) == sentences
    assert list(said.values()) == decoding.translate(fitted[0], prepared.tokenizer, sentences)


def test_a_model_without_a_best_temperature_loses_no_run(monkeypatch):
    """As where every prediction on val is right: any smaller temperature is better."""
    perfect = translation_metrics.TokenFeatures(9 * torch.eye(3), torch.arange(3), torch.arange(3))
    head = torch.eye(3), torch.zeros(3)
    with pytest.raises(ValueError, match="no temperature"):
        translation_metrics.fit_token_temperature(perfect.features, perfect.labels, *head)
    assert translation._fitted_temperature(perfect, head) == 1.0
    monkeypatch.setattr(translation, "_fitted_temperature", lambda *_: 1.0)
    arrays = experiments.train(replace(TINY, epochs=0, record_epochs=(), beams=(1,)), "cpu").arrays
    row = translation.TEMPERATURES.index(1.0)
    assert arrays["test_nll"][-1].tobytes() == arrays["test_nll"][row].tobytes()
    assert np.isfinite(arrays["test_nll"]).all()


def test_a_run_is_stored_and_loaded(tmp_path, run, monkeypatch):
    monkeypatch.setattr(translation, "train", lambda *_: run)
    assert experiments.load_or_train(TINY, tmp_path, "cpu") is run
    monkeypatch.setattr(translation, "train", lambda *_: pytest.fail("trained again"))
    loaded = experiments.load_or_train(TINY, tmp_path, "cpu")
    assert {name: array.tobytes() for name, array in loaded.arrays.items()} == {
        name: array.tobytes() for name, array in run.arrays.items()
    }
    assert (loaded.spec, loaded.history, loaded.provenance) == (run.spec, run.history, run.provenance)


def test_a_stored_run_is_listed(tmp_path, run, capsys):
    runs.save(run, tmp_path)
    assert cli.main(["list", "--folder", str(tmp_path)]) == 0
    accuracy = f"{run.arrays['test_correct'].mean():.4f}"
    expected = f"{TINY.name} live few_numbers transformer 0.1 0 4 test {accuracy} float64"
    assert capsys.readouterr().out.splitlines()[-1].split()[:10] == expected.split()


def test_a_spec_in_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(TINY.as_dict()))
    assert presets.find(str(path)) == [TINY]
    path.write_text(json.dumps(TINY.as_dict() | {"norm": "prep"}))
    with pytest.raises(ValueError, match="mine.json must hold a spec as JSON.*norm must .*did you mean 'pre'"):
        presets.find(str(path))


@pytest.mark.slow
def test_smoke_trains_number_names(tmp_path, capsys):
    """The hard one of the preset, as `lsbook run smoke` does: it learns, and its run is stored."""
    (spec,) = presets.experiment("number-names", "smoke", alpha=0.0)
    assert cli.main(["run", "smoke", "--only", spec.name, "--folder", str(tmp_path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith(f"stored  {spec.name}\n")
    history = runs.load(spec.as_dict(), tmp_path).history
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert history[-1]["test_nll"] < 0.7 * history[0]["val_nll"]


# --- several processes


def test_a_process_of_torchrun_takes_the_gpu_of_its_number(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("cuda:99 may be asked for on a machine without a GPU alone")
    as_process(monkeypatch, 99, 100)
    monkeypatch.setenv("LOCAL_RANK", "99")
    with (
        pytest.raises(ValueError, match="the GPU of this process of torchrun must name a device .*got 'cuda:99'"),
        translation.together("cuda"),
    ):
        pytest.fail("there is no such GPU")


@pytest.mark.parametrize("number", ["2", ""])
def test_a_clusters_own_world_size_says_nothing(monkeypatch, number):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", number)
    assert translation.processes() == (0, 1)


def test_one_process_without_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert translation.processes() == (0, 1)
    with translation.together("cpu") as device:
        assert device == "cpu"
        assert not torch.distributed.is_initialized()


def test_images_are_not_trained_by_several_processes(monkeypatch):
    as_process(monkeypatch, 0, 3)
    with pytest.raises(
        ValueError, match="torchrun can train translation together, not digits: use `lsbook run --jobs 3`"
    ):
        experiments.train(experiments.DIGITS_FEW, "cpu")


def test_processes_that_see_different_checkpoints_do_not_start(monkeypatch, tmp_path):
    """As on machines that do not share a disk: one would train more epochs than the others, and wait for them."""
    as_process(monkeypatch, 1, 2)
    monkeypatch.setattr(translation, "together", nullcontext)
    monkeypatch.setattr(translation, "from_first", lambda value: 1)  # to train, and yes, there is a checkpoint
    with pytest.raises(FileNotFoundError, match=rf"must see the same checkpoint .*{TINY.name}.*is the disk shared\?"):
        experiments.load_or_train(TINY, tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []  # no lock: the first process has it


def test_the_command_line_in_a_process_of_torchrun(monkeypatch, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(json.dumps(TINY.as_dict()))
    command = ["run", str(tmp_path / "spec.json"), "--folder", str(tmp_path)]
    as_process(monkeypatch, 1, 2)
    assert cli.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "")
    for wrong in (["--jobs", "2"], ["--scheduler", "tcp://localhost:1"]):
        assert cli.main([*command, *wrong]) == 2
        assert "--jobs and --scheduler share out many runs, torchrun trains each" in capsys.readouterr().err
    assert cli.main(["run", "number-names-smoke"]) == 2
    assert "must store in one folder: name it with --folder" in capsys.readouterr().err
    as_process(monkeypatch, 0, 2)
    assert cli.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"1 runs: 0 stored in {tmp_path}, 1 to train\ntrain  {TINY.name}\n"


# Dropout differs between one process and two, since each draws its own.
PAIR = replace(TINY, dropout=0.0, beams=(1,), record_epochs=(0, 4), batch_tokens=300)

# What `python -m lsbook.cli` does, with a checkpoint after every epoch; process 1 kills itself as epoch 3 begins.
KILLED_TOGETHER = """
import functools, os, signal, sys
sys.path.insert(0, {root!r})
from lsbook import cli, translation
translation.fit = functools.partial(translation.fit, checkpoint_seconds=0)
class Shares(translation.Shares):
    def __init__(self, pairs, spec, epoch, device):
        if (epoch, os.environ["RANK"]) == (3, "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(pairs, spec, epoch, device)
translation.Shares = Shares
sys.exit(cli.main(sys.argv[1:]))
"""


def torchrun(*command):
    """A command in two processes of this machine, finished."""
    here = Path(__file__).parents[1]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    paths = os.pathsep.join([str(here), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "LSBOOK_DEVICE": "cpu"}
    return subprocess.run([*start, *command], cwd=here, env=environment, capture_output=True, text=True, timeout=300)


def trained_together(folder):
    """The output of training PAIR in two processes."""
    (folder / "spec.json").write_text(json.dumps(PAIR.as_dict()))
    done = torchrun("-m", "lsbook.cli", "run", str(folder / "spec.json"), "--folder", str(folder / "runs"))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory):
    """A folder in which two processes have trained and stored PAIR, and what they printed."""
    folder = tmp_path_factory.mktemp("pair")
    assert trained_together(folder) == f"1 runs: 0 stored in {folder / 'runs'}, 1 to train\nstored  {PAIR.name}\n"
    return folder


@pytest.mark.slow
def test_two_processes_train_what_one_does(pair_folder):
    """Sums of gradients differ in their order alone, so the weights do by rounding."""
    one, two = experiments.train(PAIR, "cpu"), runs.load(PAIR.as_dict(), pair_folder / "runs")
    assert set(one.arrays) == set(two.arrays)
    for name, array in one.arrays.items():
        tolerance = 2e-3 if array.dtype == np.float16 else 1e-9  # a float16 may fall to the other side
        assert array.dtype == two.arrays[name].dtype
        assert np.allclose(array, two.arrays[name], rtol=tolerance, atol=tolerance), name
    for mine, theirs in zip(one.history, two.history, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6 if mine["epoch"] == 0 else 1e-3)
    assert one.history[-1]["val_nll"] == pytest.approx(two.history[-1]["val_nll"], rel=1e-9)


@pytest.mark.slow
def test_a_rerun_of_two_processes_finds_it_stored(pair_folder):
    files = {path: path.stat().st_mtime_ns for path in (pair_folder / "runs").iterdir() if path.is_file()}
    assert len(files) == 2
    said = f"1 runs: 1 stored in {pair_folder / 'runs'}, 0 to train\nstored  {PAIR.name}\n"
    assert trained_together(pair_folder) == said
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_two_processes_of_which_one_is_killed_go_on_later(pair_folder, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED_TOGETHER.format(root=str(Path(__file__).parents[1])))
    (tmp_path / "spec.json").write_text(json.dumps(PAIR.as_dict()))
    command = ("run", str(tmp_path / "spec.json"), "--folder", str(tmp_path / "runs"))
    assert torchrun(str(tmp_path / "killed.py"), *command).returncode != 0
    checkpoint = tmp_path / "runs" / ".checkpoints" / f"{PAIR.name}.safetensors"
    assert checkpoint.exists()
    assert runs.paths(tmp_path / "runs") == []
    trained_together(tmp_path)
    assert not checkpoint.exists()
    resumed, whole = (runs.load(PAIR.as_dict(), folder / "runs") for folder in (tmp_path, pair_folder))
    assert (resumed.provenance["resumed"], resumed.history) == (True, whole.history)
    assert {name: array.tobytes() for name, array in resumed.arrays.items()} == {
        name: array.tobytes() for name, array in whole.arrays.items()
    }
