"""Screenshots of the demo's page in headless Chromium at 1400 and 390 pixels, and a look at it.

    python -m tests.experiments.demo_screenshots --url=http://127.0.0.1:7860 --folder=/tmp/shots

The page is that of a running `experiments/demo.py` on MiniMMEB's pictures. It needs playwright and
Chromium, and so is a command, not a test. It searches by a text, opens a result, searches by a
picture with a text, and fails if the page reports an error, has no results, or is wider than the
window.
"""

import argparse
import pathlib

from playwright.sync_api import Page, expect, sync_playwright

LOADED = "Array.from(document.images).every((i) => i.complete && i.naturalWidth)"
SIZES = {1400: 1000, 390: 844}


def look(page: Page, url: str, folder: pathlib.Path, picture: pathlib.Path) -> None:
    width = page.viewport_size["width"]
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    expect(page.get_by_role("heading", name="Search pictures and texts")).to_be_visible()
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / f"begin_{width}.png", full_page=True)

    page.get_by_label("Text", exact=True).fill("a cyan circle above an orange cross on sky")
    page.get_by_role("button", name="Search", exact=True).click()
    results = page.locator("#results .thumbnail-item")
    expect(results).to_have_count(8, timeout=120_000)
    page.wait_for_function(LOADED)
    page.screenshot(path=folder / f"text_{width}.png", full_page=True)

    results.first.click()
    expect(page.locator("#neighbours .thumbnail-item")).to_have_count(6, timeout=120_000)
    page.wait_for_function(LOADED)
    page.wait_for_timeout(500)
    page.screenshot(path=folder / f"map_{width}.png", full_page=True)

    page.get_by_label("Text", exact=True).fill("now on sky")
    page.locator("input[type=file]").first.set_input_files(picture)
    page.wait_for_timeout(1500)
    neighbours = page.locator("#neighbours")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(neighbours).to_be_hidden(timeout=120_000)  # results are new
    switch = page.locator("#model input[type=radio]")
    if switch.count() == 2:
        results.first.click()
        expect(neighbours).to_be_visible(timeout=120_000)
        switch.nth(1).check()
        expect(neighbours).to_be_hidden(timeout=300_000)
    expect(results).to_have_count(8)
    page.wait_for_function(LOADED)
    page.wait_for_timeout(500)
    page.screenshot(path=folder / f"both_{width}.png", full_page=True)

    inner = page.evaluate("document.documentElement.scrollWidth")
    assert inner <= width, f"the page is {inner} pixels wide in a window of {width}"
    assert not errors, errors
    assert not page.locator(".toast-body.error").count(), "the page shows an error"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--picture", type=pathlib.Path, required=True, help="for a query of both")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.chromium, args=["--no-sandbox"]
        )
        for width, height in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            look(page, arguments.url, arguments.folder, arguments.picture)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
