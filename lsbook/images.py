"""Whole batches of images at once: uint8 tensors (N, C, H, W) in, uint8 tensors out, on the device where they lie.

The usual pipeline opens, shifts and mirrors one image after the other, on the CPU. Here one indexing operation
moves all images of a batch. Every random choice comes from a generator that the caller passes, so that a run can be
repeated, and two networks can be shown the same view of the same image.
"""

import torch

from .checks import check_int


def check_images(images):
    """Raise unless `images` is a uint8 tensor (N, C, H, W) with N ≥ 1."""
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images must be a uint8 tensor (N, C, H, W) with at least one image, got {given}")


def channel_statistics(images):
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1]: two float64 tensors (C,).

    Counts how often each of the 256 values occurs, so that 150 million pixels need no copy in float.
    """
    check_images(images)
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.cpu().unbind(1)]).double()
    total = counts.sum(1)
    mean = counts @ values / total
    return mean, ((counts * (values - mean[:, None]) ** 2).sum(1) / total).sqrt()


def take(images, index):
    """``images[index]`` for images whose pixels have their channels side by side, about ten times as fast."""
    rows = images.permute(0, 2, 3, 1)
    return rows.flatten(1).index_select(0, index).view(-1, *rows.shape[1:]).permute(0, 3, 1, 2)


def shift(images, down, right, border):
    """Image i moved down[i] rows and right[i] columns, each in −border … border; black comes in at the edges.

    The same as padding by `border` pixels and cropping. With the channels of a pixel side by side, a row of the crop is
    one piece of memory, so that all images are moved by copying N · H pieces.
    """
    count, channels, height, width = images.shape
    rows, columns = height + 2 * border, width + 2 * border
    padded = images.new_zeros(count, rows, columns, channels)
    padded[:, border : border + height, border : border + width] = images.permute(0, 2, 3, 1)
    example = torch.arange(count, device=images.device)[:, None] * rows
    row = example + (border - down)[:, None] + torch.arange(height, device=images.device)
    first = (row * columns + (border - right)[:, None]) * channels
    pieces = padded.flatten().unfold(0, width * channels, 1)  # the piece that starts at each number
    return pieces.index_select(0, first.flatten()).view(count, height, width, channels).permute(0, 3, 1, 2)


def random_shift(images, border, generator):
    """Every image moved by a random whole number of pixels in −border … border, down and right on its own."""
    check_images(images)
    if check_int(border, "border", 0) == 0:
        return images
    moves = torch.randint(-border, border + 1, (2, len(images)), generator=generator, device=generator.device)
    return shift(images, *moves.to(images.device), border)


def random_flip(images, generator):
    """Every image mirrored left to right with probability ½."""
    check_images(images)
    mirrored = torch.rand(len(images), dtype=torch.float32, generator=generator, device=generator.device) < 0.5
    mask = mirrored.to(images.device, torch.uint8).neg()[:, None, None, None]  # 255, all bits, where mirrored
    return images ^ ((images ^ images.flip(3)) & mask)  # three times as fast as torch.where on bytes
