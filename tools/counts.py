"""Reads how many tests passed, failed and were skipped from what test runners print.

Owns nothing but the patterns; it never runs anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: list[str] = field(default_factory=list)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )


COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def of_cargo(text: str) -> Counts:
    """`cargo test`, `cargo pgrx test`: a closing line for each test program."""
    text = COLOUR.sub("", text)
    counts = Counts()
    for passed, failed in re.findall(r"^test result: .*? (\d+) passed; (\d+) failed;", text, re.M):
        counts.passed += int(passed)
        counts.failed += int(failed)
    counts.skipped = re.findall(r"^test (\S+)(?: - .*?)? \.\.\. ignored", text, re.M)
    return counts


def of_nextest(text: str) -> Counts:
    """`cargo nextest run`: one summary. Its `skipped` is left alone: it means tests that a name left out as well."""
    text = COLOUR.sub("", text)
    counts = Counts()
    summary = re.search(r"^\s*Summary \[.*?\] .*?tests? run: (.*)$", text, re.M)
    if summary:
        for number, what in re.findall(r"(\d+) (passed|failed|timed out|exec failed)", summary[1]):
            if what == "passed":
                counts.passed += int(number)
            else:
                counts.failed += int(number)
    return counts


def of_pg_regress(text: str) -> Counts:
    """pg_regress and pg_isolation_regress: TAP since 16, `test name ... ok` before."""
    counts = Counts()
    for line in text.splitlines():
        if re.match(r"ok \d+", line) or re.search(r" \.\.\. ok\b", line):
            counts.passed += 1
        elif re.match(r"not ok \d+", line) or re.search(r" \.\.\. FAILED\b", line):
            counts.failed += 1
    return counts


def of_node(text: str) -> Counts:
    """`node --test`: its closing lines."""
    return Counts(
        passed=sum(map(int, re.findall(r"^. pass (\d+)$", text, re.M))),
        failed=sum(map(int, re.findall(r"^. fail (\d+)$", text, re.M))),
    )
