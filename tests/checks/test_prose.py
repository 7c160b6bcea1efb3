"""The count of pronouns in the project's prose sees each of them where it stands, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from lint.prose import LIMIT, count_prose, main

PLAIN = "A backend that does not answer costs its own call and no other. "  # thirteen words

MODULE = '''"""Whoever reads this.

And him.
"""
# nobody
# waits for whom

LIMIT = 3  # his own
"""Whose it is."""


def who(he: str) -> str:
    """Everybody's favourite."""
    return he + "somebody" + f"{he!r} who"


class C:
    "Who else?"
'''


@pytest.mark.parametrize(
    ("line", "word"),
    [(1, "Whoever"), (3, "him"), (5, "nobody"), (6, "whom"), (8, "his"), (9, "Whose"), (13, "Everybody"), (18, "Who")],
)
def test_every_comment_and_docstring_is_read(line: int, word: str) -> None:
    """Module, class, function and attribute docstrings, comments of their own line and behind code."""
    assert (line, word) in [(finding.line, finding.word) for finding in count_prose(MODULE, "module.py").findings]


def test_names_and_strings_of_the_program_are_not_prose() -> None:
    """What the program computes with is not counted, neither as a finding nor as words."""
    count = count_prose(MODULE, "module.py")
    assert 8 == len(count.findings)
    assert 18 == count.words


MARKDOWN = """# Whom it is for

Somebody, and
himself; the column `who`, and ``he `or` him``.

```python
# who runs this
```

    who runs this as well

- a list

  ```
  nobody
  ```

~~~
``` he
~~~
The last of it is anybody.
"""


def test_of_markdown_the_text_is_read_and_code_is_not() -> None:
    """Headings and paragraphs count, with their line numbers; fenced and indented blocks and backticks do not."""
    found = [(finding.line, finding.word) for finding in count_prose(MARKDOWN, "page.md").findings]
    assert [(1, "Whom"), (3, "Somebody"), (4, "himself"), (21, "anybody")] == found


def test_an_indented_line_of_a_paragraph_is_text() -> None:
    """Markdown's blocks of code begin behind an empty line."""
    assert [2] == [finding.line for finding in count_prose("A task\n    who waits\n", "page.md").findings]


def test_a_quotation_may_say_what_it_says() -> None:
    """A specification is quoted in its own words; the lines after it keep their numbers."""
    text = '# RFC 9110, 9.3: "the client\n# who sent it" is the sender.\n# And he waits.\n'
    assert [(3, "he")] == [(finding.line, finding.word) for finding in count_prose(text, "module.py").findings]


def test_a_single_quotation_mark_hides_nothing() -> None:
    """A mark without its partner, and partners in two paragraphs, leave the words between them counted."""
    assert 1 == len(count_prose('# A 3" disk is for somebody.\n', "module.py").findings)
    assert 1 == len(count_prose('A "mark\n\nfor somebody, and" another.\n', "page.md").findings)
    assert 1 == len(count_prose('# A "mark, ' + "a " * 200 + 'nobody" knows.\n', "module.py").findings)


def test_a_planted_sentence_turns_the_check_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Just under the limit is green; one sentence more is red, and the place of each word is printed."""
    page = tmp_path / "page.md"
    page.write_text(PLAIN * 200 + "\nThe task who waits.\nNobody waits.\n")
    assert 0 == main([str(tmp_path)])
    assert f"2 in 2606 words, 0.8 per 1000, limit {LIMIT:g}" in capsys.readouterr().out

    (tmp_path / "module.py").write_text('"""Whoever waits."""\n')
    assert 1 == main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert f"{tmp_path}/module.py:1: Whoever: " in printed
    assert f"{page}:3: Nobody: Nobody waits." in printed
    assert "3 in 2608 words, 1.2 per 1000" in printed


def test_a_path_without_prose_is_an_error(tmp_path: Path) -> None:
    """A check that read nothing has not passed."""
    assert 1 == main([str(tmp_path)])


def test_hidden_directories_are_left_out(tmp_path: Path) -> None:
    """A directory such as .venv holds the prose of other projects."""
    (tmp_path / "page.md").write_text(PLAIN)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "module.py").write_text("# Whoever wrote this.\n")
    assert 0 == main([str(tmp_path)])
    assert 1 == main([str(tmp_path / ".venv")])
