"""Records with a text: the lines of JSON Lines and the rows of Parquet, each checked, in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_runtime.files import UnusableFileError, first_line, open_regular
from lm_runtime.text_files import check_beginning, read_blocks
from lm_runtime.texts.packed import is_packed

LONGEST_RECORD = 1 << 26
"""Bytes: of a record, or of a file that is scored as one document."""

_ROWS = 64
_LARGEST_COLUMN_CHUNK = 1 << 31
_NAMED_FIELDS = 12


class DamagedRecordError(UnusableFileError):
    """One record that cannot be used; those after it can be read."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text with what its record says of it."""

    text: str
    """The text."""
    fields: dict[str, Any]
    """All of the record's fields, the text among them."""
    place: str
    """The file, and the line or row in it, for messages."""
    position: int
    """The bytes of its file that were read before it, about."""


Found = Document | DamagedRecordError


def json_documents(path: Path, field: str) -> Iterator[Found]:
    """The records of a file of JSON Lines; empty lines are none.

    Raises:
        UnusableFileError: the file cannot be read to its end.
    """
    for number, (line, position) in enumerate(_lines(path), 1):
        if line is None:
            yield DamagedRecordError(path, f"line {number}: longer than {LONGEST_RECORD:,} bytes")
        elif line.strip():
            try:
                fields = _json_object(line)
                yield Document(_text(fields, field), fields, f"{path}: line {number}", position)
            except (ValueError, RecursionError) as error:
                yield DamagedRecordError(path, f"line {number}: {first_line(error)}")


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.start} is 0x{line[error.start]:02x}") from None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({first_line(error)})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{_kind(fields)}, where an object is needed")
    return fields


def _lines(path: Path) -> Iterator[tuple[bytes | None, int]]:
    """The lines of a file with the bytes read before; None for one that is too long."""
    rest, too_long, position = b"", False, 0
    for number, (block, position) in enumerate(read_blocks(path)):
        data = block
        if not number:
            check_beginning(path, data)
            data = data.removeprefix(b"\xef\xbb\xbf")
        *lines, tail = data.split(b"\n")
        for line in lines:
            whole = None if too_long or len(rest) + len(line) > LONGEST_RECORD else rest + line
            yield whole, position
            rest, too_long = b"", False
        if too_long or len(rest) + len(tail) > LONGEST_RECORD:
            rest, too_long = b"", True
        else:
            rest += tail
    if rest or too_long:
        yield None if too_long else rest, position


def parquet_documents(path: Path, field: str) -> Iterator[Found]:
    """The rows of a Parquet file, read by pyarrow, 64 at a time.

    Raises:
        UnusableFileError: it is no Parquet file, has no such column, or cannot be read to its end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_packed(path):
        raise UnusableFileError(path, "Parquet files are packed inside: unpack it first")
    with open_regular(path) as file:
        size = path.stat().st_size
        try:
            table = pq.ParquetFile(file)
            _check_column(path, table, field)
            number, rows = 0, max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    place, position = f"{path}: row {number}", size * number // rows
                    try:
                        yield Document(_text(fields, field), fields, place, position)
                    except ValueError as error:
                        yield DamagedRecordError(path, f"row {number}: {error}")
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise UnusableFileError(path, f"damaged, or no Parquet file ({first_line(error)})") from None


def _check_column(path: Path, table: Any, field: str) -> None:
    """Check that the text's column is there, is text, and is not too large to be read in parts."""
    import pyarrow as pa

    schema = table.schema_arrow
    if field not in schema.names:
        raise UnusableFileError(path, _no_field(field, schema.names))
    kind = schema.field(field).type
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UnusableFileError(path, f"the column {field} is {kind}, not a text")
    metadata = table.metadata
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            if metadata.row_group(group).column(column).total_uncompressed_size > _LARGEST_COLUMN_CHUNK:
                raise UnusableFileError(path, f"row group {group + 1} has a column of more than 2 GiB")


def _text(fields: dict[str, Any], field: str) -> str:
    """The record's text.

    Raises:
        ValueError: there is none, or it cannot be one.
    """
    if field not in fields:
        raise ValueError(_no_field(field, list(fields)))
    text = fields[field]
    if not isinstance(text, str):
        raise ValueError(f"the field {field} is {_kind(text)}, not a text")
    if "\0" in text:
        raise ValueError(f"not a text: character {text.index(chr(0)) + 1} of the field {field} is NUL")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        raise ValueError(f"not a text: the field {field} has half a character ({surrogate})") from None
    return text


def _no_field(field: str, names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED_FIELDS]) + (", ..." if len(names) > _NAMED_FIELDS else "")
    return (
        f"no field {field}; --text-field takes one of: {shown}"
        if names
        else f"no field {field}, and no other"
    )


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "an object")
