"""A trained network as a teacher: its answers, each computed once; its weights on disk; draws of its logits."""

import hashlib

import torch

from . import files, training
from .checks import as_numpy, check_class_index, check_int

# A teacher remembers answers up to so many bytes: 60 epochs of all 50,000 images with 10 classes.
MEMORY = 2**27


class Teacher:
    """A trained network that is asked for logits, batch by batch, and computes each answer once.

    Students with the same seed see the same views of the same examples in the same order, so the second one finds all
    answers there. A batch is known by its bytes and how they lie: the teacher sees what the student sees, whatever the
    augmentation is, and also after a restart from a checkpoint. Beyond `MEMORY` it goes on without remembering.
    """

    def __init__(self, model, precision=None):
        """precision : that the layers compute in, see `training.autocast`"""
        self.model, self.precision = model.eval().requires_grad_(False), precision
        self.asked = self.computed = self.bytes = 0
        self._answers = {}

    def __call__(self, inputs):
        """Logits (N, K) of a batch, in evaluation mode, without gradient."""
        self.asked += 1
        key = inputs.shape, inputs.stride(), inputs.dtype, hashlib.blake2b(as_bytes(inputs), digest_size=16).digest()
        if key in self._answers:
            return self._answers[key]
        self.computed += 1
        logits = training.predict(self.model, inputs, precision=self.precision).logits
        if self.bytes + logits.nbytes <= MEMORY:
            self._answers[key] = logits
            self.bytes += logits.nbytes
        return logits


def as_bytes(inputs):
    """The numbers of a batch in the order in which they lie in memory, without a copy where that can be."""
    if inputs.ndim == 4 and inputs.is_contiguous(memory_format=torch.channels_last):
        inputs = inputs.permute(0, 2, 3, 1)
    return as_numpy(inputs.contiguous()).data


def save_weights(model, path):
    """Write the network's weights and buffers as safetensors, by atomic rename."""
    from safetensors.torch import save

    files.write(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}))


def load_weights(model, path):
    """Put the weights that `save_weights` wrote into `model`. Raises ValueError naming the file if they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with open(path, "rb") as file:
        content = file.read()
    try:
        model.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the weights {path} are damaged or belong to another network ({error}); delete the file to train again"
        ) from error


def draw_examples(labels, classes, count):
    """Indices of the first `count` examples of each class, or of as many as the rarest of the classes has.

    Raises ValueError if a class has none.
    """
    found = [(labels == label).nonzero().flatten() for label in classes]
    fewest = min(map(len, found))
    if fewest == 0:
        raise ValueError(f"classes must be among the labels, got {tuple(classes)}, one of which no example has")
    return torch.cat([index[: min(check_int(count, "count", 1), fewest)] for index in found])


def logit_draws(model, inputs, classes, augment, draws, precision=None):
    """z_a − z_b of each input in several random views: float64 (N, draws).

    classes : (a, b). augment : function (inputs, generator) → inputs. View l has the seed l, so that it is the same one
    whenever the network is asked. Source: Müller et al. (2019), section 4, of whose Figure 6 these are the data.
    """
    views = [augment(inputs, torch.Generator().manual_seed(view)) for view in range(check_int(draws, "draws", 1))]
    logits = torch.stack([training.predict(model, view, precision=precision).logits for view in views], dim=1)
    first, second = (check_class_index(label, "classes", logits.shape[-1]) for label in classes)
    return (logits[..., first].double() - logits[..., second].double()).cpu().numpy()
