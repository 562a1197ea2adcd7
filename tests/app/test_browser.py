"""The studio as a person uses it, in a real browser without a window."""

import shutil

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
)
PHONE, DESK = (390, 844), (1200, 800)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, running):
    """The first page, once the weights that ship are loaded, in a window of a desk's size."""
    set_size(browser, *DESK)
    browser.get(running.url)
    until(browser, lambda: "LegoPipeline" in find(browser, "#kind").text)
    yield browser
    errors = [entry for entry in browser.get_log("browser") if "status of 400" not in entry["message"]]
    assert not errors  # of scripts, of the content security policy, of files that are not there


def set_size(browser, width: int, height: int) -> None:
    """Of what the page sees; windows have a least width, phones do not."""
    values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)


def find(browser, selector: str):
    return browser.find_element(By.CSS_SELECTOR, selector)


def until(browser, condition, seconds: float = 240):
    return WebDriverWait(browser, seconds, 0.1, [WebDriverException]).until(lambda _: condition())


def set_value(browser, selector: str, value) -> None:
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        find(browser, selector),
        value,
    )


def loaded_pictures(browser, selector: str) -> list:
    pictures = browser.find_elements(By.CSS_SELECTOR, selector)
    return [p for p in pictures if browser.execute_script("return arguments[0].naturalWidth", p) > 0]


def small(browser, steps: int = 2, count: int = 2) -> None:
    for name, value in {"steps": steps, "count": count, "height": 32, "width": 32}.items():
        set_value(browser, f"#{name}", value)


def test_a_revision_is_asked_of_the_hub_alone(page):
    find(page, "#hub summary").click()
    set_value(page, "#revision", "main")
    find(page, "#load").click()
    until(page, lambda: "is on this machine, not on the hub" in find(page, "#message").text)
    set_value(page, "#model", "lego-avatars-64")
    page.execute_script("arguments[0].dispatchEvent(new Event('change'))", find(page, "#model"))
    assert find(page, "#revision").get_attribute("value") == ""  # it was another model's, perhaps
    find(page, "#load").click()
    until(page, lambda: "LegoPipeline" in find(page, "#kind").text)


def test_a_click_draws_pictures_and_they_are_drawn_again(page, running):
    small(page, steps=40)
    find(page, "#go-draw").click()
    until(page, lambda: (find(page, "#draw .preview").get_attribute("src") or "").startswith("data:image/png"))
    until(page, lambda: len(loaded_pictures(page, "#draw .pictures img")) == 2)
    assert "GFLOP" in find(page, "#draw .cost").text and not find(page, "#message").is_displayed()
    find(page, "[data-tab=gallery]").click()
    until(page, lambda: len(loaded_pictures(page, "#gallery img")) >= 2)
    assert find(page, "#gallery").size["width"] > DESK[0] / 2
    before = len(running.get("gallery")["pictures"])
    find(page, "#gallery figure button").click()
    until(page, lambda: len(running.get("gallery")["pictures"]) == before + 1)
    until(page, lambda: find(page, "#draw .pictures").is_displayed())


def test_an_error_is_a_message_and_goes_away(page):
    set_value(page, "#model", "lego-avatars-46")
    find(page, "#go-draw").click()
    until(page, lambda: "did you mean 'lego-avatars-64'" in find(page, "#message").text)
    set_value(page, "#model", "empty")
    find(page, "#load").click()
    until(page, lambda: "holds no pipeline" in find(page, "#message").text)
    set_value(page, "#model", "lego-avatars-64")
    find(page, "#load").click()
    until(page, lambda: "LegoPipeline" in find(page, "#kind").text)
    assert not find(page, "#message").is_displayed()


def test_schedules_are_compared(page):
    small(page, count=1)
    find(page, "[data-tab=compare]").click()
    find(page, "#go-compare").click()
    until(page, lambda: len(loaded_pictures(page, "#rows img")) == 2)
    texts = [row.text for row in page.find_elements(By.CSS_SELECTOR, "#rows .row")]
    assert texts[0].startswith("full") and texts[1].startswith("fast") and "GFLOP" in texts[1]


def test_an_adapter_is_put_on_and_taken_off(page):
    set_value(page, "#model", "avatars-sd-64")
    find(page, "#load").click()
    until(page, lambda: "StableDiffusionPipeline" in find(page, "#kind").text)
    assert find(page, "#prompt").is_displayed() and not find(page, "#label").is_displayed()
    set_value(page, "#adapter", "avatars-sd-64/resadapter")
    find(page, "#load-adapter").click()
    until(page, lambda: "avatars-sd-64/resadapter" in find(page, "#adapters").text)
    find(page, "#adapters button").click()
    until(page, lambda: find(page, "#adapters").text == "")


def test_a_run_has_curves_and_grids(page):
    find(page, "[data-tab=runs]").click()
    until(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#curves svg")) == 2)
    until(page, lambda: len(loaded_pictures(page, "#samples img")) == 1)
    assert "300 images seen" in find(page, "#run-state").text


def test_a_sweep_is_started_watched_and_opened(page, running):
    small(page, steps=1, count=1)
    find(page, "[data-tab=sweep]").click()
    for name, value in {"name": "clicked", "sizes": "32", "ratios": "1:1"}.items():
        set_value(page, f"#sweep-{name}", value)
    find(page, "#go-sweep").click()
    until(page, lambda: len(loaded_pictures(page, "#sweep img")) == 1)
    until(page, lambda: find(page, "#go-sweep").is_enabled())  # it is over
    assert not find(page, "#message").is_displayed()
    assert (running.output / "sweeps" / "clicked" / "sheet.png").is_file()
    set_value(page, "#sweep-ratios", "wide")
    find(page, "#go-sweep").click()
    until(page, lambda: "`ratios.0` is 'wide'" in find(page, "#message").text)
    assert find(page, "#sheet").is_displayed()


def test_a_phone_has_everything_in_its_width(page):
    set_size(page, *PHONE)
    small(page, count=4)
    find(page, "#go-draw").click()
    until(page, lambda: len(loaded_pictures(page, "#draw .pictures img")) == 4)
    for tab in ("draw", "compare", "runs", "sweep", "gallery"):
        find(page, f"[data-tab={tab}]").click()
        assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE[0], tab
