"""Notebooks as a learner meets them: JupyterLab in a real browser, all cells run, the widgets moved by keyboard.

Everything happens in a copy of the course, so that the notebooks in the repository stay as they are. Screenshots in
both themes go to out/browser.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

try:
    from playwright.sync_api import Locator, Page, sync_playwright
except ImportError:
    sync_playwright = None

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "phicourse"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
START = 120  # seconds that the server may take
PATIENCE = 120_000  # milliseconds for what takes one

pytestmark = pytest.mark.skipif(
    sync_playwright is None or CHROMIUM is None,
    reason="the browser is not tested: pip install playwright, apt install chromium",
)


# ---- a server and a browser for all tests ----------------------------------------------------------------


@pytest.fixture(scope="module")
def course(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the course, for JupyterLab saves what it runs."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(
        repository / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".*", "*.md")
    )
    (folder / "data").symlink_to(repository / "data")
    return folder


def environment(home: Path) -> dict[str, str]:
    """An environment in which nothing is written outside `home`, and in which widgets live."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PHICOURSE"))
    }
    folders = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MPLCONFIGDIR", "IPYTHONDIR")
    jupyter = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    own = {name: str(home / name.lower()) for name in (*folders, *jupyter)}
    return {**kept, **own, "HOME": str(home), "PHICOURSE_PROGRESS": "", "PYTHONNOUSERSITE": "1"}


def no_news(settings: Path) -> None:
    """Let JupyterLab neither look for news nor ask whether it may."""
    path = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}), encoding="utf-8")


def address_of(runtime: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the server answers, and return where: it chooses a free port itself and writes it down."""
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                address = str(json.loads(path.read_text(encoding="utf-8"))["url"])
                urlopen(f"{address}api/status?token={TOKEN}", timeout=5).close()
            except (URLError, json.JSONDecodeError):  # not yet there, not yet written
                continue
            return address
        time.sleep(0.3)
    raise TimeoutError("JupyterLab did not start")


@pytest.fixture(scope="module")
def lab(course: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running JupyterLab."""
    home = tmp_path_factory.mktemp("home")
    no_news(home / "settings")
    options = {
        "ServerApp.root_dir": course,
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": 0,
        "IdentityProvider.token": TOKEN,
        "LabApp.user_settings_dir": home / "settings",
        "LabApp.workspaces_dir": home / "workspaces",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--{name}={value}" for name, value in options.items()]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(home), cwd=course, stdout=log, stderr=log)
        try:
            yield address_of(home / "jupyter_runtime_dir", process)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def strangers() -> list[str]:
    """Addresses outside this machine that a page asked for."""
    return []


@pytest.fixture(scope="module")
def page(lab: str, strangers: list[str]) -> Iterator[Any]:
    """A page of the one browser; it reaches nothing but the server."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(PATIENCE)

        def only_ours(route: Any) -> None:
            if route.request.url.startswith((lab, "data:", "blob:")):
                route.continue_()
            else:
                strangers.append(route.request.url)
                route.abort()

        page.route("**/*", only_ours)
        yield page
        browser.close()


# ---- what a learner does ---------------------------------------------------------------------------------


def open_notebook(page: "Page", lab: str, name: str) -> None:
    """Load JupyterLab on a notebook and wait for its kernel."""
    page.goto(f"{lab}lab/tree/notebooks/{name}?token={TOKEN}&reset")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel")
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")


def run_all(page: "Page") -> None:
    """Run every cell, wait until the kernel has nothing left to do, and look for errors."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'")
    cells = page.evaluate("jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []


def cell_with(page: "Page", text: str) -> "Locator":
    """Scroll to the first code cell that has a text; JupyterLab draws only what is near."""
    number = page.evaluate(
        """async text => {
            const book = jupyterapp.shell.currentWidget.content;
            const at = book.widgets.findIndex(
                cell => cell.model.type === 'code' && cell.model.sharedModel.source.includes(text));
            book.activeCellIndex = at;
            await book.scrollToItem(at, 'start');
            return at;
        }""",
        text,
    )
    assert number >= 0, text
    return page.locator(f".jp-Cell[data-windowed-list-index='{number}']")


def use_theme(page: "Page", theme: str) -> None:
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    page.wait_for_selector(f"body[data-jp-theme-name='{theme}']", state="attached")


def picture(cell: "Locator") -> str:
    return cell.locator("img.widget-image").get_attribute("src") or ""


def press_on(control: "Locator", *keys: str) -> None:
    control.focus()
    for key in keys:
        control.press(key)


def move_microscope(cell: "Locator") -> None:
    slider = cell.locator(".noUi-handle")
    for number in (1, 2):
        press_on(slider, "ArrowRight")
        cell.get_by_text(f"byte {number}:").wait_for()


def move_quantizer(cell: "Locator") -> None:
    before = picture(cell)
    cell.locator(".widget-readout", has_text="0.80").wait_for()
    press_on(cell.locator(".noUi-handle").first, "ArrowRight", "ArrowRight")
    cell.locator(".widget-readout", has_text="0.82").wait_for()
    wait_until(lambda: picture(cell) != before)


def move_designer(cell: "Locator") -> None:
    before, said = picture(cell), cell.locator(".widget-html-content").inner_text()
    press_on(cell.locator(".noUi-handle").first, "ArrowRight")
    wait_until(lambda: picture(cell) != before)
    wait_until(lambda: cell.locator(".widget-html-content").inner_text() != said)


def move_map(cell: "Locator") -> None:
    """Choose another matrix, then another type: both need trials that were not made yet."""
    handles = cell.locator(".noUi-handle")
    for number in (1, 0):
        before, said = picture(cell), cell.locator(".widget-html-content").inner_text()
        press_on(handles.nth(number), "ArrowRight")
        wait_until(lambda: picture(cell) != before)  # noqa: B023  (it is called before the next turn)
        wait_until(lambda: cell.locator(".widget-html-content").inner_text() != said)  # noqa: B023


def wait_until(holds: Callable[[], bool]) -> None:
    """Look a few times a second, as long as the patience lasts."""
    end = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < end, "nothing changed"
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("notebook", "widgets"),
    [
        ("02_the_gguf_file_byte_by_byte", {"HexMicroscope": move_microscope}),
        ("07_blocks_q8_0_q4_0_q4_1_q5_0_q5_1", {"BlockQuantizer": move_quantizer}),
        ("09_mixtures_what_q4_k_m_means", {"SensitivityMap": move_map, "MixDesigner": move_designer}),
    ],
)
def test_a_notebook_runs_and_its_widgets_move_by_keyboard(
    page: Any,
    lab: str,
    repository: Path,
    notebook: str,
    widgets: dict[str, Callable[[Any], None]],
    strangers: list[str],
) -> None:
    open_notebook(page, lab, f"{notebook}.ipynb")
    run_all(page)
    for widget, move in widgets.items():
        move(cell_with(page, f"{widget}("))
    assert page.get_by_text("Error displaying widget").count() == 0
    for name, theme in THEMES.items():
        use_theme(page, theme)
        for widget in widgets:
            cell = cell_with(page, f"{widget}(")
            cell.locator(".jupyter-widgets").first.wait_for()
            shown = f"{notebook[:2]}-{widget}-{name}.png"
            page.screenshot(path=repository / "out" / "browser" / shown)
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert strangers == []
