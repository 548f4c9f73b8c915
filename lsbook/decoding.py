"""From a trained Transformer to translations: greedy decoding, beam search, and the probability of a translation.

Temperature T divides the complete logits, bias included: p = softmax(z/T). A translation y ends with END; its score is
ln p(y) / ((5 + n)/6)^penalty, n its tokens with END: penalty 0 ranks by probability, which favours short ones (Wu et
al. 2016, section 7). PADDING, BEGIN and UNKNOWN are never said; they keep their share of the softmax, so that scores
are those of the full model. Probabilities are added up in float64, whatever the network computes in: coarser, two
tokens could tie whose logits differ, and beam 1 would leave the greedy path.
"""

import math
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .checks import check_int, check_number, check_positive, check_tensor
from .text import BEGIN, END, PADDING, UNKNOWN, pad

NEVER_SAID = (PADDING, BEGIN, UNKNOWN)


class Hypothesis(NamedTuple):
    """A translation: its tokens up to END (included), ln p of them in nats, and its score."""

    tokens: tuple[int, ...]
    log_prob: float
    score: float


class Candidate(NamedTuple):
    """A beginning that beam search has looked at: the tokens before, the token said, ln p of all, and its fate.

    fate: "kept" (goes on), "finished" (it said END) or "dropped".
    """

    before: tuple[int, ...]
    token: int
    log_prob: float
    fate: str


class Search(NamedTuple):
    """For each sentence its best translations, best first, and the candidates of each step if a trace was asked for."""

    hypotheses: list[list[Hypothesis]]
    trace: list[list[list[Candidate]]]


def score(log_prob, length, penalty):
    """ln p / ((5 + length)/6)^penalty: what translations of different lengths are ranked by."""
    return log_prob / ((5 + length) / 6) ** penalty


def _check_finite(logits, sentences):
    """Raise unless each beginning has a likeliest token; logits (B, k, V) of sentences with these places (B)."""
    broken = ~logits.amax(-1).isfinite().all(-1)
    if broken.any():
        place = int(sentences[int(broken.nonzero()[0])])
        raise FloatingPointError(f"sentence {place} has no translation: the network's logits are not finite")


@contextmanager
def _evaluating(model):
    """Inside the block no dropout and no gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _limits(source, max_length):
    """The most tokens a translation may have, END included, for each sentence of source (B, S): a tensor (B,).

    Without `max_length` twice the sentence's tokens and ten more: it must not depend on other sentences of the batch.
    """
    _check_source(source)
    if max_length is None:
        return 2 * (source != PADDING).sum(1) + 10
    return torch.full((len(source),), check_int(max_length, "max_length", 1), device=source.device)


def _check_source(source):
    check_tensor(source, "source")
    if source.ndim != 2 or source.is_floating_point() or 0 in source.shape:
        raise ValueError(f"source must be token indices (B, S), B and S ≥ 1, got {source.dtype} {tuple(source.shape)}")
    if (source == PADDING).all(1).any():
        raise ValueError("source must hold at least one token (END) in each sentence, got one of padding alone")


def greedy(model, source, max_length=None):
    """The likeliest next token again and again, for source (B, S): a list of B tuples of tokens, END at each end.

    No temperature here: dividing the logits by T > 0 does not change which is largest. After max_length − 1 tokens END
    is said whatever its probability; None is 2 S + 10, S the sentence's own tokens. Of equal logits the first is taken.
    Raises TypeError, ValueError, FloatingPointError if logits are not finite.
    """
    limits = _limits(source, max_length).tolist()
    said = [[] for _ in limits]
    with _evaluating(model):
        cache, open_, tokens = model.cache(source), list(range(len(said))), torch.full_like(source[:, :1], BEGIN)
        while open_:
            logits = model.step(tokens, cache).logits
            _check_finite(logits, open_)
            logits = logits[:, 0]
            logits[:, NEVER_SAID] = -math.inf
            for sentence, token in zip(open_, logits.argmax(-1).tolist(), strict=True):
                said[sentence].append(END if len(said[sentence]) + 1 >= limits[sentence] else token)
            rows = [row for row, sentence in enumerate(open_) if said[sentence][-1] != END]
            open_ = [open_[row] for row in rows]
            if open_ and len(rows) < len(tokens):
                _keep(cache, torch.tensor(rows, device=source.device), beams=1)
            tokens = torch.tensor([[said[sentence][-1]] for sentence in open_], device=source.device)
    return [tuple(tokens) for tokens in said]


def _keep(cache, rows, beams):
    """Let the sentences `rows` of a cache go on, and no others."""
    cache.keep_sentences(rows)
    cache.reorder((rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten())


class _Beams:
    """The state of a beam search over the sentences that are not done: B sentences, k beginnings each."""

    def __init__(self, source, beam, limits):
        self.sentences = torch.arange(len(source), device=source.device)  # (B,) their places in the batch
        self.limits = limits  # (B,)
        self.tokens = torch.full((len(source), beam, 1), BEGIN, device=source.device)  # (B, k, t)
        # All k beginnings are the same at first, so only one of them may go on.
        self.log_probs = torch.full((len(source), beam), -math.inf, dtype=torch.float64, device=source.device)  # (B, k)
        self.log_probs[:, 0] = 0

    def keep(self, rows):
        self.sentences, self.limits = self.sentences[rows], self.limits[rows]
        self.tokens, self.log_probs = self.tokens[rows], self.log_probs[rows]


def _candidates(beams, logits, temperature):
    """The best 2k of the k × V ways to go on: ln p, the beginning's place, the token; each (B, 2k), best first.

    Twice as many as can be chosen, so that a trace shows what was dropped. Of equal ones the first comes first, as in
    `greedy`.
    """
    log_probs = (logits.double() / temperature).log_softmax(-1)
    log_probs[..., NEVER_SAID] = -math.inf
    at_limit = beams.limits == beams.tokens.shape[-1]
    if at_limit.any():  # END is all that may be said
        only_end = torch.full_like(log_probs[0, 0], -math.inf)
        only_end[END] = 0
        log_probs[at_limit] += only_end
    total, count = (beams.log_probs[..., None] + log_probs).flatten(1), 2 * beams.log_probs.shape[1]
    values, flat = total.topk(count + 1, dim=1)
    if (values.diff(dim=1) == 0).any():  # in bfloat16 common; topk takes any
        values, flat = total.sort(dim=1, descending=True, stable=True)
    values, flat = values[:, :count], flat[:, :count]
    return values, flat // logits.shape[-1], flat % logits.shape[-1]


def _chosen(values, tokens, free):
    """Which candidates finish (B, 2k), and the places of the k that may go on (B, k), with their ln p (B, k).

    free (B,) : how many of the k places no finished translation holds. Of so many best candidates those that say END
    finish and the others go on; ln p is −∞ where fewer go on.
    """
    ends = tokens == END
    among = torch.arange(values.shape[1], device=values.device) < free[:, None]
    going_on = values.masked_fill(ends | ~among, -math.inf).topk(values.shape[1] // 2, dim=1)
    return ends & among & values.isfinite(), going_on.indices, going_on.values


def _note(found, beams, values, parents, tokens, finished, penalty):
    """Add the finished candidates to each sentence's hypotheses."""
    for row, place in finished.nonzero().tolist():
        said = (*beams.tokens[row, parents[row, place], 1:].tolist(), tokens[row, place].item())
        log_prob = values[row, place].item()
        found[beams.sentences[row]].append(Hypothesis(said, log_prob, score(log_prob, len(said), penalty)))


def _record(trace, beams, values, parents, tokens, finished, places, log_probs):
    """Add this step's candidates to each sentence's trace."""
    for row, sentence in enumerate(beams.sentences.tolist()):
        kept, step = set(places[row, log_probs[row].isfinite()].tolist()), []
        for place in values[row].isfinite().nonzero().flatten().tolist():
            fate = "finished" if finished[row, place] else "kept" if place in kept else "dropped"
            before = tuple(beams.tokens[row, parents[row, place], 1:].tolist())
            step.append(Candidate(before, tokens[row, place].item(), values[row, place].item(), fate))
        trace[sentence].append(step)


def _advance(beams, cache, parents, tokens, places, log_probs):
    """Make the chosen candidates the beginnings of the next step."""
    count, beam = beams.log_probs.shape
    chosen, token = parents.gather(1, places), tokens.gather(1, places)
    beams.log_probs = log_probs
    beams.tokens = torch.cat([beams.tokens.gather(1, chosen[..., None].expand_as(beams.tokens)), token[..., None]], -1)
    cache.reorder((chosen + beam * torch.arange(count, device=chosen.device)[:, None]).flatten())


def beam_search(model, source, beam=4, *, temperature=1.0, penalty=0.6, max_length=None, trace=False):
    """The best translations that `beam` beginnings at a time can find, for source (B, S): `Search`.

    There are `beam` places. At each step the ways to go on from all beginnings are ranked by ln p, and the best fill
    the places: those that say END are finished and keep their places, the others go on (Sutskever et al. 2014). So a
    good beginning is not given up because worse ones have ended. A sentence is done when all places hold finished
    ones, or at max_length tokens (None: as in `greedy`), where END is all that may be said. Beam 1 is greedy
    decoding, at every temperature. A large enough beam is exhaustive search. Returned are up to `beam`, best first.

    Raises TypeError, ValueError naming the argument, FloatingPointError if logits are not finite.
    """
    beam, temperature = check_int(beam, "beam", 1), check_positive(temperature, "temperature")
    penalty, limits = check_number(penalty, "penalty", 0, 100), _limits(source, max_length)
    found, steps = [[] for _ in source], [[] for _ in source]
    with _evaluating(model):
        beams, cache = _Beams(source, beam, limits), model.cache(source)
        while len(beams.sentences):
            logits = model.step(beams.tokens[..., -1], cache).logits
            _check_finite(logits, beams.sentences)
            candidates = _candidates(beams, logits, temperature)
            free = torch.tensor([beam - len(found[i]) for i in beams.sentences.tolist()], device=source.device)
            finished, *going_on = _chosen(candidates[0], candidates[2], free)
            _note(found, beams, *candidates, finished, penalty)
            if trace:
                _record(steps, beams, *candidates, finished, *going_on)
            _advance(beams, cache, *candidates[1:], *going_on)
            _drop_done(beams, cache)
    if not all(found):
        raise FloatingPointError(f"sentence {found.index([])} has no translation: each has probability 0")
    return Search([sorted(hypotheses, key=lambda h: -h.score) for hypotheses in found], steps)


def _drop_done(beams, cache):
    """Leave out the sentences whose places are all held by finished translations, or that nothing can go on from."""
    rows = beams.log_probs.isfinite().any(1).nonzero().flatten()
    if len(rows) < len(beams.sentences):
        beams.keep(rows)
        _keep(cache, rows, beams.tokens.shape[1])


def naive_beam_search(model, source, beam=4, *, temperature=1.0, penalty=0.6, max_length=None):
    """`beam_search` for one sentence, source (S,), as one would first write it: a list of `Hypothesis`, best first.

    One beginning at a time, each read anew from its start. It is here to be compared with.
    """
    source = source[source != PADDING][None]
    limit, finished, beginnings = _limits(source, max_length).item(), [], [((), 0.0)]
    with _evaluating(model):
        while beginnings:
            candidates = []
            for said, log_prob in beginnings:
                logits = model(source, torch.tensor([[BEGIN, *said]], device=source.device)).logits[0, -1]
                log_probs = (logits.double() / temperature).log_softmax(-1)
                log_probs[list(NEVER_SAID)] = -math.inf
                if len(said) + 1 == limit:
                    log_probs[torch.arange(len(log_probs)) != END] = -math.inf
                values, tokens = log_probs.sort(descending=True, stable=True)
                candidates += [
                    ((*said, t), log_prob + p)
                    for t, p in zip(tokens[: 2 * beam].tolist(), values[: 2 * beam].tolist(), strict=True)
                ]  # more cannot matter
            candidates = [candidate for candidate in candidates if candidate[1] > -math.inf]
            candidates.sort(key=lambda candidate: -candidate[1])
            best = candidates[: beam - len(finished)]
            finished += [candidate for candidate in best if candidate[0][-1] == END]
            beginnings = [candidate for candidate in best if candidate[0][-1] != END]
    scored = [Hypothesis(said, log_prob, score(log_prob, len(said), penalty)) for said, log_prob in finished]
    return sorted(scored, key=lambda hypothesis: -hypothesis.score)


def token_log_probs(model, batch, temperature=1.0):
    """ln p of each token of given translations, with the right tokens before it: tensor (B, T), 0 at padding.

    batch : `text.Batch`. Summed over a row it is ln p of the translation.
    """
    temperature = check_positive(temperature, "temperature")
    with _evaluating(model):
        log_probs = (model(batch.source, batch.inputs).logits / temperature).log_softmax(-1)
        chosen = log_probs.gather(-1, batch.labels[..., None]).squeeze(-1)
        return torch.where(batch.labels == PADDING, 0.0, chosen)


def translate_tokens(model, sources, beam=4, *, batch_size=64, **options):
    """The best translation of each of `sources`, lists of token indices that end with END: a list of tuples of tokens.

    options : temperature, penalty and max_length of `beam_search`, in which beam 1 is greedy
    """
    # Of like length together: then few beams wait for others.
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    device, said = next(model.parameters()).device, [()] * len(sources)
    for start in range(0, len(order), check_int(batch_size, "batch_size", 1)):
        index = order[start : start + batch_size]
        found = beam_search(model, pad([sources[i] for i in index]).to(device), beam, **options)
        for i, hypotheses in zip(index, found.hypotheses, strict=True):
            said[i] = hypotheses[0].tokens
    return said


def translate(model, tokenizer, sentences, beam=4, **options):
    """Sentences in, sentences out, in the same order; options as in `translate_tokens`."""
    sources = [[*tokenizer.encode(sentence), END] for sentence in sentences]
    return [tokenizer.decode(tokens) for tokens in translate_tokens(model, sources, beam, **options)]
