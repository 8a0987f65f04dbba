"""The page's server: 127.0.0.1 only, one computation at a time, every mistake one line.

An answer to POST is JSON lines, sent as they are ready; ``{"error": ...}`` is the last one of what failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.runtime import in_one_line, one_line

if TYPE_CHECKING:
    from flask import Flask

    from common.app.play import Player, Say

HOST = "127.0.0.1"
HERE = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds that a question waits for the one before it
POLICY = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
BUSY = "busy: another computation is running; try again when it has ended"


class Gone(Exception):
    """Nobody listens any more."""


class OneAtATime:
    """Runs computations in one thread, one after the other; that of who has hung up ends."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._worker, self._free = ThreadPoolExecutor(1), threading.Lock()
        self._end, self._gone = threading.Event(), threading.Event()
        self._away: Callable[[], bool] = self._end.is_set

    def check(self) -> None:
        """Raises Gone inside a computation that nobody waits for."""
        if self._gone.is_set() or self._end.is_set() or self._away():
            raise Gone

    def lines(self, work: Callable[[Say], object], away: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """The lines that a computation says, as it says them; one line of error where it fails or has no turn.

        ``away`` says whether who asked has hung up.
        """
        if not self._free.acquire(timeout=self.patience):
            yield {"error": BUSY}
            return
        said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        gone, self._away = threading.Event(), away
        self._gone = gone

        def say(line: dict[str, Any]) -> None:
            self.check()
            said.put(line)

        def job() -> None:
            try:
                work(say)
            except Gone:
                pass
            except Exception as error:
                said.put({"error": told(error)})
            finally:
                self._free.release()
                said.put(None)

        self._worker.submit(job)
        try:
            yield from iter(said.get, None)
        finally:
            gone.set()

    def close(self) -> None:
        """End what is running."""
        self._end.set()
        self._worker.shutdown(cancel_futures=True)


def hung_up(connection: socket.socket) -> bool:
    """Whether the other end has closed a connection on which it has nothing more to say."""
    return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(1, socket.MSG_PEEK)


def told(error: Exception) -> str:
    """The page's line for an error, without the dashes of flags; of one of ours the terminal gets the traceback."""
    if (line := one_line(error)) is None:
        traceback.print_exception(error)
        return f"a mistake of the program, its terminal says more: {type(error).__name__}: {in_one_line(error)}"
    return re.sub(r"--(?=[a-z])", "", line)


def application(player: Player, turns: OneAtATime) -> Flask:
    """The page and its four questions as a Flask application."""
    from flask import Flask, Response, request
    from werkzeug.exceptions import Forbidden, HTTPException

    from common.app.play import MOST_BYTES, wish_of

    app = Flask("common.app", static_folder=None)
    player.evaluating = turns.check
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES + 10_000, TRUSTED_HOSTS=[HOST, "localhost"])

    @app.before_request
    def refuse_other_pages() -> None:
        """A page from elsewhere in the same browser could ask, too."""
        if request.headers.get("Origin", request.host_url.rstrip("/")) != request.host_url.rstrip("/"):
            raise Forbidden("only this server's own page may ask")

    @app.after_request
    def protect(response: Response) -> Response:
        own = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        response.headers.update(own)
        return response

    @app.errorhandler(HTTPException)
    def one_line_of(error: HTTPException) -> tuple[dict[str, str], int]:
        large = f"the picture has more than {MOST_BYTES // 10**6} MB: give a smaller one"
        return {"error": large if error.code == 413 else error.description or ""}, error.code or 500

    @app.get("/")
    def page() -> Response:
        return Response((HERE / "page.html").read_text(encoding="utf-8"), mimetype="text/html")

    @app.get("/page.js")
    def script() -> Response:
        return Response((HERE / "page.js").read_text(encoding="utf-8"), mimetype="text/javascript")

    @app.get("/weights")
    def weights() -> dict[str, Any]:
        return {"weights": list(player.entries), "most_bytes": MOST_BYTES}

    @app.post("/<any(about, sample, between, invert):what>")
    def answer(what: str) -> Response:
        data, words = (), request.get_data(as_text=True) if what != "invert" else request.form.get("wish", "")
        if what == "invert":
            data = (request.files["picture"].read() if "picture" in request.files else b"",)

        def work(say: Say) -> None:
            getattr(player, what)(wish_of(json.loads(words)), *data, say)

        lines = turns.lines(work, partial(hung_up, request.environ["werkzeug.socket"]))
        first = next(lines, {"error": BUSY})  # nothing: it was ended before its first line
        status = 200 if "error" not in first else 503 if first["error"] == BUSY else 400
        body = (json.dumps(line) + "\n" for line in chain([first], lines))
        return Response(body, status, mimetype="application/x-ndjson")

    return app


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A port of this machine, held before anything slow is done.

    Raises:
        ValueError: it is taken, or Flask is missing.
    """
    try:
        import flask  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError("the page needs Flask, which is not installed: pip install flask") from error
    try:
        door = socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ValueError(f"--port {port}: {reason}; give another one, or 0 for any free one") from error
    with door:
        yield door


def server_of(door: socket.socket, player: Player, patience: float = PATIENCE) -> Any:
    """The page's server on an open port; ``serve_forever()`` runs it, ``end()`` ends what it computes."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    turns = OneAtATime(patience)
    app = application(player, turns)
    server: Any = make_server(HOST, door.getsockname()[1], app, True, request_handler=Quiet, fd=door.fileno())
    server.end = turns.close
    return server


def serve(door: socket.socket, player: Player, browser: bool) -> None:
    """Answer until Ctrl-C, which ends what is running."""
    import webbrowser

    server, address = server_of(door, player), f"http://{HOST}:{door.getsockname()[1]}"
    print(f"{len(player.entries)} weights; open {address}  (Ctrl-C ends it)", flush=True)
    if browser:
        threading.Timer(0.2, webbrowser.open, (address,)).start()
    try:
        server.serve_forever()  # until Ctrl-C
    finally:
        server.end()
    print("stopped")
