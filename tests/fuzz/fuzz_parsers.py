"""Run atheris over the checks, one after the other.

A finding is a file in --findings; `--check NAME --once FILE` runs it again. With its fix it goes into the corpus.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
LONGEST_INPUT = 2048  # bytes
LONGEST_RUN = 5  # s, of one input: nothing here takes more than linear time
MOST_MEMORY = 1024  # MiB


def fuzz_one(name: str, seconds: int, findings: Path) -> None:
    """Never returns: libFuzzer ends the process, with another status than 0 where it found something."""
    atheris = importlib.import_module("atheris")  # here: replaying a finding needs none

    with atheris.instrument_imports(include=["trio_vmcp"]):
        from fuzz.checks import CHECKS

    with tempfile.TemporaryDirectory() as found_on_the_way:
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST_INPUT}",
            f"-timeout={LONGEST_RUN}",
            f"-rss_limit_mb={MOST_MEMORY}",
            f"-artifact_prefix={findings}/{name}-",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *options, found_on_the_way, str(CORPUS / name)], CHECKS[name])
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="in all (default: 60)")
    parser.add_argument("--findings", type=Path, default=Path.cwd())
    parser.add_argument("--check", metavar="NAME", help="only this one")
    parser.add_argument("--once", type=Path, metavar="FILE", help="with --check: run this input, without a fuzzer")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.once:
        from fuzz.checks import CHECKS

        CHECKS[options.check](options.once.read_bytes())
        return 0
    if options.alone:
        fuzz_one(options.check, options.seconds, options.findings)
    names = [options.check] if options.check else sorted(path.name for path in CORPUS.iterdir())
    options.findings.mkdir(parents=True, exist_ok=True)
    each = max(options.seconds // len(names), 1)
    failed: list[str] = []
    for name in names:
        sys.stdout.write(f"== {name}, {each} s\n")
        sys.stdout.flush()
        command = [sys.executable, "-m", "fuzz.fuzz_parsers", "--alone", "--check", name, "--seconds", str(each)]
        if subprocess.run([*command, "--findings", str(options.findings)], check=False).returncode:
            failed.append(name)
    sys.stdout.write(f"findings in: {', '.join(failed) or 'none'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
