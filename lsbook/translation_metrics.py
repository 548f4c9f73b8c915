"""How good and how sure a translation model is: BLEU, and next-token predictions with the right tokens before them.

Of a corpus of n tokens, the features (n, W) of the last layer are computed once; one product with the output weights
then serves all temperatures, taken a part at a time, so that (tokens × vocabulary) numbers never lie in memory.
Padding is left out from the start. Tokens of one sentence are not independent, so intervals resample sentences.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq

from .calibration import Bins, confidence_bins
from .checks import as_numpy, check_int, check_number, check_positive, check_tensor, real_array
from .text import PADDING, batches

CHUNK = 1024  # tokens whose logits lie in memory at once
RESAMPLES_AT_ONCE = 100


# --- BLEU


class Bleu(NamedTuple):
    """BLEU in percent and sacrebleu's signature, which says how it was counted."""

    score: float
    signature: str


def bleu(translations, references, lowercase=False):
    """BLEU of a corpus, one reference a sentence, by sacrebleu with its own tokens ("13a"): `Bleu`.

    lowercase : "uncased" BLEU, as in the paper. Raises TypeError, ValueError unless both are lists of as many strings.
    Source: Papineni et al. (2002); Post (2018).
    """
    counter = _counter(translations, references, lowercase)
    value = counter.corpus_score(translations, [references])
    return Bleu(value.score, str(counter.get_signature()))


def bleu_interval(translations, references, lowercase=False, *, num_resamples=1000, seed=0, confidence=0.95):
    """Percentile interval (low, high) of BLEU over resamples of the sentences; see `bleu`.

    With the same seed two systems are resampled alike. Source: Koehn (2004).
    """
    counts = bleu_counts(translations, references, lowercase)
    return percentile_interval(resampled(counts, bleu_of_counts, num_resamples, seed), confidence)


def bleu_counts(translations, references, lowercase=False):
    """What BLEU is made of, sentence by sentence: integers (S, 10).

    Columns: matching 1- to 4-grams, 1- to 4-grams in all, tokens of the translation and of the reference. Summed over
    sentences they give BLEU of the corpus, see `bleu_of_counts`.
    """
    counter = _counter(translations, references, lowercase, effective_order=True)  # asked for with single sentences
    scores = (counter.sentence_score(*pair) for pair in zip(translations, [[r] for r in references], strict=True))
    return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores])


def _counter(translations, references, lowercase, **options):
    from sacrebleu.metrics import BLEU

    for name, sentences in (("translations", translations), ("references", references)):
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            raise TypeError(f"{name} must be a list of strings, got {sentences!r:.80}")
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"translations and references must be as many, and at least one, got {len(translations)} and "
            f"{len(references)}"
        )
    return BLEU(lowercase=lowercase, **options)


def bleu_of_counts(sums):
    """BLEU in percent of each row of `bleu_counts` summed over sentences (R, 10): a list of R numbers."""
    from sacrebleu.metrics import BLEU

    rows = sums.astype(int).tolist()
    return [BLEU.compute_bleu(row[:4], row[4:8], *row[8:10], smooth_method="exp").score for row in rows]


# --- next tokens


class TokenFeatures(NamedTuple):
    """Features (n, W), labels (n,) and the sentence (n,) of every token of a corpus that is no padding."""

    features: torch.Tensor
    labels: torch.Tensor
    sentence: torch.Tensor


@torch.no_grad()
def token_features(model, pairs, max_tokens=4096):
    """What the model's last layer makes of each target token of encoded pairs, the right ones before it.

    `TokenFeatures` on the CPU, sentences in the corpus's order and tokens in theirs. max_tokens : of a batch; a longer
    pair has as many as it needs.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    parts = []
    longest = max((len(source) + len(target) for source, target in pairs), default=0)
    for batch in batches(pairs, max(max_tokens, longest)):
        kept = batch.labels != PADDING
        features = model.features(batch.source.to(device), batch.inputs.to(device)).cpu()
        sentence = batch.index[:, None].expand_as(batch.labels)
        parts.append((features[kept], batch.labels[kept], sentence[kept]))
    model.train(was_training)
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    order = columns[2].argsort(stable=True)
    return TokenFeatures(*(column[order] for column in columns))


class NextTokens(NamedTuple):
    """Of n next-token predictions: confidence, whether the likeliest token was right, and −ln p of the right one."""

    confidence: np.ndarray
    correct: np.ndarray
    nll: np.ndarray

    @property
    def mean_nll(self):
        """NLL per token in nats."""
        return float(self.nll.mean())

    @property
    def perplexity(self):
        """exp of the NLL per token."""
        return float(np.exp(self.nll.mean()))

    @property
    def accuracy(self):
        """Fraction of tokens that were the likeliest."""
        return float(self.correct.mean())

    def bins(self, num_bins=15, strategy="width") -> Bins:
        """`calibration.Bins`; their `error` is the next-token ECE."""
        return confidence_bins(self.confidence, self.correct, num_bins, strategy)


def _below(features, labels, weight, bias):
    """Logits z_k = x·w_k + b_k less the largest, of some tokens at a time, in float64: (c, V).

    With them those of the labels (c,), and whether the labels are the likeliest (c,).
    """
    weight, bias = weight.double(), bias.double()
    for start in range(0, len(features), CHUNK):
        part = slice(start, start + CHUNK)
        below = torch.addmm(bias, features[part].double(), weight.T)
        top, guess = below.max(-1, keepdim=True)
        right = (below := below - top).gather(-1, labels[part, None]).squeeze(-1)
        yield below, right, guess.squeeze(-1) == labels[part]


def _check_head(features, labels, weight, bias):
    for name, value in (("features", features), ("labels", labels), ("weight", weight), ("bias", bias)):
        check_tensor(value, name)
    shapes = [tuple(value.shape) for value in (features, labels, weight, bias)]
    fits = [len(shape) for shape in shapes] == [2, 1, 2, 1] and shapes[0][1] == shapes[2][1] and len(features) > 0
    if not fits or shapes[0][0] != shapes[1][0] or shapes[2][0] != shapes[3][0]:
        raise ValueError(f"features (n, W), labels (n,), weight (V, W) and bias (V,), n ≥ 1, must fit, got {shapes}")


def next_tokens(features, labels, weight, bias, temperature=1.0):
    """Next-token predictions softmax((x·w_k + b_k)/T) for features x (n, W): `NextTokens`.

    labels (n,), and of the output layer weight (V, W) and bias (V,): the model's `head`. T divides the complete logits.
    Raises TypeError, ValueError unless the shapes fit and T > 0.
    """
    return sweep_next_tokens(features, labels, weight, bias, [temperature])[0]


@torch.no_grad()
def sweep_next_tokens(features, labels, weight, bias, temperatures):
    """`next_tokens` at each of several temperatures, at little more than the cost of one: a list."""
    _check_head(features, labels, weight, bias)
    temperatures = [check_positive(temperature, "temperature") for temperature in temperatures]
    columns = [[] for _ in temperatures]
    for below, right, correct in _below(features, labels, weight, bias):
        for column, temperature in zip(columns, temperatures, strict=True):
            total = (below / temperature).exp_().sum(-1)  # the likeliest has exp(0)
            column.append((1 / total, correct, total.log() - right / temperature))
    return [NextTokens(*(torch.cat(part).numpy() for part in zip(*column, strict=True))) for column in columns]


@torch.no_grad()
def fit_token_temperature(features, labels, weight, bias):
    """The T in [0.05, 20] with the least NLL per token; arguments as in `next_tokens`, of data not reported on.

    In β = 1/T the NLL is convex, with slope the mean of E_p[z] − z_y, whose zero is found. Raises ValueError if there
    is none in that range. Source: Guo et al. (2017).
    """
    _check_head(features, labels, weight, bias)

    def slope(log_beta):
        total = 0.0
        for below, right, _ in _below(features, labels, weight, bias):
            weights = (below * np.exp(log_beta)).exp_()
            total += (torch.linalg.vecdot(weights, below) / weights.sum(-1) - right).sum().item()
        return total

    low, high = np.log(1 / 20), np.log(20)
    if not slope(low) < 0 < slope(high):
        raise ValueError("no temperature in [0.05, 20] has the least NLL: the best lies at or beyond an end")
    return float(np.exp(-brentq(slope, low, high, xtol=1e-6)))


# --- intervals


def resampled(sums, statistic, num_resamples=1000, seed=0):
    """statistic of the sums over resamples of the sentences: array (num_resamples,).

    sums : (S, C), of each sentence the C numbers whose sums over the corpus the statistic is made of
    statistic : function from sums (R, C) to R numbers
    """
    sums, rng = real_array(sums, "sums"), np.random.default_rng(seed)
    if sums.ndim != 2 or not len(sums):
        raise ValueError(f"sums must have shape (S, C) with S ≥ 1, got {sums.shape}")
    count, share, values = len(sums), np.full(len(sums), 1 / len(sums)), []
    for start in range(0, check_int(num_resamples, "num_resamples", 1), RESAMPLES_AT_ONCE):
        drawn = rng.multinomial(count, share, size=min(RESAMPLES_AT_ONCE, num_resamples - start))
        values.append(np.asarray(statistic(drawn @ sums), dtype=float))
    return np.concatenate(values)


def percentile_interval(values, confidence=0.95):
    """(low, high) of the middle `confidence` share of values."""
    tail = (1 - check_number(confidence, "confidence", 0, 1)) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def paired_interval(treated, control, statistic, *, num_resamples=1000, seed=0, confidence=0.95):
    """Percentile interval (low, high) of a mean difference of scores, over resamples of the sentences.

    treated, control : lists, one entry a seed, of arrays (S, C), all of the same S sentences, which are resampled alike
    statistic : function from sums (R, C) over sentences to R scores, such as `bleu_of_counts` or `ece_of_sums`

    Source: Koehn (2004). Raises ValueError unless there are as many arrays on both sides, all of one shape.
    """
    shapes = {np.shape(sums) for sums in (*treated, *control)}
    if len(treated) != len(control) or len(shapes) != 1:
        raise ValueError(
            f"treated and control must be as many arrays of one shape (S, C), got {len(treated)} and {len(control)} "
            f"of shapes {sorted(shapes)}"
        )

    def difference(sums):
        scores = [np.asarray(statistic(part)) for part in np.split(sums, 2 * len(treated), axis=1)]
        return np.mean(scores[: len(treated)], axis=0) - np.mean(scores[len(treated) :], axis=0)

    values = resampled(np.hstack([*treated, *control]), difference, num_resamples, seed)
    return percentile_interval(values, confidence)


def ece_sums(tokens, sentence, num_bins=15):
    """Of each sentence the sum of correct − confidence in each bin of equal width, and its tokens: (S, num_bins + 1).

    tokens : `NextTokens`. sentence (n,) : which sentence each token is of
    """
    bins = tokens.bins(num_bins)
    place = np.searchsorted(bins.edges[1:-1], tokens.confidence, side="left")
    residuals = _sums_by_sentence(sentence, tokens.correct - tokens.confidence, place, num_bins)
    return np.hstack([residuals, _sums_by_sentence(sentence, np.ones(len(tokens.nll)), 0, 1)])


def ece_of_sums(sums):
    """Next-token ECE of each row of `ece_sums` summed over sentences (R, num_bins + 1)."""
    return np.abs(sums[:, :-1]).sum(1) / sums[:, -1]


def nll_sums(tokens, sentence):
    """Of each sentence the sum of −ln p, and its tokens: (S, 2); arguments as in `ece_sums`."""
    return np.hstack([_sums_by_sentence(sentence, values, 0, 1) for values in (tokens.nll, np.ones(len(tokens.nll)))])


def nll_of_sums(sums):
    """NLL per token of each row of `nll_sums` summed over sentences (R, 2)."""
    return sums[:, 0] / sums[:, 1]


def ece_interval(tokens, sentence, num_bins=15, *, num_resamples=1000, seed=0, confidence=0.95):
    """Percentile interval (low, high) of the next-token ECE over resamples of the sentences, bins of equal width.

    Arguments as in `ece_sums`. Read it beside `calibration.noise_floor`: a resample has chance twice in its ECE.
    """
    return percentile_interval(
        resampled(ece_sums(tokens, sentence, num_bins), ece_of_sums, num_resamples, seed), confidence
    )


def nll_interval(tokens, sentence, *, num_resamples=1000, seed=0, confidence=0.95):
    """Percentile interval (low, high) of the NLL per token over resamples of the sentences; as `ece_interval`."""
    return percentile_interval(resampled(nll_sums(tokens, sentence), nll_of_sums, num_resamples, seed), confidence)


def _sums_by_sentence(sentence, values, column, columns):
    """Sums of values (n,) over sentence and column: (S, columns), for the S sentences that have tokens."""
    sentence = as_numpy(sentence)
    if sentence.shape != values.shape or sentence.dtype.kind not in "iu":
        raise ValueError(
            f"sentence must hold an index for each of {len(values)} tokens, got {sentence.dtype} {sentence.shape}"
        )
    rows = np.unique(sentence, return_inverse=True)[1]
    flat = np.bincount(rows * columns + column, values, (rows.max() + 1) * columns)
    return flat.reshape(-1, columns)
