"""Training and prediction. The model, the data and the loss come in as arguments."""

import os
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """What a loss may look at besides the logits: inputs as the model saw them, labels, and the examples' indices."""

    inputs: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


def default_device():
    """The GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def threads(count):
    """Let torch use `count` CPU threads inside a with block; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def show_progress():
    """Whether to draw progress bars: in a terminal or a live notebook, not in tests or stored outputs.

    LSBOOK_PROGRESS=0 or 1 decides. Otherwise a live notebook is told by the variable that Jupyter's server sets
    for a reader's session, or by Colab's package.
    """
    if wish := os.environ.get("LSBOOK_PROGRESS"):
        return wish != "0"
    if "ipykernel" in sys.modules:
        return "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
    return sys.stderr.isatty()


def progress_bar(items, **options):
    """tqdm over `items` where `show_progress`, else the items as they are."""
    if not show_progress():
        return items
    from tqdm.auto import tqdm

    return tqdm(items, **options)


def fit(
    model,
    split,
    loss,
    *,
    epochs,
    batch_size,
    learning_rate,
    momentum=0.9,
    weight_decay=0.0,
    seed=0,
    record=None,
    label="training",
):
    """Train `model` in place by SGD with Nesterov momentum; return the history.

    Parameters
    ----------
    model : module whose forward gives `models.Output`
    split : inputs (N, …) and labels (N,) on the model's device
    loss : function (logits, Batch) → scalar tensor to minimise
    epochs, batch_size, learning_rate, momentum, weight_decay : the schedule; the learning rate is constant
    seed : of the order of the examples, drawn on the CPU so that it is the same on every device
    record : function (epoch, model) → dict or None, called before training (epoch 0) and after each epoch;
        the dicts make the history

    Raises
    ------
    ValueError : empty data, or inputs and labels of different length.
    FloatingPointError : the loss is no longer finite (says at which epoch).
    """
    inputs, labels = split.inputs, split.labels
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise ValueError(
            f"expected as many labels as inputs, at least one: got {len(inputs)} inputs and {len(labels)} labels"
        )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    history = [record(0, model)] if record else []
    model.train()
    for epoch in progress_bar(range(1, epochs + 1), desc=label, leave=False):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for index in order.split(batch_size):
            batch = Batch(inputs[index], labels[index], index)
            value = loss(model(batch.inputs).logits, batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        if not value.isfinite():
            raise FloatingPointError(
                f"the loss became {value.item()} in epoch {epoch}; try a learning rate below {learning_rate:g}"
            )
        if record:
            history.append(record(epoch, model))
    return [row for row in history if row is not None]


@torch.no_grad()
def predict(model, inputs, batch_size=4096):
    """Logits and features of all inputs, in evaluation mode: `models.Output` of tensors with N rows."""
    if len(inputs) == 0:
        raise ValueError("inputs must hold at least one example, got none")
    was_training = model.training
    model.eval()
    parts = [model(part) for part in inputs.split(batch_size)]
    model.train(was_training)
    return type(parts[0])(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Descent(NamedTuple):
    """Where gradient descent ended, and what was measured on the way: at the start and after every step."""

    point: torch.Tensor
    measured: torch.Tensor


def descend(gradient, start, *, learning_rate, steps, measure=None):
    """Plain gradient descent on a tensor: x ← x − η gradient(x), `steps` times; `start` is left as it is.

    gradient : function from a tensor to one of its shape; torch.func.grad(loss) makes one by autograd
    measure : function from the tensor to a number or tensor; stacked, its values have shape (steps + 1, …)

    Raises FloatingPointError if the end is not finite.
    """
    point, measured = start.clone(), []
    for step in range(steps + 1):
        if step:
            point = point - learning_rate * gradient(point)
        if measure:
            measured.append(torch.as_tensor(measure(point)))
    if not point.isfinite().all():
        raise FloatingPointError(f"gradient descent diverged; try a learning rate below {learning_rate:g}")
    return Descent(point, torch.stack(measured) if measured else torch.empty(0))


def descend_logits(target, start=None, *, learning_rate=1.0, steps, measure=None):
    """Gradient descent on the free logits of one example: z ← z − η (softmax(z) − t), from zeros or `start`.

    target (..., K): a distribution, hard or soft. Stable for η < 4, since the Hessian's eigenvalues are at most ½.
    """
    start = torch.zeros_like(target) if start is None else start
    return descend(lambda z: z.softmax(-1) - target, start, learning_rate=learning_rate, steps=steps, measure=measure)
