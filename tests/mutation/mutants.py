"""What can be wrong with a piece of source: one statement gone, one condition inverted, one bound off by one.

Our own, since none of the maintained tools fits. They start the test command anew for every mutant, which for tests
that import Trio, httpx and Hypothesis takes longer than the tests; they tell a mutant that hangs by the clock alone,
while under virtual time a deadlock can be seen; and what matters most here is none of their operators: a `with` that
is not entered, a `finally` that is missing, a `shield` that is not there.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial

import attrs

_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
_SWAPPED_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
# What is missing if these are deleted is a name: every import would fail, and that proves nothing.
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass)
_FIELD_VALUES = {"default", "factory"}  # the arguments of `attrs.field` that say what happens, not how it looks


@attrs.frozen
class Mutant:
    """One way to be wrong.

    Attributes:
        function: Qualified name of the function, or of the class, if it is in the body of a class.
        change: What is different, in words that quote the source: with `function` it names the mutant for good.
        line: Of the statement, in the original: a test that does not come there cannot notice.
        in_function: Otherwise it runs when the module is imported.
        write: The whole module, mutated. Called when the mutant is judged: to write all sources of a run, also of the
            mutants that are not asked for, takes a minute.
    """

    function: str
    change: str
    line: int
    in_function: bool
    write: Callable[[], str] = attrs.field(repr=False, eq=False)

    @property
    def name(self) -> str:
        return f"{self.function}: {self.change}"

    @property
    def source(self) -> str:
        return self.write()


@attrs.frozen
class _Edit:
    """Put `new` in the place; a list is spliced in for one statement."""

    line: int
    change: str
    new: object


def mutants_of(source: str, functions: Collection[str] | None = None) -> Iterator[Mutant]:
    """Every mutant of these functions, by qualified name; None: of the whole module."""
    tree = ast.parse(source)
    lines = source.encode().splitlines()
    names: Counter[str] = Counter()
    found: set[str] = set()
    for function, body_of in _scopes(tree):
        if functions is not None and function not in functions:
            continue
        found.add(function)
        in_function = not isinstance(body_of, ast.ClassDef | ast.Module)
        for parent, field, index, edit in _edits(body_of, lines):
            names[f"{function}: {edit.change}"] += 1
            again = names[f"{function}: {edit.change}"]
            change = edit.change + (f" (no. {again})" if again > 1 else "")
            yield Mutant(
                function, change, edit.line, in_function, partial(_mutated, tree, parent, field, index, edit.new)
            )
    if functions is not None and found != set(functions):
        raise ValueError(f"there is no function {sorted(set(functions) - found)} to mutate")


def _mutated(tree: ast.Module, parent: ast.AST, field: str, index: int | None, new: object) -> str:
    was = getattr(parent, field)
    if index is not None:
        new = [*was[:index], *(new if isinstance(new, list) else [new]), *was[index + 1 :]]
    setattr(parent, field, new)
    try:
        return ast.unparse(ast.fix_missing_locations(tree))
    finally:
        setattr(parent, field, was)


def noted(source: str, functions: Collection[str] | None, note: str) -> str:
    """The module with a call `note(line)` before every statement of these functions."""
    tree = ast.parse(source)
    for function, scope in _scopes(tree):
        if (functions is None or function in functions) and isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(scope):
                for field, value in ast.iter_fields(node):
                    if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                        setattr(node, field, list(_with_notes(value, note)))
    return ast.unparse(ast.fix_missing_locations(tree))


def _with_notes(statements: Iterable[ast.stmt], note: str) -> Iterator[ast.stmt]:
    for statement in statements:
        yield ast.Expr(ast.Call(ast.Name(note, ast.Load()), [ast.Constant(statement.lineno)], []))
        yield statement


_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Place = tuple[ast.AST, str, int | None, _Edit]


def _scopes(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, _Scope]]:
    """Classes and functions by qualified name; a function in a function belongs to the outer one."""
    if isinstance(node, ast.Module):
        yield "<module>", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from _scopes(child, f"{prefix}{child.name}.")


def _edits(scope: _Scope, lines: Sequence[bytes]) -> Iterator[_Place]:
    for statement in scope.body:
        if not (isinstance(statement, _DEFINITIONS) and isinstance(scope, ast.Module | ast.ClassDef)):
            yield from _below(scope, "body", scope.body.index(statement), statement, statement, lines)


def _below(
    parent: ast.AST, field: str, index: int | None, node: ast.AST, statement: ast.stmt, lines: Sequence[bytes]
) -> Iterator[_Place]:
    """Edits of this node, then of what is in it. `statement` is the innermost around it, to quote from."""
    if isinstance(node, ast.stmt):
        statement = node
    quoted = f"`{_first_line(statement, lines)}`"
    if isinstance(node, ast.stmt):
        is_last = index is not None and index == len(getattr(parent, field)) - 1
        edits: Iterable[tuple[str, object]] = _statement_edits(node, is_last=is_last)
    else:
        edits = _expression_edits(node)
    for change, new in edits:
        yield parent, field, index, _Edit(statement.lineno, f"{change} {quoted}", new)
    for child_field, value in ast.iter_fields(node):
        if child_field in {"annotation", "returns"}:
            continue
        if isinstance(value, ast.AST):
            yield from _below(node, child_field, None, value, statement, lines)
        elif isinstance(value, list):
            for number, child in enumerate(value):
                if isinstance(child, ast.AST) and not _is_looks(node, child):
                    yield from _below(node, child_field, number, child, statement, lines)


def _statement_edits(node: ast.stmt, *, is_last: bool) -> Iterator[tuple[str, object]]:
    match node:
        case ast.Expr(ast.Constant()):  # a docstring, or the body of an abstract method
            return
        case ast.AnnAssign(value=None) | ast.AnnAssign(annotation=ast.Name("TypeAlias")):
            return
        case ast.Assign(targets=[ast.Name("__all__")]) | ast.Assign(value=ast.Call(ast.Name("TypeVar" | "ParamSpec"))):
            return
        case ast.Assert():  # tells the type checker what holds anyway
            return
        case ast.With() | ast.AsyncWith():
            for number, item in enumerate(node.items):
                rest = node.items[:number] + node.items[number + 1 :]
                without = _like(node, items=rest) if rest else node.body
                yield f"never enter `{ast.unparse(item.context_expr)}` in", without
            return
        case ast.Try() | ast.TryStar():
            if node.finalbody:
                yield "drop `finally` of", _like(node, finalbody=[]) if node.handlers else node.body
            if node.orelse:
                yield "drop `else` of", _like(node, orelse=[])
            for number, handler in enumerate(node.handlers):
                rest_handlers = node.handlers[:number] + node.handlers[number + 1 :]
                kind = "" if handler.type is None else f" {ast.unparse(handler.type)}"
                kept = rest_handlers or node.finalbody
                without = _like(node, handlers=rest_handlers, orelse=node.orelse if rest_handlers else [])
                yield f"drop `except{kind}` of", without if kept else [*node.body, *node.orelse]
            return
        case ast.Return(value) if value is not None:
            # Returning nothing is the same as None, and as False where callers test the truth of the result.
            if not (isinstance(value, ast.Constant) and (value.value is None or value.value is False)):
                yield "return nothing in", ast.Return(None)
            if is_last:
                return
        case ast.If(test=test) | ast.While(test=test) if not _inverts_itself(test):
            yield "invert the condition of", _like(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.AugAssign(op=op) if type(op) in _ARITHMETIC:
            yield "count the other way in", _like(node, op=_ARITHMETIC[type(op)]())
    if not isinstance(node, _DEFINITIONS):
        yield "delete", ast.Pass()


def _expression_edits(node: ast.AST) -> Iterator[tuple[str, object]]:
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARISONS[type(op)]:
                yield f"{_symbol(op)} becomes {_symbol(other())} in", _like(node, ops=[other()])
        case ast.BoolOp(values=values):
            other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield f"`and`, `or` swapped in `{ast.unparse(node)}` in", _like(node, op=other_op)
            for number, value in enumerate(values):
                rest = values[:number] + values[number + 1 :]
                yield f"ignore `{ast.unparse(value)}` in", rest[0] if len(rest) == 1 else _like(node, values=rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "drop `not` in", operand
        case ast.BinOp(op=arithmetic) if type(arithmetic) in _ARITHMETIC:
            yield f"the inverse of `{ast.unparse(node)}` in", _like(node, op=_ARITHMETIC[type(arithmetic)]())
        case ast.Constant(bool(flag)):
            yield f"{flag} becomes {not flag} in", ast.Constant(not flag)
        case ast.Constant(int(number) | float(number)):
            yield f"{number} becomes {number + 1} in", ast.Constant(number + 1)
        case ast.Name(id=name) if name in _SWAPPED_NAMES:
            yield f"{name} becomes {_SWAPPED_NAMES[name]} in", ast.Name(_SWAPPED_NAMES[name], ast.Load())
        case ast.IfExp(test=test, body=body, orelse=orelse) if not _inverts_itself(test):
            yield f"invert `{ast.unparse(test)}` in", ast.IfExp(test, orelse, body)
        case ast.comprehension(ifs=ifs) if ifs:
            yield "take all in", _like(node, ifs=[])
        case ast.Call(keywords=keywords):
            for number, keyword in enumerate(keywords):
                if keyword.arg is not None and keyword.arg == "shield" and not isinstance(keyword.value, ast.Constant):
                    yield "drop `shield` in", _like(node, keywords=keywords[:number] + keywords[number + 1 :])


def _inverts_itself(test: ast.AST) -> bool:
    """An edit of the test says the contrary, so the statement around it need not."""
    is_negation = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return is_negation or (isinstance(test, ast.Compare) and len(test.ops) == 1) or isinstance(test, ast.Constant)


def _is_looks(parent: ast.AST, child: ast.AST) -> bool:
    """An argument of `attrs.field` and the like that changes a constructor or a repr: not what is looked for."""
    if not (isinstance(parent, ast.Call) and ast.unparse(parent.func).startswith("attrs.")):
        return False
    return isinstance(child, ast.keyword) and child.arg not in _FIELD_VALUES


def _like(node: ast.AST, **changed: object) -> ast.AST:
    fields = dict(ast.iter_fields(node)) | changed
    return ast.copy_location(type(node)(**fields), node)


def _symbol(op: ast.cmpop) -> str:
    return ast.unparse(ast.Compare(ast.Name("a"), [op], [ast.Name("b")])).removeprefix("a ").removesuffix(" b")


def _first_line(node: ast.stmt, lines: Sequence[bytes]) -> str:
    end = node.end_col_offset if node.end_lineno == node.lineno else None
    return lines[node.lineno - 1][node.col_offset : end].decode()  # columns are counted in bytes
