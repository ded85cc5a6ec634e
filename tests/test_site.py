"""The site, where the extra `docs` is installed: without a warning, whole, right in a browser."""

import collections
import functools
import html.parser
import http.server
import pathlib
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest
from test_documentation import public

import jaxloss
import jaxloss.functional
import jaxloss.linen
import jaxloss.nnx

pytest.importorskip("furo", reason="the extra `docs` is not installed")
ROOT = pathlib.Path(__file__).parent.parent
DOORS = jaxloss, jaxloss.functional, jaxloss.nnx, jaxloss.linen
NAMES = [f"{door.__name__}.{name}" for door in DOORS for name, _ in public(door)]
WIDTHS = {"desktop": 1280, "phone": 390}


class Page(html.parser.HTMLParser):
    """What a page links to, the places in it, and its text."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.links, self.images, self.places, self.text = [], [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        given = collections.defaultdict(str, {name: value or "" for name, value in attrs})
        self.places.add(given["id"])
        self.links += [given[name] for name in ("href", "src") if given[name]]
        self.images += [given["src"]] * (tag == "img")

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {
        path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_page_with_an_example_and_a_picture_or_a_reason(pages, site, name):
    page = pages[site / "api" / f"{name}.html"]
    text = "".join(page.text)
    assert ">>> " in text
    assert "Source:" in text
    assert ("There is no picture of it: " in text) != any("_images" in src for src in page.images)


def test_links_lead_somewhere(pages, site):
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            to = urllib.parse.unquote(parts.path)
            target = (path.parent / to).resolve() if to else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in pages:
                anchor = urllib.parse.unquote(parts.fragment)
                assert anchor in pages[target].places, (path.name, link)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        # It is no package of Python: `.ci/run site` installs it, and says so if it cannot.
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as play:
        yield play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_pages_in_a_browser(browser, address, pages, site, width):
    tab = browser.new_page(viewport={"width": width, "height": 900})
    said = []
    tab.on("console", lambda message: said.append(message.text) if message.type == "error" else 0)
    tab.on("pageerror", lambda error: said.append(str(error)))
    for path in pages:
        tab.goto(f"{address}/{path.relative_to(site)}")
        assert said == [], path.name
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= width, path.name
        lost = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
        assert tab.evaluate(lost) == [], path.name
    tab.close()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("jaxloss.functional.cross_entropy", "api/jaxloss.functional.cross_entropy.html"),
        ("nnx.CTCLoss", "api/jaxloss.nnx.CTCLoss.html"),
        ("huber_loss", "api/jaxloss.huber_loss.html"),
    ],
)
def test_search_finds_names(browser, address, words, found):
    tab = browser.new_page()
    tab.goto(f"{address}/search.html?q={words}")
    tab.wait_for_selector("ul.search li a")
    links = tab.eval_on_selector_all("ul.search li a", "all => all.map(a => a.href)")
    assert any(f"/{found}" in link for link in links[:5]), links[:10]
    tab.close()
