"""Translation experiments: the spec, the corpus, training on one or several processes, and what a run keeps.

A run keeps no corpus and no weights. From its arrays come all numbers of the chapter: for every test token the
confidence and −ln p at each temperature, for every test sentence the counts that BLEU is made of.
"""

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from . import datasets, decoding, models, number_names, runs, text, training, transformer, translation_metrics
from .checks import check_choice, check_convention, check_file_stem, check_int, check_number, check_positive, check_seed

SCHEDULES = ("linear", "inverse square root")
# Files of a corpus that is not the book's own: FOLDER/SPLIT.en and SPLIT.de, plain or gzip.
SPLITS = ("train", "val", "test")
TOKENIZER_PAIRS = 500_000  # pieces are learnt from so many pairs: enough, and memory stays small
RECORDED_PAIRS = 300  # of train and val, whose metrics make the learning curve
SHOWN_EXAMPLES = 100
# Words whose features are kept, each one piece of its corpus; where there are none, the most frequent pieces.
SHOWN_PIECES = {"multi30k": ("▁Mann", "▁Frau", "▁Hund")}
# Sentences of our own, which every run translates for the reader.
SENTENCES = {
    "multi30k": (
        "A man is riding a bicycle.",
        "Two dogs are playing in the snow.",
        "A woman in a red dress is reading a book on a bench.",
        "Children are running across a bridge while an old man watches them.",
        "A physicist explains entropy to a sleepy audience.",
    ),
    "number_names": ("two hundred forty-three", "ninety-nine thousand nine hundred ninety-nine"),
}
TEMPERATURES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0)
SEARCH_TEMPERATURES = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0)
MOST_BEAMS = 255  # what a run's uint8 can say
# So long may processes wait for each other, since only the first one translates the test set. Not for a dead one:
# torchrun then ends them all.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class TranslationSpec(runs.StoredSpec):
    """All that decides the outcome of training one Transformer.

    Raises TypeError or ValueError naming the field; for an unknown name with the nearest known one.
    """

    experiment: str  # which experiment of the book it belongs to
    preset: str  # one of runs.PRESETS; live trains in the cell
    dataset: str  # "number_names", "multi30k", or a folder of files below LSBOOK_DATA, see `corpus`
    network: str  # "transformer"; said, so that a spec tells what it is a spec of
    alpha: float  # label smoothing; ε if convention is "others"
    vocabulary: int  # tokens of both languages together
    width: int  # these as in transformer.Transformer
    heads: int
    layers: int
    hidden: int
    epochs: int
    batch_tokens: int  # of a batch, source and target, padding counted
    learning_rate: float  # the largest
    warmup: int  # steps until then
    seed: int  # of the initial weights, the order of batches and dropout (and the numbers drawn for number names)
    dropout: float = 0.1
    norm: str = "pre"
    sharing: str = "all"
    convention: str = "uniform"  # these two as in transformer.token_loss
    receivers: str = "all"
    schedule: str = "linear"  # after the warm-up: one of SCHEDULES, down to 0 in a straight line, or as 1/√step
    clip_norm: float = 0.0  # the gradient's largest norm; 0 does not clip
    train_pairs: int = 0  # the first of the training split; 0 is all. Number names have as many as are asked for.
    longest: int = 0  # training pairs with more tokens than this on a side are left out; 0 is no limit
    dtype: str = "float64"  # one of training.PRECISIONS, or "auto", the fastest that the device has
    record_epochs: tuple[int, ...] = ()  # when to note metrics
    beams: tuple[int, ...] = (1,)  # beam sizes that the test set is translated with in the end

    def __post_init__(self):
        for name, value in (_checked_names(self) | _checked_numbers(self)).items():
            object.__setattr__(self, name, value)  # the way past `frozen`
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 × heads, got width {self.width} and heads {self.heads}")
        if self.dataset == "number_names" and not self.train_pairs:
            raise ValueError("train_pairs must be at least 1 on number_names, got 0")


def _checked_names(spec):
    return {
        **{name: check_file_stem(getattr(spec, name), name) for name in ("experiment", "dataset")},
        "preset": check_choice(spec.preset, "preset", runs.PRESETS),
        "network": check_choice(spec.network, "network", ("transformer",)),
        "norm": check_choice(spec.norm, "norm", transformer.NORMS),
        "sharing": check_choice(spec.sharing, "sharing", transformer.SHARING),
        "convention": check_convention(spec.convention),
        "receivers": check_choice(spec.receivers, "receivers", transformer.RECEIVERS),
        "schedule": check_choice(spec.schedule, "schedule", SCHEDULES),
        "dtype": check_choice(spec.dtype, "dtype", ("auto", *training.PRECISIONS)),
    }


def _checked_numbers(spec):
    least = {
        "vocabulary": text.BYTES + 5,
        "width": 2,
        "heads": 1,
        "layers": 1,
        "hidden": 1,
        "epochs": 0,
        "batch_tokens": 2,
    }
    least |= {"warmup": 1, "train_pairs": 0, "longest": 0}
    wholes = {name: check_int(getattr(spec, name), name, low) for name, low in least.items()}
    if wholes["longest"] == 1:
        raise ValueError("longest must be 0 (no limit) or at least 2, a token and the end of the sentence, got 1")
    return {
        **wholes,
        "seed": check_seed(spec.seed),
        **{name: check_number(getattr(spec, name), name, 0, 1) + 0.0 for name in ("alpha", "dropout")},
        "learning_rate": check_positive(spec.learning_rate, "learning_rate"),
        "clip_norm": check_number(spec.clip_norm, "clip_norm", 0, np.finfo(np.float64).max) + 0.0,
        "record_epochs": _whole_numbers(spec.record_epochs, "record_epochs", 0),
        "beams": _checked_beams(spec.beams),
    }


def _whole_numbers(values, name, low):
    if not isinstance(values, (tuple, list, range)):
        raise TypeError(f"{name} must be a tuple of whole numbers, got {values!r} ({type(values).__name__})")
    return tuple(check_int(value, name, low) for value in values)


def _checked_beams(beams):
    """Beam sizes that a run can store: what is wrong with them must show before the training, not after it."""
    beams = _whole_numbers(beams, "beams", 1)
    if not beams or max(beams) > MOST_BEAMS:
        raise ValueError(f"beams must be one or more sizes of at most {MOST_BEAMS}, got {beams}")
    return beams


# Trains in a cell, 20 seconds on one core. Without dropout and in float64, so that every machine gets the same.
NUMBER_NAMES = TranslationSpec(
    experiment="number-names",
    preset="live",
    dataset="number_names",
    network="transformer",
    alpha=0.0,
    vocabulary=450,
    width=64,
    heads=4,
    layers=2,
    hidden=128,
    epochs=4,
    batch_tokens=2_000,
    learning_rate=4e-3,
    warmup=100,
    seed=0,
    dropout=0.0,
    train_pairs=5_000,
    record_epochs=(0, 1, 2, 3, 4),
    beams=(1, 4),
)


# --- the corpus


def corpus(spec, progress=False):
    """The sentence pairs (English, German) of `spec`: a dictionary from "train", "val", "test" to lists.

    On Multi30k the test split is test_2016_flickr. Another name than the book's own is a folder below LSBOOK_DATA with
    train.en, train.de, val.en … test.de: UTF-8, one sentence a line, plain or gzip (train.en.gz). Raises
    `datasets.MissingDataError` that says where they are expected, and what `text.read_parallel` raises.
    """
    if spec.dataset == "number_names":
        return number_names.pairs(train=spec.train_pairs, val=500, test=500, seed=spec.seed)
    if spec.dataset == "multi30k":
        data = datasets.multi30k(progress)
        data = {"train": data["train"], "val": data["val"], "test": data["test_2016_flickr"]}
    else:
        data = {split: text.read_parallel(*_files(spec.dataset, split)) for split in SPLITS}
    if spec.train_pairs > len(data["train"]):
        raise ValueError(
            f"train_pairs must be at most {len(data['train']):,} on {spec.dataset}, got {spec.train_pairs:,}"
        )
    return data | {"train": data["train"][: spec.train_pairs or None]}


def _files(name, split):
    """The two files of one split of a corpus of one's own."""
    folder = datasets.folder() / name
    found = []
    for language in ("en", "de"):
        plain = folder / f"{split}.{language}"
        there = [path for path in (plain, plain.with_name(f"{plain.name}.gz")) if path.is_file()]
        if not there:
            raise datasets.MissingDataError(
                f"no corpus file {plain} (or {plain.name}.gz): the corpus {name!r} is expected in {folder} as train, "
                f"val and test, each .en and .de, UTF-8, one sentence a line"
            )
        found += there[:1]
    return found


class Prepared(NamedTuple):
    """What a training needs of its corpus: the tokenizer, token indices of each split, and sentences of the test.

    left_out : how many training pairs were too long
    """

    tokenizer: text.Tokenizer
    pairs: dict
    test: list
    left_out: int = 0


def prepare(spec, data=None):
    """Learn the pieces from the training pairs, and turn all sentences into tokens: `Prepared`.

    data : see `corpus`, which is asked by default. Over-long training pairs are left out and counted; val and
        test stay whole.
    """
    data = corpus(spec, training.show_progress()) if data is None else data
    sentences = [sentence for pair in data["train"][:TOKENIZER_PAIRS] for sentence in pair]
    tokenizer = text.Tokenizer.train(sentences, spec.vocabulary)
    name = f"{spec.dataset} {{}}".format
    pairs = {split: text.encode_pairs(data[split], tokenizer, name=name(split)).pairs for split in ("val", "test")}
    train = text.encode_pairs(data["train"], tokenizer, spec.longest or None, "drop", name("train"))
    return Prepared(tokenizer, pairs | {"train": train.pairs}, data["test"], len(train.dropped))


# --- several processes


def processes():
    """(rank, number) of the processes that train together: (0, 1) unless `torchrun` has started this one.

    It sets both variables. WORLD_SIZE alone is some cluster's, and says nothing of this program.
    """
    rank, number = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return (int(rank), int(number)) if rank and number else (0, 1)


@contextmanager
def together(device):
    """Within a with block, the processes of `torchrun` can exchange gradients; yields the device of this one.

    On GPUs process i of a machine takes GPU i. Without torchrun, or within another such block, nothing happens.
    """
    if processes()[1] == 1 or torch.distributed.is_initialized():
        yield device
        return
    if cuda := torch.device(device).type == "cuda":
        device = training.check_device(f"cuda:{os.environ['LOCAL_RANK']}", "the GPU of this process of torchrun")
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


def from_first(value):
    """The whole number or flag that the first process gives, in all of them; they wait for it. Within `together`."""
    number = torch.tensor([int(value)])
    torch.distributed.broadcast(number, 0)
    return number.item()


class Share(NamedTuple):
    """One process's rows of a batch. weight × (mean loss of these) averaged over processes is the batch's mean loss."""

    arguments: tuple
    labels: torch.Tensor
    weight: float


def share(batch, device="cpu"):
    """This process's `Share` of a `text.Batch`: every row for one process, rows rank, rank + N, … of N.

    Where there are fewer rows than processes, the last ones get a row that weighs nothing.
    """
    rank, number = processes()
    rows = torch.arange(len(batch.labels))[rank::number]
    idle = len(rows) == 0
    part = text.Batch(*(tensor[:1] if idle else tensor[rows] for tensor in batch))
    weight = 0.0 if idle else number * part.num_tokens / batch.num_tokens
    return Share((part.source.to(device), part.inputs.to(device)), part.labels.to(device), weight)


class Shares:
    """The shares of the batches of one epoch, made as they are asked for: iterable, with a length."""

    def __init__(self, pairs, spec, epoch, device):
        self.pairs, self.device = pairs, device
        self.indices = text.batch_indices(pairs, spec.batch_tokens, spec.seed, epoch)

    def __len__(self):
        return len(self.indices)

    def __iter__(self):
        return (share(text.make_batch(self.pairs, index), self.device) for index in self.indices)


# --- training


def learning_rate_factor(spec, steps):
    """Function from the step 1, 2, … `steps` to the factor of the spec's learning rate."""
    if spec.schedule == "inverse square root":
        return partial(transformer.inverse_square_root, warmup=spec.warmup)
    warmup = min(spec.warmup, steps)
    return lambda step: min(step / warmup, (steps + 1 - step) / (steps + 1 - warmup))


def model_of(spec, device="cpu"):
    """The Transformer of `spec` with its initial weights."""
    names = ("width", "heads", "layers", "hidden", "dropout", "norm", "sharing")
    make = partial(transformer.Transformer, spec.vocabulary, **{name: getattr(spec, name) for name in names})
    return models.build(make, spec.seed, torch.float64 if spec.dtype == "float64" else torch.float32, device)


def loss_of(spec):
    """The loss of `spec` on the logits of a `Share`."""

    def loss(logits, part):
        value = transformer.token_loss(logits, part.labels, spec.alpha, spec.convention, spec.receivers, validate=False)
        return value if part.weight == 1 else part.weight * value

    return loss


def fit(spec, prepared, device="cpu", checkpoint=None, checkpoint_seconds=60):
    """Train the Transformer of `spec` on a `Prepared` corpus; returns (model, history).

    checkpoint : path, see `training.fit`; a killed training goes on from there to the same bits on the same machine
    """
    model, pairs = model_of(spec, device), prepared.pairs["train"]
    rank, number = processes()
    forward = torch.nn.parallel.DistributedDataParallel(model) if number > 1 else model
    steps = spec.epochs * len(text.batch_indices(pairs, spec.batch_tokens, spec.seed))
    plan = {"pairs": len(pairs), "batch_tokens": spec.batch_tokens, "alpha": spec.alpha, "seed": spec.seed}
    with training.memory_advice(spec.batch_tokens, "batch_tokens"):
        history = training.fit_batches(
            model,
            partial(Shares, pairs, spec, device=device),
            loss_of(spec),
            learning_rate_factor(spec, steps),
            epochs=spec.epochs,
            learning_rate=spec.learning_rate,
            plan=plan | {"processes": number},
            seed=spec.seed + rank * 2**31,  # each process has dropout of its own; with one, the seed is the spec's
            precision=training.precision_of(spec.dtype, device),
            clip_norm=spec.clip_norm,
            forward=forward,
            record=partial(_record, spec, prepared) if rank == 0 else None,
            label=f"{spec.experiment} α={spec.alpha:g} seed {spec.seed}",
            keep=training.Keep(checkpoint, checkpoint_seconds, writes=rank == 0),
        )
    return model.eval(), history


def _record(spec, prepared, epoch, model):
    """NLL and accuracy per token, and greedy BLEU, on the first pairs of train and val."""
    if epoch not in spec.record_epochs:
        return None
    row = {"epoch": epoch}
    for split in ("train", "val"):
        pairs = prepared.pairs[split][:RECORDED_PAIRS]
        tokens = _next_tokens(model, translation_metrics.token_features(model, pairs), 1.0)
        row |= {f"{split}_nll": tokens.mean_nll, f"{split}_accuracy": tokens.accuracy}
    pairs = prepared.pairs["val"][:RECORDED_PAIRS]
    said = decoding.translate_tokens(model, [source for source, _ in pairs], beam=1)
    decode = prepared.tokenizer.decode
    references = [decode(labels) for _, labels in pairs]
    return row | {"val_bleu": translation_metrics.bleu([decode(tokens) for tokens in said], references).score}


# --- what a run keeps


def _head(model):
    """Weight (V, W) and bias (V,) of the output layer, on the CPU, where the features are."""
    return model.head.weight.detach().cpu(), model.head.bias.detach().cpu()


def _next_tokens(model, tokens, temperature):
    return translation_metrics.next_tokens(tokens.features, tokens.labels, *_head(model), temperature)


def _sweep(model, tokens):
    """`NextTokens` at every temperature of the grid."""
    return translation_metrics.sweep_next_tokens(tokens.features, tokens.labels, *_head(model), TEMPERATURES)


def _token_arrays(model, prepared):
    """Next-token predictions of the test set over temperatures, and the temperature that the val set asks for."""
    tokens = {split: translation_metrics.token_features(model, prepared.pairs[split]) for split in ("val", "test")}
    val, swept = _sweep(model, tokens["val"]), _sweep(model, tokens["test"])
    temperature = _fitted_temperature(tokens["val"], _head(model))
    fitted = _next_tokens(model, tokens["test"], temperature)
    return {
        "temperatures": np.array(TEMPERATURES),
        "fitted_temperature": np.array([temperature]),
        "val_nll": np.array([part.mean_nll for part in val]),
        "val_ece": np.array([part.bins().error for part in val]),
        "test_confidence": np.stack([part.confidence for part in (*swept, fitted)]).astype(np.float16),
        "test_nll": np.stack([part.nll for part in (*swept, fitted)]).astype(np.float16),
        "test_correct": fitted.correct,
        "test_sentence": _sentence_indices(tokens["test"].sentence.numpy()),
        "test_special_mass": _special_mass(model, tokens["test"]),
    }


def _sentence_indices(indices):
    """Each token's sentence as uint16, or as uint32 where a test set of one's own has more than 65,536 of them."""
    return indices.astype(np.uint16 if indices.max() < 2**16 else np.uint32)


def _fitted_temperature(tokens, head):
    """The temperature with the least NLL, or 1 where there is none: a long training must not be lost for that."""
    try:
        return translation_metrics.fit_token_temperature(tokens.features, tokens.labels, *head)
    except ValueError:
        return 1.0


@torch.no_grad()
def _special_mass(model, tokens):
    """Mean probability of PADDING, BEGIN and UNKNOWN, none of which is ever right: (3,)."""
    head, total = _head(model), 0.0
    for part in tokens.features.split(translation_metrics.CHUNK):
        probs = torch.nn.functional.linear(part, *head).double().softmax(-1)
        total = total + probs[:, [text.PADDING, text.BEGIN, text.UNKNOWN]].sum(0)
    return (total / len(tokens.features)).numpy()


def _searches(spec):
    """(beam, temperature) of every search; beam 1 does not depend on the temperature."""
    return [(beam, t) for beam in spec.beams for t in (SEARCH_TEMPERATURES if beam > 1 else (1.0,))]


def _search_arrays(spec, model, prepared):
    """Translations of the test set, as counts per sentence that BLEU is made of, and whether each is the reference."""
    sources, references = [s for s, _ in prepared.pairs["test"]], [target for _, target in prepared.test]
    counts, exact, searches = [], [], _searches(spec)
    for beam, temperature in training.progress_bar(searches, desc="translations", leave=False):
        said = decoding.translate_tokens(model, sources, beam, temperature=temperature)
        translations = [prepared.tokenizer.decode(tokens) for tokens in said]
        both = [translation_metrics.bleu_counts(translations, references, lowercase) for lowercase in (False, True)]
        counts.append(np.stack(both))
        exact.append([t == r for t, r in zip(translations, references, strict=True)])
    return {
        "search_beams": np.array([beam for beam, _ in searches], dtype=np.uint8),
        "search_temperatures": np.array([temperature for _, temperature in searches]),
        "search_counts": np.stack(counts).astype(np.uint16),  # (searches, cased and uncased, sentences, 10)
        "search_exact": np.array(exact),
    }


def _shown_arrays(spec, model, prepared):
    """Features of three pieces, the first examples in train and test, and the output layer's rows for them."""
    shown = _shown_pieces(spec, prepared)
    weight, bias = (part[shown].numpy() for part in _head(model))
    arrays = {"shown_pieces": np.array(shown, dtype=np.int32), "head_weight": weight, "head_bias": bias}
    for split in ("train", "test"):
        pairs = [p for p in prepared.pairs[split][:20_000] if set(shown) & set(p[1])][: 10 * SHOWN_EXAMPLES]
        tokens = translation_metrics.token_features(model, pairs or prepared.pairs[split][:1])  # none of a tiny corpus
        index = torch.cat([(tokens.labels == piece).nonzero().flatten()[:SHOWN_EXAMPLES] for piece in shown])
        place = {piece: i for i, piece in enumerate(shown)}
        labels = [place[label] for label in tokens.labels[index].tolist()]
        features = tokens.features[index]
        arrays[f"shown_{split}_features"] = (features if features.dtype == torch.float64 else features.half()).numpy()
        arrays[f"shown_{split}_labels"] = np.array(labels, dtype=np.uint8)
    return arrays


def _shown_pieces(spec, prepared):
    """Token indices of the three pieces whose features are kept."""
    pieces = prepared.tokenizer.pieces
    wanted = [piece for piece in SHOWN_PIECES.get(spec.dataset, ()) if piece in pieces]
    if len(wanted) == 3:
        return [pieces.index(piece) for piece in wanted]
    said = np.concatenate([np.asarray(target) for _, target in prepared.pairs["train"]])
    counts = np.bincount(said, minlength=len(pieces))
    counts[[i for i, piece in enumerate(pieces) if len(piece.strip(text.SPACE)) < 3 or i < text.BYTES + 4]] = 0
    return [int(i) for i in np.argsort(-counts, kind="stable")[:3]]


def _words(spec, model, prepared, arrays):
    """What is text in a run: its shown pieces, and translations of the book's own sentences."""
    sentences = list(SENTENCES.get(spec.dataset, ()))
    said = decoding.translate(model, prepared.tokenizer, sentences) if sentences else []
    pieces = [prepared.tokenizer.pieces[i].replace(text.SPACE, "") for i in arrays["shown_pieces"]]
    return {"shown_words": pieces, "translations": dict(zip(sentences, said, strict=True))}


def train(spec, device, checkpoint=None):
    """Train what `spec` asks for and return the `runs.Run`; under torchrun, None in all processes but the first.

    checkpoint : path of a checkpoint file, see `training.fit`
    """
    before, started = training.seconds_before(checkpoint), time.monotonic()
    with together(device) as device:
        prepared = prepare(spec)
        model, history = fit(spec, prepared, device, checkpoint)
    if processes()[0]:
        return None
    arrays = _token_arrays(model, prepared)
    arrays |= _search_arrays(spec, model, prepared) | _shown_arrays(spec, model, prepared)
    if history and history[-1]["epoch"] == spec.epochs:
        at_one = arrays["test_nll"][TEMPERATURES.index(1.0)].astype(float)
        history[-1] |= {"test_accuracy": float(arrays["test_correct"].mean()), "test_nll": float(at_one.mean())}
    made_by = runs.provenance(device, before + time.monotonic() - started)
    made_by |= {"precision": training.precision_of(spec.dtype, device), "left_out_pairs": prepared.left_out}
    made_by |= _words(spec, model, prepared, arrays)
    made_by |= {"sacrebleu": translation_metrics.bleu(["a"], ["a"]).signature}
    return runs.Run(spec.as_dict(), arrays, history, made_by | ({"resumed": True} if before else {}))


# --- what a run says


def _place(values, wanted, name):
    """Where `wanted` stands in a grid of values; ValueError that lists the grid if it does not."""
    found = [i for i, value in enumerate(values) if value == wanted]
    if not found:
        raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, got {wanted!r}")
    return found[0]


def kept_tokens(run, temperature=1.0):
    """`translation_metrics.NextTokens` of the test set at a temperature of the run's grid, or at its "fitted" one."""
    place = _place([*run.arrays["temperatures"].tolist(), "fitted"], temperature, "temperature")
    confidence, nll = (run.arrays[f"test_{name}"][place].astype(float) for name in ("confidence", "nll"))
    return translation_metrics.NextTokens(confidence, run.arrays["test_correct"], nll)


def kept_counts(run, beam, temperature=1.0, lowercase=True):
    """`translation_metrics.bleu_counts` (S, 10) of the run's translations of the test set, one of its searches.

    lowercase : "uncased" BLEU, as in the paper
    """
    arrays = run.arrays
    searches = list(zip(arrays["search_beams"].tolist(), arrays["search_temperatures"].tolist(), strict=True))
    place = _place(searches, (beam, 1.0 if beam == 1 else temperature), "(beam, temperature)")
    return arrays["search_counts"][place, int(lowercase)].astype(int)
