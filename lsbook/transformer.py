"""The encoder–decoder Transformer, its loss per token, and its learning rate.

Shapes: B sentences, S source tokens, T target tokens, V vocabulary, W width, h heads. Token indices as in `text`:
PADDING is masked wherever one token looks at others, so that neither padding nor the other sentences of a batch
change what a sentence gets.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from . import targets
from .checks import check_choice, check_int, check_number
from .models import Output
from .text import BEGIN, PADDING, UNKNOWN

NORMS = ("pre", "post")
SHARING = ("all", "output", "none")
RECEIVERS = ("all", "no padding", "no specials")


def positions(length, width, start=0, dtype=torch.float32, device="cpu"):
    """Sinusoids that tell where a token stands: tensor (length, width) for positions start … start + length − 1.

    Entry (t, 2i) is sin(t / 10000^(2i/W)), entry (t, 2i + 1) the cosine. Source: Vaswani et al. (2017), section 3.5.
    """
    place = torch.arange(start, start + length, dtype=torch.float64, device=device)
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
    angle = torch.outer(place, frequency)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(dtype)


class Attention(nn.Module):
    """softmax(q kᵀ / √(W/h)) v in h heads, by PyTorch's `scaled_dot_product_attention`.

    Source: Vaswani et al. (2017), section 3.2.
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x):
        """(B, T, W) → (B, h, T, W/h)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x):
        """Keys and values, each (B, h, T, W/h), of what is looked at, x (B, T, W)."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x, keys, values, mask=None):
        """x (B, T, W) looks at keys and values (B, h, S, W/h); mask (B, 1, T or 1, S) is True where it may look."""
        heads = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values, attn_mask=mask)
        return self.out(heads.transpose(1, 2).flatten(2))

    def weights(self, x, keys, mask=None):
        """How much each token looks at each other: (B, h, T, S), rows sum to 1. For pictures; nothing else needs it."""
        scores = self._split(self.query(x)) @ keys.transpose(-1, -2) / math.sqrt(keys.shape[-1])
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)


class Residual(nn.Module):
    """One step of a layer, x + f(x), with layer normalisation before f ("pre") or after the sum ("post").

    Dropout is applied to f's output. "post" is Vaswani et al. (2017); "pre" trains without care (Xiong et al. 2020).
    """

    def __init__(self, width, dropout, norm):
        super().__init__()
        self.norm, self.drop, self.pre = nn.LayerNorm(width), nn.Dropout(dropout), norm == "pre"

    def forward(self, x, step):
        if self.pre:
            return x + self.drop(step(self.norm(x)))
        return self.norm(x + self.drop(step(x)))


def _feed_forward(width, hidden):
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))


class EncoderLayer(nn.Module):
    """Source tokens look at each other, then each passes a small network of its own."""

    def __init__(self, width, heads, hidden, dropout, norm):
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads), _feed_forward(width, hidden)
        self.around_attention, self.around_feed_forward = (Residual(width, dropout, norm) for _ in range(2))

    def forward(self, x, mask):
        x = self.around_attention(x, lambda y: self.attention(y, *self.attention.keys_values(y), mask))
        return self.around_feed_forward(x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Target tokens look at those before them, then at the source, then pass a small network each."""

    def __init__(self, width, heads, hidden, dropout, norm):
        super().__init__()
        self.attention, self.cross, self.feed_forward = (
            Attention(width, heads),
            Attention(width, heads),
            _feed_forward(width, hidden),
        )
        self.around_attention, self.around_cross, self.around_feed_forward = (
            Residual(width, dropout, norm) for _ in range(3)
        )

    def forward(self, x, attend, source, source_mask):
        """x (B, T, W); attend(self-attention, x) looks at the tokens before; source: keys and values of the encoder."""
        x = self.around_attention(x, lambda y: attend(self.attention, y))
        x = self.around_cross(x, lambda y: self.cross(y, *source, source_mask))
        return self.around_feed_forward(x, self.feed_forward)


@dataclass
class Cache:
    """What decoding step by step needs not compute again, for B sentences with `beams` beginnings each.

    source : for each layer the encoder's keys and values, each (B, h, S, W/h); one copy serves all beams
    source_mask : (B, 1, 1, S), True at tokens that are no padding
    past : for each layer keys and values of the tokens said, each (B × beams, h, t, W/h); None before the first
    length : t, how many tokens have been said
    """

    source: list
    source_mask: torch.Tensor
    past: list
    length: int = 0

    def reorder(self, rows):
        """Let beginning i continue what was beginning rows[i]; rows (B × beams′), of the same sentences in order."""
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]

    def keep_sentences(self, sentences):
        """Drop all sentences but these, a tensor of indices, from the source's part; `reorder` sees to the past."""
        self.source = [(keys[sentences], values[sentences]) for keys, values in self.source]
        self.source_mask = self.source_mask[sentences]


class Transformer(nn.Module):
    """Encoder–decoder Transformer over one vocabulary for both languages; forward gives `models.Output`.

    vocabulary : V. width, heads, layers, hidden : W, h, layers on each side, units of the feed-forward networks
    dropout : after embeddings and before each sum (none inside attention)
    norm : "pre" (with one more normalisation at the end of encoder and decoder) or "post"
    sharing : "all": source embedding, target embedding and output weights are one matrix; "output": the last two;
    or "none"

    logits = features @ head.weight.T + head.bias: the output has a bias in every case, and the features (the decoder's
    last layer, normalised) are the penultimate activations x of the paper. Embeddings are drawn from N(0, 1/W) and
    multiplied by √W where they are read, other matrices by Xavier's rule. There is no longest sentence.
    Source: Vaswani et al. (2017). Raises TypeError, ValueError naming the argument.
    """

    def __init__(self, vocabulary, width=128, heads=4, layers=2, hidden=512, dropout=0.1, norm="pre", sharing="all"):
        super().__init__()
        check_choice(norm, "norm", NORMS), check_choice(sharing, "sharing", SHARING)
        sizes = {"heads": heads, "layers": layers, "hidden": hidden, "width": width}
        for name, value in sizes.items():
            check_int(value, name, 1)
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of 2 × heads, got width {width} and heads {heads}")
        layer = (width, heads, hidden, check_number(dropout, "dropout", 0, 1), norm)
        self.target_embedding = nn.Embedding(check_int(vocabulary, "vocabulary", 5), width)
        self.source_embedding = self.target_embedding if sharing == "all" else nn.Embedding(vocabulary, width)
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = (
            nn.LayerNorm(width) if norm == "pre" else nn.Identity() for _ in range(2)
        )
        self.head = nn.Linear(width, vocabulary)
        self._initialise(sharing)

    def _initialise(self, sharing):
        width = self.head.in_features
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=width**-0.5)
        if sharing != "none":
            self.head.weight = self.target_embedding.weight

    def _embed(self, embedding, tokens, start=0):
        """(B, T) → (B, T, W)"""
        weight = embedding.weight
        place = positions(tokens.shape[1], weight.shape[1], start, weight.dtype, weight.device)
        return self.drop(embedding(tokens) * math.sqrt(weight.shape[1]) + place)

    def encode(self, source):
        """Source tokens (B, S) → what the decoder looks at, (B, S, W), and its mask (B, 1, 1, S)."""
        mask = (source != PADDING)[:, None, None, :]
        x = self._embed(self.source_embedding, source)
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_norm(x), mask

    def decode(self, inputs, memory, source_mask):
        """All target positions at once, (B, T): the features (B, T, W) at each.

        Position t looks at positions up to t that are no padding; the first, BEGIN, is none, so no row is empty.
        """
        causal = torch.ones(inputs.shape[1], inputs.shape[1], dtype=torch.bool, device=inputs.device).tril()
        mask = causal & (inputs != PADDING)[:, None, None, :]
        x = self._embed(self.target_embedding, inputs)
        for layer in self.decoder:
            source = layer.cross.keys_values(memory)
            x = layer(x, lambda attention, y: attention(y, *attention.keys_values(y), mask), source, source_mask)
        return self.decoder_norm(x)

    def features(self, source, inputs):
        """What the output layer is given, (B, T, W); where only some logits are wanted, this saves the rest."""
        return self.decode(inputs, *self.encode(source))

    def forward(self, source, inputs):
        features = self.features(source, inputs)
        return Output(self.head(features), features)

    def cache(self, source):
        """Read the source (B, S) once, for `step`: a `Cache` in which nothing has been said."""
        memory, mask = self.encode(source)
        return Cache([layer.cross.keys_values(memory) for layer in self.decoder], mask, [None] * len(self.decoder))

    def step(self, tokens, cache):
        """Say one more token for each beginning, (B, beams), and move the cache on: `Output` with (B, beams, …).

        The beams of a sentence look at its source side by side, as the positions of one sentence do in `decode`: there
        the rows of attention do not know of each other either.
        """
        x = self._embed(self.target_embedding, tokens.reshape(-1, 1), cache.length).view(*tokens.shape, -1)
        past = []
        for layer, source, before in zip(self.decoder, cache.source, cache.past, strict=True):
            x = layer(
                x, lambda attention, y, before=before: _continue(attention, y, before, past), source, cache.source_mask
            )
        cache.past, cache.length = past, cache.length + 1
        features = self.decoder_norm(x)
        return Output(self.head(features), features)


def _continue(attention, x, before, past):
    """Self-attention of one new token each, x (B, beams, W), to those before; its keys and values go to `past`."""
    rows = x.reshape(-1, 1, x.shape[-1])
    new = attention.keys_values(rows)
    past.append(new if before is None else tuple(torch.cat(pair, dim=2) for pair in zip(before, new, strict=True)))
    return attention(rows, *past[-1]).view_as(x)


def token_loss(logits, labels, alpha, convention="uniform", receivers="all", *, validate=True):
    """Smoothed cross-entropy per token that is no padding, in nats: a scalar tensor.

    With R classes that may receive mass, in the convention "uniform" the truth gets 1 − α + α/R and each other receiver
    α/R; in "others" 1 − ε and ε/(R − 1), where α stands for ε. Every class stays in the softmax.

    logits (B, T, V), labels (B, T). Receivers: "all" V classes, by PyTorch's native loss (the paper, and with "others"
    the code that it links to); "no padding" (with "others" ε/(V − 2), as in OpenNMT); "no specials", neither padding,
    BEGIN nor UNKNOWN, none of which is ever a label (END is one).

    Raises TypeError, ValueError naming the argument; labels among the excluded classes are wrong if `validate`.
    """
    check_choice(receivers, "receivers", RECEIVERS)
    if receivers == "all":
        return targets.smoothed_cross_entropy(
            logits, labels, alpha, convention, ignore_index=PADDING, validate=validate
        )
    excluded = (BEGIN, UNKNOWN) if receivers == "no specials" else ()
    return targets.sequence_cross_entropy(
        logits, labels, alpha, PADDING, convention, excluded=excluded, validate=validate
    )


def inverse_square_root(step, warmup):
    """Factor of the largest learning rate at step 1, 2, …: step/warmup up to step = warmup, then √(warmup/step).

    Vaswani et al. (2017) set the largest rate to (W × warmup)^−½. Raises TypeError, ValueError unless both are ≥ 1.

    >>> [inverse_square_root(step, 100) for step in (1, 50, 100, 400)]
    [0.01, 0.5, 1.0, 0.5]
    """
    step, warmup = check_int(step, "step", 1), check_int(warmup, "warmup", 1)
    return min(step / warmup, math.sqrt(warmup / step))


@torch.no_grad()
def cross_attention(model, source, inputs, layer=-1):
    """How much each target position looks at each source token, in one decoder layer: (B, h, T, S), rows sum to 1.

    source (B, S), inputs (B, T), without dropout. PyTorch's own attention does not give its weights, so they are
    computed again.
    """
    seen, cross, was_training = [], model.decoder[layer].cross, model.training
    handle = cross.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        model.eval().features(source, inputs)
    finally:
        handle.remove()
        model.train(was_training)
    x, keys, _, mask = seen[0]
    return cross.weights(x, keys, mask)
