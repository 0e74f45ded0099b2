"""Documents of every kind: their text in reading order, and why there is none."""

from __future__ import annotations

import csv
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedshare.errors import DocumentUnreadable, InvalidInput, MissingDependency
from embedshare.text.documents import document_process
from embedshare.text.documents.reading import Piece, Reader, ReadingLimits, kind_of, kinds
from embedshare.text.documents.tables import ends_quoted
from tests.processes import environment
from tests.text import files

LIMITS = ReadingLimits()
STREAMED = ("txt", "md", "csv", "json", "code")


def pieces(kind: str, data: bytes, limits: ReadingLimits = LIMITS, step: int = 1 << 16) -> list[Piece]:
    reader = Reader(kind, limits)
    try:
        steps = (data[at : at + step] for at in range(0, len(data), step))
        return [*(piece for part in steps for piece in reader.feed(part)), *reader.end()]
    finally:
        reader.close()


def text(kind: str, data: bytes, limits: ReadingLimits = LIMITS, step: int = 1 << 16) -> str:
    return "".join(piece.text for piece in pieces(kind, data, limits, step))


def refused(kind: str, data: bytes, limits: ReadingLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(DocumentUnreadable) as caught:
        pieces(kind, data, limits)
    assert caught.value.http_status == 422
    return caught.value.fields["reason"], caught.value.message


def by_heading(found: list[Piece]) -> dict[str | None, str]:
    joined: dict[str | None, str] = {}
    for piece in found:
        joined[piece.heading] = joined.get(piece.heading, "") + piece.text
    return joined


@pytest.mark.parametrize(
    ("name", "content_type", "head", "kind"),
    [
        ("notes.TXT", None, b"hello", "txt"),
        ("README.md", "application/octet-stream", b"# hello", "md"),
        ("page.htm", None, b"<p>", "html"),
        ("folder/main.py", "text/plain", b"import os", "code"),
        ("Dockerfile", None, b"FROM scratch", "code"),
        ("data.tsv", None, b"a\tb", "csv"),
        ("lines.jsonl", None, b"{}", "json"),
        ("upload", "application/json; charset=utf-8", b"{}", "json"),
        ("upload", None, b"just words", "txt"),
        ("upload.bin", None, "wörter".encode("utf-16"), "txt"),
        ("upload", None, "wide".encode("utf-16-le"), "txt"),
        ("named.txt", "text/plain", b"%PDF-1.7\n", "pdf"),
        ("broken.pdf", None, b"nothing", "pdf"),
        ("scanner", None, b"\x1b%-12345X@PJL\n%PDF-1.7\n", "pdf"),
        ("about_pdf.py", None, b"HEAD = b'%PDF-1.7'", "code"),
        ("upload", None, files.word()[:4096], "docx"),
        ("protected.docx", None, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "docx"),
    ],
)
def test_a_kind_is_found_by_first_bytes_name_and_content_type(
    name: str, content_type: str | None, head: bytes, kind: str
) -> None:
    assert kind_of(name, content_type, head) == kind


@pytest.mark.parametrize(
    ("name", "head", "said"),
    [
        ("old.doc", b"\xd0\xcf\x11\xe0", "old version"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n", "picture"),
        ("table.xlsx", b"PK\x03\x04xl/workbook", "zip"),
        ("program", b"\x7fELF\x02\0\0", "program"),
        ("film.mp4", b"\x00\x00\x00\x20ftypisom", "no text"),
        ("bytes.dat", b"ab\x00\x01\x02cd", "no text"),
    ],
)
def test_what_is_no_document_is_told_with_what_is(name: str, head: bytes, said: str) -> None:
    with pytest.raises(DocumentUnreadable, match=said) as caught:
        kind_of(name, None, head)
    assert caught.value.fields == {"reason": "unsupported"}
    assert all(kind in caught.value.message for kind in kinds())


GERMAN = "Die Mühle steht am Fluß. Größe und Höhe: 12 m; früher mahlte sie Körner, heute lädt sie ein.\n"
RUSSIAN = "Мельница стоит у реки и мелет зерно. Она была построена из дуба в тысяча семьсот первом году.\n"
JAPANESE = "水車小屋は川のそばに立っていて、穀物をひいています。それは古い建物です。\n"


ENCODED = [
    *[
        (GERMAN, name)
        for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
    ],
    *[(RUSSIAN, "cp1251"), (JAPANESE, "shift_jis"), (JAPANESE, "utf-8")],
]


@pytest.mark.parametrize(
    ("step", "ascii_before"), [(3, 0), (777, 0), (1 << 16, 0), (777, 200_000), (1 << 16, 200_000)]
)
@pytest.mark.parametrize(("content", "encoding"), ENCODED)
def test_an_encoding_is_found_out_wherever_it_shows(
    content: str, encoding: str, step: int, ascii_before: int
) -> None:
    whole = "a line of plain letters\n" * (ascii_before // 24) + content * 5
    assert text("txt", whole.encode(encoding), step=step) == whole


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1), st.integers(1, 9))
def test_utf8_is_decoded_wherever_its_bytes_are_cut(content: str, step: int) -> None:
    if not content.strip():
        assert refused("txt", content.encode()) == ("empty", "the document has no text")
    elif "\0" not in content[:4] and not content.startswith("\ufeff"):
        assert text("txt", content.encode(), step=step) == content


def test_lines_end_alike_in_all_files() -> None:
    assert text("txt", b"a\r\nb\rc\n", step=2) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        ("Größe ".encode() * 20_000 + b"\xff rest", "160,000"),
        (b"ascii " * 1_000 + "ü".encode() * 50 + b"\xff" + "ü".encode() * 50, "6,100"),
        ("Größe ".encode() * 20_000 + "ö".encode()[:1], "160,000"),
        ("Größe".encode("utf-16") + b"\0", "12"),
    ],
)
def test_a_byte_that_the_encoding_does_not_allow_is_told_with_its_offset(data: bytes, offset: str) -> None:
    reason, said = refused("txt", data)
    assert reason == "damaged"
    assert f"byte {offset} is not valid" in said


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("data", [b"", b" \n\t "])
def test_a_document_without_text_is_told(kind: str, data: bytes) -> None:
    reason, _ = refused(kind, data)
    assert reason == ("damaged" if data and kind in ("pdf", "docx") else "empty")


@pytest.mark.parametrize("kind", STREAMED)
def test_text_comes_while_the_rest_still_does(kind: str) -> None:
    lines = {"json": b'{"name": "mill"}\n', "csv": b"mill,river\n"}
    reader = Reader(kind, LIMITS)
    found = reader.feed(lines.get(kind, b"The mill stands at the river.\n") * 10_000)
    assert sum(len(piece.text) for piece in found) > 90_000


MARKDOWN = """---
title: of no part
---
intro

# Mills #
text
```sh
# no heading
```
Corn
----
It is ground.

- a list
---
###
after
"""


@pytest.mark.parametrize("step", [1, 7, 1 << 16])
def test_markdown_is_divided_by_its_headings(step: int) -> None:
    found = pieces("md", MARKDOWN.encode(), step=step)
    assert "".join(piece.text for piece in found) == MARKDOWN
    assert by_heading(found) == {
        None: "---\ntitle: of no part\n---\nintro\n\n###\nafter\n",
        "Mills": "# Mills #\ntext\n```sh\n# no heading\n```\n",
        "Corn": "Corn\n----\nIt is ground.\n\n- a list\n---\n",
    }


@given(st.text(st.sampled_from("#-=~` \nab"), min_size=1).filter(str.strip), st.integers(1, 9))
def test_markdown_is_passed_on_whole_and_alike_wherever_it_is_cut(content: str, step: int) -> None:
    found = pieces("md", content.encode(), step=step)
    assert "".join(piece.text for piece in found) == content
    assert by_heading(found) == by_heading(pieces("md", content.encode()))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("md", (b"# " + b"\t" * 4_000 + b"x\n") * 400),
        ("json", b'{"' + b"k" * (7 << 20) + b'": [' + b"1," * 200_000 + b"1]}"),
        ("json", b'{"a":' * 490 + b"[" + b"1," * 200_000 + b"1]" + b"}" * 490),
        ("csv", b'"' + b'""' * 500_000 + b'"\n' + b'"",' * 9_000),
    ],
    ids=["spaces", "a long name", "many names", "quotes"],
)
def test_what_is_made_to_take_long_does_not(kind: str, data: bytes) -> None:
    began = time.process_time()
    outcome(kind, [data])
    assert time.process_time() - began < 5


def test_a_table_becomes_lines_of_names_and_values() -> None:
    table = 'name;city\nAnna;"Zürich\nSee"\n;\nBob;"a ""q"""'
    expected = 'name: Anna\ncity: Zürich\nSee\n\nname: Bob\ncity: a "q"\n\n'
    for encoding in ("utf-8", "cp1252", "utf-16"):
        assert text("csv", table.encode(encoding)) == expected
    assert text("csv", b"a\tb\n1\t2, 3\n") == "a: 1\nb: 2, 3\n\n"
    assert text("csv", b"a,b\n1,2,more\n") == "a: 1\nb: 2\nmore\n\n"


@given(st.text(st.sampled_from('",\nab '), max_size=60))
def test_quotes_end_where_csv_reads_their_end(content: str) -> None:
    quoted, rows, held = False, [], []
    for line in content.splitlines(keepends=True):
        held.append(line)
        quoted = ends_quoted(line, ",", quoted)
        if not quoted:
            rows += csv.reader(held)
            held = []
    assert [*rows, *csv.reader(held)] == [*csv.reader(content.splitlines(keepends=True))]


JSON = [{"title": "Mill", "parts": ["wheel", 2.5, None, True], "size": {"of": "ü"}}, {"title": "Corn"}]


@pytest.mark.parametrize("step", [1, 1 << 16])
def test_json_becomes_lines_of_names_and_values(step: int) -> None:
    expected = "title: Mill\nparts: wheel\nparts: 2.5\nparts: true\nsize.of: ü\n\ntitle: Corn\n\n"
    assert text("json", json.dumps(JSON).encode("utf-16"), step=step).strip() == expected.strip()
    lines = "\n".join(map(json.dumps, JSON))
    assert text("json", lines.encode(), step=step) == expected


@pytest.mark.parametrize(
    ("kind", "data", "reason", "said"),
    [
        ("json", b'{"a" 1}', "damaged", "colon"),
        ("json", b'{"a": 1', "damaged", "premature EOF"),
        ("json", b"[" * 600, "too_large", "500 deep"),
        ("json", b'["' + b"x" * (9 << 20), "too_large", "bytes"),
        ("csv", b'a,b\n1,"' + b"x\n" * (1 << 20), "too_large", "quote"),
        ("csv", b"a,b\n1," + b"x" * 200_000, "too_large", "limit"),
        ("csv", b"a,b\n" + b"," * 20_000, "too_large", "columns"),
    ],
)
def test_what_a_file_of_data_may_not_be_is_told(kind: str, data: bytes, reason: str, said: str) -> None:
    found, message = refused(kind, data)
    assert found == reason
    assert said in message


HTML = """<?xml version="1.0" encoding="utf-8"?><html><head><title>The title</title><style>no</style></head>
<body><nav>menu</nav>first<h1>Mills <i>old</i></h1>loose <b>text</b> &amp; more<!-- none -->
<script>no</script> tail<div hidden>no</div><h2>Corn</h2><ul><li>one</li><li>two</li></ul>
<pre>code
  indented</pre><table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>line<br>break</body></html>"""


def test_all_of_a_page_but_its_menus_is_read_by_headings() -> None:
    found = pieces("html", HTML.encode())
    assert by_heading(found) == {
        "The title": "first\n\n",
        "Mills old": "Mills old\n\nloose text & more tail\n\n",
        "Corn": "Corn\n\none\ntwo\n\ncode\n  indented\n\n1 2\n3\n\nline\nbreak\n\n",
    }
    declared = '<meta charset="windows-1251"><p>' + RUSSIAN
    assert text("html", declared.encode("cp1251")).strip() == RUSSIAN.strip()


def test_a_pdf_is_read_by_pages() -> None:
    found = pieces("pdf", files.pdf("The mill\nat the river", "", "The end"))
    assert found == [Piece("The mill\nat the river\n\n", 1), Piece("The end\n\n", 3)]


def test_a_word_document_is_read_by_headings_with_its_tables() -> None:
    assert by_heading(pieces("docx", files.word())) == {
        None: "Cover\n\n",
        "Mills": "Mills\n\nThe mill stands at the river.\n\n",
        "Corn": "Corn\n\nIt grinds corn.\n\npart | age\nwheel | 1701\nboth\n\nAfter, in ins in sdt\n\n",
    }


WORD = files.word()


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("pdf", files.encrypted_pdf(), "encrypted"),
        ("pdf", files.pdf("", "", picture=True), "scanned"),
        ("pdf", files.pdf("", ""), "empty"),
        ("pdf", b"%PDF-1.4 nothing", "damaged"),
        ("docx", WORD[:2000], "damaged"),
        ("docx", b"no zip", "damaged"),
        ("docx", files.zipped({"other": b"x"}), "damaged"),
        ("docx", files.zipped({"word/document.xml": b"<broken"}, WORD), "damaged"),
        ("docx", files.zipped({"word/media/zeros": bytes(200 << 20)}, WORD), "too_large"),
        ("docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "encrypted"),
        ("docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 old", "unsupported"),
        ("html", b"<div>" * 5000 + b"deep", "too_large"),
        ("html", b"<!-- nothing -->", "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_says_why(kind: str, data: bytes, reason: str) -> None:
    assert refused(kind, data)[0] == reason


MANY_TAGS = b"<p>x" * 1_000_000


def test_a_document_that_takes_too_long_is_left_and_the_next_is_read() -> None:
    assert refused("html", MANY_TAGS, LIMITS._replace(seconds=0.5)) == (
        "timeout",
        "reading it took over 0.5 s",
    )
    assert text("html", b"<p>next") == "next\n\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a limit of memory")
def test_a_document_that_needs_too_much_memory_is_told() -> None:
    _, said = refused("html", MANY_TAGS, LIMITS._replace(memory_bytes=100 << 20))
    assert "needs more than 104,857,600 bytes of memory" in said
    assert text("html", b"<p>next") == "next\n\n"


@pytest.mark.parametrize("kind", kinds())
def test_a_document_keeps_to_its_limits_of_bytes_and_text(kind: str) -> None:
    data = {"pdf": files.pdf("word " * 100), "docx": WORD}.get(kind, b'{"a": "' + b"word " * 100 + b'"}\n')
    data = b"a,b\n1,2\n" + data if kind == "csv" else data
    reason, said = refused(kind, data, LIMITS._replace(max_bytes=len(data) - 1))
    assert (reason, "bytes" in said) == ("too_large", True)
    reason, said = refused(kind, data, LIMITS._replace(max_text_chars=20))
    assert (reason, "20 characters" in said) == ("too_large", True)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_document_is_kept_for_this_user_alone_and_removed(temporary: Path) -> None:
    reader = Reader("pdf", LIMITS)
    [*reader.feed(files.pdf("The mill"))]
    (folder,) = temporary.iterdir()
    if sys.platform != "win32":
        assert [path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())] == [0, 0, 0]
    assert [piece.text for piece in reader.end()] == ["The mill\n\n"]
    reader.close()
    reader.close()
    assert not [*temporary.iterdir()]


def test_a_reader_that_is_forgotten_leaves_no_file(temporary: Path) -> None:
    reader = Reader("docx", LIMITS)
    [*reader.feed(WORD)]
    del reader
    gc.collect()
    assert not [*temporary.iterdir()]


def test_a_kind_that_nothing_reads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="txt, md"):
        Reader("exe", LIMITS)
    monkeypatch.setitem(document_process.PACKAGES, "pdf", "no_such_package")
    with pytest.raises(MissingDependency, match=r"embedshare\[sessions\]"):
        Reader("pdf", LIMITS)


def outcome(kind: str, parts: list[bytes]) -> str:
    """The document's text, or why there is none; another error fails the test."""
    reader = Reader(kind, LIMITS)
    try:
        found = [piece.text for part in parts for piece in reader.feed(part)]
        return "".join([*found, *(piece.text for piece in reader.end())])
    except DocumentUnreadable as error:
        return str(error.fields["reason"])
    finally:
        reader.close()


@given(st.binary(max_size=400), st.sampled_from(STREAMED), st.randoms(use_true_random=False))
def test_any_bytes_are_text_or_told_wherever_they_are_cut(
    data: bytes, kind: str, randomness: random.Random
) -> None:
    cuts = sorted(randomness.choices(range(len(data) + 1), k=4))
    found = outcome(kind, [data[start:stop] for start, stop in pairwise([0, *cuts, len(data)])])
    assert found.encode().strip()
    assert found == outcome(kind, [data])


@pytest.mark.parametrize("kind", ["pdf", "docx"])
def test_damaged_documents_are_read_or_told(kind: str) -> None:
    whole = files.pdf("The mill", "The river") if kind == "pdf" else WORD
    randomness = random.Random(1)
    outcomes = set()
    for _ in range(40):
        damaged = bytearray(whole)
        for at in randomness.sample(range(len(whole)), 20):
            damaged[at] = randomness.randrange(256)
        outcomes.add(outcome(kind, [bytes(damaged)]))
    assert "damaged" in outcomes
    assert "timeout" not in outcomes


READ = """
import re, sys
from pathlib import Path
from embedshare.text.documents.reading import Reader, ReadingLimits
from embedshare.text.documents.pieces import Piece
from embedshare.text.token_chunks import TokenChunker, estimated_tokens
kind, size = sys.argv[1], int(sys.argv[2])
lines = {"json": b'{"name": "the mill at the river, %08d"}\\n', "csv": b"the mill,at the river %08d\\n"}
line = lines.get(kind, b"The mill number %08d stands at the river.\\n")
reader, chunker = Reader(kind, ReadingLimits()), TokenChunker(estimated_tokens, 512, 50, [1], [2])
chunks = sent = 0
while sent < size:
    block = b"".join(line % (sent + number) for number in range(1000))
    sent += len(block)
    for piece in reader.feed(block):
        chunks += sum(1 for _ in chunker.push(piece))
for piece in reader.end():
    chunks += sum(1 for _ in chunker.push(piece))
chunks += sum(1 for _ in chunker.end())
# Not ru_maxrss, which begins with the peak of the process that started this one.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024, chunks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is measured as Linux measures it")
@pytest.mark.parametrize(
    ("kind", "megabytes"),
    [("txt", 20), ("csv", 6), ("json", 10), ("md", 10), pytest.param("txt", 200, marks=pytest.mark.long)],
)
def test_memory_does_not_grow_with_a_text(kind: str, megabytes: int) -> None:
    def peak(size: int) -> int:
        ran = subprocess.run(
            [sys.executable, "-c", READ, kind, str(size)], env=environment(), capture_output=True, check=True
        )
        used, chunks = map(int, ran.stdout.split())
        assert chunks > size / 6_000
        return used

    assert peak(megabytes * 1_000_000) - peak(2_000_000) <= 15
