"""The report's page in a real browser, where there is one."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.stages.test_report import make_whole_run, report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"phone": (500, 844), "desktop": (1280, 900)}  # 500 is the narrowest window that a headless Chromium opens
PATIENCE = 120  # seconds
MEASURE = "<script>document.body.dataset.over = document.documentElement.scrollWidth - window.innerWidth</script></body>"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    context = make_whole_run(tmp_path_factory.mktemp("browsed"))
    report(context)
    return context.layout.report_page


def loaded(browser: str, page: Path, profile: Path, size: tuple[int, int]) -> tuple[str, str]:
    """The page as the browser has it, and what the browser logged."""
    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--no-sandbox"]
    told = [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--enable-logging=stderr", "--dump-dom", page.as_uri()]
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
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_loads_without_a_console_message(browser: str, page: Path, tmp_path: Path, width: str) -> None:
    dom, log = loaded(browser, page, tmp_path / "profile", WIDTHS[width])
    assert "What training changed" in dom
    assert [line for line in log.splitlines() if "CONSOLE" in line] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_but_tables_is_wider_than_the_window(browser: str, page: Path, tmp_path: Path, width: str) -> None:
    measured = tmp_path / "measured.html"
    measured.write_text(page.read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8")
    dom, _ = loaded(browser, measured, tmp_path / "profile", WIDTHS[width])
    over = re.search(r'data-over="(-?\d+)"', dom)
    assert over is not None
    assert int(over[1]) <= 0
