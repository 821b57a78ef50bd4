"""A page in Chromium: driven through its devtools protocol, as a person would with the mouse."""

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
"""Its program; "" where none is installed (Debian: apt-get install chromium)."""
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECONDS = 60


class Tab:
    """A page that is open.

    Args:
        socket: the connection to its devtools.
        downloads: an empty folder, for the files that it saves.
    """

    def __init__(self, socket: Any, downloads: Path) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._downloads = downloads
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a method of the protocol; events in between are dropped."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (reply := json.loads(self._socket.recv())).get("id") != number:
            pass
        assert "error" not in reply, reply
        result: dict[str, Any] = reply["result"]
        return result

    def run(self, script: str) -> Any:
        """The value of a script."""
        done = self.call("Runtime.evaluate", expression=script, userGesture=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def download(self, script: str) -> Path:
        """The file that a script makes the page save."""
        self.run(script)
        for _ in range(SECONDS * 20):
            files = [*self._downloads.iterdir()]
            if files and files[0].suffix != ".crdownload":
                return files[0]
            time.sleep(0.05)
        raise AssertionError("the page saved no file")


@contextmanager
def opened(page: Path, scratch: Path) -> Iterator[Tab]:
    """A page of this machine in a browser of its own, which keeps its files in `scratch`."""
    import websocket

    profile, downloads = scratch / "profile", scratch / "downloads"
    downloads.mkdir()
    process = subprocess.Popen(
        [BROWSER, *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={profile}",
         page.as_uri()],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = _devtools(process, profile / "DevToolsActivePort", page)
        with closing(
            websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        ) as socket:
            tab = Tab(socket, downloads)
            # A tab has the address of a page before it has the page.
            while tab.run("location.href + document.readyState") != page.as_uri() + "complete":
                time.sleep(0.05)
            yield tab
    finally:
        process.terminate()
        process.wait(SECONDS)


def _devtools(process: subprocess.Popen[bytes], port_file: Path, page: Path) -> str:
    """The address of the page's devtools, once the browser has opened it."""
    for _ in range(SECONDS * 20):
        assert process.poll() is None, "the browser ended"
        if port_file.is_file() and (port := port_file.read_text().split("\n")[0]):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as response:
                for target in json.load(response):
                    if target["url"] == page.as_uri():
                        return str(target["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise AssertionError("the browser opened no page")
