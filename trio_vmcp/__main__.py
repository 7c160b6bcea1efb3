"""`python -m trio_vmcp`: the command, where its script is not on the path."""

from trio_vmcp.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    raise SystemExit(main())
