"""The uploads under way, by session, and how those that failed lately went."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from embedshare.errors import EmbedshareError, Overloaded, UnknownSession
from embedshare.sessions.ingest import Upload
from embedshare.sessions.records import DocumentRecord

#: Uploads under way of one session, and of all.
MOST_OF_SESSION, MOST = 8, 32
#: Failed uploads that are remembered.
MOST_FAILED = 1000
#: Seconds that an upload may take to end once it was cancelled: its calls of the model are waited for.
END_S = 30.0


class Failed(NamedTuple):
    """An upload that failed."""

    record: DocumentRecord
    declared_size: int | None
    error: EmbedshareError


class Uploads:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, dict[str, Upload]] = {}
        self._failed: OrderedDict[tuple[str, str], Failed] = OrderedDict()

    def begin(self, upload: Upload) -> None:
        """Take an upload in. Raises Overloaded if too many are under way."""
        record = upload.record
        with self._lock:
            of_session = self._running.get(record.session, {})
            if any(one.record.document == record.document for one in of_session.values()):
                raise Overloaded(
                    f"another upload of {record.filename!r} is under way: wait for its end", retry_after_s=1.0
                )
            if len(of_session) >= MOST_OF_SESSION or self.count >= MOST:
                raise Overloaded(
                    f"{len(of_session)} uploads of this session and {self.count} of all are under way; "
                    f"{MOST_OF_SESSION} and {MOST} are allowed",
                    retry_after_s=1.0,
                )
            self._running.setdefault(record.session, {})[record.version] = upload
            self._failed.pop((record.session, record.document), None)

    def await_cancelled(self, session: str, document: str) -> None:
        """Wait for the end of a cancelled upload of a document, which its caller may send again at once."""
        for upload in self.of(session):
            if upload.record.document == document and upload.is_cancelled:
                upload.ended.wait(END_S)

    def ended(self, upload: Upload, error: EmbedshareError | None) -> None:
        """An upload has ended, with an error or well."""
        record = upload.record
        with self._lock:
            of_session = self._running.get(record.session, {})
            of_session.pop(record.version, None)
            if not of_session:
                self._running.pop(record.session, None)
            if error is not None and not isinstance(error, UnknownSession):
                self._failed[record.session, record.document] = Failed(record, upload.declared_size, error)
                while len(self._failed) > MOST_FAILED:
                    self._failed.popitem(last=False)
        upload.ended.set()

    @property
    def count(self) -> int:
        """The number of uploads under way."""
        return sum(map(len, self._running.values()))

    def of(self, session: str) -> list[Upload]:
        """The uploads of a session that are under way."""
        with self._lock:
            return list(self._running.get(session, {}).values())

    def failed(self, session: str) -> list[Failed]:
        """The documents of a session whose last upload failed lately."""
        with self._lock:
            return [one for (of, _), one in self._failed.items() if of == session]

    def end(self, session: str) -> None:
        """Have a session's uploads fail, and wait for their end. Raises Overloaded if one does not end."""
        reason = UnknownSession("the session was destroyed meanwhile")
        uploads = self.of(session)
        for upload in uploads:
            upload.cancel(reason)
        for upload in uploads:
            if not upload.ended.wait(END_S):
                raise Overloaded("an upload of the session does not end; retry", retry_after_s=END_S)
        with self._lock:
            for key in [key for key in self._failed if key[0] == session]:
                del self._failed[key]
