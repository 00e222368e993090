"""A file of records that is written in steps, and goes on after a kill as if nothing had been.

What is written stands beside the file's place until all is there: ``.NAME.partial``, and ``.NAME.progress``,
which says how much of it counts. Knows nothing about models.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm_runtime.files import UnusableFileError, lock, open_own, require_place, write_whole
from lm_runtime.texts.sources import Source

_NOTED_SECONDS = 1.0
_ROW_GROUP = 1 << 16


@dataclass
class Done:
    """How far the work is."""

    documents: int = 0
    """Those that were read and scored."""
    written: int = 0
    """Those of them that were kept."""
    tokens: int = 0
    """Of all that were scored."""
    log_probability: float = 0.0
    """Of all that were scored, natural logarithm."""
    size: int = 0
    """Bytes of the partial file that count."""


class ScoredFile:
    """The file that grows; a context, which leaves the partial file unless :meth:`finish` was called.

    Args:
        path: its place; its name ends in ``.jsonl`` or ``.parquet``.
        call: what the content follows from; another call does not go on with it.
        source: the first file that is read, whose columns a Parquet file keeps.
        extra: the types of the new columns, by their names: float, int or str.

    Raises:
        UnusableFileError: the file is there already, or the partial one is of another call or process.
        ValueError: the name has another ending.
    """

    def __init__(
        self, path: Path, call: Mapping[str, Any], source: Source, extra: Mapping[str, type]
    ) -> None:
        require_place(path)
        if path.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"--output takes a name that ends in .jsonl or .parquet, got {path}")
        if path.exists():
            raise UnusableFileError(path, "is there already; remove it, or name another file")
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._progress = path.with_name(f".{path.name}.progress")
        self._rows: _JsonRows | _ArrowRows
        self._rows = _JsonRows() if path.suffix == ".jsonl" else _ArrowRows(source, extra)
        self._notes = open_own(self._progress)
        try:
            if not lock(self._notes.fileno()):
                raise UnusableFileError(path, "another process is writing it")
            self.done = self._last(json.loads(json.dumps(call)))
            """What an earlier call did, and this one since."""
            self._file = open_own(self._partial)
            self._file.truncate(self.done.size)
            self._file.seek(self.done.size)
            if self.done.size:
                self._rows.resume(self._partial)
        except BaseException:
            self._notes.close()
            raise
        self._noted = time.monotonic()

    def _last(self, call: dict[str, Any]) -> Done:
        """The last state that is sure, of this same call."""
        self._notes.seek(0)
        lines = [line for line in self._notes.read().split(b"\n")[:-1] if line]
        if not lines:
            self._note({"call": call})
            return Done()
        try:
            first, *states = [json.loads(line) for line in lines]
            before, found = first["call"], [Done(**state) for state in states]
        except (ValueError, TypeError, KeyError):
            raise UnusableFileError(self._progress, "damaged; remove it to begin anew") from None
        if before != call:
            differ = ", ".join(name for name in call if before.get(name) != call[name])
            raise UnusableFileError(
                self._progress,
                f"an unfinished call with another {differ} left it; remove it to begin anew",
            )
        size = self._partial.stat().st_size if self._partial.exists() else 0
        # After a power failure the partial file may be shorter than was noted.
        return next((done for done in reversed(found) if done.size <= size), Done())

    def _note(self, record: dict[str, Any]) -> None:
        self._notes.write(json.dumps(record).encode() + b"\n")
        self._notes.flush()

    def __enter__(self) -> ScoredFile:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._sync()
            self._file.close()
            if not self.done.documents:  # there is nothing to go on with
                self._remove()
        self._notes.close()

    def write(
        self, rows: Sequence[dict[str, Any]], documents: int, tokens: int, log_probability: float
    ) -> None:
        """Add records, and count the documents that they are left of.

        Raises:
            ValueError: a record does not fit the columns of those before it.
        """
        data = self._rows.encode(rows)
        self._file.write(data)
        done = self.done
        self.done = Done(
            done.documents + documents,
            done.written + len(rows),
            done.tokens + tokens,
            done.log_probability + log_probability,
            done.size + len(data),
        )
        if time.monotonic() - self._noted > _NOTED_SECONDS:
            self._sync()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._note(asdict(self.done))
        self._noted = time.monotonic()

    def finish(self) -> None:
        """Put the file in its place."""
        self._sync()
        self._file.close()
        self._rows.finish(self._partial, self._path)
        self._remove()

    def _remove(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._progress.unlink(missing_ok=True)


class _JsonRows:
    """Records as lines of JSON."""

    def resume(self, partial: Path) -> None:
        """There is nothing to learn from what is written."""

    def encode(self, rows: Sequence[dict[str, Any]]) -> bytes:
        return b"".join(map(_json_line, rows))

    def finish(self, partial: Path, path: Path) -> None:
        partial.replace(path)


def _json_line(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in a field beside the text
        return json.dumps(row, default=str).encode() + b"\n"


class _ArrowRows:
    """Records as batches of Arrow's stream format, of which a Parquet file is made at the end."""

    def __init__(self, source: Source, extra: Mapping[str, type]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {float: pa.float64(), int: pa.int64(), str: pa.string()}
        self._extra = {name: kinds[kind] for name, kind in extra.items()}
        self._schema: Any = None
        self._of_table = pq.read_schema(source.path) if source.form == "parquet" else None

    def resume(self, partial: Path) -> None:
        import pyarrow as pa

        with partial.open("rb") as file:
            self._schema = pa.ipc.open_stream(file).schema

    def encode(self, rows: Sequence[dict[str, Any]]) -> bytes:
        import pyarrow as pa

        head = b""
        if self._schema is None:
            if not rows and self._of_table is None:
                return b""
            self._schema = self._schema_of(rows)
            head = self._schema.serialize().to_pybytes()
        if not rows:
            return head
        for row in rows:
            if unknown := row.keys() - set(self._schema.names):
                raise ValueError(
                    f"a record has the field {min(unknown)}, which the first ones have not; "
                    "a .jsonl takes records of any kind"
                )
        try:
            batch = pa.RecordBatch.from_pylist(rows, schema=self._schema)
        except pa.ArrowException as error:
            raise ValueError(
                f"a record does not fit the first ones ({error}); a .jsonl takes records of any kind"
            ) from None
        return bytes(head + batch.serialize().to_pybytes())

    def _schema_of(self, rows: Sequence[dict[str, Any]]) -> Any:
        import pyarrow as pa

        own = self._of_table if self._of_table is not None else pa.RecordBatch.from_pylist(rows).schema
        fields = []
        for field in own:
            kind = field.type.value_type if isinstance(field.type, pa.DictionaryType) else field.type
            if field.name not in self._extra:
                fields.append(pa.field(field.name, pa.string() if pa.types.is_null(kind) else kind))
        return pa.schema([*fields, *(pa.field(name, kind) for name, kind in self._extra.items())])

    def finish(self, partial: Path, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with write_whole(path) as out, partial.open("rb") as file:
            if not partial.stat().st_size:
                schema = pa.schema([pa.field(name, kind) for name, kind in self._extra.items()])
                pq.write_table(schema.empty_table(), out)
                return
            stream = pa.ipc.open_stream(file)
            with pq.ParquetWriter(out, stream.schema, compression="zstd") as writer:
                _write_groups(stream, writer)


def _write_groups(stream: Any, writer: Any) -> None:
    """Write batches in groups of about 65,000 rows."""
    import pyarrow as pa

    group: list[Any] = []
    rows = 0
    for batch in stream:
        group.append(batch)
        rows += batch.num_rows
        if rows >= _ROW_GROUP:
            writer.write_table(pa.Table.from_batches(group), row_group_size=rows)
            group, rows = [], 0
    if group:
        writer.write_table(pa.Table.from_batches(group), row_group_size=rows)


def described(source: Source) -> list[Any]:
    """What tells a file from a later state of it: its path, size and time."""
    if not source.size:
        return [str(source.path)]
    status = source.path.stat()
    return [str(source.path.resolve()), status.st_size, status.st_mtime_ns]
