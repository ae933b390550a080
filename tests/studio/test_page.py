"""The studio's page in a real browser, over small untrained models: one server and one browser for all tests."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from diptych.models.latent_diffusion import LatentDiffusion
from diptych.serving.addresses import listen, read_address
from diptych.studio.application import studio_application
from diptych.studio.engine import Engine, Follower
from diptych.studio.history import History
from diptych.studio.model_pool import ModelPool
from diptych.studio.prompt_check import check_prompt
from tests.browser import Browser, browser, chromium
from tests.encoders.test_layout import CLASSES, reader
from tests.models import latents, stages
from tests.models.latents import same_image
from tests.networks.reference import randomised

PAGES = resources.files("diptych.studio") / "pages"
SCRIPT = '<img src=x onerror="alert(1)"> & <script>alert(2)</script>'
TOKEN = "0123456789abcdefABCDEF"
HELPERS = """
window.fill = (selector, value) => {
  const field = document.querySelector(selector);
  field.value = value;
  for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, { bubbles: true }));
};
window.press = (text, within = document) =>
  [...within.querySelectorAll("button")]
    .find((one) => one.textContent.startsWith(text) && !one.closest("[hidden]")).click();
window.option = (name) => `[data-field=${name}] :is(input[type=text], select)`;
window.idle = () => document.getElementById("hero").getAttribute("aria-busy") !== "true";
window.shown = () => document.querySelector(".frame img")?.getAttribute("src") ?? "";
window.dropped = async (url, target) => {
  const data = new DataTransfer();
  data.items.add(new File([await (await fetch(url)).blob()], "image.png", { type: "image/png" }));
  const send = (name, at) =>
    at.dispatchEvent(new DragEvent(name, { bubbles: true, cancelable: true, dataTransfer: data }));
  send("dragenter", document.body);
  send("drop", document.querySelector(target));
};
"""


def layout_model() -> LatentDiffusion:
    """Reads boxes of "dog", "red house" and "tree"."""
    text = reader()
    model = LatentDiffusion(latents.config(text.config), latents.autoencoder(), text)
    randomised(model.unet, seed=2)
    return model.eval()


class Studio:
    """A server in a thread of this process, for one folder."""

    def __init__(self, folder: Path, token: str | None = None) -> None:
        import uvicorn

        models: dict[str, Any] = {"latent": latents.system, "cascade": stages.cascade, "layout": layout_model}
        self.history = History(folder)
        pool = ModelPool({name: name for name in models}, lambda source: models[source]())
        self.engine = Engine(pool, self.history)
        self.engine.start()
        self.listening, address = listen(read_address("127.0.0.1", 0))
        self.url = f"{address.url}/"
        application: Any = studio_application(self.engine, address, token)
        config = uvicorn.Config(application, log_level="error", ws="none", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listening]})
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.engine.close()
        self.history.close()
        self.listening.close()

    def latest(self) -> dict[str, Any]:
        return self.history.images(limit=1)[0]

    def pixels(self, id: str) -> np.ndarray:
        path = self.history.png(id)
        assert path is not None
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Jobs of a thousand steps take their time: no test races with their end."""
    chromium()
    follow = Follower.__call__

    def slowly(self: Follower, step: int, steps: int, x0: Any) -> None:
        time.sleep(0.01 if steps >= 1000 else 0)
        follow(self, step, steps, x0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Follower, "__call__", slowly)
        made = Studio(tmp_path_factory.mktemp("page"))
        yield made
        made.close()


@pytest.fixture(scope="module")
def page(studio: Studio) -> Iterator[Browser]:
    with browser() as made:
        made.call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)
        made.open(studio.url)
        ready(made)
        yield made
        assert {url.split("/")[2] for url in made.requests if url.startswith("http")} == {studio.url.split("/")[2]}
        assert [error for error in made.errors if " 422 " not in error] == []
        assert made.dialogs == 0


def ready(page: Browser) -> None:
    page.wait("document.documentElement.dataset.ready")


def generate(page: Browser, studio: Studio) -> dict[str, Any]:
    """Press Enter in the prompt, and wait for the images; the row of the last one."""
    before = studio.history.images(limit=1)
    page.run("document.getElementById('prompt').focus()")
    page.key("Enter")
    end = time.monotonic() + 30
    while (latest := studio.history.images(limit=1)) == before:
        assert time.monotonic() < end, page.text()
        time.sleep(0.02)
    page.wait(f"idle() && shown().includes('{latest[0]['id']}') && document.querySelector('.caption button')")
    return latest[0]


def centre(page: Browser, selector: str) -> SimpleNamespace:
    box = page.run(f"JSON.stringify(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")
    return SimpleNamespace(**json.loads(box))


def drag(page: Browser, selector: str, *places: tuple[float, float]) -> None:
    """Press at the first place of an element, in fractions of it, and release at the last."""
    page.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{ block: 'center' }})")
    box = centre(page, selector)
    kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
    for kind, (x, y) in zip(kinds, [*places, places[-1]], strict=True):
        page.call(
            "Input.dispatchMouseEvent", type=kind, x=box.x + x * box.width, y=box.y + y * box.height, button="left",
            buttons=1, clickCount=1,
        )  # fmt: skip


def test_enter_generates_the_example_with_previews_and_steps_to_scrub(page: Browser, studio: Studio) -> None:
    page.run(
        "window.sources = []; new MutationObserver(() => sources.push(shown().slice(0, 5)))"
        ".observe(document.getElementById('hero'), { subtree: true, childList: true, attributeFilter: ['src'] })"
    )
    row = generate(page, studio)
    assert row["prompt"] == "a red apple" == page.run("document.querySelector('.caption .prompt-words').textContent")
    assert str(row["seed"]) == page.run("document.getElementById('seed').value")
    assert "data:" in page.run("sources")  # estimates came before the image
    page.wait("!document.querySelector('.strip').hidden")
    steps = studio.history.strip(row["id"])
    assert page.run("Number(document.getElementById('scrubber').max)") == len(steps) - 1 > 0
    page.run("document.getElementById('scrubber').focus()")
    page.key("ArrowLeft")
    page.wait("shown().startsWith('data:')")
    assert page.run("shown()") == steps[-2]["preview"]
    shown = page.run("document.querySelector('.charts figure.guidance_delta strong').textContent")
    assert float(shown.removesuffix(" %")) == pytest.approx(100 * steps[-2]["guidance_delta"], abs=0.051)
    page.key("ArrowRight")
    page.wait("shown().endsWith('.png')")


def test_markup_in_a_prompt_stays_text(page: Browser, studio: Studio) -> None:
    page.run(f"fill('#prompt', {json.dumps('a ' + SCRIPT)}); fill(option('long_prompts'), 'cut')")
    generate(page, studio)
    page.wait("document.querySelector('.caption .prompt-words')?.textContent.includes('onerror')")
    assert page.run("document.querySelector('.caption .prompt-words').textContent") == f"a {SCRIPT}"
    page.run("location.hash = '#/gallery'")
    page.wait("document.querySelector('.card-words')?.textContent.includes('onerror')")
    assert page.run("document.querySelectorAll('[onerror], img[src=x], body script').length") == 0
    page.run("location.hash = '#/'; fill('#prompt', 'a red apple'); fill(option('long_prompts'), '')")


def test_escape_stops_the_sampling(page: Browser, studio: Studio) -> None:
    images = len(studio.history.images())
    page.run("fill(option('steps'), '1000'); document.getElementById('prompt').focus()")
    page.key("Enter")
    page.wait("!idle() && document.querySelector('.progress-words').textContent.includes('of 1000')")
    page.key("Escape")
    page.wait("idle() && document.querySelector('.notes').textContent.includes('Cancelled')")
    steps = studio.engine.counts["steps"]
    time.sleep(0.1)
    assert studio.engine.counts["steps"] - steps <= 1 and not studio.engine.running
    assert len(studio.history.images()) == images


def test_a_reload_in_the_middle_goes_on(page: Browser, studio: Studio) -> None:
    page.run("fill(option('steps'), '1000'); document.getElementById('prompt').focus()")
    page.key("Enter")
    page.wait("!idle() && document.querySelector('.progress-words').textContent.includes('of 1000')")
    page.reload()
    ready(page)
    assert page.run("document.querySelector(option('steps')).value") == "1000"
    page.wait("!idle() && document.querySelector('.progress-words').textContent.includes('of 1000')")
    (job,) = [job for job in studio.engine.jobs.values() if not job.ended]
    page.run("document.getElementById('prompt').focus()")
    page.key("Enter")  # another: the first goes on out of sight
    page.wait("document.querySelector('.progress-words').textContent.includes('1 image before yours')")
    page.run("document.getElementById('cancel').click()")
    page.wait("idle() && document.querySelector('.notes').textContent.includes('Cancelled')")
    assert job.state == "running"
    page.run("document.querySelector('.recent .waiting').click()")
    page.wait("!idle() && document.querySelector('.progress-words').textContent.includes('of 1000')")
    page.run("document.getElementById('cancel').click()")
    page.wait("idle() && document.querySelector('.notes').textContent.includes('Cancelled')")
    page.wait("!document.querySelector('.recent .waiting')")
    assert job.state == "cancelled"
    page.run("fill(option('steps'), '')")


def test_an_answer_that_comes_after_the_end_does_not_open_a_job_again(page: Browser, studio: Studio) -> None:
    page.run("fill(option('steps'), '1000'); document.getElementById('prompt').focus()")
    page.key("Enter")
    page.wait("!idle() && document.querySelector('.progress-words').textContent.includes('of 1000')")
    page.run(
        "window.fetched = window.fetch; window.late = 0;"
        "window.fetch = async (...asked) => {"
        "  const answer = await fetched(...asked);"
        "  if (asked[1]?.method !== 'DELETE') return answer;"
        "  while (!idle()) await new Promise((resolve) => setTimeout(resolve, 10));"
        "  await new Promise((resolve) => setTimeout(resolve, 500));"  # whatever else is asked at the end
        "  setTimeout(() => (late += 1), 50);"
        "  return answer; }; document.getElementById('cancel').click()"
    )
    page.wait("late === 1")
    assert page.run("idle() && document.querySelector('.notes').textContent.includes('Cancelled')")
    page.run("window.fetch = window.fetched; fill(option('steps'), '')")


def test_a_lost_job_is_shown_and_can_be_run_again(page: Browser, studio: Studio) -> None:
    done = next(job for job in studio.engine.jobs.values() if job.state == "done")
    request = json.dumps({**done.request.to_json(), "prompt": "a blue apple"})
    values = ("f" * 24, done.client, "lost", request, time.time())
    studio.history._execute("INSERT INTO jobs (id, client, state, request, created) VALUES (?, ?, ?, ?, ?)", values)
    page.reload()
    ready(page)
    page.wait("document.getElementById('lost')?.textContent.includes('a blue apple')")
    page.run("press('Run again', document.getElementById('lost'))")
    page.wait("!document.getElementById('lost') && idle()")
    page.wait("document.querySelector('.caption .prompt-words')?.textContent === 'a blue apple'")
    assert studio.latest()["seed"] == done.request.seeds[0]
    assert studio.history.jobs("lost") == []


def test_tokens_are_counted_and_what_would_be_cut_is_shown(page: Browser, studio: Studio) -> None:
    page.run("fill('#prompt', 'a red picture ' + 'blue '.repeat(30) + 'end')")
    page.wait("document.getElementById('tokens').classList.contains('over')")
    row = check_prompt(studio.engine.pool.open("latent"), "a red picture " + "blue " * 30 + "end")
    assert page.run("document.getElementById('tokens').textContent") == f"{row['tokens']} of {row['limit']} tokens"
    assert row["cut"].endswith("end") and row["cut"] in page.run("document.getElementById('warning').textContent")
    page.run("fill('#prompt', 'a red apple'); fill('[data-field=size] input', '128')")
    page.wait("document.getElementById('warning').textContent.includes('far from the 16 x 16')")
    page.run("fill('[data-field=size] input', '')")


def test_an_error_names_its_field_and_keeps_what_was_typed(page: Browser, studio: Studio) -> None:
    page.run("fill(option('steps'), 'many'); document.getElementById('prompt').focus()")
    page.key("Enter")
    page.wait("document.querySelector('[data-field=steps] .error').textContent.includes('many')")
    assert page.run("document.activeElement.matches(option('steps')) && document.activeElement.ariaInvalid") == "true"
    assert page.run("document.querySelector(option('steps')).value") == "many"
    page.run("fill(option('steps'), '')")
    assert page.run("document.querySelector('[data-field=steps] .error').textContent") == ""


def test_a_mask_is_painted_and_only_there_is_generated_anew(page: Browser, studio: Studio) -> None:
    row = generate(page, studio)
    page.run("press('Inpaint', document.querySelector('.caption'))")
    page.wait("document.querySelector('.editor canvas')?.clientWidth > 100")
    drag(page, ".editor canvas", (0.1, 0.1), (0.9, 0.1))
    page.run("document.querySelector('.editor [aria-label=Undo]').click()")  # nothing is left of the top
    drag(page, ".editor canvas", (0.1, 0.8), (0.5, 0.8), (0.9, 0.8))
    page.run("document.getElementById('use-mask').click()")
    page.wait("document.querySelector('.slot-image .mask')?.naturalWidth")
    assert page.run("document.querySelector('[data-field=paste] input').checked")  # as a mask is meant
    made = generate(page, studio)
    kept, first = studio.history.input("image", made["request"]["image"]), studio.history.png(row["id"])
    assert first is not None and same_image(Image.open(kept), Image.open(first))
    mask = studio.history.input("mask", made["request"]["mask"])
    with Image.open(mask) as image:
        white = np.asarray(image.convert("L")) > 127
    assert white.shape == (16, 16) and white[12:14, 3:13].all() and not white[:8].any()
    changed = (studio.pixels(made["id"]) != studio.pixels(row["id"])).any(-1)
    assert not changed[~white].any() and changed[white].mean() > 0.5
    page.run("while (document.querySelector('.slot-tools')) press('Remove', document.querySelector('.slot-tools'))")


def test_a_dropped_image_restores_its_settings(page: Browser, studio: Studio) -> None:
    page.run("fill(option('steps'), '2'); fill(option('guidance'), '1.5'); fill('#negative', 'grey')")
    page.run("fill('#prompt', 'a blue picture'); fill('#seed', '77'); fill(option('sampler'), 'euler')")
    row = generate(page, studio)
    assert row["seed"] == 77
    page.run("fill('#prompt', 'other'); fill('#negative', ''); fill('#seed', '5'); fill(option('steps'), '9')")
    page.run("fill(option('guidance'), ''); fill(option('sampler'), 'ddim')")
    page.run(f"dropped('api/images/{row['id']}.png', '[data-zone=restore]')")
    page.wait("document.getElementById('prompt').value === 'a blue picture'")
    fields = "['#negative', '#seed', option('steps'), option('sampler')]"
    fields = page.run(f"{fields}.map((one) => document.querySelector(one).value)")
    assert fields == ["grey", "77", "2", "euler"]
    again = generate(page, studio)
    assert again["id"] != row["id"] and (studio.pixels(again["id"]) == studio.pixels(row["id"])).all()
    page.run("press(\"Reset to the model's own\"); fill('#negative', ''); document.getElementById('lock').click()")


def test_boxes_are_drawn_with_words(page: Browser, studio: Studio) -> None:
    page.run("document.getElementById('model').focus(); fill('#model', 'layout')")
    page.wait("document.querySelector('.box-canvas')")
    assert page.run("document.activeElement.id") == "model"
    assert page.run("[...document.getElementById('box-names').options].map((one) => one.value)") == [*CLASSES]
    page.run("fill('#box-word', 'dog')")
    drag(page, ".box-canvas", (0.1, 0.2), (0.3, 0.6), (0.5, 0.9))
    page.run("fill('#box-word', 'dog'); document.querySelector('.box-canvas').focus()")
    drag(page, ".box-canvas", (0.6, 0.1), (0.9, 0.5))
    page.run("fill('#box-word', 'red house')")
    layout = page.run("document.getElementById('prompt').value")
    boxes = [re.fullmatch(r"(.+?) ([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)", part) for part in layout.split("; ")]
    names, sides = zip(*[(box[1], [*map(float, box.groups()[1:])]) for box in boxes if box], strict=True)
    assert names == ("dog", "red house")
    assert sides[0] == pytest.approx([0.1, 0.2, 0.5, 0.9], abs=0.02)
    assert sides[1] == pytest.approx([0.6, 0.1, 0.9, 0.5], abs=0.02)
    assert generate(page, studio)["prompt"] == layout
    page.run("fill('#prompt', 'cat 0 0 1 1')")
    page.run("document.getElementById('prompt').focus()")
    page.key("Enter")
    page.wait("document.getElementById('prompt-error').textContent.includes('cat')")
    page.run("fill('#model', 'latent')")
    page.wait("!document.querySelector('.box-canvas')")


def test_two_models_side_by_side(page: Browser, studio: Studio) -> None:
    page.run("fill('#second', 'cascade')")
    page.run("document.getElementById('prompt').focus()")
    page.key("Enter")
    page.wait("document.querySelectorAll('.pane .frame.done').length === 2 && idle()")
    latest = studio.history.images(limit=2)
    assert {row["model"] for row in latest} == {"latent", "cascade"}
    assert latest[0]["prompt"] == latest[1]["prompt"] and latest[0]["seed"] == latest[1]["seed"]
    page.run("document.querySelectorAll('.frame')[1].click()")
    page.wait("document.querySelector('.charts figure.clipped') && !document.querySelector('.strip').hidden")
    stages = page.run("[...document.querySelectorAll('.stages span')].map((one) => one.textContent)")
    assert stages == [f"{side} px" for side in (8, 16, 32)]  # one after another
    page.run("fill('#second', '')")


def test_a_grid_of_two_settings_fills_in(page: Browser, studio: Studio) -> None:
    page.run("location.hash = '#/compare'")
    page.wait("document.getElementById('axis-x').options.length > 5")
    page.run("fill('#axis-x', 'guidance'); fill('#axis-x-values', '1, 3'); fill('#axis-y', 'seed')")
    page.run("fill('#axis-y-values', '4-5'); document.getElementById('make-grid').click()")
    page.wait("document.querySelectorAll('.cell .frame.done').length === 4")
    made = [(row["seed"], row["request"]["options"]["guidance"]) for row in studio.history.images(limit=4)]
    assert sorted(made) == [(4, 1), (4, 3), (5, 1), (5, 3)]
    page.wait("!document.getElementById('grid-png').hidden")
    size = page.run(
        "import('./pages/grid-picture.js').then(async ({ gridPicture }) => {"
        " const picture = await createImageBitmap(await gridPicture(JSON.parse(localStorage['diptych-grid']).made));"
        " return [picture.width, picture.height]; })"
    )
    assert min(size) > 2 * 160
    page.run("location.hash = '#/'")


def test_the_gallery_searches_and_a_deletion_can_be_undone(page: Browser, studio: Studio) -> None:
    page.run("location.hash = '#/gallery'; fill('#search', 'blue picture')")
    expected = {row["id"] for row in studio.history.images("blue picture")}
    assert 0 < len(expected) < len(studio.history.images())
    ids = "[...document.querySelectorAll('.grid li')].map((one) => one.dataset.id)"
    page.wait(f"{ids}.length === {len(expected)}")
    assert set(page.run(ids)) == expected
    page.run("document.querySelector('.grid .heart').click()")
    page.wait("document.querySelector('.grid .heart').ariaPressed === 'true'")
    first = page.run(f"{ids}[0]")
    assert [row["id"] for row in studio.history.images(favourite=True)] == [first]
    page.run("document.getElementById('select').click(); document.querySelector('.card').click()")
    page.run("document.getElementById('delete-selected').click()")
    page.wait(f"{ids}.length === {len(expected) - 1}")
    page.run("press('Undo')")
    page.wait(f"{ids}.length === {len(expected)}")
    page.run("document.getElementById('select').click(); document.querySelector('.card').click()")
    page.run("document.getElementById('delete-selected').click()")
    page.run("[...document.querySelectorAll('.toast [aria-label^=Close]')].at(-1).click()")  # as when the time is over
    end = time.monotonic() + 20
    while studio.history.image(first):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert {row["id"] for row in studio.history.images("blue picture")} == expected - {first}
    page.run("fill('#search', ''); location.hash = '#/'")


def test_everything_has_a_name_for_screen_readers(page: Browser) -> None:
    roles = {"button", "textbox", "searchbox", "combobox", "slider", "switch", "checkbox", "link", "image", "dialog"}
    for view in ("#/gallery", "#/compare", "#/"):
        page.run(f"location.hash = '{view}'")
        page.wait(f"document.querySelector('nav [aria-current]').getAttribute('href') === '{view}'")
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value"))
            for node in nodes
            if not node["ignored"] and node["role"]["value"] in roles
        ]
        assert len(named) > 10 and [role for role, name in named if not name] == []


def test_a_phone_is_wide_enough(page: Browser) -> None:
    page.resize(375, 812, phone=True)
    try:
        for view in ("#/", "#/gallery", "#/compare"):
            page.run(f"location.hash = '{view}'")
            page.wait("innerWidth === 375 && document.documentElement.scrollWidth <= 375")
        page.run("location.hash = '#/'; document.getElementById('settings').open = true")
        assert page.run("innerWidth") == 375 >= page.run("document.documentElement.scrollWidth")
    finally:
        page.resize(1280, 900)


@pytest.mark.slow
def test_a_token_is_asked_for_and_taken_from_the_link(tmp_path: Path) -> None:
    studio = Studio(tmp_path, TOKEN)
    try:
        with browser() as page:
            page.call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)
            page.open(studio.url)
            page.wait("document.querySelector('dialog input[type=password]')")
            page.run("fill('dialog input', 'wrong'); press('Sign in')")
            page.wait("document.querySelector('dialog .error').textContent.includes('not the token')")
            page.run(f"fill('dialog input', '{TOKEN}'); press('Sign in')")
            ready(page)
            page.call("Network.clearBrowserCookies")
            page.open(f"{studio.url}#{TOKEN}")
            ready(page)
            assert TOKEN not in page.run("location.href")
    finally:
        studio.close()


def test_the_page_is_small_and_of_its_own() -> None:
    files = [one for one in PAGES.iterdir() if one.is_file()]
    assert sum(len(one.read_bytes()) for one in files) < 150_000
    for one in files:
        text = one.read_text(encoding="utf-8")
        assert text.count("\n") < 300, one.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), one.name
        assert not [url for url in re.findall(r"https?://[^\"' ]+", text) if url != "http://www.w3.org/2000/svg"]
        assert not re.search(r" style=| on\w+=\"", text) or one.name.endswith(".js"), one.name


@pytest.mark.slow
def test_a_job_that_a_killed_server_lost_is_run_again(tmp_path: Path) -> None:
    """By the command, with the default model: the page finds the server again, and loses nothing that was typed."""

    @contextlib.contextmanager
    def served(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
        command = [sys.executable, "-m", "diptych", "serve", "--model", "latent", "--folder", str(tmp_path)]
        process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    with browser() as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=HELPERS)
        with served() as (process, url):
            page.open(url)
            ready(page)
            page.run("fill(option('steps'), '900'); document.getElementById('prompt').focus()")
            page.key("Enter")
            page.wait("document.querySelector('.progress-words').textContent.includes('of 900')")
            process.kill()
            process.wait()
            page.wait("document.getElementById('notices').textContent.includes('does not answer')")
        page.run("fill(option('steps'), '2')")
        with served(int(url.rstrip("/").rpartition(":")[2])):
            page.wait("idle() && document.querySelector('.notes').textContent.includes('The server stopped')")
            page.reload()
            ready(page)
            assert page.run("document.querySelector(option('steps')).value") == "2"
            page.wait("document.getElementById('lost')")
            page.run("press('Run again', document.getElementById('lost'))")
            page.wait("document.querySelector('.progress-words').textContent.includes('of 900')")
