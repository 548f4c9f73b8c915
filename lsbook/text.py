"""From sentences to batches of token indices: a subword tokenizer, parallel files, batches of about equal cost.

A corpus is a list of pairs (source sentence, target sentence), as `datasets.multi30k` and `number_names.pairs` give it.
"""

import base64
import gzip
import io
import json
import zlib
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from . import files
from .checks import check_choice, check_int

# The same in every tokenizer of the book. UNKNOWN is never met: a character without a piece is spelt in bytes.
PADDING, BEGIN, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = (PADDING, BEGIN, END, UNKNOWN)
BYTES = 256  # pieces that stand for one byte each follow the specials
SPACE = "▁"  # how the pieces write a space; in a sentence it is read as one
RESERVED = "▅"  # sentencepiece leaves out, in silence, every sentence with it; here it is spelt in bytes


class CorpusError(ValueError):
    """A corpus that cannot be used; the message names the file and the line."""


# --- the tokenizer


class Tokenizer:
    """Sentences to token indices and back, by byte-pair encoding (the library is sentencepiece).

    `train` or `load` makes one. The vocabulary: four specials (PADDING, BEGIN, END, UNKNOWN), 256 bytes, then pieces of
    words that training has joined. decode(encode(s)) is s for every s without the character "▁", which becomes a space.
    Source: Sennrich et al. (2016); Kudo and Richardson (2018).
    """

    def __init__(self, model):
        """model : bytes of a sentencepiece model; raises ValueError if they are none or have other specials."""
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_proto=model) if model else None
        except RuntimeError as error:
            raise ValueError(f"model must be a sentencepiece model, got other bytes ({error})") from error
        if self._processor is None:
            raise ValueError("model must be a sentencepiece model, got no bytes")
        self._model, known = model, self._processor
        specials = known.pad_id(), known.bos_id(), known.eos_id(), known.unk_id()
        if specials != SPECIALS:
            raise ValueError(f"padding, begin, end and unknown must have indices {SPECIALS}, got {specials}")

    @classmethod
    def train(cls, sentences, vocabulary_size):
        """Learn pieces from sentences; the same ones give the same pieces each time.

        vocabulary_size : of all tokens, the 260 specials and bytes and every character of the corpus among them.
        Raises CorpusError for an empty corpus or sentence, ValueError if the corpus has not so many pieces, or more
        characters than that.
        """
        from sentencepiece import SentencePieceTrainer

        sentences = [_checked_sentence(sentence, f"sentence {n}") for n, sentence in enumerate(sentences, 1)]
        if not sentences:
            raise CorpusError("the tokenizer must be trained on at least one sentence, got none")
        size = check_int(vocabulary_size, "vocabulary_size", len(SPECIALS) + BYTES + 1)
        model = io.BytesIO()
        options = dict(zip(("pad_id", "bos_id", "eos_id", "unk_id"), SPECIALS, strict=True))
        # Every character as it stands: nothing is normalised, no space is dropped, so that decoding gives it back.
        options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
        options |= {"model_type": "bpe", "vocab_size": size, "character_coverage": 1.0, "num_threads": 1}
        options |= {"max_sentence_length": 2**20, "minloglevel": 2}  # bytes; the default skips long ones in silence
        try:
            SentencePieceTrainer.train(
                sentence_iterator=(sentence.replace(RESERVED, " ") for sentence in sentences),
                model_writer=model,
                **options,
            )
        except RuntimeError as error:
            raise ValueError(
                f"vocabulary_size {size} does not suit these {len(sentences):,} sentences: {error}"
            ) from error
        return cls(model.getvalue())

    def __len__(self):
        return self._processor.get_piece_size()

    @property
    def pieces(self):
        """The tokens as text, by index; "▁" is a space."""
        return [self._processor.id_to_piece(index) for index in range(len(self))]

    def encode(self, sentence):
        """Token indices of a sentence, a list of int without BEGIN and END; raises TypeError if it is no string."""
        return self._processor.encode(_text(sentence, "sentence"))

    def decode(self, tokens):
        """The sentence of token indices; specials say nothing.

        Bytes that are no UTF-8 become U+FFFD. Raises TypeError, ValueError if one is no index of the vocabulary.
        """
        tokens = [check_int(token, "token", 0) for token in tokens]
        if tokens and max(tokens) >= len(self):
            raise ValueError(f"token must lie in [0, {len(self) - 1}], got {max(tokens)}")
        # Left out here: the library writes UNKNOWN as " ⁇ ".
        return self._processor.decode([token for token in tokens if token not in SPECIALS])

    def to_json(self):
        """The tokenizer as JSON text: its pieces, to be read, and the library's model in base64, to be loaded."""
        model = base64.b64encode(self._model).decode("ascii")
        return json.dumps({"pieces": self.pieces, "sentencepiece": model}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text):
        """The tokenizer that `to_json` wrote; raises ValueError for other text. Nothing is ever unpickled."""
        try:
            stored = json.loads(text)
            model, pieces = base64.b64decode(stored["sentencepiece"], validate=True), stored["pieces"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"a tokenizer must be JSON with 'pieces' and 'sentencepiece': {error!r}") from error
        tokenizer = cls(model)
        if tokenizer.pieces != pieces:
            raise ValueError("a tokenizer's 'pieces' must be those of its model, got others")
        return tokenizer

    def save(self, path):
        """Write `to_json` to a file, whole or not at all."""
        files.write(path, self.to_json().encode())

    @classmethod
    def load(cls, path):
        """The tokenizer that `save` wrote; raises FileNotFoundError, or ValueError that names the file."""
        with files.about(path):
            return cls.from_json(Path(path).read_bytes())


def _text(sentence, name):
    """Return `sentence` if it is text that UTF-8 can hold."""
    if not isinstance(sentence, str):
        raise TypeError(f"{name} must be a string, got {sentence!r:.80} ({type(sentence).__name__})")
    try:
        sentence.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise ValueError(f"{name} must be text that UTF-8 can hold, got {sentence!r:.80}") from error
    return sentence


def _checked_sentence(sentence, name):
    if not _text(sentence, name).strip():
        raise CorpusError(f"{name} is empty")
    return sentence


# --- parallel files


def read_parallel(source_path, target_path):
    """Sentence pairs of two files with one sentence a line, UTF-8, plain or gzip: a list of (source, target).

    A line ends at a line feed, or carriage return and line feed; a byte order mark at the start is no text. Raises
    FileNotFoundError, or CorpusError that names file and line: another encoding, an empty line, files of unequal
    length, a damaged gzip file.
    """
    source, target = read_sentences(source_path), read_sentences(target_path)
    if len(source) != len(target):
        (short, few), (long, many) = sorted(
            [(source_path, len(source)), (target_path, len(target))], key=lambda p: p[1]
        )
        raise CorpusError(
            f"parallel files must have as many lines each: {short} ends after line {few}, {long} has {many}"
        )
    return list(zip(source, target, strict=True))


def read_sentences(path):
    """Sentences of a file, as `read_parallel` reads them: a list of strings; raises as it does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no corpus file {path} (expected UTF-8 text, one sentence a line, plain or gzip)")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"  # asked of the content: a name may be wrong
    sentences = []
    try:
        with gzip.open(path) if zipped else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
                sentences.append(_read_line(line.removesuffix(b"\n").removesuffix(b"\r"), f"{path} line {number}"))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is a damaged gzip file: {error} after line {len(sentences)}") from error
    if not sentences:
        raise CorpusError(f"{path} must hold at least one sentence, got an empty file")
    return sentences


def _read_line(line, where):
    try:
        sentence = line.decode()
    except UnicodeDecodeError as error:
        wrong = line[error.start]
        raise CorpusError(f"{where} is not UTF-8: byte 0x{wrong:02x} at position {error.start + 1}") from error
    if "\0" in sentence:
        raise CorpusError(f"{where} holds a zero byte: perhaps the file is UTF-16; it must be UTF-8")
    return _checked_sentence(sentence, where)


# --- tokens


class Encoded(NamedTuple):
    """Token indices of sentence pairs, each ended by END, and the numbers (from 1) of pairs left out as too long.

    Arrays of 32-bit integers: lists take five times the memory, 10 GB for the 4.5 million pairs of WMT 2014.
    """

    pairs: list[tuple[array, array]]
    dropped: list[int]


def encode_pairs(pairs, tokenizer, max_tokens=None, over_long="raise", name="corpus"):
    """Token indices of (source, target) pairs, each side with END at its end: `Encoded`.

    max_tokens : of one side, END included; None is no limit. A longer pair is never cut.
    over_long : "raise" is an error, "drop" leaves the pair out and says so in `dropped` (for training data alone)
    name : of the corpus, for messages

    Raises CorpusError that names corpus and line (counted from 1): an empty sentence, one too long, nothing left.
    """
    check_choice(over_long, "over_long", ("raise", "drop"))
    limit = None if max_tokens is None else check_int(max_tokens, "max_tokens", 2)
    kept, dropped = [], []
    for line, pair in enumerate(pairs, 1):
        sides = [
            array("i", [*tokenizer.encode(_checked_sentence(text, f"{name} line {line}: the {side} sentence")), END])
            for side, text in zip(("source", "target"), pair, strict=True)
        ]
        length = max(map(len, sides))
        if limit is None or length <= limit:
            kept.append(tuple(sides))
        elif over_long == "drop":
            dropped.append(line)
        else:
            raise CorpusError(f"{name} line {line} has {length} tokens, more than max_tokens = {limit}")
    if not kept:
        fitting = "" if limit is None else f" of at most {limit} tokens"
        raise CorpusError(f"{name} must hold at least one pair{fitting}, got none")
    return Encoded(kept, dropped)


class Batch(NamedTuple):
    """Sentence pairs as rectangles of token indices; shorter ones end in PADDING.

    source (B, S): tokens, END. inputs (B, T): BEGIN, tokens — what the decoder reads. labels (B, T): tokens, END — what
    it should say next. index (B,): which pairs of the corpus.
    """

    source: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor

    @property
    def num_tokens(self):
        """Labels that count: those that are no padding."""
        return int((self.labels != PADDING).sum())


def pad(sequences):
    """Lists or arrays of token indices as a tensor (N, longest), PADDING after their ends."""
    rows = torch.full((len(sequences), max(map(len, sequences))), PADDING)
    for row, tokens in zip(rows, sequences, strict=True):
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def make_batch(pairs, index=None):
    """The `Batch` of encoded pairs; `index` chooses some, all by default."""
    index = list(range(len(pairs))) if index is None else [int(i) for i in index]
    source, labels = pad([pairs[i][0] for i in index]), pad([pairs[i][1] for i in index])
    inputs = pad([[BEGIN, *pairs[i][1][:-1]] for i in index])
    return Batch(source, inputs, labels, torch.tensor(index))


def batch_indices(pairs, max_tokens, seed=None, epoch=0):
    """Which encoded pairs go into which batch: a list of lists of indices, every pair in exactly one batch.

    A batch of B pairs costs B × (longest source + longest target) tokens, padding counted, at most `max_tokens`; pairs
    of like length go together. With a seed, batches come in an order, and pairs of equal length in groups, that depend
    on seed and epoch alone; without one they go by length. Raises CorpusError if there is no pair, or one that alone
    exceeds the limit.
    """
    limit, epoch = check_int(max_tokens, "max_tokens", 1), check_int(epoch, "epoch", 0)
    if not len(pairs):
        raise CorpusError("pairs must hold at least one pair, got none")
    lengths = np.array([(len(source), len(target)) for source, target in pairs])
    worst = lengths.sum(1).argmax()
    if lengths[worst].sum() > limit:
        raise CorpusError(
            f"max_tokens must hold every pair, source and target: pair {worst + 1} has {lengths[worst].sum()} tokens, "
            f"got {limit}"
        )
    generator = None if seed is None else torch.Generator().manual_seed(check_int(seed, "seed", 0) * 1_000_003 + epoch)
    order = np.arange(len(pairs)) if seed is None else torch.randperm(len(pairs), generator=generator).numpy()
    order = order[np.lexsort(lengths[order].T)]  # by target, then source; equals stay in the order drawn
    batches = _fill(order.tolist(), lengths.tolist(), limit)
    return batches if seed is None else [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _fill(order, lengths, limit):
    """Cut `order` into batches, each as long as the limit allows."""
    batches, longest = [[]], (0, 0)
    for index in order:
        grown = max(longest[0], lengths[index][0]), max(longest[1], lengths[index][1])
        if (len(batches[-1]) + 1) * sum(grown) > limit:
            batches.append([])
            grown = lengths[index]
        batches[-1].append(index)
        longest = grown
    return batches


def batches(pairs, max_tokens, seed=None, epoch=0):
    """The `Batch`es of `batch_indices`, made one at a time."""
    for index in batch_indices(pairs, max_tokens, seed, epoch):
        yield make_batch(pairs, index)
