"""The Transformer against its definition written out, its masks, its cache; the loss against direct sums."""

import math
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import conventions, seeds

from lsbook import models, text, transformer
from lsbook.targets import sequence_cross_entropy, smooth_labels
from lsbook.text import BEGIN, END, PADDING, UNKNOWN
from lsbook.transformer import Transformer, inverse_square_root, positions, token_loss

VOCABULARY = 23


def make(seed=0, **options):
    """A small network in float64, with random biases and norms, so that one that is left out is missed."""
    sizes = {"width": 12, "heads": 3, "layers": 2, "hidden": 20}
    model = models.build(partial(Transformer, VOCABULARY, **(sizes | options)), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:
                weights += 0.3 * torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
    return model


kept = cache(make)  # for tests that only look at it


def random_pairs(seed, count=5, longest=9):
    generator = torch.Generator().manual_seed(seed)

    def sentence():
        length = int(torch.randint(0, longest, (), generator=generator))
        return [*torch.randint(4, VOCABULARY, (length,), generator=generator).tolist(), END]

    return [(sentence(), sentence()) for _ in range(count)]


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- parts


def test_positions_by_hand():
    table = positions(3, 4, dtype=torch.float64)
    expected = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in range(3)]
    close(table, torch.tensor(expected, dtype=torch.float64), 1e-15)
    assert torch.equal(positions(2, 4, start=1, dtype=torch.float64), table[1:])


def layer_norm(x, norm):
    return (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias


def attend(attention, x, to):
    """One token x (W,) looks at the tokens `to` (n, W): head by head, token by token."""
    heads, size = [], len(x) // attention.heads
    query, keys, values = attention.query(x), attention.key(to), attention.value(to)
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.stack([query[part] @ key[part] / math.sqrt(size) for key in keys]).softmax(0)
        heads.append(sum(w * value[part] for w, value in zip(weights, values, strict=True)))
    return attention.out(torch.cat(heads))


def around(residual, x, step):
    return x + step(layer_norm(x, residual.norm)) if residual.pre else layer_norm(x + step(x), residual.norm)


def by_definition(model, source, target):
    """Features (T, W) of one sentence pair without padding, from the formulas, one token at a time."""

    def rows(function, *columns):
        return torch.stack([function(*row) for row in zip(*columns, strict=True)])

    def norm(residual, x):
        return rows(lambda row: layer_norm(row, residual.norm), x) if residual.pre else x

    def embed(embedding, tokens):
        width = embedding.weight.shape[1]
        return embedding.weight[tokens] * math.sqrt(width) + positions(len(tokens), width, dtype=torch.float64)

    def end(layer, x):
        return rows(lambda row: layer_norm(row, layer), x) if isinstance(layer, torch.nn.LayerNorm) else x

    x = embed(model.source_embedding, source)
    for layer in model.encoder:
        seen = norm(layer.around_attention, x)
        x = rows(lambda r, it=layer, s=seen: around(it.around_attention, r, lambda y: attend(it.attention, y, s)), x)
        x = rows(lambda r, it=layer: around(it.around_feed_forward, r, it.feed_forward), x)
    memory = end(model.encoder_norm, x)
    x = embed(model.target_embedding, target)
    for layer in model.decoder:
        seen, old = norm(layer.around_attention, x), x
        x = torch.stack(
            [
                around(layer.around_attention, old[t], lambda y, it=layer, s=seen[: t + 1]: attend(it.attention, y, s))
                for t in range(len(old))
            ]
        )
        x = rows(lambda r, it=layer: around(it.around_cross, r, lambda y: attend(it.cross, y, memory)), x)
        x = rows(lambda r, it=layer: around(it.around_feed_forward, r, it.feed_forward), x)
    return end(model.decoder_norm, x)


@pytest.mark.parametrize("norm", transformer.NORMS)
@pytest.mark.parametrize("sharing", transformer.SHARING)
def test_the_network_is_its_definition(norm, sharing):
    model = make(norm=norm, sharing=sharing)
    source, target = torch.tensor([5, 9, 4, 7, END]), torch.tensor([BEGIN, 6, 8, 8])
    with torch.no_grad():
        output, expected = model(source[None], target[None]), by_definition(model, source, target)
    close(output.features[0], expected)
    close(output.logits[0], expected @ model.head.weight.T + model.head.bias)


@pytest.mark.parametrize(("sharing", "matrices"), [("all", 1), ("output", 2), ("none", 3)])
def test_sharing(sharing, matrices):
    model = make(sharing=sharing)
    big = {id(w) for w in (model.source_embedding.weight, model.target_embedding.weight, model.head.weight)}
    assert len(big) == matrices
    assert sum(weights.shape == (VOCABULARY, 12) for weights in model.parameters()) == matrices
    assert model.head.bias.shape == (VOCABULARY,)


def test_weights_of_attention_are_those_it_uses():
    attention, x = make().encoder[0].attention, torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([1, 1, 1, 0, 0], dtype=torch.bool).expand(2, 1, 1, 5)
    keys, values = attention.keys_values(x)
    weights = attention.weights(x, keys, mask)
    close(weights.sum(-1), torch.ones(2, 3, 5, dtype=torch.float64))
    assert (weights[..., 3:] == 0).all()
    close(attention.out((weights @ values).transpose(1, 2).flatten(2)), attention(x, keys, values, mask))


# --- masks

options = st.fixed_dictionaries({"norm": st.sampled_from(transformer.NORMS), "seed": st.integers(0, 3)})


@settings(max_examples=15)
@given(options, seeds, st.integers(0, 3), st.integers(0, 3))
def test_padding_and_neighbours_change_nothing(options, seed, more_source, more_target):
    """Each sentence alone gives what it gives in a batch, however much padding is added."""
    model, pairs = kept(**options), random_pairs(seed)
    batch = text.make_batch(pairs)
    source = torch.nn.functional.pad(batch.source, (0, more_source))
    inputs = torch.nn.functional.pad(batch.inputs, (0, more_target))
    with torch.no_grad():
        together = model(source, inputs)
        for row in range(len(pairs)):
            alone = text.make_batch(pairs, [row])
            length = alone.inputs.shape[1]
            close(together.logits[row, :length], model(alone.source, alone.inputs).logits[0])
    assert together.logits.isfinite().all()


def test_no_later_token_looks_at_padding():
    """In batches padding stands at the end, where the order alone hides it; here it stands before a token."""
    model, source = make(sharing="none"), torch.tensor([[5, PADDING, 6, END]])
    inputs = torch.tensor([[BEGIN, PADDING, 7]])
    with torch.no_grad():
        before = model(source, inputs).logits[:, -1]
        for embedding in (model.source_embedding, model.target_embedding):
            embedding.weight[PADDING] += 10 * torch.randn(12, dtype=torch.float64)
        assert torch.equal(model(source, inputs).logits[:, -1], before)


def test_no_gradient_comes_from_padding():
    """The embedding of padding moves only through its row of the output weights, shared or not."""
    model, batch = make(sharing="none"), text.make_batch(random_pairs(1))
    token_loss(model(batch.source, batch.inputs).logits, batch.labels, 0.1).backward()
    assert (model.source_embedding.weight.grad[PADDING] == 0).all()
    assert (model.target_embedding.weight.grad[PADDING] == 0).all()
    assert all(weights.grad.isfinite().all() for weights in model.parameters())


@settings(max_examples=15)
@given(options, seeds, st.integers(0, 7))
def test_no_position_sees_the_future(options, seed, place):
    model, generator = kept(**options), torch.Generator().manual_seed(seed)
    source, inputs = (torch.randint(4, VOCABULARY, (2, 8), generator=generator) for _ in range(2))
    changed = inputs.clone()
    changed[:, place] = 4 + (changed[:, place] - 3) % (VOCABULARY - 4)
    with torch.no_grad():
        before, after = model(source, inputs).logits, model(source, changed).logits
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place:] - after[:, place:]).abs().amax(-1).min() > 1e-8


# --- the cache


@settings(max_examples=15)
@given(options, seeds, st.integers(1, 3))
def test_step_by_step_equals_all_at_once(options, seed, beams):
    model, generator = kept(**options), torch.Generator().manual_seed(seed)
    source = text.pad([source for source, _ in random_pairs(seed, count=4)])
    said = torch.randint(4, VOCABULARY, (4, beams, 6), generator=generator)
    said[..., 0] = BEGIN
    with torch.no_grad():
        cache = model.cache(source)
        steps = [model.step(said[..., t], cache) for t in range(6)]
        whole = model(source.repeat_interleave(beams, 0), said.flatten(0, 1))
    close(torch.stack([step.logits for step in steps], 2).flatten(0, 1), whole.logits)
    close(torch.stack([step.features for step in steps], 2).flatten(0, 1), whole.features)
    assert cache.length == 6 and cache.past[0][0].shape == (4 * beams, 3, 6, 4)


def test_a_reordered_cache_goes_on_as_its_new_past():
    model = make()
    source, said = text.pad([[5, 6, END], [7, END], [9, 4, END]]), torch.tensor([[[1, 5], [1, 8]]] * 3)
    chosen = torch.tensor([[1, 1], [0, 0], [1, 0]])
    with torch.no_grad():
        cache = model.cache(source)
        for t in range(2):
            model.step(said[..., t], cache)
        sentences = torch.tensor([0, 2])
        cache.keep_sentences(sentences)
        cache.reorder((chosen[sentences] + 2 * sentences[:, None]).flatten())
        logits = model.step(torch.tensor([[6, 7], [8, 9]]), cache).logits
        past = said[sentences].gather(1, chosen[sentences][..., None].expand(2, 2, 2))
        inputs = torch.cat([past, torch.tensor([[[6], [7]], [[8], [9]]])], -1).flatten(0, 1)
        expected = model(source[sentences].repeat_interleave(2, 0), inputs).logits[:, -1]
    close(logits.flatten(0, 1), expected)


# --- the loss


def classes_without_mass(receivers):
    return {"all": [], "no padding": [PADDING], "no specials": [PADDING, BEGIN, UNKNOWN]}[receivers]


def direct_loss(logits, labels, alpha, convention, receivers):
    """The targets written out token by token, and −Σ y ln p summed by Python over tokens that are no padding."""
    total, count = 0.0, 0
    without = classes_without_mass(receivers)
    others = logits.shape[-1] - len(without)
    for row, label in zip(logits.flatten(0, -2).double(), labels.flatten().tolist(), strict=True):
        if label == PADDING:
            continue
        off = alpha / others if convention == "uniform" else alpha / (others - 1)
        target = [0.0 if k in without else off for k in range(logits.shape[-1])]
        target[label] = 1 - alpha + off if convention == "uniform" else 1 - alpha
        assert math.isclose(sum(target), 1)
        total -= math.fsum(y * p for y, p in zip(target, row.log_softmax(-1).tolist(), strict=True))
        count += 1
    return total / count


@given(
    seeds,
    st.sampled_from([0.0, 0.1, 0.5]),
    conventions,
    st.sampled_from(transformer.RECEIVERS),
)
def test_loss_is_the_direct_sum(seed, alpha, convention, receivers):
    generator = torch.Generator().manual_seed(seed)
    labels = text.make_batch(random_pairs(seed, 3, 5)).labels
    logits = 4 * torch.randn(*labels.shape, VOCABULARY, generator=generator, dtype=torch.float64)
    expected = direct_loss(logits, labels, alpha, convention, receivers)
    assert token_loss(logits, labels, alpha, convention, receivers).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("receivers", transformer.RECEIVERS)
def test_the_conventions_agree_at_equal_strength(receivers):
    """Of R receivers the truth lacks α (R − 1)/R in one convention and ε in the other."""
    labels = text.make_batch(random_pairs(7)).labels
    logits = torch.randn(*labels.shape, VOCABULARY, dtype=torch.float64)
    count = VOCABULARY - len(classes_without_mass(receivers))
    uniform = token_loss(logits, labels, 0.3, "uniform", receivers)
    close(token_loss(logits, labels, 0.3 * (count - 1) / count, "others", receivers), uniform, 1e-13)
    assert abs(token_loss(logits, labels, 0.3, "others", receivers) - uniform) > 1e-6


@pytest.mark.parametrize("convention", ["uniform", "others"])
@pytest.mark.parametrize("receivers", transformer.RECEIVERS)
def test_who_receives_mass(convention, receivers):
    """The gradient at the logits is p − y, so p less the gradient shows the target of each class."""
    labels = torch.tensor([[6, END, PADDING]])
    logits = torch.randn(1, 3, 9, dtype=torch.float64, requires_grad=True)
    token_loss(logits, labels, 0.1, convention, receivers).backward()
    target = logits.detach().softmax(-1) - 2 * logits.grad  # the mean is over two tokens
    without = classes_without_mass(receivers)
    assert (target[0, :2, without].abs() < 1e-12).all()
    receiving = [k for k in range(9) if k not in without]
    assert (target[0, :2, receiving] > 0.01).all()
    close(target[0, :2].sum(-1), torch.ones(2, dtype=torch.float64))
    assert (logits.grad[0, 2] == 0).all()
    if receivers == "no padding":
        rows = smooth_labels(labels, 9, 0.1, convention, padding_index=PADDING, dtype=torch.float64)
        close(target[0, :2], rows[0, :2])


@pytest.mark.parametrize("receivers", transformer.RECEIVERS)
def test_loss_does_not_depend_on_the_padding(receivers):
    batch = text.make_batch(random_pairs(3))
    logits = torch.randn(*batch.labels.shape, VOCABULARY, dtype=torch.float64)
    more, garbage = torch.nn.functional.pad(batch.labels, (0, 2)), torch.full((5, 2, VOCABULARY), 1e3).double()
    loss = token_loss(logits, batch.labels, 0.1, receivers=receivers)
    close(token_loss(torch.cat([logits, garbage], 1), more, 0.1, receivers=receivers), loss, 1e-14)


def test_bad_input_to_the_loss():
    logits, labels = torch.zeros(1, 2, 6), torch.tensor([[5, PADDING]])
    for change, message in [
        ({"receivers": "some"}, "receivers must be one of 'all', 'no padding', 'no specials', got 'some'"),
        ({"labels": torch.tensor([[BEGIN, 5]]), "receivers": "no specials"}, "one of the excluded (1, 3)"),
        ({"labels": torch.tensor([[PADDING, PADDING]])}, "got only the ignored 0"),
        ({"labels": torch.tensor([[6, 5]])}, "labels must lie in [0, 5]"),
        ({"alpha": 0.8, "convention": "others", "receivers": "no specials"}, "must lie in [0, 0.666667], got 0.8"),
        ({"logits": torch.zeros(1, 2, 4), "labels": labels * 0 + 2, "receivers": "no specials"}, "at least two of 4"),
    ]:
        arguments = {"logits": logits, "labels": labels, "alpha": 0.1} | change
        with pytest.raises(ValueError) as caught:
            token_loss(**arguments)
        assert message in str(caught.value)
    with pytest.raises(ValueError, match="excluded must be classes that differ"):
        sequence_cross_entropy(logits, labels, 0.1, PADDING, excluded=(PADDING,))
    with pytest.raises(ValueError, match=r"excluded must lie in \[0, 5\]"):
        sequence_cross_entropy(logits, labels, 0.1, PADDING, excluded=(6,))


# --- schedule, construction


@given(st.integers(1, 5000))
def test_warm_up_peaks_where_it_ends(warmup):
    assert inverse_square_root(warmup, warmup) == 1
    assert inverse_square_root(4 * warmup, warmup) == pytest.approx(0.5)
    rates = [inverse_square_root(step, warmup) for step in (1, 2, warmup, warmup + 1, 10 * warmup)]
    assert max(rates) == 1 and min(rates) > 0
    # Vaswani et al. (2017), equation 3, with the largest rate put in.
    step, width = 3 * warmup, 512
    published = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
    assert (width * warmup) ** -0.5 * inverse_square_root(step, warmup) == pytest.approx(published)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"width": 10}, ValueError, "width must be a multiple of 2 × heads, got width 10 and heads 4"),
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"layers": 1.5}, TypeError, "layers must be an int, got 1.5"),
        ({"vocabulary": 4}, ValueError, "vocabulary must be at least 5, got 4"),
        ({"norm": "middle"}, ValueError, "norm must be one of 'pre', 'post', got 'middle'"),
        ({"sharing": "some"}, ValueError, "sharing must be one of 'all', 'output', 'none', got 'some'"),
        ({"dropout": 1.5}, ValueError, "dropout must lie in [0, 1], got 1.5"),
    ],
)
def test_bad_sizes(change, error, message):
    with pytest.raises(error) as caught:
        Transformer(**({"vocabulary": 20} | change))
    assert message in str(caught.value)


def test_bad_steps():
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        inverse_square_root(0, 10)
    with pytest.raises(TypeError, match="warmup must be an int"):
        inverse_square_root(1, 1.5)


def test_a_network_depends_on_its_seed_alone():
    first, again, other = make(0), make(0), make(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize("norm", transformer.NORMS)
def test_it_learns_a_batch_by_heart(norm):
    model = models.build(partial(Transformer, VOCABULARY, 32, 2, 1, 64, 0.0, norm), 0, torch.float32)
    batch = text.make_batch(random_pairs(5))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = token_loss(model(batch.source, batch.inputs).logits, batch.labels, 0.0)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_weights_of_cross_attention_give_what_attention_gives():
    """Weighted with them, the values are PyTorch's own answer; padding gets none, and dropout plays no part."""
    model = make(4, dropout=0.5).train()
    batch = text.make_batch(random_pairs(3))
    for layer in (0, -1):
        seen = {}
        cross = model.decoder[layer].cross
        hook = cross.register_forward_hook(lambda _, given, out, seen=seen: seen.update(given=given, out=out))
        weights = transformer.cross_attention(model, batch.source, batch.inputs, layer)
        hook.remove()
        assert model.training and weights.shape[:1] == batch.source.shape[:1]
        close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert (weights * (batch.source == PADDING)[:, None, None, :]).abs().max() == 0
        heads = weights @ seen["given"][2]
        close(cross.out(heads.transpose(1, 2).flatten(2)), seen["out"])
    again = transformer.cross_attention(model, batch.source, batch.inputs)
    assert torch.equal(weights, again)
