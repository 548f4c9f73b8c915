"""What the property tests draw from, and the one hypothesis profile: the same examples on every run."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

torch.set_num_threads(1)  # the tensors are small: on a busy machine more threads only wait for each other

settings.register_profile("book", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("book")

SMALLEST = 5e-324  # the smallest subnormal float64
BELOW_ONE = 1 - 2.0**-53

class_counts = st.one_of(st.sampled_from([2, 3, 4, 5, 10, 100, 255, 256, 1000, 32000]), st.integers(2, 32000))
small_class_counts = st.one_of(st.sampled_from([2, 3, 4]), st.integers(2, 40))
alphas = st.one_of(
    st.sampled_from([0.0, SMALLEST, 2.2e-308, 1e-300, 2.0**-53, 1e-6, 0.1, 0.5, BELOW_ONE, 1.0]), st.floats(0, 1)
)
conventions = st.sampled_from(["uniform", "others"])
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
seeds = st.integers(0, 10_000)
# All text that UTF-8 can hold, less the piece for a space.
sentences = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40)
integer_dtypes = st.sampled_from([torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])


def amount(alpha, num_receivers, convention):
    """A drawn α in [0, 1], brought into the range that the convention allows."""
    return alpha if convention == "uniform" else alpha * (1 - 1 / num_receivers)


@st.composite
def logits_and_labels(draw, classes=class_counts, dtype=torch.float64, max_rows=4):
    """Logits (rows, K) of a scale from 1e-3 to 1e4 with a few entries at ±1e4, and labels (rows,)."""
    num_classes, rows = draw(classes), draw(st.integers(1, max_rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-3, 1.0, 10.0, 100.0, 2500.0, 1e4]))
    logits = torch.randn(rows, num_classes, generator=generator, dtype=torch.float64) * scale
    if draw(st.booleans()):
        where = torch.randint(num_classes, (rows, 2), generator=generator)
        logits.scatter_(1, where, torch.tensor([1e4, -1e4], dtype=torch.float64).expand(rows, 2))
    labels = torch.randint(num_classes, (rows,), generator=generator)
    return logits.clamp(-1e4, 1e4).to(dtype), labels
