"""`trio-vmcp`: the entry of the command.

All but the handling of signals is imported when that is in place: the imports take up to half a second, and a Ctrl-C
within them has to end the command as any other one does.
"""

from __future__ import annotations

from collections.abc import Sequence

from trio_vmcp._cli.signals import catching_signals, keep_signal

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Options that argparse refuses end in SystemExit(2).

    Args:
        arguments: Without the program's name; None: the process's.
    """
    # Not raised: Python drops a KeyboardInterrupt inside of some steps of an import, and prints its traceback.
    with catching_signals(keep_signal) as signals:
        from trio_vmcp._cli.command import run_arguments

        return run_arguments(arguments, signals)
