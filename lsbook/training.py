"""Training and prediction. The model, the data and the loss come in as arguments."""

import os
import sys
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .checks import check_int, check_positive


class Batch(NamedTuple):
    """What a loss may look at besides the logits: inputs as the model saw them, labels, and the examples' indices."""

    inputs: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


def default_device():
    """The device that LSBOOK_DEVICE names ("cpu", "cuda", "cuda:1"); without it the GPU if there is one, else the CPU.

    Raises ValueError if that device is unknown or not available here.
    """
    wish = os.environ.get("LSBOOK_DEVICE")
    if not wish:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wish).cpu()  # the way back fails on "meta", which holds no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"LSBOOK_DEVICE must name a device that is available here, such as cpu, cuda or cuda:1; got {wish!r}"
        ) from error
    return wish


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


def _check_schedule(split, epochs, batch_size, learning_rate):
    """Raise unless there is something to train on, by a schedule that makes sense."""
    examples, labels = len(split.inputs), len(split.labels)
    if examples == 0 or examples != labels:
        raise ValueError(f"expected as many labels as inputs, at least one: got {examples} inputs and {labels} labels")
    check_int(epochs, "epochs", 0)
    check_int(batch_size, "batch_size", 1)
    check_positive(learning_rate, "learning_rate")


def _train_epoch(model, split, loss, optimizer, batches):
    """One step for each of `batches` (tensors of indices); returns the last batch's loss."""
    for index in batches:
        batch = Batch(split.inputs[index], split.labels[index], index)
        value = loss(model(batch.inputs).logits, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return value


def _check_health(value, model, epoch, learning_rate):
    """Raise if the loss or, by the last step, the weights have left the finite numbers."""
    advice = f"in epoch {epoch}; try a learning rate below {learning_rate:g}"
    if not value.isfinite():
        raise FloatingPointError(f"the loss became {value.item()} {advice}")
    if not all(weights.isfinite().all() for weights in model.parameters()):
        raise FloatingPointError(f"the weights became infinite or NaN {advice}")


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
    TypeError, ValueError : empty data, inputs and labels of different length, epochs < 0, batch_size < 1, or a
        learning rate that is not positive and finite.
    FloatingPointError : the loss or the weights are no longer finite (says at which epoch).
    """
    _check_schedule(split, epochs, batch_size, learning_rate)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=momentum, nesterov=momentum > 0, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    history = [record(0, model)] if record else []
    model.train()
    for epoch in progress_bar(range(1, epochs + 1), desc=label, leave=False):
        order = torch.randperm(len(split.inputs), generator=generator).to(split.inputs.device)
        value = _train_epoch(model, split, loss, optimizer, order.split(batch_size))
        _check_health(value, model, epoch, learning_rate)
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
