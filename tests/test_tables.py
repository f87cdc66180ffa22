"""Results/tables.py: what it refuses to read, and never writes behind; files that several write or that are links."""
from __future__ import annotations

import pytest

from Results.tables import append_rows, read_rows
from utils import UserError

COLUMNS = ("run_id", "batch", "latency_ms_median", "max_abs_err", "notes")
GOOD = "run_id,batch,latency_ms_median,max_abs_err,notes\n1,8,2.5,1e-3,\"a, b\"\n2,8,2.5,nan,\n"


@pytest.mark.parametrize("text, line, problem", [
    (GOOD[:-4], 3, "has 4 cells, the heading has 5|may be cut off"),  # inside the last cells
    (GOOD[:-1], 3, "may be cut off"),
    (GOOD + "3,8,2", 4, "may be cut off"),
    (GOOD + "3,8,2.5,1e-3\n", 4, "has 4 cells, the heading has 5"),
    (GOOD + "3,8,2.5,1e-3,,\n", 4, "has 6 cells"),
    (GOOD + '3,8,2.5,1e-3,"no end\n', 4, "is not a line of a CSV table"),
    ("\ufeff" + GOOD, 1, "byte order mark"),
    (GOOD.replace(",", ";"), 1, "semicolons"),
    (GOOD.replace("2.5,nan", "fast,nan"), 3, "latency_ms_median is 'fast', not a number"),
    (GOOD.replace("2.5,nan", "2.5,1_0"), 3, "max_abs_err is '1_0', not a number"),
    (GOOD.replace("2,8,", "2,8.5,"), 3, "batch is '8.5', not a whole number"),
    (GOOD.replace("2,8,", "2," + "9" * 5000 + ","), 3, "not a whole number"),
    (GOOD.replace("2,8,", "2,,"), 3, "batch is '', which is never empty"),
    (GOOD.replace("2,8", "<<<<<<< HEAD\n2,8"), 3, "is left of a merge"),
    (GOOD.replace("2,8", "=======\n2,8"), 3, "is left of a merge"),
    (GOOD + ">>>>>>> other\n", 4, "is left of a merge"),
    (GOOD.replace("max_abs_err", "error"), 1, "lacks the column max_abs_err|has other columns"),
    (GOOD.encode().replace(b"a, b", b"\xff").decode("latin-1").encode("latin-1"), 2, "is not UTF-8 text"),
])
def test_a_broken_table_is_named_with_its_line_and_nothing_is_written_behind_it(text, line, problem, tmp_path):
    path = tmp_path / "table.csv"
    before = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(before)
    with pytest.raises(UserError, match=rf"^{path}:{line}: .*({problem})") as refusal:
        read_rows(path, COLUMNS)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=rf"^{path}:{line}: .*({problem})"):
        append_rows(path, COLUMNS, [dict.fromkeys(COLUMNS, "1")])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_good_table_is_read_and_grows(tmp_path):
    path = tmp_path / "table.csv"
    assert read_rows(path, COLUMNS) == []
    path.write_text(GOOD)
    append_rows(path, COLUMNS, [dict(zip(COLUMNS, ("3", 1, 0.5, "inf", "two\nlines")))])
    rows = read_rows(path, COLUMNS)
    assert [row["notes"] for row in rows] == ["a, b", "", "two\nlines"] and rows[1]["max_abs_err"] == "nan"
    assert path.read_text().startswith(GOOD)


def test_a_table_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    table, link = tmp_path / "elsewhere" / "table.csv", tmp_path / "link.csv"
    table.write_text(GOOD)
    link.symlink_to(table)
    append_rows(link, COLUMNS, [dict.fromkeys(COLUMNS, "1")])
    assert link.is_symlink() and len(read_rows(table)) == len(read_rows(link)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link.csv"]
