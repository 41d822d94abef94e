"""CSV lines are cut as the standard library cuts each of them alone."""

from __future__ import annotations

import csv
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from spearhead.delimited import LONGEST_LINE, cut

NAMES = ("a", "b", "c")

pieces = st.lists(
    st.sampled_from(['"', '""', ",", ",,", " ", "x", "a longer text than twelve", "é", "\n", "\r\n", "\n\n", "7", "\r"])
)
fields = st.one_of(
    st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8"), max_size=30),
    st.sampled_from(["", '"', 'say "yes"', "Welch, Rath and Koepp", "thirteen chrs"]),
)


def slow_cut(text: str) -> list[list[str] | None]:
    """The records by ``csv.reader``, one line at a time; None for one that is no record of three fields."""
    records: list[list[str] | None] = []
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        if not line.strip(" \r"):
            continue
        try:
            found = next(csv.reader([line], strict=True))
        except csv.Error:
            found = []
        # A carriage return ends a record for the reader; here it only may come before the line's end, or in quotes.
        records.append(found if len(found) == len(NAMES) and not _stray_return(line) else None)
    return records


def _stray_return(line: str) -> bool:
    """Whether a carriage return is outside quotes, in a line that the reader can cut."""
    return "\r" in "".join(line.split('"')[::2])


def check(text: str) -> None:
    got = cut(text.encode(), NAMES, NAMES)
    expected = slow_cut(text)
    rows = iter(got.rows.rows())
    assert [None if i in got.faults else list(next(rows)) for i in range(len(got.line))] == expected
    lines = text.split("\n")
    for start, end, line in zip(got.start, got.end, got.line, strict=True):
        assert text.encode()[start:end].decode() == lines[line].removesuffix("\r")


@settings(deadline=None, max_examples=400)  # the first example compiles
@given(pieces)
def test_any_text_is_cut_line_by_line(text: list[str]) -> None:
    check("".join(text))


@settings(deadline=None)
@given(st.lists(st.lists(fields, min_size=3, max_size=3)), st.sampled_from(["\n", "\r\n"]))
def test_what_a_writer_wrote_is_read(records: list[list[str]], end: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(records)
    assert cut(file.getvalue().encode(), NAMES, NAMES).rows.rows() == [tuple(record) for record in records]


def test_only_the_wanted_columns_come() -> None:
    assert cut(b"1,2,3\n4,5,6\n", NAMES, ("c", "a")).rows.to_dict(as_series=False) == {"c": ["3", "6"], "a": ["1", "4"]}


def test_each_fault_is_named_and_costs_one_record() -> None:
    lines = [b"1,2", b'1,"2,3', b'1,"2"x,3', b"1,\r2,3", b"1,\xff,3", b"1,2," + b"3" * LONGEST_LINE, b"1,2,3,4"]
    got = cut(b"\n".join(part for line in lines for part in (b"7,8,9", line)), NAMES, NAMES)
    assert got.rows.rows() == [("7", "8", "9")] * len(lines)
    assert got.faults == {
        1: "line has 2 fields, the header has 3",
        3: "line has a quote that is never closed",
        5: "line has text after a closing quote",
        7: "line has a carriage return in its middle",
        9: "line is not UTF-8",
        11: "line has 65,536 bytes or more",
        13: "line has 4 fields, the header has 3",
    }


def test_nothing_is_cut_into_nothing() -> None:
    assert not len(cut(b"", NAMES, NAMES).line)
    assert cut(b" \r\n\n", NAMES, NAMES).rows.height == 0
