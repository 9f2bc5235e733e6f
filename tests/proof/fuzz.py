"""Coverage-guided fuzzing of one target: `python tests/proof/fuzz.py TARGET -max_total_time=60`.

Needs `pip install atheris`. Further arguments are libFuzzer's options; a directory is a corpus.
A finding is written to the working directory as crash-*. Name that file to repeat the finding.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main(argv: list[str]) -> int:
    """Fuzz until libFuzzer ends, with its own exit code."""
    try:
        # Imported by name, because it is no dependency and has no types.
        atheris = importlib.import_module("atheris")
    except ImportError:
        print("fuzzing needs atheris: pip install atheris", file=sys.stderr)  # noqa: T201
        return 69
    with atheris.instrument_imports(include=["picoqmail"]):
        from proof.fuzz_targets import PIECES, SEEDS, TARGETS
    if len(argv) < 2 or argv[1] not in TARGETS:
        print(f"usage: fuzz.py TARGET [OPTION ...]; targets: {' '.join(TARGETS)}", file=sys.stderr)  # noqa: T201
        return 64
    target = TARGETS[argv[1]]
    with tempfile.TemporaryDirectory(prefix="picoqmail-fuzz-") as directory:
        dictionary = f"-dict={_dictionary(directory, PIECES[argv[1]])}"
        corpus = f"{directory}/corpus"
        os.mkdir(corpus)
        with open(f"{corpus}/seed", "wb") as file:
            file.write(SEEDS.get(argv[1], b""))
        atheris.Setup([argv[0], dictionary, *argv[2:], corpus], target)
        atheris.Fuzz()
    return 0


def _dictionary(directory: str, pieces: tuple[bytes, ...]) -> str:
    """Return the pieces as libFuzzer's dictionary."""
    path = f"{directory}/pieces"
    with open(path, "w", encoding="ascii") as file:
        for piece in pieces:
            escaped = "".join(f"\\x{octet:02x}" for octet in piece)
            file.write(f'"{escaped}"\n')
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv))
