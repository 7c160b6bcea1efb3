"""Coverage-guided fuzzing of what reads foreign bytes without I/O. Not part of CI: `nox -s fuzz -- --seconds 600`."""
