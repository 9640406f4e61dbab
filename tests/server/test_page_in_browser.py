"""The page in a browser, Debian's chromium: both bars against what the destination has counted, and every way out."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.access import new_key
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import ask, eventually
from tests.support.slow_destination import SOCKETS_BYTES, SlowDestination

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (make system-packages)"),
]

MIB = 1 << 20
ROUTES = [{"path": "/upload", "parts": [{"sinks": ["disk", "api"]}]}]
PAGE = {"enabled": True}
SHOTS = Path(os.environ["GATEWAY_SCREENSHOTS"]) if "GATEWAY_SCREENSHOTS" in os.environ else None
"""Where pictures of each state are put; nowhere, unless somebody asks (`make screenshots`)."""
READ_STATE = """() => [...document.querySelectorAll('#queue li')].map((li) => ({
    state: li.className,
    said: li.querySelector('.state').textContent,
    files: [...li.querySelectorAll('.file')].map((file) => ({
        name: file.querySelector('.name a').textContent,
        sent: file.querySelector('progress.sent').value,
        safe: file.querySelector('progress.safe').value,
        verified: file.querySelector('.verified').textContent,
        problem: file.querySelector('.problem').hidden ? '' : file.querySelector('.problem').textContent,
        href: file.querySelector('.name a').getAttribute('href'),
    })),
}))"""
AXE = (
    """async (rules) => (await axe.run(rules)).violations.map((one) => [one.id, one.nodes.map((node) => node.html)])"""
)


class CutConnection:
    """Between a browser and the gateway: `cut` ends whatever is open, and lets nobody in until `mend`."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._open: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self.port = 0

    @asynccontextmanager
    async def served(self) -> AsyncIterator[CutConnection]:
        server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.cut()
            server.close()

    def cut(self) -> None:
        self._is_cut = True
        for writer in list(self._open):
            writer.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._behind)
        self._open |= {writer, behind}
        async with asyncio.TaskGroup() as both:
            both.create_task(self._copy(reader, behind))
            both.create_task(self._copy(behind_reader, writer))
        self._open -= {writer, behind}

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 18):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.transport.abort() if writer.transport.is_closing() else writer.close()


class Shown:
    """The page, as one sees it."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        """What the browser complains about, breaches of its policy among that."""
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    async def choose(self, *files: Path) -> None:
        await self.page.set_input_files("#files", list(map(str, files)))

    async def uploads(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.page.evaluate(READ_STATE)
        return found

    async def until(self, *states: str) -> list[dict[str, Any]]:
        """What is shown when each upload is in its state."""
        script = "(all) => [...document.querySelectorAll('#queue li')].map((li) => li.className).join() === all"
        await self.page.wait_for_function(script, arg=",".join(states), timeout=20_000, polling=50)
        return await self.uploads()

    async def verified(self, count: int = 1) -> None:
        """So many files were compared with what is kept."""
        script = (
            "(count) => [...document.querySelectorAll('.verified')].filter((one) => one.innerText).length === count"
        )
        await self.page.wait_for_function(script, arg=count, timeout=10_000)
        assert await self.page.evaluate("document.querySelectorAll('.verified.wrong').length") == 0

    async def check(self, name: str) -> None:
        """Nothing that axe complains about, be it light or dark; and a picture, where somebody wants them."""
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text("utf-8"))
        for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
            await self.page.emulate_media(color_scheme=scheme)
            assert await self.page.evaluate(AXE, rules) == [], scheme
            for width, device in ((760, "desktop"), (360, "phone")) if SHOTS is not None else ():
                await self.page.set_viewport_size({"width": width, "height": 560})
                await self.page.evaluate(
                    "document.querySelector('#queue').lastElementChild?.scrollIntoView({block: 'end'})"
                )
                await self.page.screenshot(path=f"{SHOTS}/page-{name}-{device}-{scheme}.png")


@asynccontextmanager
async def browser(**options: Any) -> AsyncIterator[Any]:
    """A context of a browser of its own."""
    async with playwright.async_playwright() as running:
        chromium = await running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield await chromium.new_context(viewport={"width": 760, "height": 560}, **options)
        await chromium.close()


@asynccontextmanager
async def shown(url: str, **options: Any) -> AsyncIterator[Shown]:
    """The page at that address."""
    async with browser(**options) as context:
        page = Shown(await context.new_page())
        await page.page.goto(url)
        yield page


@pytest.fixture
async def destination(start_destination: StartDestination) -> AsyncIterator[SlowDestination]:
    double = SlowDestination()
    double.url = (await start_destination(double.app)).url + "/upload"
    yield double
    double.answers.set()


@pytest.fixture
async def gateway(start_gateway: StartGateway, destination: SlowDestination) -> RunningGateway:
    return await start_gateway(api=destination.url, routes=ROUTES, page=PAGE)


def made(tmp_path: Path, name: str, size: int) -> Path:
    path = tmp_path / name
    path.write_bytes(os.urandom(min(size, MIB)) * max(1, size // MIB))
    return path


async def test_the_second_bar_is_what_the_destination_has_and_is_full_when_it_is_safe(
    gateway: RunningGateway, destination: SlowDestination, tmp_path: Path
) -> None:
    sizes = {"small.txt": 1024, "middle.bin": 5 * MIB, "large.bin": 200 * MIB}
    files = [made(tmp_path, name, size) for name, size in sizes.items()]
    async with shown(f"{gateway.url}/page/upload") as page:
        await page.check("empty")
        await page.choose(*files[:2])
        await page.until("kept", "kept")
        await page.verified(2)
        before = destination.read_bytes
        destination.answers.clear()
        await page.choose(files[2])
        seen: list[tuple[int, int]] = []
        while destination.completed < 3:
            (file,) = (await page.uploads())[2]["files"]
            seen.append((file["sent"], file["safe"]))
            has_read = destination.read_bytes - before
            assert file["safe"] / 100 * sizes["large.bin"] <= has_read + SOCKETS_BYTES
            if len(seen) == 30:
                await page.check("sending")
            await asyncio.sleep(0.1)
        # all of it is there, and it is not safe yet: nobody has said so
        await page.page.wait_for_function("document.querySelectorAll('progress.safe')[2].value === 99")
        (last,) = (await page.uploads())[2]["files"]
        assert (last["sent"], last["safe"]) == (100, 99)
        assert any(sent > safe + 3 for sent, safe in seen)
        assert sorted(seen) == seen
        await page.check("committing")
        destination.answers.set()
        uploads = await page.until("kept", "kept", "kept")
        assert uploads[2]["files"][0]["safe"] == 100
        assert uploads[2]["said"] == "Safe in disk, api"
        assert uploads[2]["files"][0]["verified"] == ""  # too large for that
        await page.check("safe")
        assert page.errors == []
    assert (await ask(gateway.port, uploads[1]["files"][0]["href"])).body == files[1].read_bytes()


async def test_what_is_cancelled_leaves_nothing_and_is_tried_again(
    gateway: RunningGateway, destination: SlowDestination, tmp_path: Path
) -> None:
    async with shown(gateway.url) as page:
        await page.choose(made(tmp_path, "a.bin", 24 * MIB))
        await eventually(lambda: destination.read_bytes > 2 * MIB)
        await page.page.click(".cancel")
        (upload,) = await page.until("cancelled")
        assert upload["said"] == "Cancelled. Nothing was kept."
        await page.check("cancelled")
        await eventually(lambda: gateway.stored() == [] and gateway.services.gate.in_flight == 0)
        assert destination.completed == 0
        destination.bytes_per_second = 200_000_000
        await page.page.click(".retry")
        await page.until("kept")
        await page.verified()


async def test_a_destination_that_fails_is_told_on_the_file_and_a_retry_works(
    gateway: RunningGateway, destination: SlowDestination, tmp_path: Path
) -> None:
    destination.status = 503
    async with shown(gateway.url, locale="de-DE") as page:
        await page.choose(made(tmp_path, "a.bin", MIB))
        (upload,) = await page.until("failed")
        assert upload["files"][0]["problem"] == "Am Ziel wurde es abgelehnt. (sink api answered 503)"
        assert (upload["said"], upload["files"][0]["safe"]) == ("Gescheitert. Nichts ist geblieben.", 0)
        await page.check("failed")
        assert gateway.stored() == []
        destination.status = 200
        await page.page.click(".retry")
        (upload,) = await page.until("kept")
        assert (upload["files"][0]["problem"], upload["said"]) == ("", "Sicher in disk, api")


async def test_when_the_network_is_cut_the_page_asks_what_became_of_it(
    gateway: RunningGateway, destination: SlowDestination, tmp_path: Path
) -> None:
    async with CutConnection(gateway.port).served() as between, shown(f"http://127.0.0.1:{between.port}/") as page:
        await page.choose(made(tmp_path, "a.bin", 24 * MIB))
        await eventually(lambda: destination.read_bytes > 2 * MIB)
        between.cut()
        await page.until("asking")
        await page.check("asking")
        between.mend()
        (upload,) = await page.until("failed")
        assert "The connection ended before all had come." in upload["files"][0]["problem"]
        assert gateway.stored() == []
        # the whole of it has come, and it is only the answer that gets lost: it is safe, and is shown to be
        destination.bytes_per_second = 200_000_000
        destination.answers.clear()
        await page.page.click(".retry")
        await eventually(lambda: destination.completed == 1)
        between.cut()
        await page.until("asking")
        destination.answers.set()
        await eventually(lambda: gateway.services.gate.in_flight == 0)
        between.mend()
        await page.until("kept")
        await page.verified()


UNKNOWN = "The connection was lost. What became of it is not known."


async def test_what_cannot_be_found_out_is_not_said_to_be_nothing(
    start_gateway: StartGateway, destination: SlowDestination, tmp_path: Path
) -> None:
    secret, line = new_key("ci", ("upload",))  # it is not for reading
    (tmp_path / "keys.toml").write_text(line)
    gateway = await start_gateway(
        api=destination.url,
        access={"keys": {"file": str(tmp_path / "keys.toml")}},
        routes=[
            {"path": path, "access": ["keys"], "parts": [{"sinks": ["disk", "api"]}]}
            for path in ("/upload", "/proxy", "/convert")
        ],
        page=PAGE,
    )
    async with CutConnection(gateway.port).served() as between, shown(f"http://127.0.0.1:{between.port}/") as page:
        await page.page.fill("#key", secret)
        await page.page.press("#key", "Enter")
        destination.answers.clear()
        await page.choose(made(tmp_path, "a.bin", MIB))
        await eventually(lambda: destination.completed == 1)
        between.cut()
        await page.until("asking")
        destination.answers.set()
        await eventually(lambda: gateway.services.gate.in_flight == 0)
        assert len(gateway.stored()) > 0
        between.mend()
        (upload,) = await page.until("failed")
        assert upload["said"] == UNKNOWN
        assert upload["files"][0]["problem"].startswith("This key is not for that.")


@pytest.mark.parametrize(
    ("is_known", "state", "said"),
    [(True, "kept", "Safe in disk, api"), (False, "failed", "Failed. Nothing was kept.")],
)
async def test_a_proxy_that_answers_for_the_gateway_is_not_believed(
    gateway: RunningGateway, tmp_path: Path, is_known: bool, state: str, said: str
) -> None:
    async def answer(route: Any) -> None:
        if is_known:
            await route.fetch()
        await route.fulfill(status=504, body="<h1>Gateway Time-out</h1>", content_type="text/html")

    async with shown(gateway.url) as page:
        await page.page.route("**/upload", answer)
        await page.choose(made(tmp_path, "a.bin", 1000))
        (upload,) = await page.until(state)
        problem = "" if is_known else "Passed on; the answer was 504"
        assert (upload["said"], upload["files"][0]["problem"]) == (said, problem)


async def test_a_gateway_that_only_says_later_is_no_answer_either(gateway: RunningGateway, tmp_path: Path) -> None:
    """A minute later, by the page's clock, it may have forgotten."""
    statuses = [503, 429, 404]

    async def tell(route: Any) -> None:
        await route.fulfill(status=statuses.pop(0) if len(statuses) > 1 else statuses[0], json={"title": "?"})

    async with shown(gateway.url) as page:
        await page.page.evaluate("() => { let now = 0; Date.now = () => (now += 60000); }")
        await page.page.route("**/upload", lambda route: route.abort())
        await page.page.route("**/uploads/**", tell)
        await page.choose(made(tmp_path, "a.bin", 1000))
        (upload,) = await page.until("failed")
        assert (upload["said"], upload["files"][0]["problem"]) == (UNKNOWN, "")
        assert len(statuses) == 1


async def test_below_a_path_of_its_own_and_with_a_key_files_are_had_by_signed_links(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    secret, line = new_key("ci", ("upload", "read"))
    (tmp_path / "keys.toml").write_text(line)
    gateway = await start_gateway(
        server={"base_path": "/gw"},
        access={"keys": {"file": str(tmp_path / "keys.toml")}},
        routes=[
            {"path": path, "access": ["keys"], "parts": [{"sinks": ["disk"]}]}
            for path in ("/upload", "/proxy", "/convert")
        ],
        page=PAGE,
    )
    folder = tmp_path / "photos"
    (folder / "2026").mkdir(parents=True)
    one, two = made(folder, "one.jpg", 1000), made(folder / "2026", "two.jpg", 2000)
    async with shown(f"{gateway.url}/gw/page/upload") as page:
        await page.check("key")
        await page.page.set_input_files("#folder", str(folder))
        await page.page.fill("#key", "gw_" + "0" * 40)
        await page.page.press("#key", "Enter")
        (upload,) = await page.until("failed")
        assert "A valid key is needed." in upload["files"][0]["problem"]
        await page.page.fill("#key", secret)
        await page.page.press("#key", "Enter")
        await page.page.click(".retry")
        (upload,) = await page.until("kept")
        names = {file["name"]: file["href"] for file in upload["files"]}
        assert names.keys() == {"photos/one.jpg", "photos/2026/two.jpg"}
        assert all(href.startswith("/gw/files/") for href in names.values())
        await page.check("folder")
        for link, file in (("photos/one.jpg", one), ("photos/2026/two.jpg", two)):
            async with page.page.expect_download() as download:
                await page.page.click(f"text={link}")
            assert Path(await (await download.value).path()).read_bytes() == file.read_bytes()
        async with page.page.expect_download() as download:
            await page.page.click(".archive")
        assert (await download.value).url.startswith(f"{gateway.url}/gw/uploads/")
        assert await page.page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
        assert [error for error in page.errors if "401" not in error] == []


async def test_files_are_chosen_by_keyboard_dropped_and_pasted(gateway: RunningGateway, tmp_path: Path) -> None:
    give = """(kind) => {
        const data = new DataTransfer();
        data.items.add(new File([kind], `${kind}.txt`));
        const more = { bubbles: true, clipboardData: data, dataTransfer: data };
        document.body.dispatchEvent(kind === 'paste' ? new ClipboardEvent(kind, more) : new DragEvent(kind, more));
    }"""
    async with shown(gateway.url) as page:
        choosers: list[Any] = []
        page.page.on("filechooser", lambda chooser: choosers.append(chooser))
        while await page.page.evaluate("document.activeElement.id") != "files":
            await page.page.keyboard.press("Tab")
        await page.page.keyboard.press("Enter")
        await eventually(lambda: choosers)
        await choosers[0].set_files(str(made(tmp_path, "a.txt", 10)))
        await page.until("kept")
        await page.page.evaluate(give, "drop")
        await page.page.evaluate(give, "paste")
        uploads = await page.until("kept", "kept", "kept")
        assert [upload["files"][0]["name"] for upload in uploads] == ["a.txt", "drop.txt", "paste.txt"]
        assert page.errors == []


async def test_without_javascript_it_is_a_form_that_is_answered_with_a_page(
    gateway: RunningGateway, destination: SlowDestination, tmp_path: Path
) -> None:
    file = made(tmp_path, "<b>a.txt", 1000)
    async with shown(gateway.url, java_script_enabled=False) as page:
        await page.choose(file)
        await page.page.click("#send")
        assert await page.page.text_content("h1") == "Safe"
        async with page.page.expect_download() as download:
            await page.page.click("li a")
        assert Path(await (await download.value).path()).read_bytes() == file.read_bytes()
        destination.status = 500
        await page.page.click("text=Send more")
        await page.choose(file)
        await page.page.click("#send")
        assert await page.page.text_content("h1") == "Failed. Nothing was kept."
        assert "Where it should go, it was refused." in await page.page.text_content(".problem")
        assert page.errors == ["Failed to load resource: the server responded with a status of 502 (Bad Gateway)"]
