"""`lsbook report`: its numbers, its advice on data of known calibration, its page, and what it says of bad files."""

import html
import io
import json
import lzma
import math
import re
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from safetensors.numpy import save_file
from scipy.special import log_softmax, softmax
from scipy.stats import beta

from lsbook import calibration, cli, files, report, theory

ROOT = Path(__file__).parents[1]


def drawn(n=600, classes=4, scale=1.0, seed=0, spread=2.0):
    """Logits (n, classes), `scale` times those from whose softmax the labels are drawn: calibrated at scale 1."""
    random = np.random.default_rng(seed)
    logits = spread * random.normal(size=(n, classes))
    labels = (random.random((n, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return {"logits": scale * logits, "labels": labels}


def as_probs(data):
    return {"probs": softmax(data["logits"], axis=1), "labels": data["labels"]}


def scores(logits=None, labels=None, probs=None, split=None):
    """`Scores` as if read from a file."""
    kind = "logits" if probs is None else "probs"
    given = np.asarray(logits if probs is None else probs)
    return report.Scores("made.npz", kind, split, kind, given, np.asarray(labels))


def make(data, num_bins=15):
    return report.make(scores(**data), num_bins)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder of its own, with one file in it."""
    monkeypatch.chdir(tmp_path)
    np.savez("sure.npz", **drawn(scale=3.0))
    return tmp_path


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of `lsbook report`."""
    status = cli.main(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def write_csv(path, data, before="", after=""):
    kind = next(name for name in data if name != "labels")
    names = [f"{kind[:-1]}_{k}" for k in range(data[kind].shape[1])]
    lines = [",".join(["label", *names])]
    for label, row in zip(data["labels"], data[kind], strict=True):
        lines.append(",".join([str(label), *(repr(float(x)) for x in row)]))
    Path(path).write_text(before + "\n".join(lines) + "\n" + after, encoding="utf-8")


# --- the numbers


def test_the_numbers_are_those_of_calibration():
    data = drawn(scale=1.7)
    logits, labels = data.values()
    probs = softmax(logits, axis=1)
    found = make(data, num_bins=12)["measures"]
    floor = calibration.noise_floor(probs, 12)
    expected = {
        "accuracy": calibration.accuracy(logits, labels),
        "mean_confidence": calibration.confidence(logits).mean(),
        "confidence_minus_accuracy": calibration.confidence(logits).mean() - calibration.accuracy(logits, labels),
        "nll": calibration.negative_log_likelihood(logits, labels),
        "brier": calibration.brier_score(probs, labels),
        "ece": calibration.expected_calibration_error(probs, labels, 12),
        "noise_floor": floor.mean,
        "debiased_ece": calibration.debiased_ece(probs, labels, 12),
        "smooth_ece": calibration.smooth_ece(probs, labels),
        "classwise_ece": calibration.classwise_ece(probs, labels, 12),
    }
    assert list(found) == list(expected)
    assert {name: entry["value"] for name, entry in found.items()} == pytest.approx(expected, rel=1e-9)
    assert found["noise_floor"]["high"] == pytest.approx(floor.high)
    low, high = calibration.bootstrap_ece(probs, labels, 12)
    assert (found["ece"]["low"], found["ece"]["high"]) == pytest.approx((low, high))


def test_the_intervals():
    data = drawn()
    made = make(data)
    n, right = 600, int((data["logits"].argmax(axis=1) == data["labels"]).sum())
    low, high = beta.ppf(0.025, right, n - right + 1), beta.ppf(0.975, right + 1, n - right)
    found = made["measures"]
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx((low, high))
    difference, mean = found["confidence_minus_accuracy"], found["mean_confidence"]["value"]
    assert (difference["low"], difference["high"]) == pytest.approx((mean - high, mean - low))
    nll = -log_softmax(data["logits"], axis=1)[np.arange(n), data["labels"]]
    half = 1.959964 * nll.std(ddof=1) / math.sqrt(n)
    assert (found["nll"]["low"], found["nll"]["high"]) == pytest.approx((nll.mean() - half, nll.mean() + half))


def test_by_hand():
    """Four examples, two of them right: confidences 0.8, 0.8, 0.6, 0.6; right, wrong, right, wrong."""
    probs = np.array([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6], [0.4, 0.6]])
    made = make({"probs": probs, "labels": [0, 1, 1, 0]}, num_bins=5)
    values = {name: entry["value"] for name, entry in made["measures"].items()}
    assert values["accuracy"] == 0.5
    assert values["mean_confidence"] == pytest.approx(0.7)
    assert values["confidence_minus_accuracy"] == pytest.approx(0.2)
    assert values["nll"] == pytest.approx(-np.log([0.8, 0.2, 0.6, 0.4]).mean())
    assert values["brier"] == pytest.approx((0.08 + 1.28 + 0.32 + 0.72) / 4)
    assert values["ece"] == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    assert made["bins"]["counts"] == [0, 0, 2, 2, 0]
    assert made["bins"]["accuracy"] == [None, None, 0.5, 0.5, None]
    gaps = np.log([4, 1 / 4, 3 / 2, 2 / 3])
    assert made["gaps"]["median"]["value"] == pytest.approx(np.median(gaps), abs=1e-12)
    assert sum(made["gaps"]["counts"]) + made["gaps"]["outside"] == 4


def test_the_temperature_is_fitted_on_one_half_and_reported_on_the_other():
    logits, labels = drawn(scale=2.5).values()
    found = make({"logits": logits, "labels": labels})["temperature"]
    order = np.random.default_rng(0).permutation(600)
    fitted, held_out = np.sort(order[:300]), np.sort(order[300:])
    temperature = calibration.fit_temperature(logits[fitted], labels[fitted])
    z, y = logits[held_out], labels[held_out]
    assert found["value"]["value"] == pytest.approx(temperature)
    assert found["value"]["other_half"] == pytest.approx(calibration.fit_temperature(z, y))
    assert (found["fitted_on"], found["held_out"]) == (300, 300)
    for when, t in (("before", 1), ("after", temperature)):
        probs = softmax(z / t, axis=1)
        assert found[f"nll_{when}"]["value"] == pytest.approx(calibration.negative_log_likelihood(z / t, y))
        ece = calibration.expected_calibration_error(probs, y)
        assert found[f"ece_{when}"]["value"] == pytest.approx(ece)
        assert found[f"ece_{when}"]["floor"] == pytest.approx(calibration.noise_floor(probs).high)
    change = found["nll_after"]["value"] - found["nll_before"]["value"]
    assert found["nll_change"]["value"] == pytest.approx(change)


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.4])
def test_the_alpha_of_a_network_at_its_optimum(alpha):
    labels = np.arange(60) % 5
    gaps = make({"logits": theory.optimal_gap(alpha, 5) * np.eye(5)[labels], "labels": labels})["gaps"]
    assert gaps["alpha"]["value"] == pytest.approx(alpha)
    assert gaps["median"] == pytest.approx(dict.fromkeys(("value", "low", "high"), theory.optimal_gap(alpha, 5)))


def test_probs_give_what_their_logits_give():
    data = drawn()
    first, second = make(data), make(as_probs(data))
    for part in ("measures", "temperature"):
        for name, entry in first[part].items():
            assert second[part][name] == pytest.approx(entry, rel=1e-9), name
    assert second["gaps"]["median"] == pytest.approx(first["gaps"]["median"])
    assert first["advice"] == second["advice"]
    assert "logarithms of the given probabilities" in report.page(second)
    assert "logarithms of the given probabilities" not in report.page(first)


# --- the advice


@pytest.mark.parametrize(
    ("data", "verdict", "temperature"),
    [
        (drawn(4000, scale=3.0), "over-confident", "helps"),
        (drawn(4000, scale=0.4), "under-confident", "helps"),
        (drawn(8000), "nothing to see", "no clear effect"),
        (drawn(100), "cannot tell at this n", "no clear effect"),
        (drawn(30, scale=1.2), "cannot tell at this n", "no clear effect"),
    ],
)
def test_the_verdict_on_data_of_known_calibration(data, verdict, temperature):
    advice = make(data)["advice"]
    assert (advice["calibration"], advice["temperature"]) == (verdict, temperature)


def two_kinds(n, right=(0.8, 0.6), said=(0.9, 0.5)):
    """Half of n two-class examples says said[0] and is right[0] right, the other half likewise; exactly so."""
    half = n // 2
    probs = np.repeat([[p, (1 - p) / 2, (1 - p) / 2] for p in said], half, axis=0)
    labels = np.concatenate([np.arange(half) >= round(share * half) for share in right]).astype(int)
    return {"probs": probs, "labels": labels}


def test_mixed_where_only_the_bins_differ():
    made = make(two_kinds(2000))
    assert made["advice"]["calibration"] == "mixed"
    assert made["measures"]["confidence_minus_accuracy"]["value"] == pytest.approx(0)
    assert made["measures"]["ece"]["value"] == pytest.approx(0.1)


def test_exact_calibration():
    made = make(two_kinds(20_000, right=(0.9, 0.5)))
    assert made["measures"]["ece"]["value"] == pytest.approx(0, abs=1e-12)
    assert made["advice"]["calibration"] == "nothing to see"


def test_a_small_difference_is_called_little():
    made = make(two_kinds(100_000, right=(0.89, 0.49)))
    assert made["advice"]["calibration"] == "over-confident"
    assert "less than 2 percentage points" in made["advice"]["words"]
    assert "percentage points" not in make(two_kinds(2000, right=(0.7, 0.3)))["advice"]["words"]


def test_a_calibrated_network_is_seldom_blamed():
    """Each of the two signs errs in one of twenty samples at most, so both in one of ten."""
    verdicts = [make(drawn(400, seed=seed))["advice"]["calibration"] for seed in range(60)]
    assert sum(verdict != "cannot tell at this n" for verdict in verdicts) <= 12  # 6 are expected at most


def test_the_number_of_examples_that_would_be_enough():
    few = make(drawn(100))
    needed = int(re.search(r"takes about ([\d,]+) examples", few["advice"]["words"])[1].replace(",", ""))
    assert make(drawn(2 * needed, seed=3))["advice"]["calibration"] == "nothing to see"
    assert [report._round_up(x) for x in (0.2, 7.1, 99.5, 1234, 98_701)] == [1, 8, 100, 1300, 99_000]


def test_a_temperature_that_harms():
    """Random halves are alike, so this takes made numbers."""
    measured = make(drawn(scale=3.0))["temperature"]
    worse = measured | {"nll_change": {"value": 0.2, "low": 0.1, "high": 0.3}}
    assert report._on_temperature(worse)[0] == "harms"
    chance = measured | {"nll_change": {"value": 0.2}}
    assert report._on_temperature(chance)[0] == "no clear effect"
    left = measured | {"ece_after": {"value": 0.3, "floor": 0.1}}
    assert "above its noise floor, 0.1000" in report._on_temperature(left)[1]


def test_notes():
    data = drawn()
    assert make(data)["notes"] == []
    (note,) = make(data | {"split": "train"})["notes"]
    assert "training examples" in note
    (note,) = make({"logits": as_probs(data)["probs"], "labels": data["labels"]})["notes"]
    assert "must be named probs" in note
    (note,) = make({"logits": data["logits"], "labels": data["logits"].argmin(axis=1)})["notes"]
    assert "Fewer right than guessing" in note
    (note,) = make(drawn(10))["notes"]
    assert "More bins than examples" in note


# --- extreme, but right


def finite(entry):
    return all(math.isfinite(x) for x in entry.values())


EXTREME = {
    "one example": {"logits": [[1.0, 2.0]], "labels": [1]},
    "two examples": {"logits": [[1.0, 2.0], [2.0, 0.5]], "labels": [1, 1]},
    "all right": {"logits": 5 * np.eye(3)[[0, 1, 2] * 30], "labels": [0, 1, 2] * 30},
    "all wrong": {"logits": -5 * np.eye(3)[[0, 1, 2] * 30], "labels": [0, 1, 2] * 30},
    "confidence 1": {"logits": 2000 * np.eye(3)[[0, 1, 2] * 30], "labels": [0, 1, 1] * 30},
    "equal logits": {"logits": np.zeros((40, 3)), "labels": [0, 1, 2, 0] * 10},
    "one class among the labels": {"logits": drawn(50)["logits"], "labels": [2] * 50},
    "float16": {"logits": drawn(50)["logits"].astype(np.float16), "labels": np.arange(50, dtype=np.uint8) % 4},
    "huge": {"logits": 1e90 * drawn(50)["logits"], "labels": drawn(50)["labels"]},
    "probs 0 and 1": {"probs": np.eye(3)[[0, 1, 2] * 30], "labels": [0, 1, 2] * 30},
    "labels with probability 0": {"probs": np.eye(3)[[0, 1, 2] * 30], "labels": [0, 1, 1] * 30},
    "float16 probs": {"probs": as_probs(drawn(50))["probs"].astype(np.float16), "labels": drawn(50)["labels"]},
}


@pytest.mark.parametrize("data", EXTREME.values(), ids=EXTREME)
def test_extreme_data_give_a_whole_report(data):
    """Without a warning, with a page, a table and JSON, and with numbers that are finite or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = make(data)
        assert json.loads(report.as_json(made)) == made
        soup = BeautifulSoup(report.page(made), "html.parser")
    assert len(soup.find_all("svg")) == (1 if "problem" in made["gaps"] else 2)
    for name, entry in made["measures"].items():
        assert (name, entry) == ("nll", {"value": None}) or finite(entry)
    assert report.table(made)
    assert report.advice_text(made)


def test_what_extreme_data_give():
    made = {name: make(data) for name, data in EXTREME.items()}
    assert made["one example"]["advice"]["calibration"] == "cannot tell at this n"
    assert "one example cannot be split" in made["one example"]["temperature"]["problem"]
    assert made["all right"]["measures"]["accuracy"] == pytest.approx({"value": 1, "low": 0.025 ** (1 / 90), "high": 1})
    assert "falls for ever" in made["all right"]["temperature"]["problem"]
    assert made["all wrong"]["measures"]["accuracy"]["value"] == 0
    assert made["all wrong"]["advice"]["calibration"] == "over-confident"
    assert made["all wrong"]["gaps"]["alpha"]["value"] is None
    sure = made["confidence 1"]["measures"]
    assert sure["mean_confidence"]["value"] == 1
    assert sure["nll"]["value"] == pytest.approx(2000 / 3)  # finite, though the probability rounds to 0
    assert sure["ece"]["value"] == pytest.approx(1 / 3)
    assert sure["noise_floor"] == {"value": 0, "high": 0}
    assert made["equal logits"]["measures"]["mean_confidence"]["value"] == pytest.approx(1 / 3)
    assert made["equal logits"]["gaps"]["alpha"]["value"] == 1
    for name in ("probs 0 and 1", "labels with probability 0"):
        assert "exactly 0" in made[name]["temperature"]["problem"]
        assert "exactly 0" in made[name]["gaps"]["problem"]
    impossible = made["labels with probability 0"]
    assert impossible["measures"]["nll"] == {"value": None}
    assert impossible["notes"] == ["Labels with probability 0: the negative log-likelihood is infinite."]
    assert dict(line[:2] for line in report.lines(impossible))["negative log-likelihood (nats)"] == "∞"


def test_more_bins_than_examples(here, capsys):
    np.savez("few.npz", **drawn(10))
    assert run(capsys, "few.npz", "--bins", "1000")[0] == 0
    made = json.loads(Path("report.json").read_text())
    assert (len(made["bins"]["counts"]), sum(made["bins"]["counts"])) == (1000, 10)


def test_float16_is_measured_in_float64():
    data = drawn(300)
    half = data["logits"].astype(np.float16)
    first, second = (make({"logits": z, "labels": data["labels"]}) for z in (half, half.astype(np.float64)))
    assert first == second


# --- reading


def test_every_kind_of_file_gives_the_same_report(here, capsys):
    data = drawn(200)
    np.savez("a.npz", **data)
    np.savez_compressed("b.npz", extra=np.arange(3), **data)
    save_file(data, "c.safetensors")
    write_csv("d.csv", data, before="\ufeff")
    Path("e.safetensors.xz").write_bytes(lzma.compress(Path("c.safetensors").read_bytes()))
    names = "a.npz", "b.npz", "c.safetensors", "d.csv", "e.safetensors.xz"
    found = [report.make(report.read(name)) for name in names]
    assert all(made | {"file": ""} == found[0] | {"file": ""} for made in found)


def test_columns_of_a_csv_in_any_order(here):
    text = ',logit_1,label,"logit_0",name\n0,2.5,1,-1e1,"a, b"\n\n1, 0.5 , 0 ,3,c\n'
    Path("mixed.CSV").write_text(text)
    found = report.read("mixed.CSV")
    assert found.kind == "logits"
    assert found.scores.tolist() == [[-10, 2.5], [3, 0.5]]
    assert found.labels.tolist() == [1, 0]
    write_csv("probs.csv", as_probs(drawn(20)))
    np.testing.assert_array_equal(report.read("probs.csv").scores, as_probs(drawn(20))["probs"])


def test_splits(here):
    test, train = drawn(20), drawn(30, seed=1)
    arrays = {f"{split}_{name}": x for split, data in (("test", test), ("train", train)) for name, x in data.items()}
    np.savez("run.npz", **arrays)
    for split, given, expected in ((None, "test", test), ("test", "test", test), ("train", "train", train)):
        found = report.read("run.npz", split)
        assert (found.split, found.key) == (given, f"{given}_logits")
        np.testing.assert_array_equal(found.scores, expected["logits"])
        np.testing.assert_array_equal(found.labels, expected["labels"])
    np.savez("both.npz", **arrays, **as_probs(train))
    assert (report.read("both.npz").key, report.read("both.npz", "test").key) == ("probs", "test_logits")


def test_a_stored_run(here, capsys):
    (path,) = (ROOT / "data" / "runs").glob("mnist-fc-laptop-alpha0.1-seed0-*.safetensors.xz")
    assert run(capsys, path, "--split", "test")[0] == 0
    first = Path("report.html").read_bytes()
    assert run(capsys, path)[0] == 0
    assert Path("report.html").read_bytes() == first
    made = json.loads(Path("report.json").read_text())
    assert (made["split"], made["scores"], made["examples"]) == ("test", "test_logits", 10_000)
    assert made["advice"]["calibration"] == "under-confident"
    assert made["gaps"]["alpha"]["value"] == pytest.approx(0.1, abs=0.02)
    assert str(path.parent) not in first.decode()


# --- what does not fit


def fails(capsys, *arguments, says):
    """The command ends with status 2 and one line with these words, and writes nothing."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("lsbook: error: ")
    for part in says:
        assert part in err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def changed(data, row, value):
    data[next(iter(data))][row] = value
    return data


FEW = drawn(20)
WRONG = {
    "no labels": ({"labels": None}, ["either logits or probs, and labels", "it holds logits"]),
    "no scores": ({"logits": None}, ["either logits or probs, and labels", "it holds labels"]),
    "both": (as_probs(FEW), ["either logits or probs", "it holds logits, labels, probs"]),
    "integer logits": ({"logits": np.ones((20, 4), int)}, ["logits must be floating point", "int64"]),
    "complex logits": ({"logits": np.ones((20, 4), complex)}, ["logits must be floating point", "complex128"]),
    "one logit each": ({"logits": np.ones(20)}, ["logits must have shape (N, K)", "(20,)"]),
    "maps": ({"logits": np.ones((20, 4, 2, 2))}, ["logits must have shape (N, K)", "(20, 4, 2, 2)"]),
    "one class": ({"logits": np.ones((20, 1))}, ["K ≥ 2 classes", "(20, 1)"]),
    "no example": ({"logits": np.ones((0, 4)), "labels": np.ones(0, int)}, ["N ≥ 1 examples", "(0, 4)"]),
    "NaN": (changed(drawn(20), 3, np.nan), ["logits must be finite", "got 4 of 80"]),
    "infinite": (changed(drawn(20), 3, -np.inf), ["logits must be finite", "got 4 of 80"]),
    "huge": (changed(drawn(20), 3, 1e200), ["logits must be finite", "above 1e100"]),
    "float labels": ({"labels": np.zeros(20)}, ["labels must be integers", "float64"]),
    "one-hot labels": ({"labels": np.zeros((20, 4), int)}, ["labels must have shape (20,)", "(20, 4)"]),
    "few labels": ({"labels": np.zeros(19, int)}, ["labels must have shape (20,)", "logits (20, 4)", "(19,)"]),
    "label K": ({"labels": np.full(20, 4)}, ["labels must lie in [0, 3]", "4 … 4"]),
    "label −1": ({"labels": np.full(20, -1)}, ["labels must lie in [0, 3]", "-1 … -1"]),
    "pickled": ({"logits": np.array([[1, None]] * 20)}, ["logits must be floating point", "pickled", "never"]),
    "pickled labels": ({"labels": np.array([1, None] * 10)}, ["labels must be integers", "pickled"]),
    "no distribution": (
        {"logits": None, "probs": np.full((20, 4), 0.2)},
        ["probs must have rows that sum to 1", "sums to 0.8"],
    ),
    "logits named probs": ({"logits": None, "probs": FEW["logits"]}, ["probs must have no negative entry"]),
    "NaN in probs": ({"logits": None, "probs": np.full((20, 4), np.nan)}, ["probs must have no", "NaN"]),
}


@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG)
def test_wrong_arrays(here, capsys, changes, says):
    kept = {name: array for name, array in (FEW | changes).items() if array is not None}
    np.savez("wrong.npz", **kept)
    fails(capsys, "wrong.npz", says=["wrong.npz: ", *says])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ["the first line must name the columns", "got nothing"]),
        ("label,logit_0,logit_1\n", ["a line for each example", "only a header"]),
        ("logit_0,logit_1\n1,2\n", ["one label", "got logit_0, logit_1"]),
        ("label,a,b\n1,2,3\n", ["either logit_0", "got label, a, b"]),
        ("label;logit_0;logit_1\n1;2;3\n", ["between commas", "got label;logit_0;logit_1"]),
        ("label,logit_0,logit_1,prob_0,prob_1\n0,1,2,0,1\n", ["either logit_0, logit_1 … or prob_0"]),
        ("label,logit_0,logit_2\n0,1,2\n", ["logit_0 … logit_1 must each", "logit_1 none"]),
        ("label,logit_1,logit_2\n0,1,2\n", ["logit_0 none"]),
        ("label,logit_0,logit_0\n0,1,2\n", ["logit_0 2 times"]),
        ("label,label,logit_0,logit_1\n0,0,1,2\n", ["one label"]),
        ("label,logit_0\n0,1\n", ["K ≥ 2 classes", "(1, 1)"]),
        ("label,logit_0,logit_1\n0,1,2\n1,2\n", ["line 3 must have 3 cells", "got 2"]),
        ("label,logit_0,logit_1\n0,1,2\n1,2,3,\n", ["line 3 must have 3 cells", "got 4"]),
        ("label,logit_0,logit_1\n0,1,2\n1,x,3\n", ["line 3: logits must be numbers", "'x'"]),
        ("label,logit_0,logit_1\n0,1,2\n1,,3\n", ["line 3: logits must be numbers", "''"]),
        ("label,prob_0,prob_1\n0,0.5,0.5\n1,0.2,0.9\n", ["probs must have rows that sum to 1", "1.1"]),
        ("label,logit_0,logit_1\n1.0,1,2\n", ["line 2: label must be an integer", "'1.0'"]),
        ("label,logit_0,logit_1\ncat,1,2\n", ["line 2: label must be an integer", "'cat'"]),
        ("label,logit_0,logit_1\n2,1,2\n", ["labels must lie in [0, 1]"]),
        ("label,logit_0,logit_1\n0,nan,2\n", ["logits must be finite", "1 of 2"]),
        ("label,logit_0,logit_1\n0,1e999,2\n", ["logits must be finite", "1 of 2"]),
        ("label,logit_0,logit_1\n0,\x00,2\n", ["line 2"]),
        ('label,logit_0,logit_1\n"0,1,2\n' + "1,2,3\n" * 30_000, ["line", "damaged", "field larger"]),
    ],
)
def test_wrong_csv(here, capsys, text, says):
    Path("wrong.csv").write_text(text)
    fails(capsys, "wrong.csv", says=["wrong.csv: ", *says])


def test_files_that_are_none(here, capsys):
    for name in ("absent.npz", "absent.csv", "absent.safetensors"):
        fails(capsys, name, says=["No such file", name])
    for suffix in report.SUFFIXES:
        Path(f"empty{suffix}").write_bytes(b"")
        Path(f"folder{suffix}").mkdir()
        fails(capsys, f"empty{suffix}", says=[f"empty{suffix}: "])
        fails(capsys, f"folder{suffix}", says=["directory", f"folder{suffix}"])
    for name in ("a.pt", "noending", "a.npz.gz"):
        fails(capsys, name, says=[name, "must end in one of .npz, .safetensors, .safetensors.xz, .csv"])
    Path("binary.csv").write_bytes(b"label,logit_0\n\xff\xfe")
    fails(capsys, "binary.csv", says=["binary.csv: ", "no text in UTF-8"])
    Path("pickle.npz").write_bytes(b"\x80\x04K\x01.")
    fails(capsys, "pickle.npz", says=["pickle.npz: ", "no .npz file"])


def test_files_that_are_cut_off(here, capsys):
    save_file(FEW, "whole.safetensors")
    Path("whole.safetensors.xz").write_bytes(lzma.compress(Path("whole.safetensors").read_bytes()))
    for name in ("sure.npz", "whole.safetensors", "whole.safetensors.xz"):
        whole, cut = Path(name).read_bytes(), Path("cut" + name.removeprefix("sure").removeprefix("whole"))
        for part in (2, 9, 100, len(whole) // 2, len(whole) - 1):
            cut.write_bytes(whole[:part])
            fails(capsys, cut, says=[f"{cut}: ", "damaged or cut off"])


def test_bfloat16(here, capsys):
    from safetensors.torch import save_file as save_tensors

    save_tensors(
        {"logits": torch.ones(3, 2, dtype=torch.bfloat16), "labels": torch.ones(3, dtype=torch.int64)}, "b.safetensors"
    )
    fails(capsys, "b.safetensors", says=["b.safetensors: logits", "BF16", "save it as float32"])


def test_float8(here, capsys):
    """Regression: a traceback."""
    from safetensors.torch import save_file as save_tensors

    logits = torch.ones(3, 2).to(torch.float8_e4m3fn)
    save_tensors({"logits": logits, "labels": torch.ones(3, dtype=torch.int64)}, "f.safetensors")
    fails(capsys, "f.safetensors", says=["f.safetensors: logits", "F8_E4M3", "save it as float32"])


def test_pickles_are_not_executed(here, capsys):
    class Trap:
        def __reduce__(self):
            return (Path("sprung").write_text, ("",))

    np.savez("trap.npz", logits=np.array([Trap()] * 20, dtype=object), labels=FEW["labels"])
    fails(capsys, "trap.npz", says=["trap.npz", "pickled"])
    assert not Path("sprung").exists()


def test_wrong_splits(here, capsys):
    np.savez("run.npz", **{f"test_{name}": array for name, array in FEW.items()})
    says = ["run.npz: ", "either train_logits or train_probs, and train_labels", "it holds test_logits, test_labels"]
    fails(capsys, "run.npz", "--split", "train", says=says)
    write_csv("a.csv", FEW)
    fails(capsys, "a.csv", "--split", "test", says=["a.csv: ", "--split is for .npz and .safetensors", "'test'"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--out", "a.pdf"), ["--out must end in .html", "'a.pdf'"]),
        (("--out", "noending"), ["--out must end in .html"]),
        (("--json", "a.txt"), ["--json must end in .json", "'a.txt'"]),
        (("--out", "folder.html"), ["--out", "folder.html"]),
        (("--json", "folder.json"), ["--json", "folder.json"]),
    ],
)
def test_wrong_outputs_are_said_before_any_work(here, capsys, options, says):
    Path("folder.html").mkdir()
    Path("folder.json").mkdir()
    fails(capsys, "absent.npz", *options, says=says)


@pytest.mark.parametrize("bins", [0, -3, 1001])
def test_wrong_numbers_of_bins(here, capsys, bins):
    fails(capsys, "sure.npz", "--bins", bins, says=["--bins must", f"got {bins}"])


def test_a_failure_leaves_both_files_as_they_were(here, capsys, monkeypatch):
    for name in ("report.html", "report.json"):
        Path(name).write_text("before")
    Path("file").write_text("")
    fails(capsys, "sure.npz", "--out", "file/report.html", says=["file"])
    fails(capsys, "sure.npz", "--json", "file/report.json", says=["file"])  # the page was staged, and is removed
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        fails(capsys, "sure.npz", says=["no space left for report.html"])
    assert Path("report.html").read_text() == Path("report.json").read_text() == "before"


# --- page, table, JSON


def cells(made):
    """(words, number, what stands beside it) of each line of the page's table, and its explanations."""
    rows = BeautifulSoup(report.page(made), "html.parser").select("table.measures tr")[1:]
    texts = [[cell.get_text() for cell in row.find_all("td")] for row in rows]
    return [tuple(row) for row in texts if len(row) == 3], [row[0] for row in texts if len(row) == 1]


@pytest.mark.parametrize("data", [drawn(scale=3.0), as_probs(drawn()), *list(EXTREME.values())[::5]])
def test_page_terminal_and_json_say_the_same(here, capsys, data):
    np.savez("a.npz", **{name: np.asarray(array) for name, array in data.items()})
    _, out, _ = run(capsys, "a.npz", "--out", "new/a.html", "--json", "numbers.json")
    page, made = Path("new/a.html").read_text(), json.loads(Path("numbers.json").read_text())
    assert page == report.page(made)  # a function of what the JSON holds
    assert out.endswith("page: new/a.html\nnumbers: numbers.json\n")
    shown, explanations = cells(made)
    assert shown == [line[:3] for line in report.lines(made)]
    assert explanations == [line[3] for line in report.lines(made)]
    for line in shown:
        assert re.search(r"\s+".join(re.escape(part) for part in line if part), out)
    flat = " ".join(out.split())
    page = page.replace("\u00a0", " ")
    for words in (*made["advice"].values(), *made["notes"]):
        assert words in flat or words.capitalize() in flat
        assert html.escape(words) in page or html.escape(words.capitalize()) in page


def test_the_lines_show_the_numbers_of_the_json():
    made = make(drawn(scale=3.0))
    shown = {words: (number, beside) for words, number, beside, _ in report.lines(made)}
    assert list(shown) == [words for words, _ in report.LINES.values()]
    found, temperature = made["measures"], made["temperature"]
    minus = lambda x: f"{x:.4f}".replace("-", "−")  # noqa: E731
    assert shown["accuracy"] == (
        minus(found["accuracy"]["value"]),
        f"{minus(found['accuracy']['low'])} to {minus(found['accuracy']['high'])}",
    )
    assert shown["noise floor of the ECE"][1] == f"up to {found['noise_floor']['high']:.4f}"
    assert shown["temperature T"][0] == f"{temperature['value']['value']:.4g}"
    assert shown["change of this NLL"][0] == minus(temperature["nll_change"]["value"])
    assert shown["ECE, held-out half, at T"][1] == f"noise floor up to {temperature['ece_after']['floor']:.4f}"


def test_numbers_as_text():
    assert [report._number(x) for x in (0.5, -0.25, -1e-9, None)] == ["0.5000", "−0.2500", "0.0000", "∞"]
    given = (0.71, 0.1, 0.0004, 5.3e-6, 1e-300, 1.0, None)
    assert [report._strength(x) for x in given] == [
        "0.71",
        "0.10",
        "0.00040",
        "5.3 × 10⁻⁶",
        "1.0 × 10⁻³⁰⁰",
        "1.0",
        "none",
    ]


def test_the_page_is_self_contained():
    page = report.page(make(drawn()))
    soup = BeautifulSoup(page, "html.parser")
    assert soup.find_all(["script", "link", "img", "iframe", "object", "embed", "base", "image"]) == []
    assert "http" not in page
    assert "@import" not in page
    targets = [element[name] for element in soup.find_all(True) for name in ("src", "href") if element.get(name)]
    assert all(target.startswith("#") for target in targets)
    ids = [element["id"] for element in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets} <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert all(not re.search(r"url\((?!#)", str(part)) for part in soup.find_all(True))
    for figure in soup.find_all("svg"):
        assert (figure["role"], len(figure["aria-label"]) > 40) == ("img", True)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_figures_have_only_colours_that_follow_the_page():
    page = report.page(make(drawn()))
    figures = "".join(map(str, BeautifulSoup(page, "html.parser").find_all("svg")))
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", figures)) <= {"none", "var(--ink)", "var(--blue)"}


def test_names_are_escaped(here, capsys):
    name = '<script>alert(1)</script> & "co".npz'.replace("/", "∕")
    np.savez(name, **FEW)
    assert run(capsys, name)[0] == 0
    page = Path("report.html").read_text()
    assert "<script" not in page
    assert html.escape(name) in page
    assert BeautifulSoup(page, "html.parser").title.get_text() == f"Calibration of {name}"


def test_a_name_that_is_no_text(here, capsys):
    Path("sure.npz").rename("s\udce4.npz")
    capsys.readouterr()
    found = report.read("s\udce4.npz")
    assert found.file == "s\\udce4.npz"
    report.page(report.make(found)).encode()


def test_the_same_bytes_again(here, capsys):
    assert run(capsys, "sure.npz")[0] == 0
    first = [Path(name).read_bytes() for name in ("report.html", "report.json")]
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        assert run(capsys, "sure.npz", "--out", "again.html")[0] == 0
    assert [Path(name).read_bytes() for name in ("again.html", "again.json")] == first


def test_the_order_of_examples_changes_only_what_is_drawn_at_random():
    data, order = drawn(), np.random.default_rng(1).permutation(600)
    first, second = make(data), make({name: array[order] for name, array in data.items()})
    for name in ("accuracy", "nll", "brier", "debiased_ece", "smooth_ece", "classwise_ece"):
        assert first["measures"][name] == pytest.approx(second["measures"][name])
    assert first["gaps"]["counts"] == second["gaps"]["counts"]


def test_style_and_figures_of_the_session_stay(here, capsys):
    style, figures, backend = dict(matplotlib.rcParams), plt.get_fignums(), matplotlib.get_backend()
    run(capsys, "sure.npz")
    assert (dict(matplotlib.rcParams), plt.get_fignums(), matplotlib.get_backend()) == (style, figures, backend)


def test_the_diagram_shows_the_bins_of_the_ece():
    made = make(drawn(scale=2.0), num_bins=10)
    bins = made["bins"]
    above, below = report.draw_reliability(made).axes
    seen = [b for b, count in enumerate(bins["counts"]) if count]
    x, y = above.lines[1].get_data()
    np.testing.assert_allclose(x, [bins["confidence"][b] for b in seen])
    np.testing.assert_allclose(y, [bins["accuracy"][b] for b in seen])
    bands = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in above.patches]
    np.testing.assert_allclose(bands, [(bins["low"][b], bins["high"][b]) for b in seen])
    assert [bar.get_height() for bar in below.patches] == bins["counts"]
    weighted = sum(bins["counts"][b] * abs(bins["accuracy"][b] - bins["confidence"][b]) for b in seen) / 600
    assert weighted == pytest.approx(made["measures"]["ece"]["value"])


@pytest.mark.parametrize("data", [drawn(), EXTREME["one example"], EXTREME["all right"], EXTREME["huge"]])
def test_nothing_in_the_figures_is_cut_off(data):
    made = make(data)
    for draw in (report.draw_reliability, report.draw_gaps):
        figure = draw(made)
        figure.savefig(io.BytesIO(), format="png")
        inside = figure.bbox.padded(1)
        for ax in figure.axes:
            assert all(inside.contains(*corner) for corner in ax.get_tightbbox().corners())


# --- large files, quickly, without a display


@pytest.mark.slow
def test_memory_stays_within_bounds(here):
    """A tenth of ImageNet's validation set, in float32: 20 MB, so 4 GB in all would be 40 times the file's share."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((5000, 1000), dtype=np.float32)
    np.savez("large.npz", logits=logits, labels=random.integers(0, 1000, 5000))
    code = (
        "import resource, sys\nfrom lsbook import cli, report\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nstatus = cli.main(['report', 'large.npz'])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)\nsys.exit(status)"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(here), "PYTHONPATH": str(ROOT), "MPLBACKEND": "tkagg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    unit = 2**10 if sys.platform == "linux" else 1  # kibibytes there, bytes on macOS
    assert int(done.stdout.splitlines()[-1]) * unit < 15 * logits.nbytes


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom lsbook import cli\ntry: cli.main(['report', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".safetensors" in done.stdout
    assert done.stdout.endswith("\n[]\n")


# --- the documentation

PAGE = (ROOT / "appendix" / "calibration_report.md").read_text(encoding="utf-8")


def blocks(kind):
    """The code of a page's blocks of one kind, without their options."""
    found = re.findall(rf"^```{re.escape(kind)}[^\n]*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\A(---\n.*?\n---\n|(:[^\n]*\n)+)", "", text, flags=re.DOTALL) for text in found]


def test_the_pages_example_does_what_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {}
    for cell in blocks("{code-cell}"):
        exec(compile(cell, "calibration_report.md", "exec"), names)
    assert names["status"] == 0
    assert names["made"]["advice"]["calibration"] == "over-confident"
    assert names["made"]["temperature"]["value"]["value"] == pytest.approx(2, abs=0.15)
    (command,) = (block for block in blocks("bash") if block.startswith("lsbook report"))
    assert command.removeprefix("lsbook ").strip() in PAGE.split("cli.main(")[1]
    assert "over-confident" in capsys.readouterr().out.lower()


def test_the_page_explains_every_line():
    for words, _ in report.LINES.values():
        assert f"\n| {words} |" in PAGE
    for suffix in report.SUFFIXES:
        assert f"\n| `{suffix}` |" in PAGE


def test_the_pages_way_from_pytorch(here, capsys):
    torch.manual_seed(0)
    network, inputs, labels = torch.nn.Linear(4, 3), torch.randn(30, 4), torch.arange(30) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=8)
    (snippet,) = blocks("python")
    exec(compile(snippet, "calibration_report.md", "exec"), {"network": network, "loader": loader})
    found = report.read("test.npz")
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found.scores), network(inputs))
    assert run(capsys, "test.npz")[0] == 0


def test_the_readme_and_the_contents_name_the_page():
    assert "(appendix/calibration_report.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "appendix/your_network\n      - file: appendix/calibration_report\n" in (ROOT / "_toc.yml").read_text()


# --- what other modules read with


def test_holds():
    assert files.holds([]) == "nothing"
    assert files.holds(["a", "b"]) == "a, b"
    assert files.holds([str(k) for k in range(13)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 …"
