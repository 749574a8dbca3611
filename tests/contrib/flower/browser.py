"""Chromium without a window, and waiting for what a person would see."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PATIENCE = 60
_NOT_YET = [StaleElementReferenceException, ElementClickInterceptedException]
T = TypeVar("T")


class Browser:
    """A page, and what there is on it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        # Only the part after # may differ, and that alone loads nothing.
        self.driver.get("about:blank")
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, predicate: Callable[[], T], what: str) -> T:
        """Wait until it is true; a page that is being drawn anew counts as not yet."""

        def look(_driver: object) -> T:
            return predicate()

        wait = WebDriverWait(self.driver, PATIENCE, poll_frequency=0.1, ignored_exceptions=_NOT_YET)
        try:
            return wait.until(look)
        except TimeoutException:
            shown = self.run("return document.body ? document.body.innerText : ''")
            raise AssertionError(f"never saw {what}\n{shown}\n{self.console()}") from None

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first visible element."""

        def visible() -> WebElement | None:
            return next((each for each in self.all(selector) if each.is_displayed()), None)

        found = self.until(visible, f"an element {selector}")
        assert found is not None
        return found

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            element = self.one(selector)
            self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
            element.click()
            return True

        self.until(clicked, f"something to click at {selector}")

    def text(self, selector: str) -> str:
        return str(self.until(lambda: self.one(selector).text or " ", f"text in {selector}")).strip()

    def until_text(self, selector: str, wanted: str) -> None:
        self.until(lambda: wanted in self.one(selector).text, f"{wanted!r} in {selector}")

    def console(self) -> list[str]:
        """What scripts complained of since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def size(self, width: int, height: int) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def chromium_binaries() -> tuple[str, str] | None:
    """Chromium and its driver."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextmanager
def browser_running(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own."""
    binaries = chromium_binaries()
    assert binaries is not None, "install chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binaries[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1400,1000",
        "--lang=en-GB",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=webdriver.ChromeService(binaries[1]), options=options)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
