"""What can be asked of the values of an Arrow table, and errors that name the rows which break it.

pandera runs the checks; what it reports does not say which row is at fault, so that is worked out here.
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
    """A check of a column, value by value."""
    return pap.Check(
        lambda data: pc.fill_null(good(data.table[data.key]), False), error=error, ignore_na=False
    )


def elements(error: str, good: Callable[[pa.Array], pa.Array]) -> pap.Check:
    """A check of a column of lists: every element of every list is good, or the row is not."""

    def rows(lists: pa.ChunkedArray) -> pa.Array:
        lists = lists.combine_chunks()
        bad = pc.invert(pc.fill_null(good(pc.list_flatten(lists)), False))
        return _all_but(len(lists), pc.filter(pc.list_parent_indices(lists), bad))

    return each(error, rows)


def _all_but(length: int, rows: pa.Array) -> pa.Array:
    good = np.ones(length, dtype=bool)
    good[rows] = False
    return pa.array(good)


def unique(*keys: str) -> pap.Check:
    """A check of a table: no two rows agree in all keys (the second of them is the bad one)."""

    def rows(data: pap.PyArrowData) -> pa.Array:
        row = pa.array(np.arange(len(data.table)))
        firsts = (
            data.table.select(keys).append_column("_row", row).group_by(keys).aggregate([("_row", "min")])
        )
        return pc.is_in(row, firsts["_row_min"].combine_chunks())

    return pap.Check(rows, error=f"repeats the {' and '.join(keys)} of an earlier row", ignore_na=False)


def in_order(**keys: Literal["ascending", "descending"]) -> pap.Check:
    """A check of a table: rows are in the order of these keys."""

    def rows(data: pap.PyArrowData) -> pa.Array:
        order = pc.sort_indices(data.table.select(list(keys)), sort_keys=list(keys.items()))
        return pa.array(order.to_numpy() == np.arange(len(data.table)))

    return pap.Check(rows, error=f"is out of place: rows go by {', '.join(keys)}", ignore_na=False)


def length(count: int) -> pap.Check:
    return each(f"must hold {count} numbers", lambda lists: pc.equal(pc.list_value_length(lists), count))


def within(low: float, high: float) -> pap.Check:
    """Every element of every list lies in [low, high]."""
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
    lambda boxes: pc.greater(
        pc.min_element_wise(_element(boxes, 2), _element(boxes, 3), skip_nulls=False), 0
    ),
)


def _element(lists: pa.ChunkedArray, index: int) -> pa.Array:
    """Element `index` of each list; null where the list is shorter."""
    return pc.list_element(pc.list_slice(lists, 0, index + 1, return_fixed_size_list=True), index)


@dataclass(frozen=True)
class Contract:
    """A table's columns and what must hold of them; rows are named by `key` where it does not."""

    arrow: pa.Schema
    key: tuple[str, ...]
    schema: pap.DataFrameSchema

    def validate(self, table: pa.Table) -> None:
        """Raises UserError if rows break the contract, naming the first of them for each reason.

        The columns must be those of `arrow`.
        """
        try:
            self.schema.validate(table, lazy=True)
        except SchemaErrors as errors:
            reasons = [_explain(error, self.key) for error in errors.schema_errors]
            raise UserError("; ".join(reasons)) from None


def contract(
    arrow: pa.Schema, key: tuple[str, ...], checks: Mapping[str, list[pap.Check]], *table_checks: pap.Check
) -> Contract:
    """A contract of checks by column and of the table as a whole. No column may hold nulls."""
    # Types are compared exactly, by Arrow (pandera knows no binary); nulls are left to NOT_NULL, which can
    # name the rows.
    columns = {
        name: pap.Column(None, [NOT_NULL, *checks.get(name, [])], nullable=True) for name in arrow.names
    }
    return Contract(arrow, key, pap.DataFrameSchema(columns, checks=list(table_checks)))


def _explain(error: SchemaError, key: tuple[str, ...]) -> str:
    """E.g. "image_id 7, person_id 3 (and 2 more): keypoints must hold 34 numbers"."""
    if error.check_output is None:  # not a row's fault but the check's
        raise error
    checked = error.check_output.to_native()
    bad = checked.filter(pc.invert(checked["check_output"]))
    row = ", ".join(f"{name} {bad[name][0].as_py()}" for name in key)
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    column = f"{error.schema.name} " if isinstance(error.schema, pap.Column) else ""
    return f"{row}{more}: {column}{error.check.error}"
