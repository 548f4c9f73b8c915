"""Beam search against exhaustive search and a naive loop; BLEU, next-token predictions and intervals by definition."""

import itertools
import math
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from strategies import seeds

from lsbook import calibration, decoding, models, text, translation_metrics
from lsbook.decoding import beam_search, greedy, naive_beam_search, score, token_log_probs
from lsbook.text import BEGIN, END, PADDING, UNKNOWN
from lsbook.transformer import Transformer


def make(seed=0, vocabulary=7, end_bias=0.0):
    """A small random network in float64, sharp enough for its choices to differ; `end_bias` moves the logit of END."""
    model = models.build(partial(Transformer, vocabulary, width=8, heads=2, layers=1, hidden=16), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.head.bias += torch.randn(vocabulary, generator=generator, dtype=torch.float64)
        model.head.bias[END] += end_bias
        model.target_embedding.weight *= 3
    return model


kept = cache(make)  # for tests that only look at it


def sources(seed, count=4, vocabulary=7):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (count,), generator=generator).tolist()
    return text.pad([[*torch.randint(4, vocabulary, (n,), generator=generator).tolist(), END] for n in lengths])


def log_prob_of(model, source, tokens, temperature=1.0):
    """ln p of one translation by a full pass, summed token by token."""
    inputs = torch.tensor([[BEGIN, *tokens[:-1]]])
    with torch.no_grad():
        rows = (model.eval()(source[None], inputs).logits[0] / temperature).log_softmax(-1)
    return sum(row[token].item() for row, token in zip(rows, tokens, strict=True))


def alike(found, expected):
    assert [h.tokens for h in found] == [h.tokens for h in expected]
    for one, other in zip(found, expected, strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=1e-10)


# --- beam search


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("vocabulary", "longest", "penalty"), [(6, 4, 0.6), (7, 3, 1.0), (5, 5, 0.0)])
def test_a_large_beam_is_exhaustive_search(seed, vocabulary, longest, penalty):
    """Every translation of at most so many tokens is scored by a full pass; a beam that drops none finds the best."""
    model, source = make(seed, vocabulary), sources(seed, 2, vocabulary)
    words = range(4, vocabulary)
    everything = [(*w, END) for n in range(longest) for w in itertools.product(words, repeat=n)]
    beam = (len(words) + 1) ** longest
    found = beam_search(model, source, beam, temperature=1.3, penalty=penalty, max_length=longest).hypotheses
    for row, hypotheses in zip(source, found, strict=True):
        scored = [(log_prob_of(model, row, tokens, 1.3), tokens) for tokens in everything]
        expected = sorted(((score(p, len(t), penalty), t, p) for p, t in scored), reverse=True)
        assert [h.tokens for h in hypotheses] == [tokens for _, tokens, _ in expected]
        assert [h.score for h in hypotheses] == pytest.approx([value for value, *_ in expected], abs=1e-10)


searches = st.fixed_dictionaries(
    {
        "beam": st.integers(1, 6),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "penalty": st.sampled_from([0.0, 0.6, 1.0]),
        "max_length": st.sampled_from([None, 1, 2, 6]),
    }
)


@settings(max_examples=12)
@given(seeds, searches, st.sampled_from([-2.0, 0.0, 2.0]))
def test_batched_and_cached_is_the_naive_loop(seed, options, end_bias):
    """Other sentences of the batch, which end sooner or later, change nothing either."""
    model, source = kept(seed % 7, end_bias=end_bias), sources(seed)
    found = beam_search(model, source, **options).hypotheses
    for row, hypotheses in zip(source, found, strict=True):
        alike(hypotheses, naive_beam_search(model, row, **options))


@settings(max_examples=12)
@given(seeds, searches)
def test_scores_are_the_recomputed_log_probabilities(seed, options):
    model, source = kept(seed % 7), sources(seed)
    for row, hypotheses in zip(source, beam_search(model, source, **options).hypotheses, strict=True):
        assert 1 <= len(hypotheses) <= options["beam"]
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert len({h.tokens for h in hypotheses}) == len(hypotheses)
        limit = options["max_length"] or 2 * int((row != PADDING).sum()) + 10
        for tokens, log_prob, value in hypotheses:
            assert tokens[-1] == END and END not in tokens[:-1] and len(tokens) <= limit
            assert not {PADDING, BEGIN, UNKNOWN} & set(tokens)
            expected = log_prob_of(model, row, tokens, options["temperature"])
            assert log_prob == pytest.approx(expected, abs=1e-10)
            assert value == log_prob / ((5 + len(tokens)) / 6) ** options["penalty"]


@settings(max_examples=12)
@given(seeds, st.sampled_from([None, 1, 3]), st.sampled_from([-3.0, 0.0]))
def test_beam_1_is_greedy_at_every_temperature(seed, max_length, end_bias):
    """Regression against the replication, which swept the BLEU of greedy decoding over T: it cannot depend on it."""
    model, source = kept(seed % 7, end_bias=end_bias), sources(seed)
    expected = greedy(model, source, max_length)
    for temperature in (0.1, 1.0, 3.0, 50.0):
        found = beam_search(model, source, 1, temperature=temperature, max_length=max_length).hypotheses
        assert [best.tokens for (best,) in found] == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_beam_1_is_greedy_in_low_precision(dtype):
    """Regression: log-probabilities rounded to bfloat16 tied where logits did not; a fifth of the translations left."""
    for seed in range(4):
        model, source = make(seed, vocabulary=60).to(dtype), sources(seed, 8, 60)
        expected = greedy(model, source)
        for temperature in (0.1, 1.0, 1.7, 50.0):
            found = beam_search(model, source, 1, temperature=temperature).hypotheses
            assert [best.tokens for (best,) in found] == expected


def says_always(logits, dtype=torch.float64):
    """A network with the same logits at every step, whatever was said: of END, and of the words."""
    model = make(0, vocabulary=3 + len(logits))
    with torch.no_grad():
        model.head.weight = torch.nn.Parameter(torch.zeros_like(model.head.weight))  # no longer the embedding's
        model.head.bias[:] = torch.tensor([0, 0, logits[0], 0, *logits[1:]], dtype=torch.float64)
    return model.to(dtype)


def test_a_long_past_hides_no_small_difference():
    """Regression: beside a total of −50, float32 did not see which of two words is likelier by 1e-7."""
    model, source = says_always([-9, 1, 1 + 2**-23, -9], torch.float32), torch.tensor([[4, END]])
    ((best,),) = beam_search(model, source, 1, max_length=60).hypotheses
    assert [best.tokens] == greedy(model, source, 60) == [(5,) * 59 + (END,)]
    total = model.head.bias.double().logsumexp(0).item()
    assert best.log_prob == pytest.approx(59 * (1 + 2**-23) - 9 - 60 * total, abs=1e-9)


def test_of_equal_words_the_first_is_said():
    """Regression: topk takes any of equal ones, which one hangs on how many there are, and beam 1 was not greedy."""
    for words in (2, 5, 40, 300):
        model, source = says_always([-1.0] + [0.5] * words), torch.tensor([[4, END], [4, 4]])
        found = beam_search(model, source, 1, max_length=3).hypotheses
        assert [best.tokens for (best,) in found] == [(4, 4, END)] * 2 == greedy(model, source, 3)


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e3, 1e300])
def test_flat_and_peaked_logits(gap):
    model, source = says_always([0.0, gap, 0.0, 0.0]), sources(1)
    for beam in (1, 4, 30):  # more beams than words
        search = beam_search(model, source, beam, max_length=3)
        for hypotheses in search.hypotheses:
            assert len({h.tokens for h in hypotheses}) == len(hypotheses) <= min(beam, 1 + 3 + 9)
            assert all(h.log_prob <= 0 and math.isfinite(h.score) for h in hypotheses)
    # With the largest beam all 13 are found, none twice.
    assert all(len(hypotheses) == 13 for hypotheses in search.hypotheses)


def test_a_long_source_beside_short_ones():
    long = torch.randint(4, 7, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    model, source = kept(2), text.pad([[*long, END], [5, END], [*long[:37], END]])
    for row, hypotheses in zip(source, beam_search(model, source, 3, max_length=5).hypotheses, strict=True):
        alike(hypotheses, naive_beam_search(model, row, 3, max_length=5))


def test_greedy_takes_the_likeliest_token():
    model, source = make(2, end_bias=-1.0), sources(2)
    for row, tokens in zip(source, greedy(model, source), strict=True):
        with torch.no_grad():
            logits = model.eval()(row[None], torch.tensor([[BEGIN, *tokens[:-1]]])).logits[0]
        logits[:, [PADDING, BEGIN, UNKNOWN]] = -math.inf
        limit = 2 * int((row != PADDING).sum()) + 10
        likeliest = logits.argmax(-1).tolist()
        assert list(tokens[:-1]) == likeliest[:-1] and (likeliest[-1] == END or len(tokens) == limit)


def test_temperature_divides_the_complete_logits():
    """Regression: one replication divided what stands before the output layer, whose bias it so left as it was."""
    model, source = make(1), sources(1, 1)
    scaled = make(1)
    with torch.no_grad():
        scaled.head.weight = torch.nn.Parameter(scaled.head.weight / 2)  # no longer shared with the embeddings
        scaled.head.bias /= 2
    alike(beam_search(model, source, 3, temperature=2.0).hypotheses[0], beam_search(scaled, source, 3).hypotheses[0])
    with torch.no_grad():
        scaled.head.bias *= 2
    wrong = beam_search(scaled, source, 3).hypotheses[0][0]
    assert wrong.log_prob != pytest.approx(log_prob_of(model, source[0], wrong.tokens, 2.0), abs=1e-3)


def test_length_normalisation_by_hand():
    assert score(-3.0, 1, 0.6) == -3.0
    assert score(-3.0, 7, 1.0) == -1.5
    assert score(-3.0, 40, 0.0) == -3.0


def test_more_penalty_never_gives_shorter_translations():
    model, source = make(3), sources(3)
    lengths = [
        [len(max(h, key=lambda one: score(one.log_prob, len(one.tokens), penalty)).tokens) for h in found]
        for found in [beam_search(model, source, 20, max_length=5).hypotheses]
        for penalty in (0.0, 0.6, 1.5)
    ]
    assert all(a <= b <= c for a, b, c in zip(*lengths, strict=True))


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_the_trace_tells_the_whole_search(beam):
    model, source = make(4), sources(4, 3)
    plain = beam_search(model, source, beam, max_length=5)
    search = beam_search(model, source, beam, max_length=5, trace=True)
    assert plain.hypotheses == search.hypotheses and plain.trace == [[], [], []]
    for row, hypotheses, steps in zip(source, search.hypotheses, search.trace, strict=True):
        finished = {(*c.before, c.token) for step in steps for c in step if c.fate == "finished"}
        assert {h.tokens for h in hypotheses} <= finished
        beginnings = {()}
        for step in steps:
            assert {c.before for c in step} <= beginnings
            assert [c.log_prob for c in step] == sorted((c.log_prob for c in step), reverse=True)
            assert all(c.token == END for c in step if c.fate == "finished")
            kept = [(*c.before, c.token) for c in step if c.fate == "kept"]
            assert len(kept) <= beam and len(step) <= 2 * beam
            beginnings = set(kept)
            for c in step:
                expected = log_prob_of(model, row, (*c.before, c.token))
                assert c.log_prob == pytest.approx(expected, abs=1e-10)


def test_a_search_by_hand():
    """A network that knows no past: each next token has p = (END ½, a ⅓, b ⅙), whatever was said."""
    model = make(0, vocabulary=6)
    with torch.no_grad():
        for weights in (model.head.weight, model.head.bias):
            weights.zero_()
        model.head.bias[:] = torch.tensor([-1e9, -1e9, 1 / 2, -1e9, 1 / 3, 1 / 6]).double().clamp(1e-300).log()
        model.decoder_norm.weight.zero_()
    (best, second), *_ = beam_search(model, sources(0, 1, 6), 2, penalty=0.0, max_length=3).hypotheses
    assert best.tokens == (END,) and best.log_prob == pytest.approx(math.log(1 / 2))
    assert second.tokens == (4, END) and second.log_prob == pytest.approx(math.log(1 / 6))


def test_an_end_keeps_its_place_and_gives_up_no_better_beginning():
    """By hand, p = (END 0.3, a 0.6, b 0.1) at each step: the second place waits for "aa", it does not take "a END"."""
    model, source = says_always(np.log([0.3, 0.6, 0.1]).tolist()), torch.tensor([[4, END]])
    with torch.no_grad():
        model.head.bias[[PADDING, BEGIN, UNKNOWN]] = -math.inf
    search = beam_search(model, source, 2, penalty=0.0, max_length=3, trace=True)
    a, b = 4, 5
    steps = [[(*c.before, c.token, c.fate) for c in step] for step in search.trace[0]]
    assert steps == [
        [(a, "kept"), (END, "finished"), (b, "dropped")],
        [(a, a, "kept"), (a, END, "dropped"), (a, b, "dropped")],
        [(a, a, END, "finished")],
    ]
    found = {hypothesis.tokens: math.exp(hypothesis.log_prob) for hypothesis in search.hypotheses[0]}
    assert found == pytest.approx({(END,): 0.3, (a, a, END): 0.6 * 0.6 * 0.3})


def test_the_network_is_left_as_it_was():
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    beam_search(model, sources(0), 2)
    greedy(model, sources(0))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dropout_plays_no_part():
    model = make().train()
    assert beam_search(model, sources(0), 2) == beam_search(model, sources(0), 2)


def test_float32_finds_the_same():
    model, source = make(5), sources(5)
    expected = greedy(model, source)
    assert greedy(model.float(), source) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beam": 0}, ValueError, "beam must be at least 1, got 0"),
        ({"beam": 2.0}, TypeError, "beam must be an int, got 2.0 (float)"),
        ({"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ({"penalty": -1}, ValueError, "penalty must lie in [0, 100], got -1"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        ({"source": [[4, 2]]}, TypeError, "source must be a torch tensor, got [[4, 2]] (list)"),
        ({"source": torch.tensor([4, 2])}, ValueError, "source must be token indices (B, S), B and S ≥ 1"),
        ({"source": torch.zeros(1, 0, dtype=torch.long)}, ValueError, "source must be token indices (B, S)"),
        ({"source": torch.tensor([[4, 2], [0, 0]])}, ValueError, "at least one token (END) in each sentence"),
    ],
)
def test_bad_input_to_beam_search(change, error, message):
    with pytest.raises(error) as caught:
        beam_search(**({"model": make(), "source": sources(0)} | change))
    assert message in str(caught.value)


def test_a_broken_network_is_named():
    model = make()
    with torch.no_grad():
        model.head.bias[:] = math.nan
    for search in (greedy, beam_search):
        with pytest.raises(FloatingPointError, match="sentence 0 has no translation: the network's logits are not fin"):
            search(model, sources(0))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("side", "place"), [("target_embedding", 0), ("source_embedding", 1)])
def test_the_sentence_that_a_network_breaks_on_is_named(value, side, place):
    """Regression: greedy decoding said END, and beam search what it had found before word 5 was said, which breaks it.

    As a word of the source only the second sentence has it.
    """
    model, source = make(0), torch.tensor([[4, END], [5, END]])
    broken = torch.nn.Embedding.from_pretrained(model.target_embedding.weight.detach().clone())
    broken.weight[5] = value
    setattr(model, side, broken)
    with torch.no_grad():
        model.head.bias[:] = torch.tensor([0, 0, 30, 0, 0, 31, 0])  # END is nearly as likely as the word: it finishes
    for search in (greedy, beam_search):
        with pytest.raises(FloatingPointError, match=f"sentence {place} has no translation: the network's logits are"):
            search(model, source)


def test_a_network_that_cannot_end_is_named():
    model = make()
    with torch.no_grad():
        model.head.bias[END] = -math.inf
    with pytest.raises(FloatingPointError, match="sentence 0 has no translation: each has probability 0"):
        beam_search(model, sources(0), 2, max_length=4)


# --- scoring given translations, sentences in and out


def test_given_translations_are_scored():
    model, source = make(6), sources(6)
    said = [best.tokens for best, *_ in beam_search(model, source, 3, temperature=1.5).hypotheses]
    pairs = [
        ([t for t in row.tolist() if t != PADDING], list(tokens)) for row, tokens in zip(source, said, strict=True)
    ]
    log_probs = token_log_probs(model, text.make_batch(pairs), 1.5)
    for row, (best, *_) in zip(log_probs, beam_search(model, source, 3, temperature=1.5).hypotheses, strict=True):
        assert row.sum().item() == pytest.approx(best.log_prob, abs=1e-10)
        assert (row[len(best.tokens) :] == 0).all() and (row[: len(best.tokens)] < 0).all()


def test_translate_keeps_the_order_whatever_the_batch():
    sentences = ["b a", "a", "a b a b b", "", "a a"]
    tokenizer = text.Tokenizer.train(["a b", "b a b"], 265)
    model = make(0, len(tokenizer), end_bias=-3)
    with torch.no_grad():
        model.head.bias[4:260] -= 100  # the bytes: say words
    together = decoding.translate(model, tokenizer, sentences, 2, max_length=4)
    alone = [decoding.translate(model, tokenizer, [s], 2, max_length=4, batch_size=1)[0] for s in sentences]
    assert together == alone and len(set(together)) > 1


# --- BLEU

TRANSLATIONS = ["Ein Hund läuft über das Gras .", "zwei Männer stehen hier", "die frau liest", "Eine Katze schläft"]
REFERENCES = ["ein Hund läuft über die Wiese .", "Zwei Männer stehen hier", "Die Frau liest ein Buch", "Es regnet"]


@pytest.mark.parametrize("lowercase", [False, True])
def test_bleu_is_sacrebleus(lowercase):
    counter = BLEU(lowercase=lowercase)
    expected = counter.corpus_score(TRANSLATIONS, [REFERENCES])
    found = translation_metrics.bleu(TRANSLATIONS, REFERENCES, lowercase)
    assert found == (expected.score, str(counter.get_signature()))
    assert f"case:{'lc' if lowercase else 'mixed'}|" in found.signature and "tok:13a" in found.signature
    counts = translation_metrics.bleu_counts(TRANSLATIONS, REFERENCES, lowercase)
    assert counts.sum(0).tolist() == [*expected.counts, *expected.totals, expected.sys_len, expected.ref_len]
    assert translation_metrics.bleu_of_counts(counts.sum(0, keepdims=True)) == [pytest.approx(expected.score)]


def test_counts_of_a_sentence_by_hand():
    """ "the cat sat ." against "the cat sat down .": 4, 2 and 1 n-grams match, no 4-gram; tokens 4 and 5."""
    (row,) = translation_metrics.bleu_counts(["the cat sat."], ["the cat sat down."])
    assert row.tolist() == [4, 2, 1, 0, 4, 3, 2, 1, 4, 5]
    assert translation_metrics.bleu_counts([""], ["one two"]).tolist() == [[0] * 9 + [2]]


def resampled_corpora(size, num_resamples, seed):
    """Which sentences each resample holds, as `resampled` draws them: how often each, said as indices."""
    rng = np.random.default_rng(seed)
    draws = [rng.multinomial(size, np.full(size, 1 / size)) for _ in range(num_resamples)]
    assert all(drawn.sum() == size for drawn in draws)
    return [np.repeat(np.arange(size), drawn) for drawn in draws]


def test_interval_of_bleu_is_that_of_sacrebleu_on_resampled_sentences():
    translations, references = TRANSLATIONS * 3, REFERENCES[::-1] + REFERENCES * 2
    scores = [
        BLEU().corpus_score([translations[i] for i in drawn], [[references[i] for i in drawn]]).score
        for drawn in resampled_corpora(12, 130, 5)
    ]
    found = translation_metrics.bleu_interval(translations, references, num_resamples=130, seed=5, confidence=0.8)
    assert found == pytest.approx(np.quantile(scores, [0.1, 0.9])) and found[0] < found[1]


def test_uncased_bleu_is_no_less():
    assert (
        translation_metrics.bleu(TRANSLATIONS, REFERENCES, True).score
        > translation_metrics.bleu(TRANSLATIONS, REFERENCES).score
    )


def test_interval_of_bleu():
    low, high = translation_metrics.bleu_interval(TRANSLATIONS * 20, REFERENCES * 20, num_resamples=100)
    assert low < translation_metrics.bleu(TRANSLATIONS * 20, REFERENCES * 20).score < high
    assert (low, high) == translation_metrics.bleu_interval(TRANSLATIONS * 20, REFERENCES * 20, num_resamples=100)
    assert translation_metrics.bleu_interval(REFERENCES, REFERENCES, num_resamples=20) == pytest.approx((100, 100))


@pytest.mark.parametrize(
    ("translations", "references", "error", "message"),
    [
        (["a"], ["a", "b"], ValueError, "must be as many, and at least one, got 1 and 2"),
        ([], [], ValueError, "at least one, got 0 and 0"),
        ("a", ["a"], TypeError, "translations must be a list of strings, got 'a'"),
        (["a"], [["a"]], TypeError, "references must be a list of strings"),
    ],
)
def test_bad_input_to_bleu(translations, references, error, message):
    with pytest.raises(error) as caught:
        translation_metrics.bleu(translations, references)
    assert message in str(caught.value)


# --- next tokens


def corpus(seed=0, count=30, vocabulary=7):
    generator = torch.Generator().manual_seed(seed)

    def sentence():
        length = int(torch.randint(0, 7, (), generator=generator))
        return [*torch.randint(4, vocabulary, (length,), generator=generator).tolist(), END]

    return [(sentence(), sentence()) for _ in range(count)]


def every_token(model, pairs, temperature):
    """Probabilities (n, V) and labels (n,) of all tokens, one sentence at a time: the definition."""
    probs, labels = [], []
    for source, target in pairs:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([source]), torch.tensor([[BEGIN, *target[:-1]]])).logits[0]
        probs.append((logits / temperature).softmax(-1))
        labels += target
    return torch.cat(probs), torch.tensor(labels)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("chunk", [4, 1024])
def test_next_tokens_are_the_definition(monkeypatch, temperature, chunk):
    """Regression against the replication: no padding counts, and the softmax is over the vocabulary."""
    monkeypatch.setattr(translation_metrics, "CHUNK", chunk)
    model, pairs = make(1), corpus()
    tokens = translation_metrics.token_features(model, pairs, max_tokens=60)
    found = translation_metrics.next_tokens(
        tokens.features, tokens.labels, model.head.weight, model.head.bias, temperature
    )
    probs, labels = every_token(model, pairs, temperature)
    assert torch.equal(tokens.labels, labels)
    assert tokens.sentence.tolist() == [i for i, (_, target) in enumerate(pairs) for _ in target]
    np.testing.assert_allclose(found.confidence, probs.max(-1).values, atol=1e-12)
    np.testing.assert_array_equal(found.correct, probs.argmax(-1) == labels)
    assert found.mean_nll == pytest.approx(calibration.negative_log_likelihood(probs.log(), labels))
    assert found.perplexity == pytest.approx(math.exp(found.mean_nll))
    assert found.accuracy == pytest.approx(calibration.accuracy(probs, labels))
    for strategy in ("width", "mass"):
        ece = calibration.expected_calibration_error(probs, labels, strategy=strategy)
        assert found.bins(strategy=strategy).error == pytest.approx(ece)


def test_temperature_fit_is_that_of_calibration():
    model, pairs = make(3), corpus(3, 60)
    with torch.no_grad():
        model.head.bias *= 0.2  # so that the labels, drawn at random, are not all wrong
        features, labels, _ = translation_metrics.token_features(model, pairs)
        # Labels drawn from the network at T = 1.7: the best T is near.
        logits = features @ model.head.weight.T + model.head.bias
        labels = torch.multinomial((logits / 1.7).softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    found = translation_metrics.fit_token_temperature(features, labels, model.head.weight, model.head.bias)
    assert found == pytest.approx(calibration.fit_temperature(logits, labels), rel=1e-4)
    with pytest.raises(ValueError, match="no temperature in"):
        best = logits.argmax(-1)
        translation_metrics.fit_token_temperature(features, best, model.head.weight, model.head.bias)


def test_intervals_resample_sentences():
    rng = np.random.default_rng(0)
    sentence = np.repeat(np.arange(200), 10)
    confidence = np.full(2000, 0.7)
    # All tokens of a sentence are right or wrong together: ten times fewer independent ones than tokens.
    correct = np.repeat(rng.random(200) < 0.5, 10)
    tokens = translation_metrics.NextTokens(confidence, correct, rng.random(2000))
    low, high = translation_metrics.ece_interval(tokens, sentence, num_resamples=300)
    alone = translation_metrics.ece_interval(tokens, np.arange(2000), num_resamples=300)
    assert low < tokens.bins().error < high
    # The standard error of a mean of 200 draws of ½, and of 2,000: √10 apart.
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(200), rel=0.2)
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(2000), rel=0.2)
    low, high = translation_metrics.nll_interval(tokens, sentence, num_resamples=300)
    assert low < tokens.mean_nll < high
    # The spread of a mean of 2,000 numbers from [0, 1]: 1/√12/√2000, twice 1.96 of it.
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(12 * 2000), rel=0.2)


def test_intervals_are_those_of_resampled_corpora():
    """Directly: the tokens of the drawn sentences, however long, in bins anew; many confidences lie on an edge."""
    rng = np.random.default_rng(1)
    sentence = np.repeat(np.arange(15) * 3, rng.integers(1, 9, 15))  # places of sentences need not be 0, 1, 2, …
    confidence = rng.choice(np.append(np.linspace(0, 1, 6), [0.3, 0.55, 0.77]), len(sentence))
    correct, nll = rng.random(len(sentence)) < confidence, rng.exponential(1.0, len(sentence))
    shuffled = rng.permutation(len(sentence))  # nor do tokens stand in order
    tokens = translation_metrics.NextTokens(confidence[shuffled], correct[shuffled], nll[shuffled])
    ece, losses = [], []
    for drawn in resampled_corpora(15, 250, 4):
        kept = np.concatenate([np.flatnonzero(sentence == 3 * i) for i in drawn])
        ece.append(calibration.confidence_bins(confidence[kept], correct[kept], 5).error)
        losses.append(nll[kept].mean())
    options = {"num_resamples": 250, "seed": 4, "confidence": 0.9}
    found = translation_metrics.ece_interval(tokens, sentence[shuffled], 5, **options)
    assert found == pytest.approx(np.quantile(ece, [0.05, 0.95]), abs=1e-12)
    found = translation_metrics.nll_interval(tokens, sentence[shuffled], **options)
    assert found == pytest.approx(np.quantile(losses, [0.05, 0.95]), abs=1e-12)


def test_paired_interval_by_hand():
    """Sentences are drawn alike for all networks, and the difference is that of the means over seeds."""
    treated, control = [[[3.0], [5.0]], [[1.0], [1.0]]], [[[1.0], [1.0]], [[1.0], [1.0]]]
    seen = []

    def statistic(sums):
        seen.append(sums[:, 0])
        return sums[:, 0]

    low, high = translation_metrics.paired_interval(treated, control, statistic, num_resamples=200, confidence=1)
    np.testing.assert_array_equal(seen[1], 2)  # of every resample of two sentences
    assert set(seen[0].tolist()) == {6, 8, 10}
    assert (low, high) == ((6 - 2) / 2, (10 - 2) / 2)
    for wrong in ([treated[0]], [treated[0], [[1.0]]]):
        with pytest.raises(ValueError, match="must be as many arrays of one shape"):
            translation_metrics.paired_interval(wrong, control, statistic)


def test_scores_of_sums_are_those_of_the_corpus():
    rng = np.random.default_rng(0)
    tokens = translation_metrics.NextTokens(rng.random(300), rng.random(300) < 0.5, rng.exponential(size=300))
    sentence = np.repeat(np.arange(30), 10)
    ece, nll = translation_metrics.ece_sums(tokens, sentence, 7), translation_metrics.nll_sums(tokens, sentence)
    assert ece.shape == (30, 8) and nll.shape == (30, 2)
    assert translation_metrics.ece_of_sums(ece.sum(0, keepdims=True)) == pytest.approx(tokens.bins(7).error)
    assert translation_metrics.nll_of_sums(nll.sum(0, keepdims=True)) == pytest.approx(tokens.mean_nll)
    np.testing.assert_allclose(nll[3], [tokens.nll[30:40].sum(), 10])


def test_resamples_by_hand():
    """Of two sentences, one twice, both, or the other twice."""
    values = translation_metrics.resampled([[1.0], [3.0]], lambda sums: sums[:, 0], 250)
    assert set(values.tolist()) == {2.0, 4.0, 6.0} and len(values) == 250


def test_memory_stays_small(monkeypatch):
    """No array of tokens × vocabulary is ever made: at most CHUNK tokens have logits at once."""
    rows, real = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda b, x, w: rows.append(len(x)) or real(b, x, w))
    monkeypatch.setattr(translation_metrics, "CHUNK", 16)
    monkeypatch.setattr(Transformer, "forward", None)  # the features are asked for without their logits
    model = make()
    tokens = translation_metrics.token_features(model, corpus())
    head = model.head.weight, model.head.bias
    translation_metrics.sweep_next_tokens(tokens.features, tokens.labels, *head, [1.0, 2.0])
    assert max(rows) == 16 and sum(rows) == len(tokens.labels)  # once for both temperatures


def test_a_sweep_is_each_temperature_alone():
    model, pairs = make(1), corpus()
    features, labels, _ = translation_metrics.token_features(model, pairs)
    arguments = features, labels, model.head.weight, model.head.bias
    for found, temperature in zip(translation_metrics.sweep_next_tokens(*arguments, [0.5, 3]), [0.5, 3], strict=True):
        for one, other in zip(found, translation_metrics.next_tokens(*arguments, temperature), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="temperature must be positive and finite, got -1"):
        translation_metrics.sweep_next_tokens(*arguments, [1, -1])


def test_next_tokens_at_the_ends_of_temperature():
    """Regression: z/T overflowed at the smallest T, and all three became NaN."""
    x, labels = torch.tensor([[1.0], [1.0]]), torch.tensor([1, 0])
    weight, bias = torch.tensor([[1e4], [2e4], [-3e4]]), torch.zeros(3)
    cold = translation_metrics.next_tokens(x, labels, weight, bias, 1e-308)
    assert cold.confidence.tolist() == [1, 1] and cold.correct.tolist() == [True, False]
    assert cold.nll.tolist() == [0, math.inf]
    hot = translation_metrics.next_tokens(x, labels, weight, bias, 1e300)
    np.testing.assert_allclose(hot.confidence, 1 / 3, rtol=1e-15)
    np.testing.assert_allclose(hot.nll, math.log(3), rtol=1e-15)


def test_token_features_leave_the_network_as_it_was():
    """Neither dropout nor a pair beyond the limit of a batch plays a part."""
    model, pairs = make(1).train(), corpus()
    found, again = (translation_metrics.token_features(model, pairs, limit) for limit in (1, 500))
    assert model.training
    torch.testing.assert_close(found.features, again.features, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.labels, again.labels) and torch.equal(found.sentence, again.sentence)


def test_bad_input_to_next_tokens():
    x, y, w, b = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(5, 2), torch.zeros(5)
    for arguments in [(x, y[:2], w, b), (x, y, w.T, b), (x, y, w, b[:4]), (x[:0], y[:0], w, b), (x[0], y, w, b)]:
        with pytest.raises(ValueError, match="must fit, got"):
            translation_metrics.next_tokens(*arguments)
    with pytest.raises(TypeError, match="bias must be a torch tensor"):
        translation_metrics.next_tokens(x, y, w, [0.0] * 5)
    with pytest.raises(ValueError, match="temperature must be positive"):
        translation_metrics.next_tokens(x, y, w, b, 0)
    tokens = translation_metrics.next_tokens(x, y, w, b)
    with pytest.raises(ValueError, match="sentence must hold an index for each of 3 tokens"):
        translation_metrics.ece_interval(tokens, np.zeros(2, int))
    with pytest.raises(ValueError, match=r"sums must have shape \(S, C\)"):
        translation_metrics.resampled([1.0], len)


def test_bins_from_confidences():
    probs = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    labels = torch.arange(50) % 4
    top, guess = probs.max(-1)
    for strategy in ("width", "mass"):
        found = calibration.confidence_bins(top, guess == labels, 10, strategy)
        expected = calibration.reliability_bins(probs, labels, 10, strategy)
        assert found.error == expected.error and np.array_equal(found.counts, expected.counts)
    for confidence, correct in [([1.2], [1]), ([0.5], [2]), ([0.5], [1, 0]), ([[0.5]], [[1]]), ([], [])]:
        with pytest.raises(ValueError, match="confidence|correct"):
            calibration.confidence_bins(confidence, correct)
