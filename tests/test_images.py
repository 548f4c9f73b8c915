"""Batched image operations against loops over pixels, and their random choices against their distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsbook import images

SIDES = st.integers(1, 7)


def pictures(*shape, seed=0, values=256):
    return torch.randint(values, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moved_by_hand(pixels, down, right):
    """One image (C, H, W), pixel by pixel: what stands at (r, c) came from (r − down, c − right), or is black."""
    result = np.zeros_like(pixels)
    _, height, width = pixels.shape
    for r in range(height):
        for c in range(width):
            if 0 <= r - down < height and 0 <= c - right < width:
                result[:, r, c] = pixels[:, r - down, c - right]
    return result


# --- mean and standard deviation


@settings(max_examples=50)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 4), SIDES, SIDES), st.integers(0, 2**32), st.sampled_from([1, 2, 256])
)
def test_channel_statistics_are_numpys(shape, seed, values):
    pixels = pictures(*shape, seed=seed, values=values)
    mean, std = images.channel_statistics(pixels)
    scaled = pixels.numpy().astype(np.float64) / 255
    assert mean.dtype == std.dtype == torch.float64
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-13, atol=1e-16)
    # the variance is a difference of means: exact to an ulp of 1, its root to the root of that
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-9, atol=3e-8)


def test_channel_statistics_by_hand():
    pixels = torch.zeros(2, 2, 1, 2, dtype=torch.uint8)
    pixels[0, 0] = 255
    mean, std = images.channel_statistics(pixels)
    assert (mean.tolist(), std.tolist()) == ([0.5, 0.0], [0.5, 0.0])
    assert [t.shape for t in images.channel_statistics(pixels.to(memory_format=torch.channels_last))] == [(2,), (2,)]


# --- moves


@settings(max_examples=100)
@given(st.data(), st.integers(1, 4), st.integers(1, 3), SIDES, SIDES, st.integers(0, 8), st.booleans())
def test_shift_is_the_loop_over_pixels(data, count, channels, height, width, border, channels_last):
    moves = st.lists(st.integers(-border, border), min_size=count, max_size=count)
    down, right = torch.tensor(data.draw(moves)), torch.tensor(data.draw(moves))
    pixels = pictures(count, channels, height, width, seed=border)
    given_ = pixels.to(memory_format=torch.channels_last) if channels_last else pixels
    found = images.shift(given_, down, right, border)
    expected = [moved_by_hand(p, d, r) for p, d, r in zip(pixels.numpy(), down.tolist(), right.tolist(), strict=True)]
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found, np.stack(expected))
    assert torch.equal(given_, pixels)


def test_a_shift_is_a_pad_and_a_crop():
    """As the usual pipeline does it: pad by 4, crop at a corner; the corner is 4 minus the move."""
    pixels = pictures(5, 3, 8, 6)
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    top, left = torch.tensor([0, 4, 8, 1, 7]), torch.tensor([8, 4, 0, 3, 5])
    crops = [p[:, t : t + 8, x : x + 6] for p, t, x in zip(padded, top.tolist(), left.tolist(), strict=True)]
    assert torch.equal(images.shift(pixels, 4 - top, 4 - left, 4), torch.stack(crops))


def test_shift_gives_the_layout_that_convolutions_like():
    found = images.random_shift(pictures(4, 3, 8, 8), 2, generator())
    assert found.is_contiguous(memory_format=torch.channels_last)


# --- random choices


def within_binomial_bounds(counts, draws, share):
    """Each count within five standard deviations of its mean."""
    return np.abs(counts - draws * share).max() < 5 * (draws * share * (1 - share)) ** 0.5


def test_all_moves_are_equally_likely():
    """A point in the middle says where it went: 9 × 9 places."""
    draws = 81 * 250
    point = torch.zeros(draws, 1, 9, 9, dtype=torch.uint8)
    point[:, :, 4, 4] = 255
    moved = images.random_shift(point, 4, generator())
    assert torch.equal(moved.flatten(1).sum(1), torch.full((draws,), 255))
    counts = np.bincount(moved.flatten(1).argmax(1), minlength=81)
    assert counts.min() > 0
    assert within_binomial_bounds(counts, draws, 1 / 81)


def test_both_sides_are_equally_likely():
    draws = 20_000
    left = torch.tensor([1, 0], dtype=torch.uint8).expand(draws, 1, 1, 2)
    flipped = images.random_flip(left, generator())[:, 0, 0, 1].numpy()
    assert within_binomial_bounds(np.bincount(flipped, minlength=2), draws, 0.5)


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 3), SIDES, SIDES, st.integers(0, 2**32), st.booleans())
def test_a_flip_mirrors_columns_or_leaves_all(count, channels, height, width, seed, channels_last):
    pixels = pictures(count, channels, height, width, seed=seed)
    given_ = pixels.to(memory_format=torch.channels_last) if channels_last else pixels
    found = images.random_flip(given_, generator(seed)).numpy()
    for image, original in zip(found, pixels.numpy(), strict=True):
        assert np.array_equal(image, original) or np.array_equal(image, original[:, :, ::-1])
    assert torch.equal(given_, pixels)


def test_flips_do_not_follow_moves():
    """One generator for both, as in training: how an image moved says nothing about whether it was mirrored."""
    draws, g = 20_000, generator()
    point = torch.zeros(draws, 1, 1, 7, dtype=torch.uint8)
    point[:, :, :, 3] = 1
    right = images.random_shift(point, 1, g)[:, 0, 0].argmax(1) - 3
    mirrored = images.random_flip(torch.tensor([1, 0], dtype=torch.uint8).expand(draws, 1, 1, 2), g)[:, 0, 0, 1] == 1
    for move in (-1, 0, 1):
        of_these = mirrored[right == move].numpy()
        assert within_binomial_bounds(np.array([of_these.sum()]), len(of_these), 0.5)


OPERATIONS = {
    "shift": lambda pixels, g: images.random_shift(pixels, 2, g),
    "flip": images.random_flip,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_generator_alone_decides(name):
    operation, pixels = OPERATIONS[name], pictures(50, 3, 8, 6)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (operation(pixels, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    g = generator(1)
    assert torch.equal(operation(pixels, g), first)
    assert not torch.equal(operation(pixels, g), first)  # the next batch's choices are new


@pytest.mark.parametrize("name", OPERATIONS)
def test_images_of_one_batch_have_their_own_choices(name):
    one = pictures(1, 3, 8, 6)
    views = OPERATIONS[name](one.expand(100, 3, 8, 6), generator())
    assert len(views.flatten(1).unique(dim=0)) == {"shift": 25, "flip": 2}[name]


def test_no_border_moves_nothing_and_draws_nothing():
    pixels, g = pictures(3, 1, 4, 4), generator()
    before = g.get_state()
    assert images.random_shift(pixels, 0, g) is pixels
    assert torch.equal(g.get_state(), before)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        (torch.zeros(2, 1, 3, 3), r"torch\.float32 \(2, 1, 3, 3\)"),
        (torch.zeros(1, 3, 3, dtype=torch.uint8), r"torch\.uint8 \(1, 3, 3\)"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), r"torch\.uint8 \(0, 1, 3, 3\)"),
        (np.zeros((2, 1, 3, 3), np.uint8), "ndarray"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize(
    "operation", [images.channel_statistics, *(lambda x, f=f: f(x, None) for f in OPERATIONS.values())]
)
def test_what_is_no_batch_of_images(operation, given_, named):
    with pytest.raises(ValueError, match=rf"images must be a uint8 tensor \(N, C, H, W\) with .*, got {named}"):
        operation(given_)


@pytest.mark.parametrize(
    ("border", "error", "message"),
    [
        (-1, ValueError, "border must be at least 0, got -1"),
        (1.0, TypeError, r"border must be an int, got 1\.0"),
        (True, TypeError, "border must be an int, got True"),
    ],
)
def test_bad_borders(border, error, message):
    with pytest.raises(error, match=message):
        images.random_shift(pictures(1, 1, 2, 2), border, generator())


def test_flips_do_not_depend_on_the_sessions_default_precision():
    x, before = (
        torch.arange(64 * 6, dtype=torch.int64).remainder(251).to(torch.uint8).view(64, 1, 2, 3),
        torch.get_default_dtype(),
    )
    views = []
    try:
        for default in (torch.float64, torch.float32):
            torch.set_default_dtype(default)
            views.append(images.random_flip(x, torch.Generator().manual_seed(1)))
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(*views)
    assert not torch.equal(views[0], x)
