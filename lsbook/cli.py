"""The command line: `lsbook notebooks [PATH …]`."""

import argparse
import sys
from pathlib import Path

from . import __version__


def _parser():
    parser = argparse.ArgumentParser(prog="lsbook", description="Tools of the book on label smoothing.")
    parser.add_argument("--version", action="version", version=f"lsbook {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
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
    return parser


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


def main(argv=None):
    """Entry point; returns the exit status. Errors of the caller's making end in one line, not in a traceback."""
    args = _parser().parse_args(argv)
    try:
        return {"notebooks": _notebooks}[args.command](args)
    except (ValueError, FileNotFoundError) as error:
        print(f"lsbook: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
