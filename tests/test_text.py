"""Number names by hand and against an independent reader; the tokenizer; files, batches and their faults."""

import gzip
import json
import re
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import sentences

from lsbook import number_names, text
from lsbook.number_names import LARGEST, english, german
from lsbook.text import BEGIN, END, PADDING, SPECIALS, UNKNOWN, CorpusError, Tokenizer

PAIRS = number_names.pairs(300, 20, 20)["train"]
TOKENIZER = Tokenizer.train([sentence for pair in PAIRS for sentence in pair], 350)

# --- number names


@pytest.mark.parametrize(
    ("number", "english_name", "german_name"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (7, "seven", "sieben"),
        (11, "eleven", "elf"),
        (12, "twelve", "zwölf"),
        (16, "sixteen", "sechzehn"),
        (17, "seventeen", "siebzehn"),
        (20, "twenty", "zwanzig"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (60, "sixty", "sechzig"),
        (66, "sixty-six", "sechsundsechzig"),
        (70, "seventy", "siebzig"),
        (77, "seventy-seven", "siebenundsiebzig"),
        (100, "one hundred", "einhundert"),
        (101, "one hundred one", "einhunderteins"),
        (117, "one hundred seventeen", "einhundertsiebzehn"),
        (243, "two hundred forty-three", "zweihundertdreiundvierzig"),
        (1_000, "one thousand", "eintausend"),
        (1_001, "one thousand one", "eintausendeins"),
        (21_000, "twenty-one thousand", "einundzwanzigtausend"),
        (101_000, "one hundred one thousand", "einhunderteintausend"),
        (201_111, "two hundred one thousand one hundred eleven", "zweihunderteintausendeinhundertelf"),
        (700_660, "seven hundred thousand six hundred sixty", "siebenhunderttausendsechshundertsechzig"),
        (
            999_999,
            "nine hundred ninety-nine thousand nine hundred ninety-nine",
            "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
        ),
    ],
)
def test_names_by_hand(number, english_name, german_name):
    assert english(number) == english_name
    assert german(number) == german_name


# Another way round: names are read, not made, by rules of their own.
UNITS = {"ein": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5, "sechs": 6, "sieben": 7, "acht": 8, "neun": 9}
ODD = {"zehn": 10, "elf": 11, "zwölf": 12, "dreizehn": 13, "vierzehn": 14, "fünfzehn": 15, "sechzehn": 16}
ODD |= {"siebzehn": 17, "achtzehn": 18, "neunzehn": 19}
TENS = {"zwanzig": 20, "dreißig": 30, "vierzig": 40, "fünfzig": 50, "sechzig": 60, "siebzig": 70, "achtzig": 80}
TENS |= {"neunzig": 90}


def one_of(words):
    return "|".join(sorted(words, key=len, reverse=True))


BELOW_1000 = re.compile(
    f"(?:(?P<hundreds>{one_of(UNITS)})hundert)?"
    f"(?:(?P<odd>{one_of(ODD)})|(?:(?P<with>{one_of(UNITS)})und)?(?P<tens>{one_of(TENS)})|(?P<unit>{one_of(UNITS)}))?"
)


def read_below_1000(name):
    """The number of a German name, "ein" for one; None if it is none."""
    match = BELOW_1000.fullmatch(name)
    if not name or not match:
        return None
    part = match.groupdict()
    small = ODD.get(part["odd"], 0) + UNITS.get(part["unit"], 0)
    return 100 * UNITS.get(part["hundreds"], 0) + small + UNITS.get(part["with"], 0) + TENS.get(part["tens"], 0)


def test_every_german_name_reads_back_as_its_number():
    """So no two numbers share a name: each is read at the first "tausend", and all halves by the rules."""
    heads = {german(1000 * n).removesuffix("tausend"): n for n in range(1, 1000)}
    assert all(read_below_1000(name) == n for name, n in heads.items())
    tails = {german(n): n for n in range(1, 1000)}
    assert all(read_below_1000(re.sub("eins$", "ein", name)) == n for name, n in tails.items())
    assert not any("tausend" in name for name in [*heads, *tails])
    assert all(name.endswith("eins") == (n % 100 == 1) for name, n in tails.items())
    heads, tails = heads | {None: 0}, tails | {"": 0}
    for number in range(1000, LARGEST + 1, 37):
        head, _, tail = german(number).partition("tausend")
        assert 1000 * heads[head] + tails[tail] == number


def test_english_names_differ_and_have_their_parts():
    names = {english(n) for n in range(0, LARGEST + 1, 97)} | {english(n) for n in range(2000)}
    assert len(names) == len(set(range(0, LARGEST + 1, 97)) | set(range(2000)))
    assert all(re.fullmatch("[a-z]+(-[a-z]+)?( [a-z]+(-[a-z]+)?)*", name) for name in names)
    for number in (2_003, 42_000, 999_017):
        thousands, rest = divmod(number, 1000)
        assert english(number) == f"{english(thousands)} thousand" + (f" {english(rest)}" if rest else "")


def test_splits_are_disjoint_and_larger_ones_hold_smaller_ones():
    small, large = number_names.pairs(100, 10, 20, seed=3), number_names.pairs(900, 10, 20, seed=3)
    assert {name: len(part) for name, part in large.items()} == {"train": 900, "val": 10, "test": 20}
    assert small["train"] == large["train"][:100] and small["test"] == large["test"] and small["val"] == large["val"]
    assert len({pair for part in large.values() for pair in part}) == 930
    assert number_names.pairs(100, seed=4)["train"] != small["train"]
    everything = number_names.pairs(90, 5, 5, largest=99)
    assert {pair for part in everything.values() for pair in part} == {(english(n), german(n)) for n in range(100)}


def test_the_split_of_seed_0_stays_as_it_is():
    """Stored results rest on it."""
    assert number_names.pairs(2, 1, 1, largest=99) == {
        "train": [("ninety-three", "dreiundneunzig"), ("ninety", "neunzig")],
        "val": [("nineteen", "neunzehn")],
        "test": [("forty-four", "vierundvierzig")],
    }


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: german(-1), ValueError, "number must lie in [0, 999999], got -1"),
        (lambda: english(1_000_000), ValueError, "number must lie in [0, 999999], got 1000000"),
        (lambda: english(1.0), TypeError, "number must be an int, got 1.0 (float)"),
        (lambda: number_names.pairs(-1), ValueError, "train must be at least 0, got -1"),
        (lambda: number_names.pairs(99, 1, 1, largest=99), ValueError, "at most the 100 numbers, got 101"),
        (lambda: number_names.pairs(largest=10**6), ValueError, "largest must lie in [1, 999999], got 1000000"),
        (lambda: number_names.pairs(seed=-1), ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_input_to_number_names(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# --- the tokenizer


@given(sentences)
def test_decoding_gives_the_sentence_back(sentence):
    tokens = TOKENIZER.encode(sentence)
    assert TOKENIZER.decode(tokens) == sentence
    assert not set(tokens) & set(SPECIALS)


@pytest.mark.parametrize(
    "sentence",
    [
        *("<s> </s> <unk> <pad>", "<0x41>", " two  spaces ", "é", unicodedata.normalize("NFD", "é")),
        # A character of sentencepiece's own use, the mark of what is unknown, one beyond 16 bits, ligature, joiner,
        # byte order mark, and what ends a line or a string elsewhere.
        *("a▅b", "⁇", "𝄞", "ﬁ", "a\u200db", "\ufeffa", "\r\n", "\t", "a\0b", "\u2028"),
    ],
)
def test_nothing_in_a_sentence_is_a_command(sentence):
    assert TOKENIZER.decode(TOKENIZER.encode(sentence)) == sentence


def test_the_piece_for_a_space_is_read_as_one():
    assert TOKENIZER.decode(TOKENIZER.encode("a▁b▁")) == "a b "


def test_tokens_that_are_no_text():
    """Regression: the library writes UNKNOWN as " ⁇ ", which a translation must not say."""
    a, b = TOKENIZER.encode("zwei"), TOKENIZER.encode("zwei drei")[1:]
    assert TOKENIZER.decode([UNKNOWN]) == "" == TOKENIZER.decode(SPECIALS)
    assert TOKENIZER.decode([*a, UNKNOWN, *b]) == TOKENIZER.decode([*a, *b])
    byte = TOKENIZER.pieces.index("<0x00>")
    assert TOKENIZER.decode([byte + 0xC3, byte + 0xA9]) == "é" and TOKENIZER.decode([byte + 0xFF]) == "\ufffd"


def test_no_training_sentence_is_left_out():
    """Regression: sentencepiece skipped, in silence, sentences with the character that it keeps for itself."""
    tokenizer = Tokenizer.train(["▅ abab abab"] * 3, 264)
    assert any("ab" in piece for piece in tokenizer.pieces[260:])
    assert tokenizer.decode(tokenizer.encode("▅ abab")) == "▅ abab"


def test_the_vocabulary():
    assert TOKENIZER.pieces[:5] == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>"]
    assert len(TOKENIZER) == len(TOKENIZER.pieces) == len(set(TOKENIZER.pieces)) == 350
    assert "hundert" in " ".join(TOKENIZER.pieces)
    assert TOKENIZER.decode([BEGIN, *TOKENIZER.encode("zwei"), END, PADDING, PADDING]) == "zwei"
    assert TOKENIZER.encode("") == []


def test_training_again_gives_the_same():
    again = Tokenizer.train([sentence for pair in PAIRS for sentence in pair], 350)
    assert again.to_json() == TOKENIZER.to_json()


def test_a_stored_tokenizer_is_the_same(tmp_path):
    TOKENIZER.save(tmp_path / "pieces.json")
    loaded = Tokenizer.load(tmp_path / "pieces.json")
    assert loaded.pieces == TOKENIZER.pieces
    assert all(loaded.encode(a) == TOKENIZER.encode(a) for pair in PAIRS[:50] for a in pair)
    assert json.loads((tmp_path / "pieces.json").read_text(encoding="utf-8"))["pieces"] == TOKENIZER.pieces


def changed(**changes):
    return json.dumps(json.loads(TOKENIZER.to_json()) | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be JSON"),
        (b"[]", "must be JSON"),
        (b"\xff\xfe", "pieces.json"),
        (b'{"pieces": []}', "must be JSON with 'pieces' and 'sentencepiece'"),
        (changed(sentencepiece="???").encode(), "must be JSON"),
        (changed(sentencepiece="").encode(), "model must be a sentencepiece model, got no bytes"),
        (changed(sentencepiece="Z2FyYmFnZQ==").encode(), "model must be a sentencepiece model, got other bytes"),
        (changed(pieces=["a"]).encode(), "'pieces' must be those of its model"),
    ],
)
def test_a_damaged_tokenizer_is_refused(tmp_path, content, message):
    (tmp_path / "pieces.json").write_bytes(content)
    with pytest.raises(ValueError, match="pieces.json") as caught:
        Tokenizer.load(tmp_path / "pieces.json")
    assert message in str(caught.value)


def test_a_model_with_other_specials_is_refused():
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(["a b c"] * 9), model_writer=model, vocab_size=8, minloglevel=2)
    with pytest.raises(ValueError, match=r"must have indices \(0, 1, 2, 3\), got \(-1, 1, 2, 0\)"):
        Tokenizer(model.getvalue())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Tokenizer.train([], 300), CorpusError, "at least one sentence, got none"),
        (lambda: Tokenizer.train(["a", " "], 300), CorpusError, "sentence 2 is empty"),
        (lambda: Tokenizer.train(["a", 3], 300), TypeError, "sentence 2 must be a string, got 3 (int)"),
        (lambda: Tokenizer.train(["a b"], 260), ValueError, "vocabulary_size must be at least 261, got 260"),
        (lambda: Tokenizer.train(["a b"], 9000), ValueError, "vocabulary_size 9000 does not suit these 1 sentences"),
        (lambda: Tokenizer.train(["abcdefgh"], 261), ValueError, "vocabulary_size 261 does not suit"),
        (lambda: TOKENIZER.encode(b"x"), TypeError, "sentence must be a string, got b'x' (bytes)"),
        (lambda: TOKENIZER.encode("\ud800"), ValueError, "sentence must be text that UTF-8 can hold"),
        (lambda: TOKENIZER.decode([350]), ValueError, "token must lie in [0, 349], got 350"),
        (lambda: TOKENIZER.decode([-1]), ValueError, "token must be at least 0, got -1"),
        (lambda: TOKENIZER.decode(["x"]), TypeError, "token must be an int, got 'x' (str)"),
    ],
)
def test_bad_input_to_the_tokenizer(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# --- parallel files


@pytest.fixture
def corpus(tmp_path):
    """A function that writes the two sides of a corpus, as bytes, and returns their paths."""

    def write(source, target, ending=""):
        paths = tmp_path / f"corpus.en{ending}", tmp_path / f"corpus.de{ending}"
        for path, content in zip(paths, (source, target), strict=True):
            path.write_bytes(content)
        return paths

    return write


TWO = b"one\ntwo \xe2\x80\xa8 parts\n", "eins\nzwei Hälften\n".encode()
TWO_PAIRS = [("one", "eins"), ("two \u2028 parts", "zwei Hälften")]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content,
        lambda content: content[:-1],
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: b"\xef\xbb\xbf" + content,
        gzip.compress,
    ],
    ids=["plain", "no last line feed", "Windows", "byte order mark", "gzip"],
)
def test_parallel_files(corpus, change):
    """Only a line feed ends a line, not the separator U+2028, at which str.splitlines would break."""
    assert text.read_parallel(*corpus(*map(change, TWO))) == TWO_PAIRS


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\nc\n", b"a\nb\n", "corpus.de ends after line 2, {source} has 3"),
        (b"a\n", b"a\nb\n", "corpus.en ends after line 1, {target} has 2"),
        (b"a\n\nc\n", b"a\nb\nc\n", "corpus.en line 2 is empty"),
        (b"a\nb\n", b"a\n \t\n", "corpus.de line 2 is empty"),
        (b"a\nb\n", "a\nHälfte\n".encode("latin-1"), "corpus.de line 2 is not UTF-8: byte 0xe4 at position 2"),
        ("a\nb\n".encode("utf-16"), b"a\nb\n", "corpus.en line 1 is not UTF-8: byte 0xff at position 1"),
        ("a\nb\n".encode("utf-16-le"), b"a\nb\n", "corpus.en line 1 holds a zero byte: perhaps the file is UTF-16"),
        (b"", b"", "corpus.en must hold at least one sentence, got an empty file"),
        (gzip.compress(b"a\nb\n" * 1000, mtime=0)[:-12], b"a\n", "corpus.en is a damaged gzip file"),
        (b"\x1f\x8b nonsense", b"a\n", "corpus.en is a damaged gzip file"),
    ],
)
def test_faults_of_a_corpus_name_file_and_line(corpus, source, target, message):
    source_path, target_path = corpus(source, target)
    with pytest.raises(CorpusError) as caught:
        text.read_parallel(source_path, target_path)
    assert message.format(source=source_path, target=target_path) in str(caught.value)


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus file .*train.en"):
        text.read_parallel(tmp_path / "train.en", tmp_path / "train.de")


# --- batches

ENCODED = text.encode_pairs(PAIRS, TOKENIZER).pairs


def test_encoding_adds_the_end():
    (source, target), *_ = ENCODED
    assert list(source) == [*TOKENIZER.encode(PAIRS[0][0]), END]
    assert list(target) == [*TOKENIZER.encode(PAIRS[0][1]), END]
    assert source.itemsize == target.itemsize == 4  # bytes a token, not the 36 of a list of int


def test_over_long_sentences():
    """Never cut: an error, or left out and told."""
    longest = max(len(side) for pair in ENCODED for side in pair)
    line = next(n for n, pair in enumerate(ENCODED, 1) if max(map(len, pair)) == longest)
    assert text.encode_pairs(PAIRS, TOKENIZER, longest).dropped == []
    with pytest.raises(
        CorpusError, match=f"train line {line} has {longest} tokens, more than max_tokens = {longest - 1}"
    ):
        text.encode_pairs(PAIRS, TOKENIZER, longest - 1, name="train")
    encoded = text.encode_pairs(PAIRS, TOKENIZER, longest - 1, over_long="drop")
    assert line in encoded.dropped and len(encoded.pairs) + len(encoded.dropped) == len(PAIRS)
    assert encoded.pairs == [pair for pair in ENCODED if max(map(len, pair)) < longest]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: text.encode_pairs([("a", "b"), ("a", "")], TOKENIZER, name="val"),
            "val line 2: the target sentence is empty",
        ),
        (lambda: text.encode_pairs([], TOKENIZER), "corpus must hold at least one pair, got none"),
        (lambda: text.batch_indices([], 100), "pairs must hold at least one pair, got none"),
        (lambda: text.encode_pairs(PAIRS, TOKENIZER, 2, "drop"), "at least one pair of at most 2 tokens, got none"),
        (
            lambda: text.encode_pairs(PAIRS, TOKENIZER, over_long="cut"),
            "over_long must be one of 'raise', 'drop', got 'cut'",
        ),
        (lambda: text.batch_indices([([5, END], [5, END])], 3), "pair 1 has 4 tokens, got 3"),
        (lambda: text.batch_indices(ENCODED, 0), "max_tokens must be at least 1, got 0"),
    ],
)
def test_bad_input_to_encoding_and_batching(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)


def test_a_batch_by_hand():
    batch = text.make_batch([([7, END], [8, 9, END]), ([5, 6, END], [4, END])])
    assert batch.source.tolist() == [[7, END, PADDING], [5, 6, END]]
    assert batch.inputs.tolist() == [[BEGIN, 8, 9], [BEGIN, 4, PADDING]]
    assert batch.labels.tolist() == [[8, 9, END], [4, END, PADDING]]
    assert batch.index.tolist() == [0, 1] and batch.num_tokens == 5


lengths = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=60)


@given(lengths, st.integers(40, 300), st.none() | st.integers(0, 5), st.integers(0, 3))
def test_every_pair_is_in_one_batch_within_the_limit(lengths, limit, seed, epoch):
    pairs = [([5] * s, [6] * t) for s, t in lengths]
    made = list(text.batches(pairs, limit, seed, epoch))
    assert sorted(i for batch in made for i in batch.index.tolist()) == list(range(len(pairs)))
    assert all(batch.source.numel() + batch.labels.numel() <= limit for batch in made)
    for batch in made:
        for row, i in enumerate(batch.index.tolist()):
            assert [t for t in batch.source[row].tolist() if t != PADDING] == pairs[i][0]
            assert [t for t in batch.labels[row].tolist() if t != PADDING] == pairs[i][1]
    assert text.batch_indices(pairs, limit, seed, epoch) == [batch.index.tolist() for batch in made]


def test_batches_by_hand():
    """By length of target, then source, and as full as the limit allows: 2 × (2 + 3) tokens fit into 10, not 9."""
    pairs = [([5] * s, [6] * t) for s, t in [(1, 3), (4, 4), (2, 3), (1, 3), (2, 1)]]
    assert text.batch_indices(pairs, 9) == [[4], [0, 3], [2], [1]]
    assert text.batch_indices(pairs, 10) == [[4, 0], [3, 2], [1]]
    assert text.batch_indices(pairs, 100) == [[4, 0, 3, 2, 1]]


def test_every_epoch_has_as_many_batches():
    """The schedule of the learning rate rests on it."""
    sizes = [sorted(map(len, text.batch_indices(ENCODED, 500, seed=1, epoch=epoch))) for epoch in range(4)]
    assert sizes == [sizes[0]] * 4 == [sorted(map(len, text.batch_indices(ENCODED, 500)))] * 4


def test_seed_and_epoch_decide_the_batches():
    state = torch.random.get_rng_state()
    first, again = (text.batch_indices(ENCODED, 500, seed=1, epoch=2) for _ in range(2))
    assert first == again and torch.equal(state, torch.random.get_rng_state())
    assert first != text.batch_indices(ENCODED, 500, seed=1, epoch=3)
    assert first != text.batch_indices(ENCODED, 500, seed=2, epoch=2)
    assert text.batch_indices(ENCODED, 500) == text.batch_indices(ENCODED, 500, epoch=3)


def test_little_is_padding():
    made = list(text.batches(ENCODED, 1000, seed=0))
    padded = sum(batch.source.numel() + batch.labels.numel() for batch in made)
    assert sum(len(s) + len(t) for s, t in ENCODED) / padded > 0.8
