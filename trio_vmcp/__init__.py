"""One Trio session over many MCP servers."""

import typing as _typing

if _typing.TYPE_CHECKING:
    from trio_vmcp._exports import *  # noqa: F403  # type checkers read the names there
    from trio_vmcp._exports import __all__ as __all__
else:
    # The names, and with them all modules, are loaded when the first is used. The command imports this package, too,
    # and has to handle signals before anything that takes long: half a second of imports, in which Ctrl-C would print
    # a traceback.
    def __getattr__(name: str) -> object:
        if not name.startswith("_") or name == "__all__":
            from importlib import import_module  # `from trio_vmcp import …` would ask this function

            exports = import_module("trio_vmcp._exports")
            public = {each: getattr(exports, each) for each in exports.__all__}
            globals().update(public, __all__=exports.__all__)
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
