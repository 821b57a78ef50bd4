"""The report in a real browser: no request, no console message, nothing wider than a phone.

Skipped where Chromium is not installed (Debian: apt-get install chromium).
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from components.eval import report
from tests.browser import BROWSER, OPTIONS
from tests.eval.conftest import make_sample
from tests.eval.test_report import HOSTILE, curved

pytestmark = pytest.mark.skipif(
    not BROWSER and not os.environ.get("CI"), reason="chromium is not installed"
)

# What the page measures of itself, run by the browser in a frame of a phone's width.
PROBE = """<!doctype html><iframe id="frame" style="border:0;width:{width}px;height:900px"
src="report.html"></iframe><pre id="out"></pre><script>
document.getElementById("frame").onload = event => {{
  const page = event.target.contentDocument;
  document.getElementById("out").textContent = JSON.stringify({{
    room: page.documentElement.clientWidth, width: page.documentElement.scrollWidth,
    scripts: page.scripts.length, alerted: !!window.alerted,
    smallest: Math.min(...[...page.querySelectorAll("svg text")].map(
      text => text.getBoundingClientRect().height)),
    bars: page.querySelectorAll("svg rect").length,
    shown: Object.fromEntries([...page.querySelectorAll("input")].map(button => {{
      button.parentElement.click();
      const articles = [...page.querySelectorAll("article")];
      return [button.id, articles.filter(one => one.getClientRects().length).length];
    }})),
  }});
}};</script>"""


def browse(address: str, scratch: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BROWSER, *OPTIONS, f"--user-data-dir={scratch / 'profile'}", *options, address],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["calm", "hostile"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {}
    if request.param == "hostile":
        fields = dict.fromkeys(("question", "generation", "answer"), HOSTILE * 2000)
        fields |= {
            "gold": [HOSTILE * 2000],
            "documents": [HOSTILE * 500, "w" * 100_000],
            "oracle_indices": [0],
        }
    samples = [
        make_sample(
            name, question_id=f"q{number}", contains=number % 3 > (name == "base"), **fields
        )
        for name in ("base", "raft")
        for number in range(9)
    ]
    folder = tmp_path_factory.mktemp(request.param)
    page = report.render(curved(), samples, None)
    (folder / "report.html").write_text(page, encoding="utf-8")
    return folder


def visit(page: Path, scratch: Path) -> tuple[set[str], str]:
    """What a page asks of the network, and what the console says.

    The browser asks a few things for itself; those have no page as their initiator.
    """
    log = scratch / "net.json"
    done = browse(
        f"file://{page}", scratch, f"--log-net-log={log}", "--enable-logging=stderr",
        "--virtual-time-budget=2000", "--dump-dom",
    )  # fmt: skip
    assert "</html>" in done.stdout
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    urls = {
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator", "not an origin") != "not an origin"
        and not event["params"].get("url", "file:").startswith("file:")
    }
    return urls, "\n".join(line for line in done.stderr.splitlines() if ":CONSOLE" in line)


def test_nothing_is_requested_and_the_console_is_silent(folder: Path, tmp_path: Path) -> None:
    assert visit(folder / "report.html", tmp_path) == (set(), "")


def test_a_request_and_a_message_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing()</script>')
    urls, console = visit(page, tmp_path)
    assert urls == {"http://127.0.0.1:9/x.png"}
    assert "nothing is not defined" in console


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_a_phone_and_its_figure_is_readable(
    folder: Path, tmp_path: Path, width: int
) -> None:
    (folder / "probe.html").write_text(PROBE.format(width=width), encoding="utf-8")
    done = browse(
        f"file://{folder}/probe.html", tmp_path, "--allow-file-access-from-files",
        "--virtual-time-budget=3000", "--dump-dom",
    )  # fmt: skip
    probe = json.loads(done.stdout.split('<pre id="out">')[1].split("</pre>")[0])
    assert probe["room"] <= width and probe["width"] <= probe["room"], "no sideways scrolling"
    assert probe["scripts"] == 0 and not probe["alerted"]
    assert probe["bars"] == 2 and probe["smallest"] >= 10
    assert probe["shown"] == {
        "outcome-0": 9, "outcome-1": 0, "outcome-2": 3, "outcome-3": 3, "outcome-4": 3,
    }  # fmt: skip
