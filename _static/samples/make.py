"""Make the sample pictures of appendix/data_cards: `LSBOOK_DATA=FOLDER python _static/samples/make.py`.

Each shows the first training examples in canonical order, which is as good as a random choice.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from lsbook import datasets

COLUMNS, ROWS, ZOOM, GAP = 8, 4, 2, 2  # GAP: pixels between two images, before zooming

for name in ("mnist", "cifar10", "cifar100"):
    images = datasets.load(name).train.inputs[: COLUMNS * ROWS].permute(0, 2, 3, 1).numpy()
    padded = np.pad(images, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    height, width, channels = padded.shape[1:]
    sheet = padded.reshape(ROWS, COLUMNS, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(ROWS * height, COLUMNS * width, channels)[:-GAP, :-GAP]
    zoomed = sheet.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    # 256 colours, so that a page stays light; that is what grey values have anyway.
    picture = Image.fromarray(zoomed).quantize(256) if channels == 3 else Image.fromarray(zoomed[..., 0])
    path = Path(__file__).with_name(f"{name}.png")
    picture.save(path, optimize=True)
    print(path, picture.size, f"{path.stat().st_size:,} bytes")
