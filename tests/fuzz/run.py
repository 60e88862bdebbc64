"""Fuzz one decoder by hand, guided by coverage: python tests/fuzz/run.py TARGET [--runs N] [--seconds S]

Needs atheris, which the tests do not: pip install atheris (Linux, CPython 3.11 to 3.13). Without a target, those there
are. What it finds is written to `crash-…` beside you; put it into tests/fuzz/corpus/TARGET once it is mended.
"""

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long, 0 for never")
    parser.add_argument("--longest", type=int, default=4096, help="bytes of an input")
    parser.add_argument("--keep", type=Path, help="a folder for what was found interesting; else it is thrown away")
    asked = parser.parse_args()

    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    with atheris.instrument_imports(include=["p2pfl", *(path.stem for path in HERE.glob("*.py"))]):
        from targets import TARGETS

        if asked.target not in TARGETS:
            sys.exit(f"choose one of: {', '.join(TARGETS)}")
        target = TARGETS[asked.target]
        seeds = target.seeds()
        for seed in seeds:
            target.feed(seed)  # imports what it needs, to be instrumented too

    with tempfile.TemporaryDirectory() as found:
        for number, seed in enumerate(seeds):
            Path(found, f"seed-{number}").write_bytes(seed)
        settings = [
            f"-runs={asked.runs}",
            f"-max_total_time={asked.seconds}",
            f"-max_len={asked.longest}",
            "-timeout=5",
            "-rss_limit_mb=3000",
            "-print_final_stats=1",
            "-keep_seed=1",  # also where a decoder in C shows no coverage that would tell one input from another
        ]
        corpus = HERE / "corpus" / target.name
        folders = [str(asked.keep or found), *([found] if asked.keep else []), str(corpus)]
        atheris.Setup([sys.argv[0], *settings, *folders], target.feed)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
