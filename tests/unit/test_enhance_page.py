"""The page beside a result: whole, small enough, nothing from elsewhere, no mark-up."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from daasr_jax.enhancement import quality
from daasr_jax.enhancement.page import Views, make_page


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)
    lr = rng.random((5, 8, 10)).astype(np.float32)
    return Views(
        lr=lr,
        sr=np.repeat(np.repeat(lr, 2, 1), 2, 2),
        references=rng.random((5, 2, 16, 20)).astype(np.float32),
        confidence=rng.random((5, 8, 10)).astype(np.float32),
        index=rng.integers(0, 160, (5, 8, 10)).astype(np.int32),
        names=["T1.nii.gz", "T2.nii.gz"],
        spacing=(0.5, 0.4),
        low=0.0,
        top=800.0,
    )


def page(views, **more) -> str:
    given = {"title": "a <b> & c", "subtitle": "5 slices", "facts": [("x", "1 < 2")]}
    return make_page(views, **{**given, "warnings": ["<script>"], **more})


def data(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(found[1])


def unpacked(text: str, dtype) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def picture(text: str) -> np.ndarray:
    raw = base64.b64decode(text.removeprefix("data:image/webp;base64,"))
    return np.asarray(Image.open(io.BytesIO(raw)).convert("L"))


def test_all_of_a_slice_is_there(views):
    found = data(page(views))
    assert (found["h"], found["w"], found["scale"]) == (8, 10, 2)
    assert found["total"] == len(found["slices"]) == 5
    one = found["slices"][3]
    assert one["number"] == 4
    step = found["high"] / 255 / 800
    shown = unpacked(one["lr"], np.uint8).reshape(8, 10) * step
    np.testing.assert_allclose(shown, views.lr[3].clip(max=255 * step), atol=step)
    shown = picture(one["sr"]) * step
    np.testing.assert_allclose(shown, views.sr[3].clip(max=255 * step), atol=1.1 * step)
    index = unpacked(one["index"], "<i4").reshape(8, 10)
    np.testing.assert_array_equal(index, views.index[3])
    least = found["confidence"]
    c = unpacked(one["confidence"], np.uint8).reshape(8, 10) / 255
    c = least + c * (1 - least)
    np.testing.assert_allclose(c, views.confidence[3].clip(min=least), atol=1 / 255)
    assert [picture(x).shape for x in one["references"]] == [(16, 20)] * 2
    assert one["names"] == ["T1.nii.gz", "T2.nii.gz"]


def test_a_reference_is_shown_as_bright_as_the_output(views):
    one = data(page(views))["slices"][0]
    darker = dataclasses.replace(views, references=views.references * 0.1)
    other = data(page(darker))["slices"][0]
    a, b = picture(one["references"][0]), picture(other["references"][0])
    np.testing.assert_allclose(a.astype(int), b.astype(int), atol=1)


def test_a_high_confidence_is_told_apart(views):
    close = dataclasses.replace(views, confidence=0.95 + 0.05 * views.confidence)
    found = data(page(close))
    assert found["confidence"] == 0.95
    same = data(page(dataclasses.replace(close, telling=False)))
    assert (same["confidence"], same["telling"]) == (0.0, False)
    assert unpacked(found["slices"][0]["confidence"], np.uint8).std() > 30


def test_a_simulation_shows_the_original(views):
    assert not data(page(views))["simulated"]
    found = data(page(dataclasses.replace(views, hr=views.sr * 0.5)))
    assert found["simulated"]
    step = found["high"] / 255 / 800
    shown = picture(found["slices"][1]["hr"]) * step
    np.testing.assert_allclose(shown, views.sr[1] * 0.5, atol=1.1 * step)


def test_it_needs_nothing_else(views):
    text = page(views)
    assert not re.findall(r"https?://|//cdn|@import|<link|src=\"(?!data:)", text)
    assert "{{" not in text
    assert "fetch(" not in text


def test_words_are_no_markup(views):
    text = page(views)
    assert "a &lt;b&gt; &amp; c" in text
    assert text.count("<script") == 2
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)

    Reader().feed(text)
    assert tags.count("script") == 2
    assert "b" not in tags
    bad = dataclasses.replace(views, names=["</script><b>", "b"])
    assert data(page(bad))["slices"][0]["names"][0] == "</script><b>"
    assert page(bad).count("</script>") == 2


def test_names_may_differ_by_slice_and_references_be_absent(views):
    names = [[f"bank {i}", "other"] for i in range(5)]
    found = data(page(dataclasses.replace(views, names=names)))
    assert found["slices"][2]["names"][0] == "bank 2"
    alone = dataclasses.replace(views, references=None, confidence=None, index=None)
    found = data(page(alone))
    assert found["references"] is None
    assert found["confidence"] is None
    assert set(found["slices"][0]) == {"number", "lr", "sr"}


def test_a_large_result_gives_up_quality_and_then_slices(views):
    noise = np.random.default_rng(1).random((5, 128, 160)).astype(np.float32)
    big = dataclasses.replace(
        views, sr=noise, references=None, confidence=None, index=None
    )
    whole = page(big)
    beside = len(whole) - len(json.dumps(data(whole)["slices"]))
    limit = int(0.8 * (len(whole) - beside))
    less = page(big, limit=limit)
    assert len(data(less)["slices"]) == 5
    assert "of quality" in less
    assert len(less) - beside <= limit
    few = page(big, limit=limit // 4)
    numbers = [s["number"] for s in data(few)["slices"]]
    assert numbers[0] == 1
    assert len(numbers) < 5
    assert f"{len(numbers)} of 5 slices" in few


# Uses the page as a hand would, and leaves what it saw in the title.
HAND = """<script>addEventListener("load", async () => {
  const wait = (n) => new Promise((done) => setTimeout(done, n));
  const until = async (test) => { while (!test()) await wait(20); };
  const key = (k) => dispatchEvent(new KeyboardEvent("keydown", {key: k}));
  const seen = {};
  await until(() => document.body.dataset.ready === "2");
  const frames = [...document.querySelectorAll(".frame")];
  seen.panes = [...document.querySelectorAll("figcaption b")].map((b) => b.textContent);
  const r = frames[2].getBoundingClientRect();
  const at = (i, j) => ({clientX: r.left + (j + .5) / 10 * r.width, bubbles: true,
    clientY: r.top + (i + .5) / 8 * r.height, pointerId: 1, pointerType: "mouse"});
  frames[2].dispatchEvent(new PointerEvent("pointermove", at(3, 4)));
  await wait(200);
  seen.read = document.getElementById("read").textContent;
  seen.boxes = frames.map((f) => {
    const b = f.querySelector("rect");
    const place = ["x", "y"].map((name) => +b.getAttribute(name));
    return b.style.visibility === "visible" ? place : null;
  });
  key("ArrowRight");
  await until(() => document.body.dataset.ready === "3");
  seen.number = document.getElementById("number").value;
  key("1");
  seen.large = document.querySelectorAll("figure.large").length;
  key("+");
  seen.stage = frames[0].querySelector(".stage").style.transform;
  key("0");
  const context = frames[1].querySelector("canvas").getContext("2d");
  const values = [...context.getImageData(0, 0, 20, 16).data];
  seen.bicubic = values.filter((_, i) => i % 4 === 0);
  document.title = JSON.stringify(seen);
});</script>"""


def test_a_hand_on_it_sees_the_match(views, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome to open the page in")
    file = tmp_path / "page.html"
    views = dataclasses.replace(views, hr=views.sr)
    file.write_text(page(views).replace("</body>", HAND + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--virtual-time-budget=20000", f"--user-data-dir={tmp_path}/profile",
         "--window-size=1200,900", file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    seen = json.loads(html.unescape(title))
    panes = ["input", "bicubic", "output", "original", "reference", "confidence"]
    assert seen["panes"] == panes
    p = int(views.index[2, 3, 4])
    y, x = divmod(p % 80, 10)
    assert seen["boxes"][2] == [2 * 3, 2 * 2]  # the patch of 3 x 3 cells about (3, 4)
    assert seen["boxes"][4] == [2 * (x - 1), 2 * (y - 1)]
    assert f"from row {y}, column {x} of the reference" in seen["read"]
    assert "row 3, column 4 of the input" in seen["read"]
    away = np.hypot((y - 3) * 2 * 0.5, (x - 4) * 2 * 0.4)
    assert f"{away:.1f} mm away" in seen["read"]
    assert seen["number"] == "4 of 5"
    assert seen["large"] == 1
    assert "scale(1.25)" in seen["stage"]
    found = data(page(views))
    lr = unpacked(found["slices"][3]["lr"], np.uint8).reshape(1, 8, 10) / 255
    wanted = quality.bicubic(lr.astype(np.float32), 2)[0] * 255
    wanted = (wanted - found["level"]) * 255 / found["window"] + 127.5
    shown = np.array(seen["bicubic"]).reshape(16, 20)
    np.testing.assert_allclose(shown, wanted.clip(0, 255), atol=1.5)
