"""The checks by themselves; through the functions that use them they are tested in test_targets and test_theory."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lsbook import checks


@pytest.mark.parametrize("value", [2, 3, 32000, np.int64(5), np.uint8(7)])
def test_num_classes_comes_back_as_int(value):
    assert checks.check_num_classes(value) == value
    assert type(checks.check_num_classes(value)) is int


@pytest.mark.parametrize("value", [0, 2**31 - 1, np.uint8(7)])
def test_seed_comes_back_as_int(value):
    assert checks.check_seed(value) == value
    assert type(checks.check_seed(value)) is int


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "seed must be at least 0, got -1"),
        (2**31, ValueError, "seed must be less than 2147483648, got 2147483648"),
        (1.0, TypeError, r"seed must be an int, got 1\.0 \(float\)"),
        (True, TypeError, r"seed must be an int, got True \(bool\)"),
    ],
)
def test_bad_seeds(value, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        checks.check_seed(value)


@pytest.mark.parametrize("value", ["a", "0", "wmt14_en_de", "cifar10-alexnet", "a.b"])
def test_file_stem_comes_back(value):
    assert checks.check_file_stem(value, "experiment") == value


@pytest.mark.parametrize("value", ["", "A", ".a", "-a", "a/b", "a\\b", "a b", "ä", "a\n", None, 3, b"a"])
def test_bad_file_stems(value):
    with pytest.raises(ValueError) as caught:
        checks.check_file_stem(value, "experiment")
    assert str(caught.value) == f"experiment must be lower-case letters, digits, '.', '_' or '-', got {value!r}"


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25), np.float16(0.5), np.float64(1), Fraction(1, 3), 5e-324])
def test_number_comes_back_as_float(value):
    assert checks.check_number(value, "alpha", 0, 1) == float(value)
    assert type(checks.check_number(value, "alpha", 0, 1)) is float


@pytest.mark.parametrize("value", [math.nan, -5e-324, 1 + 2**-52, math.inf, -math.inf])
def test_number_out_of_range(value):
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\], got ") as caught:
        checks.check_number(value, "alpha", 0, 1)
    assert str(caught.value).endswith(f"got {value}")


@pytest.mark.parametrize("value", [True, np.True_, "0.1", None, 1j, [0.1], np.array([0.1]), torch.tensor(0.1)])
def test_number_of_wrong_type(value):
    with pytest.raises(TypeError, match="alpha must be one real number, got ") as caught:
        checks.check_number(value, "alpha", 0, 1)
    assert repr(value) in str(caught.value)


def test_array_becomes_float64_and_keeps_its_shape():
    for values in (0.5, [0, 1], np.float16([[0.5]]), np.array([1], dtype=np.uint8), torch.tensor([0.5])):
        array = checks.check_array(values, "alpha", 0, 1)
        assert array.dtype == np.float64
        assert array.shape == np.shape(values)
        assert array.tolist() == np.asarray(values).tolist()


def test_array_is_a_copy():
    given = np.array([0.5])
    checks.check_array(given, "alpha")[0] = 2
    assert given[0] == 0.5


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([0.1, math.nan], ValueError, "alpha must lie in [0, 1], got nan"),
        ([0.1, 1.5, 7], ValueError, "alpha must lie in [0, 1], got 1.5"),
        ([], ValueError, "alpha must hold at least one number, got an empty array"),
        ([True], TypeError, "alpha must be a real number or an array of them, got [True]"),
        ("x", TypeError, "alpha must be a real number or an array of them, got 'x'"),
        (None, TypeError, "alpha must be a real number or an array of them, got None"),
        ([1j], TypeError, "alpha must be a real number or an array of them, got [1j]"),
        ([[0.1], [0.1, 0.2]], ValueError, "alpha must be a real number or an array of them, got [[0.1], [0.1, 0.2]]"),
    ],
)
def test_bad_arrays(values, error, message):
    with pytest.raises(error) as caught:
        checks.check_array(values, "alpha", 0, 1)
    assert str(caught.value) == message


def test_class_index():
    assert [checks.check_class_index(k, "padding_index", 4) for k in (0, np.int8(3))] == [0, 3]
    for index in (-1, 4):
        with pytest.raises(ValueError, match=rf"padding_index must lie in \[0, 3\] for num_classes = 4, got {index}"):
            checks.check_class_index(index, "padding_index", 4)
    with pytest.raises(TypeError, match=r"padding_index must be an int, got 1\.0 \(float\)"):
        checks.check_class_index(1.0, "padding_index", 4)


def test_labels_come_back_as_int64():
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64):
        labels = checks.check_labels(torch.tensor([0, 2]).to(dtype), 3)
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0, 2]


def test_uint8_labels_are_compared_without_overflow():
    """Regression: compared as uint8, 32,000 counted as 0 and −100 as 156."""
    assert checks.check_labels(torch.tensor([0, 255], dtype=torch.uint8), 32000).tolist() == [0, 255]
    with pytest.raises(
        ValueError, match=r"labels must lie in \[0, 99\] for num_classes = 100, or -100 .ignored., got 156"
    ):
        checks.check_labels(torch.tensor([156], dtype=torch.uint8), 100, [-100])


def test_finite():
    checks.check_finite(torch.tensor([3e38, 3e38, -1e-45]), "logits")  # though their sum is infinite
    checks.check_finite(torch.full((4,), 6e4, dtype=torch.float16), "logits")
    with pytest.raises(ValueError, match="logits must be finite, got 2 of 3 entries NaN or infinite"):
        checks.check_finite(torch.tensor([math.nan, 0, -math.inf]), "logits")
    with pytest.raises(ValueError, match="logits must be finite, got 2 of 2 entries"):
        checks.check_finite(torch.tensor([math.inf, -math.inf]), "logits")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_as_numpy(dtype):
    tensor = torch.tensor([0.5, 2.0], dtype=dtype, requires_grad=True)
    array = checks.as_numpy(tensor)
    assert (array.dtype, array.tolist()) == (np.float64, [0.5, 2.0])
    assert checks.check_array(tensor, "alpha").tolist() == [0.5, 2.0]


def test_what_is_no_float_tensor_keeps_its_kind():
    assert checks.as_numpy(torch.tensor([1, 2])).dtype == np.int64
    assert checks.as_numpy(torch.tensor([True])).dtype == np.bool_
    assert checks.as_numpy(np.float16([1])).dtype == np.float16
    assert checks.as_numpy([1, 2]).tolist() == [1, 2]


def test_int_of_at_least():
    assert checks.check_int(np.int8(0), "epochs", 0) == 0
    with pytest.raises(ValueError, match="epochs must be at least 0, got -1"):
        checks.check_int(-1, "epochs", 0)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_positive(value):
    assert checks.check_positive(np.float32(0.5), "learning_rate") == 0.5
    with pytest.raises(ValueError, match=f"learning_rate must be positive and finite, got {value}"):
        checks.check_positive(value, "learning_rate")


def test_choice_names_the_choices_and_the_nearest():
    assert checks.check_choice("sum", "reduction", ("mean", "sum")) == "sum"
    for value, hint in (("maen", "; did you mean 'mean'?"), ("xyz", "")):
        with pytest.raises(ValueError) as caught:
            checks.check_choice(value, "reduction", ("mean", "sum"))
        assert str(caught.value) == f"reduction must be one of 'mean', 'sum', got {value!r}{hint}"
    with pytest.raises(TypeError, match=r"reduction must be a string, got None \(NoneType\)"):
        checks.check_choice(None, "reduction", ("mean", "sum"))


@pytest.mark.parametrize("convention", [None, 1, ["uniform"]])
def test_convention_that_is_no_string(convention):
    with pytest.raises(TypeError, match="convention must be a string, got "):
        checks.check_convention(convention)


def test_label_types_are_checked_without_a_look_at_values():
    assert checks.check_label_type(torch.empty(2, dtype=torch.int32, device="meta")).dtype == torch.int64
    with pytest.raises(ValueError, match="labels must hold at least one label"):
        checks.check_label_type(torch.empty(0, dtype=torch.long, device="meta"))
    with pytest.raises(TypeError, match="labels must be integers"):
        checks.check_label_type(torch.empty(2, device="meta"))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, math.nan], "weight must be finite, got 1 of 2 entries"),
        ([1.0, math.inf], "weight must be finite, got 1 of 2 entries"),
        ([1.0, -0.5], "weight must have no negative entry, got a smallest entry of -0.5"),
        ([0.0, 0.0], "weight must have a positive entry, got zeros only"),
    ],
)
def test_values_of_weights(weight, message):
    weight = torch.tensor(weight)
    with pytest.raises(ValueError, match=message):
        checks.check_weight(weight, 2)
    checks.check_weight(weight, 2, validate=False)
    checks.check_weight(torch.empty(2, device="meta"), 2, validate=False)  # looks at no value
    checks.check_weight(torch.tensor([0.0, 1e-30]), 2)
