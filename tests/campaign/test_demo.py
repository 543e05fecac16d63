import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import h11
import httpx
import pytest

from tests.campaign.counting import REFUSED, RIGHT
from tests.campaign.serving import SECONDS, file_data, outcome_of, served
from tests.demo.images import READABLE, UNREADABLE
from tests.mutations import mutate
from tests.nasty import NASTY

pytestmark = pytest.mark.timeout(3600)
_CLIENTS = 50

ODD_VALUES = (
    None, [], {}, "x", -1, [None], [[]], [{}], ["a", "b", "c", "d"], [0, 0, 0, 0], [None] * 4,
    [None] * 100, [file_data("/etc/passwd"), "", "auto", 0.7], [file_data(""), "", "auto", 0.7],
    [file_data("../../../etc/passwd"), "", "auto", 0.7], [file_data("/dev/zero"), "", "auto", 0.7],
    [{"path": None, "url": "http://127.0.0.1:1/x"}, "", "auto", 0.7],
    [{"path": "x", "url": "file:///etc/passwd"}, "", "auto", 0.7],
    [{"path": ["x"]}, "", "auto", 0.7], [{"path": 7}, {}, [], ""],
)  # fmt: skip
"""In the place of the API's list of values."""
ODD_OPTIONS = (
    *((name, "auto", 0.7) for name in NASTY),
    *(("-1", "auto", 0.7), ("10000000", "auto", 0.7), ("9" * 10_000, "auto", 0.7)),
    *((None, "auto", 0.7), ([], "auto", 0.7), ({}, "auto", 0.7), (7, "auto", 0.7)),
    *(("", method, 0.7) for method in ("evidence", "x", None, [], {"a": 1}, "gradcam")),
    *(("", "auto", opacity) for opacity in (-1, 2, 1e300, None, "x", [], {}, 10**400, True)),
)
"""Class, method and opacity of a good image."""
ODD_BODIES = (
    b"", b"{", b"null", b"[]", b"7", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"data":' * 5_000,
    b'{"data": NaN}', b'{"data": [1e999]}', b"{}", b'{"data": {}}', b'{"fn_index": 0}',
    b'{"data": [], "session_hash": {}}', b'{"data": [], "event_data": 7}', b"\0" * 100_000,
)  # fmt: skip
ODD_PATHS = (
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd",
    "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/gradio_api/call/explain/x", "/%00",
    "/gradio_api/call/x", "/gradio_api/queue/data?session_hash=x", "/static/../../etc/passwd",
    "/assets/%2e%2e/%2e%2e/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "/x" * 2_000,
    "/gradio_api/heartbeat/", "/gradio_api/stream/x/y/z/playlist.m3u8", "/login", "/monitoring",
    "/gradio_api/deep_link", "/gradio_api/upload_progress?upload_id=x", "/theme.css", "/robots.txt",
)  # fmt: skip
ODD_HEADERS = (
    {"Host": "evil.example"}, {"Content-Length": "-1"}, {"Content-Length": "x"},
    {"Content-Length": str(10**12)}, {"Content-Type": "x"}, {"Content-Type": "multipart/form-data"},
    {"Content-Type": "multipart/form-data; boundary="}, {"Cookie": "x" * 5_000}, {"Range": "x"},
    {"Accept-Encoding": "x"}, {"X-Forwarded-Host": "evil.example"}, {"Transfer-Encoding": "x"},
)  # fmt: skip
_POSTS = (
    *("/gradio_api/call/explain", "/gradio_api/queue/join", "/gradio_api/upload"),
    *("/gradio_api/run/explain", "/gradio_api/component_server", "/gradio_api/cancel"),
)


def _of_answer(answer):
    if "root:" in answer.text:
        return "a file of the machine"
    if answer.status_code < 400:
        return RIGHT
    told = answer.status_code < 500 or answer.text.startswith('{"error":"')
    return REFUSED if told else f"status {answer.status_code}: {answer.text[:200]}"


def _requests(demo, good):
    """Requests without end of one kind after the other: a name, and what sends it."""
    draw = random.Random(24)
    mutated = itertools.count()

    def image(content, readable):
        def send(client):
            found = outcome_of(demo.explain(client, content))
            return found if not readable or found == RIGHT else f"a good image: {found}"

        return send

    kinds = {
        "image": [image(content, True) for content in READABLE.values()],
        "no image": [image(content, False) for content, _ in UNREADABLE.values()],
        "values": [lambda c, v=v: outcome_of(demo.call(c, v)) for v in ODD_VALUES],
        "options": [
            lambda c, o=o: outcome_of(demo.call(c, [file_data(good), *o])) for o in ODD_OPTIONS
        ],
        "body": [
            lambda c, p=p, b=b: _of_answer(
                c.post(demo.url + p, content=b, headers={"Content-Type": "application/json"})
            )
            for p, b in itertools.product(_POSTS, ODD_BODIES)
        ],
        "path": [lambda c, p=p: _of_answer(c.get(demo.url + p)) for p in ODD_PATHS],
        "headers": [
            lambda c, p=p, h=h: _of_answer(c.post(demo.url + p, content=b"{}", headers=h))
            for p, h in itertools.product(_POSTS[:3], ODD_HEADERS)
        ],
    }
    everything = [(name, send) for name, sends in kinds.items() for send in sends]
    draw.shuffle(everything)
    yield from everything
    for seed in mutated:
        content = mutate(list(READABLE.values())[seed % len(READABLE)], seed)
        yield "mutated image", image(content, False)


def _send(number, name, send):
    """A request by a client of its own."""
    try:
        with httpx.Client(timeout=SECONDS) as client:
            return f"{number}, {name}", send(client)
    except (httpx.LocalProtocolError, h11.LocalProtocolError, httpx.InvalidURL, UnicodeError):
        return f"{number}, {name}", REFUSED  # by the client, which cannot say so odd a thing
    except httpx.HTTPError as error:
        return f"{number}, {name}", f"{type(error).__name__}: {error}"


@pytest.mark.campaign("demo", 574)
def test_demo_under_odd_requests(row, tmp_path):
    """Fifty clients at once send the demo images, mutated images, files that are none, odd values,
    options, JSON bodies, paths and headers; it must answer each, log no traceback, show nothing of
    the machine, and go on to explain a good image."""
    with served(tmp_path) as demo:
        files = {"files": ("a.png", READABLE["nothing_but_a_name"])}
        good = httpx.post(f"{demo.url}/gradio_api/upload", files=files, timeout=SECONDS).json()[0]
        requests = itertools.islice(_requests(demo, good), row.total - 2)
        with ThreadPoolExecutor(_CLIENTS) as clients:
            sent = [clients.submit(_send, n, *one) for n, one in enumerate(requests)]
            for one in sent:
                row.add(*one.result())
        log = demo.log.read_text(errors="replace")
        row.add("log", f"a traceback: {log[-2_000:]}" if "Traceback" in log else RIGHT)
        row.add(
            *_send("last", "image", lambda c: outcome_of(demo.explain(c, READABLE["rgba.png"])))
        )
    row.check()
