"""Training and prediction. The model, the data and the loss come in as arguments."""

import json
import os
import sys
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import NamedTuple

import torch

from . import files, images
from .checks import check_choice, check_int, check_number, check_positive, check_seed


class Batch(NamedTuple):
    """What a loss may look at besides the logits: inputs as the model saw them, labels, and the examples' indices."""

    inputs: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor

    @property
    def arguments(self):
        """What the model is called with."""
        return (self.inputs,)


def default_device():
    """The device that LSBOOK_DEVICE names ("cpu", "cuda", "cuda:1"); without it a CUDA GPU if there is one, or the CPU.

    Raises ValueError if that device is unknown or not available here.
    """
    wish = os.environ.get("LSBOOK_DEVICE")
    if not wish:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return check_device(wish, "LSBOOK_DEVICE")


def check_device(device, name="device"):
    """Return `device` ("cpu", "cuda", "cuda:1" …) if it is available here. Raises ValueError if it is not.

    Apple's "mps" and others are refused: they have no float64, in which half of the book's networks train.
    """
    try:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor a CUDA GPU")
        torch.zeros(1, device=device).cpu()  # the way back fails on "meta", which holds no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"{name} must name a device that is available here, such as cpu, cuda or cuda:1; got {device!r}"
        ) from error
    return device


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


PRECISIONS = ("float64", "float32", "bfloat16", "float16")
SCHEDULES = ("constant", "linear", "step", "one-cycle")


def best_precision(device):
    """The precision in which `device` trains fastest: bfloat16 where it has units for it, else float16 on a GPU.

    A CPU without such units (AVX512-BF16 or AMX) is slower in bfloat16 than in float32, so it gets float32.
    """
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & _cpu_flags() else "float32"


def precision_of(dtype, device):
    """In what the layers compute: `dtype`, a spec's, or for "auto" the fastest that the device has."""
    return best_precision(device) if dtype == "auto" else dtype


def _cpu_flags():
    """What Linux says this CPU can do; elsewhere nothing (and so float32, which is right everywhere)."""
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def autocast(device, precision):
    """A context in which the layers of a float32 network compute in bfloat16 or float16, if that is `precision`.

    Weights stay in float32, so that small steps are not lost.
    """
    if precision is not None:
        check_choice(precision, "precision", PRECISIONS)
    low = precision in ("bfloat16", "float16")
    return torch.autocast(torch.device(device).type, getattr(torch, precision) if low else None, enabled=low)


def rate(schedule, done, milestones=()):
    """Factor of the learning rate when the share `done` in [0, 1) of all steps is made.

    constant: 1. linear: 1 − done. step: 1/10 for each of the milestones (shares of all steps) that is passed.
    one-cycle: up in a straight line to 1 at the share milestones[0], then down to 0.

    >>> [rate("step", done, (0.5, 0.75)) for done in (0.0, 0.5, 0.8)]
    [1.0, 0.1, 0.01]
    """
    if schedule == "linear":
        return 1.0 - done
    if schedule == "one-cycle":
        (peak,) = milestones
        return done / peak if done < peak else (1.0 - done) / (1.0 - peak)
    if schedule == "step":
        return 10.0 ** -sum(done >= milestone for milestone in milestones)
    return 1.0


def _capture_graphs(model, inputs, precision):
    """Record the network's forward and backward pass on a GPU as CUDA graphs, in place, if LSBOOK_CUDA_GRAPHS=1.

    A ResNet-56 step starts some 500 small kernels, and a large GPU waits for each to be asked for; a graph asks once.
    Recording runs a few passes, so the running means of batch normalisation are put back afterwards.
    """
    if not inputs.is_cuda or os.environ.get("LSBOOK_CUDA_GRAPHS") != "1":
        return
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    low = precision in ("bfloat16", "float16")
    with torch.autocast("cuda", getattr(torch, precision) if low else None, enabled=low, cache_enabled=False):
        torch.cuda.make_graphed_callables(model, (inputs.clone(),))
    model.load_state_dict(before)


def _on(device):
    """Make a GPU the current one inside a with block: seeding and recording of graphs look at no other."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class DeviceMemoryError(RuntimeError):
    """The GPU's memory is too small for a batch."""


@contextmanager
def memory_advice(batch_size, name="batch_size"):
    """Within a with block, turn the device's out-of-memory error into one that says which `name` to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = f"try {name} {batch_size // 2}" if batch_size > 1 else "try the CPU, or a smaller network"
        raise DeviceMemoryError(
            f"the device's memory does not hold a batch of {batch_size}; {smaller}, or fewer runs at a time"
        ) from error


def _check_schedule(split, epochs, batch_size, learning_rate, schedule, milestones):
    """Raise unless there is something to train on, by a schedule that makes sense."""
    examples, labels = len(split.inputs), len(split.labels)
    if examples == 0 or examples != labels:
        raise ValueError(f"expected as many labels as inputs, at least one: got {examples} inputs and {labels} labels")
    check_int(epochs, "epochs", 0)
    check_int(batch_size, "batch_size", 1)
    check_positive(learning_rate, "learning_rate")
    check_milestones(schedule, milestones)


def _check_steps(momentum, weight_decay, head_factor, clip_norm, seed):
    """Raise unless these make steps that go downhill."""
    check_number(momentum, "momentum", 0, 1)
    check_number(weight_decay, "weight_decay", 0)
    check_positive(head_factor, "head_factor")
    check_number(clip_norm, "clip_norm", 0)
    check_seed(seed)


def check_milestones(schedule, milestones):
    """Raise unless `milestones` suit the schedule: one share in (0, 1) for one-cycle, any for step, else none."""
    check_choice(schedule, "schedule", SCHEDULES)
    expected = {"one-cycle": len(milestones) == 1, "step": len(milestones) > 0}.get(schedule, len(milestones) == 0)
    if not expected or not all(0 < m < 1 for m in milestones) or list(milestones) != sorted(milestones):
        raise ValueError(
            f"milestones must be rising shares in (0, 1): one for 'one-cycle', one or more for 'step', "
            f"none for 'constant' and 'linear'; got {tuple(milestones)} for {schedule!r}"
        )


def _groups(model, decay_only, weight_decay, head_factor, learning_rate):
    """Parameter groups of the optimizer: which weights decay, and how fast the head learns."""
    unknown = set(decay_only) - {name for name, _ in model.named_parameters()}
    if unknown:
        raise ValueError(f"decay_only must name parameters of the network, got {', '.join(sorted(unknown))}")
    groups = {}
    for name, weights in model.named_parameters():
        decay = weight_decay if not decay_only or name in decay_only else 0.0
        rate_ = learning_rate * (head_factor if name.startswith("head.") else 1.0)
        groups.setdefault((decay, rate_), []).append(weights)
    return [{"params": p, "weight_decay": decay, "lr": rate_} for (decay, rate_), p in groups.items()]


class _Stepper:
    """All that changes the weights: gradients in the right precision, clipping, the optimizer and its learning rate."""

    def __init__(self, model, loss, optimizer, device, precision, clip_norm, forward=None):
        """optimizer : its learning rates are the largest; forward : what calls the model, if not the model itself"""
        self.model, self.loss, self.device, self.precision, self.clip_norm = model, loss, device, precision, clip_norm
        self.optimizer, self.forward = optimizer, forward or model
        self.largest = [group["lr"] for group in optimizer.param_groups]
        # float16 cannot hold gradients below 6e-8: they are scaled up, and the step divides again.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")

    def __call__(self, batch, factor):
        """One step on a batch, with the learning rates times `factor`; returns the loss."""
        with autocast(self.device, self.precision):
            logits = self.forward(*batch.arguments).logits
        value = self.loss(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(value).backward()
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        for group, largest in zip(self.optimizer.param_groups, self.largest, strict=True):
            group["lr"] = largest * factor
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return value.detach()

    def tensors(self):
        """Weights, buffers and the optimizer's memory by name: all tensors that the next step depends on.

        A matrix that two layers share is named once.
        """
        state = {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        state |= {f"model.{name}": tensor for name, tensor in self.model.named_buffers()}
        for name, weights in self.model.named_parameters():
            memory = self.optimizer.state.get(weights, {})
            state |= {f"{key}.{name}": tensor for key, tensor in memory.items() if tensor is not None}
        return state

    @torch.no_grad()
    def load(self, state):
        """Take up where `tensors` was taken."""
        mine = {f"model.{name}": tensor for name, tensor in self.model.named_parameters()}
        mine |= {f"model.{name}": tensor for name, tensor in self.model.named_buffers()}
        if mine.keys() != {name for name in state if name.startswith("model.")}:
            raise ValueError("it has other tensors than this network")
        for name, tensor in mine.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"{name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(state[name])
        parameters = dict(self.model.named_parameters())
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind != "model":
                # Adam counts its steps in a tensor on the CPU; all else has the weight's shape, and lies where it does.
                memory = tensor if kind == "step" else torch.empty_like(parameters[name]).copy_(tensor)
                self.optimizer.state[parameters[name]][kind] = memory


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another network or schedule."""


def _save_checkpoint(path, stepper, epoch, history, plan, seconds):
    """Write the state after `epoch` by atomic rename: a kill leaves the older checkpoint, or none.

    plan : numbers that tell this training from others, so that only it goes on from here
    seconds : that the training has taken so far
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in stepper.tensors().items()}
    progress = {
        "plan": plan,
        "seconds": seconds,
        "epoch": epoch,
        "history": history,
        "scaler": stepper.scaler.state_dict(),
    }
    files.write(path, save(state, {"progress": json.dumps(progress)}))


def seconds_before(checkpoint):
    """Seconds of training that went into a checkpoint; 0.0 if there is none. May raise DamagedCheckpointError."""
    if not checkpoint or not os.path.exists(checkpoint):
        return 0.0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, "pt") as file:
            return float(json.loads(file.metadata()["progress"])["seconds"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def _damaged(path, error):
    return DamagedCheckpointError(
        f"the checkpoint {path} does not belong to this run or is damaged ({error}); delete it to start afresh"
    )


def _load_checkpoint(path, stepper, plan):
    """Restore what `_save_checkpoint` wrote; returns (epoch, history)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            if progress["plan"] != plan:
                raise ValueError(f"it is of {progress['plan']}, not of {plan}")
            stepper.load({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
        stepper.scaler.load_state_dict(progress["scaler"])
        return progress["epoch"], progress["history"]
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path, error) from error


@contextmanager
def _random_state(seed, device):
    """Inside the block, random numbers (dropout's) depend on `seed` alone; outside, nothing has changed."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _deterministic_kernels():
    """Let cuDNN choose only kernels that give the same bits each time; other devices are not concerned."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def _epoch_seed(seed, epoch):
    """A seed for the random numbers of one epoch, so that an epoch can be repeated without those before it."""
    return seed * 1_000_003 + epoch


def _orders(examples, seed, start, epochs):
    """(epoch, order of the examples) of the epochs after `start`.

    The orders before are drawn all the same, since each follows from the one before.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(start):
        torch.randperm(examples, generator=generator)
    for epoch in range(start + 1, epochs + 1):
        yield epoch, torch.randperm(examples, generator=generator)


def _begin(checkpoint, stepper, record, plan):
    """(epochs made, history) of the checkpoint if there is one, else of a fresh start."""
    if checkpoint and os.path.exists(checkpoint):
        return _load_checkpoint(checkpoint, stepper, plan)
    return 0, [_recorded(record, 0, stepper.model, checkpoint)] if record else []


def _recorded(record, epoch, model, checkpoint):
    """What `record` gives of an epoch; where a checkpoint must keep it, as JSON does, so that a resume is no change."""
    row = record(epoch, model)
    if not checkpoint:
        return row
    try:
        return json.loads(json.dumps(row))
    except (TypeError, ValueError) as error:
        given = f"in epoch {epoch} it gave {row!r:.200}"
        raise TypeError(f"record must return what JSON can hold, for the checkpoint ({error}): {given}") from error


def _take(inputs, index):
    """``inputs[index]``, by the faster way where there is one."""
    fast = inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
    return images.take(inputs, index) if fast else inputs[index]


def _train_epoch(stepper, split, order, batch_size, augment, factors):
    """One step for each full batch of `order`; returns the last batch's loss.

    The few examples left over wait for another epoch's order, so that all batches have one size; with fewer examples
    than one batch, the batch is all of them.
    """
    full = max(1, len(order) // batch_size)
    for index, factor in zip(order.split(batch_size)[:full], factors, strict=False):
        inputs = _take(split.inputs, index)
        value = stepper(Batch(augment(inputs) if augment else inputs, split.labels[index], index), factor)
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
    schedule="constant",
    milestones=(),
    momentum=0.9,
    nesterov=True,
    weight_decay=0.0,
    decay_only=(),
    head_factor=1.0,
    clip_norm=0.0,
    precision=None,
    augment=None,
    seed=0,
    record=None,
    label="training",
    checkpoint=None,
    checkpoint_seconds=60,
):
    """Train `model` in place by SGD; return the history.

    Parameters
    ----------
    model : module whose forward gives `models.Output`
    split : inputs (N, …) and labels (N,) on the model's device
    loss : function (logits, Batch) → scalar tensor to minimise
    epochs, batch_size, learning_rate, schedule, milestones : the schedule, see `rate`
    momentum, nesterov, weight_decay : as in torch.optim.SGD
    decay_only : names of the parameters that decay; empty means all
    head_factor : of the learning rate of the last layer
    clip_norm : the gradient's largest norm; 0 does not clip
    precision : that the layers compute in, see `autocast`; None is the weights' own. On a GPU, LSBOOK_CUDA_GRAPHS=1
        records the passes as CUDA graphs.
    augment : function (inputs, generator) → inputs, applied to each batch
    seed : of the order of the examples (drawn on the CPU, so that it is the same on every device), of the
        augmentation and of dropout
    record : function (epoch, model) → dict or None, called before training (epoch 0) and after each epoch;
        the dicts make the history
    checkpoint : path; the state goes there at the end of an epoch if the last time is `checkpoint_seconds` ago, and
        a run that finds its checkpoint goes on from it, to the same bits on the same machine. It knows its own by all
        numbers above, but cannot tell one loss, or other initial weights, from another: give each its own path.

    Raises
    ------
    TypeError, ValueError : empty data, inputs and labels of different length, epochs < 0, batch_size < 1, a learning
        rate that is not positive and finite, milestones that do not suit the schedule, an unknown name in decay_only,
        a negative weight_decay or clip_norm, momentum outside [0, 1], a head_factor that is not positive, a seed that
        is no whole number in [0, 2³¹); a record that is no JSON, where there is a checkpoint to keep it in.
    FloatingPointError : the loss or the weights are no longer finite (says at which epoch).
    DeviceMemoryError : the GPU's memory is too small (says which batch size to try).
    DamagedCheckpointError : the checkpoint cannot be used.
    """
    _check_schedule(split, epochs, batch_size, learning_rate, schedule, milestones)
    _check_steps(momentum, weight_decay, head_factor, clip_norm, seed)
    device = next(model.parameters()).device
    groups = _groups(model, decay_only, weight_decay, head_factor, learning_rate)
    sgd = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov and momentum > 0)
    stepper = _Stepper(model, loss, sgd, device, precision, clip_norm)
    plan = {"examples": len(split.inputs), "epochs": epochs, "batch_size": batch_size, "seed": seed}
    plan |= {"learning_rate": learning_rate, "schedule": schedule, "precision": precision}
    plan |= {"milestones": list(milestones), "momentum": momentum, "nesterov": nesterov, "augment": bool(augment)}
    plan |= {"weight_decay": weight_decay, "decay_only": sorted(decay_only)}
    plan |= {"head_factor": head_factor, "clip_norm": clip_norm}
    steps = max(1, len(split.inputs) // batch_size)

    def passes(start):
        for epoch, order in _orders(len(split.inputs), seed, start, epochs):
            factors = (rate(schedule, done / (epochs * steps), milestones) for done in count((epoch - 1) * steps))
            view = (
                partial(augment, generator=torch.Generator().manual_seed(_epoch_seed(seed, epoch))) if augment else None
            )
            yield epoch, partial(_train_epoch, stepper, split, order.to(device), batch_size, view, factors)

    with _on(device), memory_advice(batch_size), _deterministic_kernels():
        _capture_graphs(model, split.inputs[:batch_size], precision)
        return _train_epochs(stepper, passes, plan, seed, record, label, Keep(checkpoint, checkpoint_seconds))


def fit_together(models, splits, loss, *, epochs, batch_size, learning_rate, momentum=0.9, nesterov=True, seeds):
    """Train networks of one make side by side, each on its own split in its own order, in place.

    The same as `fit` one after the other, but for rounding, and several times as fast for small networks: a step on
    many of them takes little longer than a step on one.

    Parameters
    ----------
    models : modules of one make, without dropout and batch normalisation, whose forward gives `models.Output`
    splits : for each network inputs (N, …) and labels (N,), all of one shape
    loss : function (logits (M·B, K), Batch) → scalar, a mean over examples; the batch of all M networks is one after
        the other in it, and its index counts through the splits: example i of split m is m·N + i
    epochs, batch_size, learning_rate, momentum, nesterov : as in `fit`
    seeds : of the order of the examples, one a network

    Raises ValueError for lists of different lengths, FloatingPointError as `fit`.
    """
    if not len(models) == len(splits) == len(seeds) > 0:
        raise ValueError(f"expected a split and a seed a network, got {len(models)}, {len(splits)} and {len(seeds)}")
    _check_schedule(splits[0], epochs, batch_size, learning_rate, "constant", ())
    inputs, labels = (torch.stack(tensors) for tensors in zip(*splits, strict=True))
    weights, buffers = torch.func.stack_module_state(models)
    nesterov = nesterov and momentum > 0
    optimizer = torch.optim.SGD(weights.values(), learning_rate, momentum, nesterov=nesterov, foreach=True)
    forward = torch.func.vmap(lambda w, b, x: torch.func.functional_call(models[0], (w, b), (x,)).logits)
    network, examples = torch.arange(len(models))[:, None], inputs.shape[1]
    orders = zip(*(_orders(examples, seed, 0, epochs) for seed in seeds), strict=True)
    for epoch, order in enumerate(orders, 1):
        index = torch.stack([one for _, one in order])
        for part in index.split(batch_size, dim=1)[: max(1, examples // batch_size)]:
            batch = Batch(inputs[network, part], labels[network, part].flatten(), (network * examples + part).flatten())
            value = len(models) * loss(forward(weights, buffers, batch.inputs).flatten(0, 1), batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
        if not value.isfinite():
            raise FloatingPointError(f"the loss became {value.item()} in epoch {epoch}; try a smaller learning rate")
    with torch.no_grad():
        for number, model in enumerate(models):
            for name, tensor in model.named_parameters():
                tensor.copy_(weights[name][number])


class Keep(NamedTuple):
    """Where a training writes its checkpoint, and how often.

    writes : False for all but one of several processes that train one network together; they read it all the same
    """

    path: object = None
    seconds: float = 60
    writes: bool = True


def _train_epochs(stepper, passes, plan, seed, record, label, keep):
    """Train by `passes`, from the checkpoint on if there is one; return the history.

    passes : function from the number of epochs made to an iterator over the others: (epoch, function that trains it
        and returns a loss)
    plan : numbers that tell this training from others; its epochs and learning_rate are used here
    """
    model, path, written = stepper.model, keep.path, time.monotonic()
    begun = written - seconds_before(path)
    with _on(stepper.device), _deterministic_kernels():
        start, history = _begin(path, stepper, record, plan)
        bar = {"desc": label, "leave": False, "initial": start, "total": plan["epochs"]}
        model.train()
        for epoch, train_it in progress_bar(passes(start), **bar):
            with _random_state(_epoch_seed(seed, epoch), stepper.device):
                value = train_it()
            _check_health(value, model, epoch, plan["learning_rate"])
            history += [_recorded(record, epoch, model, path)] if record else []
            due = epoch < plan["epochs"] and time.monotonic() - written >= keep.seconds
            if path and keep.writes and due:
                written = time.monotonic()
                _save_checkpoint(path, stepper, epoch, history, plan, written - begun)
    return [row for row in history if row is not None]


def fit_batches(model, batches, loss, factor, *, epochs, learning_rate, seed, plan, betas=(0.9, 0.98), **options):
    """Train `model` in place by Adam on batches of any make; return the history.

    Parameters
    ----------
    batches : function from the epoch (1, 2, …) to its batches, a sequence; each has `arguments` for the model. The
        number of batches may not change from epoch to epoch.
    loss : function (logits, batch) → scalar tensor to minimise
    factor : function from the step 1, 2, … to the factor of the largest rate, `learning_rate`
    seed : of dropout
    plan : numbers that tell this training from others, so that only it goes on from a checkpoint
    betas : decay of Adam's two means; those of Vaswani et al. (2017) by default, who also add 1e-9 to the root
    options : precision, clip_norm, record, label as in `fit`; keep: a `Keep`; forward: what calls the model, if not
        the model itself (`DistributedDataParallel`)

    Raises FloatingPointError and DamagedCheckpointError as `fit`, TypeError and ValueError for epochs < 0 and a
    learning rate that is not positive and finite. What makes batches smaller, the caller knows: see `memory_advice`.
    """
    check_int(epochs, "epochs", 0)
    adam = torch.optim.Adam(model.parameters(), check_positive(learning_rate, "learning_rate"), betas, eps=1e-9)
    step = {name: options.pop(name, None) for name in ("precision", "clip_norm", "forward")}
    stepper = _Stepper(model, loss, adam, next(model.parameters()).device, **step)
    plan = plan | {"epochs": epochs, "learning_rate": learning_rate, "betas": list(betas)}
    plan |= {"clip_norm": step["clip_norm"]}

    def passes(start):
        for epoch in range(start + 1, epochs + 1):
            yield epoch, partial(_train_on, stepper, batches(epoch), epoch, factor)

    keep = {"record": None, "label": "training", "keep": Keep()} | options
    return _train_epochs(stepper, passes, plan, seed, **keep)


def _train_on(stepper, batches, epoch, factor):
    """One step on each batch; returns the last loss."""
    for step, batch in enumerate(progress_bar(batches, leave=False), (epoch - 1) * len(batches) + 1):
        value = stepper(batch, factor(step))
    return value


@torch.no_grad()
def predict(model, inputs, batch_size=1000, precision=None):
    """Logits and features of all inputs, in evaluation mode: `models.Output` of tensors with N rows.

    precision : that the layers compute in, see `autocast`; None is the weights' own

    Where the GPU's memory is too small, it goes on with half the batch. Raises ValueError if there is no input or
    batch_size < 1, DeviceMemoryError if not even one example fits.
    """
    check_int(batch_size, "batch_size", 1)
    if len(inputs) == 0:
        raise ValueError("inputs must hold at least one example, got none")
    was_training = model.training
    model.eval()
    try:
        with _on(inputs.device), autocast(inputs.device, precision):
            return _in_parts(model, inputs, batch_size)
    finally:
        model.train(was_training)


def _in_parts(model, inputs, batch_size):
    """The network's output on all inputs, `batch_size` at a time, or fewer if these are too many for the device."""
    try:
        with memory_advice(batch_size):
            parts = [model(part) for part in inputs.split(batch_size)]
    except DeviceMemoryError:
        if batch_size == 1:
            raise
        return _in_parts(model, inputs, batch_size // 2)
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


def minimise(loss, tensors, steps=300):
    """Move leaf tensors in place to a minimum of loss() by L-BFGS with a line search; returns the loss there.

    L-BFGS estimates the curvature from past gradients: far fewer steps than plain descent, on the whole batch only.
    Raises FloatingPointError where the loss is not finite: torch would run on into an error that names no cause.
    """
    options = {"history_size": 20, "line_search_fn": "strong_wolfe", "tolerance_grad": 1e-12, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS(tensors, max_iter=steps, **options)

    def closure():
        optimizer.zero_grad()
        value = loss()
        if not value.isfinite():
            raise FloatingPointError(f"L-BFGS came to a loss of {value.item()}")
        value.backward()
        return value

    optimizer.step(closure)
    return loss().item()
