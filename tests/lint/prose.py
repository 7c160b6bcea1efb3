"""Count the pronouns that name a person, in the prose of the project: comments, docstrings, Markdown.

Here they stand for backends, tasks and callers, and a reader has to guess which. At most `LIMIT` per 1000 words, over
all files together; each is printed with its place, and the exit status is 1 over the limit.

    python tests/lint/prose.py            every .py and .md file that git knows
    python tests/lint/prose.py PATH…      these files, and the .py and .md files in these directories

Not counted: code (in Markdown what is fenced or indented, everywhere what stands in backticks) and what a specification
is quoted with, in double quotes.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT = 1.0  # per 1000 words
ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".py", ".md")

PRONOUN = re.compile(
    r"\b(?:who|whoever|whom|whose|nobody|everybody|somebody|anybody|he|him|his|himself)\b", re.IGNORECASE
)
WORD = re.compile(r"[^\W\d_][\w'’-]*")
# No comment holds a quotation longer than this: an inch mark without its partner must not hide the rest of a text.
CODE = re.compile(r"(`+)(?:(?!\n[ \t]*\n).){1,300}?\1", re.DOTALL)
QUOTATION = re.compile(r'(?<!\w)"(?! )(?:(?!\n[ \t]*\n)[^"]){1,300}"(?!\w)')
STRING_MARKS = re.compile(r"""^\w*(\"\"\"|'''|"|')(.*)\1$""", re.DOTALL)
FENCE = re.compile(r"^[ \t]*(```+|~~~+)")


class Finding(NamedTuple):
    path: str
    line: int
    word: str
    text: str  # the line that it stands in

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word}: {self.text}"


class Count(NamedTuple):
    words: int
    findings: tuple[Finding, ...]

    @property
    def rate(self) -> float:
        """Findings per 1000 words; text without words has none."""
        return 1000 * len(self.findings) / max(self.words, 1)

    def __str__(self) -> str:
        return f"{len(self.findings)} in {self.words} words, {self.rate:.1f} per 1000"


def python_prose(source: str) -> Iterator[tuple[int, str]]:
    """Each docstring, and each run of comments on lines that follow each other, with its first line's number."""
    first, comments = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            if line != first + len(comments):
                if comments:
                    yield first, "\n".join(comments)
                first, comments = line, []
            comments.append(token.string.lstrip("#"))
    if comments:
        yield first, "\n".join(comments)
    lines = source.encode().split(b"\n")
    for node in ast.walk(ast.parse(source)):
        # A string that is a statement documents what stands before it: a module, class, function or attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, STRING_MARKS.sub(r"\2", written_at(lines, node.value))


def written_at(lines: Sequence[bytes], node: ast.expr) -> str:
    """The source of a node; its columns count bytes. `ast.get_source_segment` would split the whole text each time."""
    last = lines[(node.end_lineno or node.lineno) - 1]
    behind = len(last) - (node.end_col_offset or len(last))
    text = b"\n".join(lines[node.lineno - 1 : node.end_lineno])
    return text[node.col_offset : len(text) - behind].decode()


def markdown_prose(source: str) -> Iterator[tuple[int, str]]:
    """The whole text, its blocks of code left blank."""
    fence, lines, before_is_text = "", list[str](), False
    for line in source.splitlines():
        mark = FENCE.match(line)
        code = bool(fence or mark) or (line.startswith(("    ", "\t")) and not before_is_text)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1] == fence:
            fence = ""
        lines.append("" if code else line)
        before_is_text = bool(lines[-1].strip())
    yield 1, "\n".join(lines)


def blank(match: re.Match[str]) -> str:
    """As many lines as before, and no words."""
    return "\n" * match[0].count("\n")


def count_prose(source: str, path: str) -> Count:
    """The words and findings of one file, in the order of its lines."""
    parts = markdown_prose(source) if path.endswith(".md") else python_prose(source)
    lines, words, findings = source.splitlines(), 0, list[Finding]()
    for first, text in parts:
        prose = QUOTATION.sub(blank, CODE.sub(blank, text))
        words += len(WORD.findall(prose))
        for match in PRONOUN.finditer(prose):
            number = first + prose.count("\n", 0, match.start())
            findings.append(Finding(path, number, match[0], lines[number - 1].strip()))
    return Count(words, tuple(sorted(findings, key=lambda finding: finding.line)))


def total(counts: Iterable[Count]) -> Count:
    counts = list(counts)
    return Count(sum(count.words for count in counts), tuple(f for count in counts for f in count.findings))


def known_to_git() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *(f"*{end}" for end in SUFFIXES)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).exists()]


def files_of(path: Path) -> list[Path]:
    """The file, or what the directory holds outside of hidden directories, which may be environments."""
    if not path.is_dir():
        return [path]
    found = (file for end in SUFFIXES for file in path.rglob(f"*{end}"))
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


def main(arguments: Sequence[str]) -> int:
    files = [file for path in arguments for file in files_of(Path(path))] if arguments else known_to_git()
    names = [str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file) for file in files]
    counts = [count_prose(file.read_text("utf-8"), name) for file, name in zip(files, names, strict=True)]
    for name, count in zip(names, counts, strict=True):
        for finding in count.findings:
            sys.stdout.write(f"{finding}\n")
        if count.findings:
            sys.stdout.write(f"{name}: {count}\n")
    whole = total(counts)
    sys.stdout.write(f"{len(files)} files: {whole}, limit {LIMIT:g}\n")
    if not whole.words:
        sys.stdout.write("no prose found: a path is wrong\n")
        return 1
    return int(whole.rate > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
