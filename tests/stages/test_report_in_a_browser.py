"""The pages of report and compare in a real browser, where there is one."""

import os
import re
import shutil
import signal
import subprocess
from html import escape
from pathlib import Path

import pytest

from soka_cli.stages.compare import compare
from tests.stages.test_report import make_whole_run, report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"phone": 390, "desktop": 1280}
WINDOW = (1400, 900)  # the narrowest that a headless Chromium opens is 500, so the page lies in a frame of its width
PATIENCE = 120  # seconds
MEASURE = "<script>parent.document.body.dataset.over = document.documentElement.scrollWidth - window.innerWidth</script></body>"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    contexts = [make_whole_run(tmp_path_factory.mktemp(name)) for name in ("browsed", "beside")]
    report(contexts[0])
    compared = compare([context.layout.root for context in contexts], out=tmp_path_factory.mktemp("pages") / "comparison", unfair=True)
    return {"report": contexts[0].layout.report_page, "compare": Path(compared.figures["page"])}


def framed(page: Path, folder: Path, width: int) -> Path:
    """A page that shows the other one in a frame of this width, and has on its body how far that one's content goes beyond it."""
    inner = page.read_text(encoding="utf-8").replace("</body>", MEASURE)
    outer = folder / "framed.html"
    outer.write_text(f'<!DOCTYPE html><body><iframe width={width} height=844 srcdoc="{escape(inner)}"></iframe></body>', encoding="utf-8")
    return outer


def loaded(browser: str, page: Path, profile: Path) -> tuple[str, str]:
    """The page as the browser has it, and what the browser logged."""
    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--no-sandbox"]
    told = [f"--user-data-dir={profile}", f"--window-size={WINDOW[0]},{WINDOW[1]}", "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    process = subprocess.Popen(
        [browser, *options, *told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    try:
        dom, log = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert process.returncode == 0, log
    return dom, log


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heading"), [("report", "What training changed"), ("compare", "Parameters against results")])
def test_the_page_loads_without_a_console_message(browser: str, pages: dict[str, Path], tmp_path: Path, name: str, heading: str) -> None:
    dom, log = loaded(browser, pages[name], tmp_path / "profile")
    assert heading in dom
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "compare"])
def test_nothing_but_tables_is_wider_than_the_window(browser: str, pages: dict[str, Path], tmp_path: Path, name: str, width: str) -> None:
    dom, _ = loaded(browser, framed(pages[name], tmp_path, WIDTHS[width]), tmp_path / "profile")
    over = re.search(r'<body data-over="(-?\d+)"', dom)
    assert over is not None
    assert int(over[1]) <= 0
