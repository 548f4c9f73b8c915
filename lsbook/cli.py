"""The command line: `lsbook run`, `list` and `show` for the book's networks, `project` and `report` for one's own, and
for the book itself `data` and `notebooks`.
"""

import argparse
import fnmatch
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

from . import __version__


def _parser():
    parser = argparse.ArgumentParser(prog="lsbook", description="Tools of the book on label smoothing.")
    parser.add_argument("--version", action="version", version=f"lsbook {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    _add_list_and_show(commands)
    _add_project(commands)
    _add_report(commands)
    _add_data(commands)
    _add_notebooks(commands)
    return parser


def _add_run(commands):
    run = commands.add_parser(
        "run",
        help="train and store the runs of a preset",
        description="Trains every run that is not stored yet. Stopped and started again, it goes on where it was.",
    )
    run.add_argument("what", metavar="PRESET|SPEC", help="smoke, laptop, paper, EXPERIMENT-PRESET, a run, or FILE.json")
    run.add_argument("--device", help="cpu, cuda, cuda:1 … (default: LSBOOK_DEVICE, else the GPU if there is one)")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    run.add_argument("--scheduler", metavar="ADDRESS", help="let a Dask cluster train, such as tcp://10.0.0.1:8786")
    run.add_argument("--dry-run", action="store_true", help="only say what is stored and what would be trained")
    _add_choice(run)


def _add_choice(parser):
    where = "where the runs are stored (default: data/runs of the book; for `run smoke` a new temporary folder)"
    parser.add_argument("--only", metavar="GLOB", help="only runs whose name fits, such as '*alexnet*seed0*' or seed0")
    parser.add_argument(
        "--folder",
        type=Path,
        help=where,
    )


def _add_list_and_show(commands):
    _add_choice(commands.add_parser("list", help="list the stored runs"))
    show = commands.add_parser("show", help="show what a stored run holds and what made it")
    show.add_argument("run", metavar="RUN", help="its name, or as much of the beginning as no other has")
    show.add_argument("--folder", type=Path, help="where the runs are stored (default: data/runs of the book)")


def _add_project(commands):
    project = commands.add_parser(
        "project",
        help="draw three classes of your own network as the paper does",
        description="Projects the features of three classes on the plane through their templates (rows of the last "
        "layer's weights), writes the figure and prints what it shows in numbers. Each FILE.npz holds features (N, D), "
        "labels (N,) and weight (K, D), perhaps also bias (K,) and class_names (K,), as numpy.savez writes them.",
    )
    project.add_argument("files", nargs="+", metavar="FILE.npz", help="networks, or parts of the data: a panel each")
    three = ("A", "B", "C")
    project.add_argument("--classes", nargs=3, metavar=three, required=True, help="names, or numbers from 0")
    out = {"type": Path, "default": Path("projection.png"), "metavar": "FIGURE"}
    known = "ends in .png, .svg or .pdf, in a folder that is there (default: projection.png)"
    project.add_argument("--out", **out, help=known)
    project.add_argument("--title", help="words above the panels")
    own = "each panel fills its frame (default: one scale for all panels)"
    project.add_argument("--own-scale", action="store_true", help=own)


def _add_report(commands):
    report = commands.add_parser(
        "report",
        help="say how well calibrated your own network is",
        description="Measures accuracy, likelihood and calibration of predictions, fits a temperature, and writes one "
        "self-contained HTML page with the same numbers as JSON beside it. FILE holds logits (N, K), or else probs "
        "(N, K), and labels (N,): .npz or .safetensors, or .csv with the columns label, logit_0 … or prob_0 ….",
    )
    report.add_argument(
        "file", metavar="FILE", help="ends in .npz, .safetensors or .csv; the arrays of a stored run will do"
    )
    names = "NAME_logits and NAME_labels, as test and train of a stored run"
    report.add_argument("--split", metavar="NAME", help=f"read {names} (default: logits and labels, else test)")
    out = {"type": Path, "default": Path("report.html"), "metavar": "PAGE"}
    report.add_argument("--out", **out, help="ends in .html (default: report.html)")
    report.add_argument("--json", type=Path, metavar="NUMBERS", help="ends in .json (default: PAGE with .json)")
    report.add_argument("--bins", type=int, default=15, metavar="N", help="bins of equal width (default: 15)")


def _add_data(commands):
    deeds = commands.add_parser("data", help="fetch, verify or list the data sets").add_subparsers(
        dest="deed", required=True
    )
    for deed, help_, default in (
        ("fetch", "download what is not there", "all"),
        ("verify", "read sets and compare their digests", "all that are there"),
        ("list", "say what is there, and where", "all"),
    ):
        parser = deeds.add_parser(deed, help=help_)
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"data sets (default: {default})")
        if deed == "fetch":
            parser.add_argument("--force", action="store_true", help="download even what is there")


def _add_notebooks(commands):
    books = commands.add_parser(
        "notebooks",
        help="execute the chapters and bring them into their committed form",
        description="Executes notebooks in a fresh kernel and normalises them. Run twice, it changes nothing.",
    )
    books.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all of chapters/ and appendix/)")
    books.add_argument("--no-run", action="store_true", help="normalise only, do not execute")
    books.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a notebook would change")
    books.add_argument(
        "--stamp", default="", metavar="OWNER/NAME", help="write this GitHub repository into the set-up cells"
    )


def _complain(words):
    print(f"lsbook: {words}", file=sys.stderr)


# --- runs


def _chosen(names, pattern):
    """Those of `names` that fit a pattern with wildcards, or that contain one without. ValueError if none does."""
    if pattern is None:
        return list(names)
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = [name for name in names if fnmatch.fnmatchcase(name, wild)]
    if not found:
        some = ", ".join(list(names)[:3])
        raise ValueError(f"--only {pattern!r} fits none of the {len(names)} runs, such as {some}")
    return found


def _check_device(device):
    """Raise ValueError unless `device`, or without one the default device, is available here."""
    from . import training

    training.default_device() if device is None else training.check_device(device, "--device")


def _folder(args, specs):
    """Where the runs go. Those of the preset smoke are a test, so unless told otherwise they are not kept."""
    from . import runs

    if args.folder is None and all(spec.preset == "smoke" for spec in specs):
        name = "lsbook-smoke-"
        return Path(tempfile.gettempdir(), f"{name}…") if args.dry_run else Path(tempfile.mkdtemp(prefix=name))
    return args.folder or runs.folder()


def _fetch_for(specs):
    """Download the data sets that the specs need, before anything starts."""
    from . import datasets, training

    for name in sorted({spec.dataset for spec in specs} & set(datasets.sources())):
        if not datasets.status(name).present:
            datasets.fetch(name, progress=training.show_progress())


def _report(outcome):
    from tqdm.auto import tqdm

    tqdm.write(f"failed  {outcome.name}" if outcome.message else f"stored  {outcome.name}")  # above the progress bar
    sys.stdout.flush()  # a batch system's log file shows it at once


def _say_nothing(*_, **__):
    """For all processes of torchrun but the first, which prints for them."""


def _check_together(args, specs):
    """Raise ValueError unless the command is one that the processes of torchrun can follow together."""
    if args.jobs != 1 or args.scheduler:
        raise ValueError("--jobs and --scheduler share out many runs, torchrun trains each on all its processes")
    if args.folder is None and all(spec.preset == "smoke" for spec in specs):  # each would make a folder of its own
        raise ValueError("the processes of torchrun must store in one folder: name it with --folder")


def _train_together(specs, folder, device, say):
    """`_run` in one of the processes of torchrun: all train one network after the other; a failure ends them."""
    from . import experiments

    if say is _say_nothing:
        os.environ["LSBOOK_PROGRESS"] = "0"
    for spec in specs:
        try:
            experiments.load_or_train(spec, folder, device)
        except Exception as error:  # torchrun ends the other processes when this one does
            _complain(f"error: {spec.name}: {type(error).__name__}: {error}")
            return 1
        say(f"stored  {spec.name}", flush=True)
    return 0


def _run(args):
    from . import presets, sweeps, translation
    from .checks import check_int

    specs = {spec.name: spec for spec in presets.find(args.what)}
    specs = [specs[name] for name in _chosen(specs, args.only)]
    rank, number = translation.processes()
    together, say = number > 1, _say_nothing if rank else print
    if together:
        _check_together(args, specs)
    check_int(args.jobs, "--jobs", 1)
    if not (args.scheduler or args.dry_run):  # a cluster's workers have devices and data of their own
        _check_device(args.device)
    folder = _folder(args, specs)
    todo = sweeps.missing(specs, folder)
    say(f"{len(specs)} runs: {len(specs) - len(todo)} stored in {folder}, {len(todo)} to train")
    if args.dry_run:
        for spec in specs:
            say("train " if spec in todo else "stored", spec.name)
        return 0
    if not args.scheduler:
        _fetch_for(todo)
    if together:
        return _train_together(specs, folder, args.device, say)
    options = {"device": args.device, "jobs": args.jobs, "scheduler": args.scheduler}
    try:
        sweeps.run_all(todo, folder, report=_report, **options)
    except sweeps.SweepError as error:
        _complain(f"error: {error}")
        return 1
    return 0


def _row(entry):
    """One line of the list: numbers as text, so that they stay as they are."""
    spec, made_by = entry.spec, entry.provenance
    accuracy = entry.history[-1].get("test_accuracy") if entry.history else None
    return {
        "run": entry.name,
        "preset": spec["preset"],
        "data": spec.get("dataset", ""),
        "network": spec.get("network", "fully_connected"),
        "α": f"{spec['alpha']:g}",
        "seed": spec["seed"],
        "epochs": spec.get("epochs", ""),
        "held out": spec.get("held_out", "test"),
        "accuracy": "" if accuracy is None else f"{accuracy:.4f}",
        "precision": made_by.get("precision", spec.get("dtype", "")),
        "device": made_by.get("device_name", made_by.get("device", "")),
        "minutes": f"{made_by['wall_seconds'] / 60:.1f}" if "wall_seconds" in made_by else "",
    }


def _list(args):
    from tabulate import tabulate

    from . import runs

    folder = args.folder or runs.folder()
    paths = {path.stem: path for path in runs.paths(folder)}
    if not paths:
        print(f"no stored runs in {folder}")
        return 0
    rows, damaged = [], []
    for name in _chosen(paths, args.only):
        try:
            rows.append(_row(runs.read_entry(paths[name])))
        except runs.DamagedRunError as error:
            damaged.append(f"damaged: {error}")
        except (TypeError, ValueError, AttributeError) as error:  # numbers that are none
            damaged.append(f"damaged: {paths[name]} ({error})")
    if rows:
        print(tabulate(rows, headers="keys", disable_numparse=True))
    print(*damaged, sep="\n", end="\n" if damaged else "")
    return 1 if damaged else 0


def _show(args):
    from tabulate import tabulate

    from . import runs

    folder = args.folder or runs.folder()
    run = runs.load_named(args.run, folder)
    arrays = [(name, array.dtype, array.shape) for name, array in sorted(run.arrays.items())]
    parts = {
        "spec": json.dumps(run.spec, indent=1),
        "last recorded epoch": tabulate(run.history[-1].items() if run.history else [], tablefmt="plain"),
        "made by": tabulate(run.provenance.items(), tablefmt="plain", disable_numparse=True),
        "arrays": tabulate(arrays, tablefmt="plain", disable_numparse=True),
    }
    print(Path(folder) / f"{run.name}.json")
    for title, text in parts.items():
        print(f"\n{title}\n{text}")
    return 0


def _project(args):
    from . import projection

    projection.check_target(args.out)  # before the work, not after it
    titles = projection.titles(args.files)
    views = {t: projection.read_view(file, args.classes) for t, file in zip(titles, args.files, strict=True)}
    table = projection.table(views)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        figure = projection.draw(views, args.own_scale, args.title)
    for note in notes:
        _complain(f"warning: {note.message}")
    print(table, flush=True)  # before what may fail
    projection.save(figure, args.out)
    print(f"\nfigure: {args.out}")
    return 0


def _calibration_report(args):
    from . import report

    paths = report.outputs(args.out, args.json)  # before the work, not after it
    made = report.make(report.read(args.file, args.split), args.bins)
    report.save(made, *paths)
    print(f"{report.table(made)}\n\n{report.advice_text(made)}\n\npage: {paths[0]}\nnumbers: {paths[1]}")
    return 0


# --- data sets


def _verify(name):
    from . import datasets

    try:
        digests = datasets.verify(name)
    except datasets.DamagedDataError as error:
        print(f"{name}: DAMAGED: {error}")
        return False
    print(f"{name}: whole ({', '.join(f'{split} {digest[:12]}' for split, digest in digests.items())})")
    return True


def _data(args):
    from tabulate import tabulate

    from . import datasets, training

    states = {name: datasets.status(name) for name in args.names or datasets.sources()}
    if args.deed == "list":
        rows = [
            (s.name, s.title, f"{s.bytes / 1e6:.1f} MB" if s.present else "absent", s.path) for s in states.values()
        ]
        print(tabulate(rows, headers=("name", "title", "size", "path"), disable_numparse=True))
        return 0
    if args.deed == "fetch":
        for name in states:
            print(f"{name}: {datasets.fetch(name, force=args.force, progress=training.show_progress())}")
        return 0
    wanted = args.names or [name for name, state in states.items() if state.present]
    if not wanted:
        print(f"no data sets in {datasets.folder()}: `lsbook data fetch` downloads them")
    return 1 if [name for name in wanted if not _verify(name)] else 0


# --- notebooks


def _notebooks(args):
    from . import notebooks

    paths = args.paths or notebooks.find_notebooks()
    if not paths:
        raise FileNotFoundError(
            "no notebooks below ./chapters and ./appendix: run this in the book's folder, or name them"
        )
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"no notebook {path}")
    changed = notebooks.update_all(paths, run=not args.no_run, repository=args.stamp, write=not args.check)
    return 1 if args.check and changed else 0


_COMMANDS = {
    "run": _run,
    "list": _list,
    "show": _show,
    "project": _project,
    "report": _calibration_report,
    "data": _data,
    "notebooks": _notebooks,
}


def main(argv=None):
    """Entry point; returns the exit status: 2 for errors of the caller's making, which take a line and no traceback.

    1 says that something was found wrong (a damaged run, a notebook that would change) or that some runs failed;
    130 that Ctrl-C stopped it.
    """
    args = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal or file that has no α gets a question mark, not an error
            stream.reconfigure(errors="replace")
    try:
        status = _COMMANDS[args.command](args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough, as in `lsbook list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        done = "; finished runs are stored, the rest resumes from its checkpoint" if args.command == "run" else ""
        _complain(f"stopped{done}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
