"""Checks of the values of an Arrow table, with errors that name the invalid rows.

pandera runs the checks; this module finds the rows, which pandera's reports do not name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandera.pyarrow as pap
import pyarrow as pa
import pyarrow.compute as pc
from pandera.errors import SchemaError, SchemaErrors

from personlab.errors import UserError


def each(error: str, good: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> pap.Check:
    """Check every value of a column."""
    return pap.Check(
        lambda data: pc.fill_null(good(data.table[data.key]), False), error=error, ignore_na=False
    )


def elements(error: str, good: Callable[[pa.Array], pa.Array]) -> pap.Check:
    """Check every element of a column of lists."""

    def rows(lists: pa.ChunkedArray) -> pa.Array:
        lists = lists.combine_chunks()
        bad = pc.invert(pc.fill_null(good(pc.list_flatten(lists)), False))
        bad_rows = pc.list_parent_indices(lists).filter(bad)
        return pc.invert(pc.is_in(pa.array(np.arange(len(lists))), bad_rows))

    return each(error, rows)


def unique(*keys: str) -> pap.Check:
    """Check that no row repeats all keys of an earlier one."""

    def rows(data: pap.PyArrowData) -> pa.Array:
        row = pa.array(np.arange(len(data.table)))
        groups = data.table.select(keys).append_column("_row", row).group_by(keys)
        return pc.is_in(row, groups.aggregate([("_row", "min")])["_row_min"].combine_chunks())

    return pap.Check(rows, error=f"repeats the {' and '.join(keys)} of an earlier row", ignore_na=False)


def in_order(**keys: Literal["ascending", "descending"]) -> pap.Check:
    """Check that rows are sorted by these keys."""

    def rows(data: pap.PyArrowData) -> pa.Array:
        order = pc.sort_indices(data.table.select(list(keys)), sort_keys=list(keys.items()))
        return pa.array(order.to_numpy() == np.arange(len(data.table)))

    return pap.Check(rows, error=f"is out of order: rows are sorted by {', '.join(keys)}", ignore_na=False)


def length(count: int) -> pap.Check:
    return each(f"must hold {count} numbers", lambda lists: pc.equal(pc.list_value_length(lists), count))


def as_long_as(column: str, times: int = 1) -> pap.Check:
    """Check that lists have `times` the length of those in another column of the same row."""

    def rows(data: pap.PyArrowData) -> pa.Array:
        wanted = pc.multiply(pc.list_value_length(data.table[column]), times)
        return pc.fill_null(pc.equal(pc.list_value_length(data.table[data.key]), wanted), False)

    each_one = "as many numbers as" if times == 1 else f"{times} numbers for each of"
    return pap.Check(rows, error=f"must hold {each_one} its {column}", ignore_na=False)


def within(low: float, high: float) -> pap.Check:
    """Check that every element of every list lies in [low, high]."""
    return elements(
        f"must lie in [{low:g}, {high:g}]",
        lambda values: pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high)),
    )


def one_of(*values: str) -> pap.Check:
    return each(f"must be one of {', '.join(values)}", lambda found: pc.is_in(found, pa.array(values)))


NOT_NULL = each("must not be null", pc.is_valid)
NOT_EMPTY = each("must not be empty", lambda values: pc.greater(pc.binary_length(values), 0))
FINITE = each("must be finite", pc.is_finite)
POSITIVE = each("must be positive", lambda values: pc.greater(values, 0))
ALL_FINITE = elements("must hold finite numbers only", pc.is_finite)
HAS_SIZE = each(
    "must have a positive width and height",
    lambda boxes: pc.and_(pc.greater(_element(boxes, 2), 0), pc.greater(_element(boxes, 3), 0)),
)


def _as_long_as_the_first(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    lengths = pc.list_value_length(lists)
    return pc.equal(lengths, lengths[0]) if len(lengths) else pc.is_valid(lengths)


def _element(lists: pa.ChunkedArray, index: int) -> pa.Array:
    """Element `index` of each list; null where the list is shorter."""
    return pc.list_element(pc.list_slice(lists, 0, index + 1, return_fixed_size_list=True), index)


SAME_LENGTH = each("must hold as many numbers as in the first row", _as_long_as_the_first)


@dataclass(frozen=True)
class Contract:
    """The columns and checks of a table. Errors name rows by the columns `key`."""

    arrow: pa.Schema
    key: tuple[str, ...]
    schema: pap.DataFrameSchema

    def validate(self, table: pa.Table) -> None:
        """Check a table with the columns of `arrow`.

        Raises:
            UserError: rows are invalid; the message names the first of them for each reason.
        """
        try:
            self.schema.validate(table, lazy=True)
        except SchemaErrors as errors:
            reasons = [_explain(error, self.key) for error in errors.schema_errors]
            raise UserError("; ".join(reasons)) from None


def contract(
    arrow: pa.Schema, key: tuple[str, ...], checks: Mapping[str, list[pap.Check]], *table_checks: pap.Check
) -> Contract:
    """A contract of checks by column and of the whole table. No column may hold nulls."""
    # Types are compared by Arrow, since pandera has no binary type; nulls are checked by NOT_NULL, which
    # names the rows.
    columns = {
        name: pap.Column(None, [NOT_NULL, *checks.get(name, [])], nullable=True) for name in arrow.names
    }
    return Contract(arrow, key, pap.DataFrameSchema(columns, checks=list(table_checks)))


def _explain(error: SchemaError, key: tuple[str, ...]) -> str:
    """E.g. "image_id 7, person_id 3 (and 2 more): keypoints must hold 34 numbers"."""
    if error.check_output is None:  # the check itself failed
        raise error
    checked = error.check_output.to_native()
    bad = checked.filter(pc.invert(checked["check_output"]))
    row = ", ".join(f"{name} {bad[name][0].as_py()}" for name in key)
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    column = f"{error.schema.name} " if isinstance(error.schema, pap.Column) else ""
    return f"{row}{more}: {column}{error.check.error}"
