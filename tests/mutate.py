"""Seed faults, and say which of them nobody notices.

Without a name: every chapter, as in mutate_book.py, and what the last runs of mutate_source.py left. With names: these
chapters (`08`), these modules of lstm_utils (`spec`), or `all` the modules, which takes hours.
"""

from __future__ import annotations

import argparse
import sys

import mutate_book
import mutate_source


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="chapters by number, modules by name, or all modules")
    parser.add_argument("--again", action="store_true", help="only the mutants of the source that survived last time")
    given = parser.parse_args(arguments)
    names = given.names
    chapters = [path for path in mutate_book.NOTEBOOKS if path.stem[:2] in names or not names]
    every = mutate_source.modules()
    modules = every if "all" in names else [name for name in names if name in every]
    if unknown := set(names) - {path.stem[:2] for path in chapters} - set(every) - {"all"}:
        parser.error(f"neither chapters nor modules: {', '.join(sorted(unknown))}")
    missed = mutate_book.main(chapters) if chapters else 0
    return missed | mutate_source.main(modules, given.again) if modules or not names else missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
