"""The page beside a result: whole, small enough, nothing from elsewhere, no mark-up."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

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
    c = unpacked(one["confidence"], np.uint8).reshape(8, 10) / 255
    np.testing.assert_allclose(c, views.confidence[3], atol=1 / 255)
    assert [picture(x).shape for x in one["references"]] == [(16, 20)] * 2
    assert one["names"] == ["T1.nii.gz", "T2.nii.gz"]


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
    assert not found["confidence"]
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
