"""Copy a comparison or a plan into experiments/results: its JSON, without this machine's folders, and its page as a PNG.

    python tools/publish_result.py runs/batch-masked batch_masked
    python tools/publish_result.py runs/plan plan-causal                                  a plan, with what was checked
    python tools/publish_result.py experiments/results/batch_masked.json batch_masked     draws it anew

The picture is taken by Chromium, whose command is --browser.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from seedbed.compare.page import build_page, drawings
from seedbed.compare.planning import plan_page
from seedbed.page import standalone

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
WIDTH = 1520  # room for tables of a dozen columns


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", type=Path, help="folder of the comparison or plan; or its JSON, also one published before"
    )
    parser.add_argument(
        "name", help="of the files: the experiment's, and after a hyphen what else there is to say"
    )
    parser.add_argument(
        "--svg", type=Path, help="also write the drawing of the deciding measure there, for a page of docs"
    )
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--height", type=int, default=12500, help="of the picture, at most")
    options = parser.parse_args()
    # A plan's folder has the comparison of its probes too.
    outcomes = [options.out / name for name in ("plan.json", "compare.json")]
    source = next((path for path in outcomes if path.exists()), options.out)
    told = without_folders(json.loads(source.read_text(encoding="utf-8")))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(
        json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    if options.svg:
        options.svg.write_text(standalone(drawings(told)["measure"]), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        # Of what is published: the page in `out` shows this machine's folders.
        page.write_text(plan_page(told) if "forecasts" in told else build_page(told), encoding="utf-8")
        picture(page, RESULTS / f"{options.name}.png", options.browser, options.height)


def without_folders(told: Any) -> Any:
    """Return JSON values in which strings that are paths are names of files alone."""
    if isinstance(told, dict):
        return {key: without_folders(value) for key, value in told.items()}
    if isinstance(told, list):
        return [without_folders(value) for value in told]
    if isinstance(told, str) and told.startswith(("/", "~/", "./", "../")):
        return Path(told).name
    return told


def picture(page: Path, png: Path, browser: str, height: int) -> None:
    """Draw a page into a PNG, empty room below cut off."""
    from PIL import Image, ImageChops

    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        subprocess.run(  # noqa: S603
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--window-size={WIDTH},{height}",
                f"--screenshot={shot}",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        image = Image.open(shot).convert("RGB")
    ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
    box = ImageChops.difference(image, ground).getbbox()
    bottom = min(image.height, (box[3] if box else image.height) + 24)
    kept = image.crop((0, 0, image.width, bottom))
    # The colours of a drawing are few pixels among much white and grey: the usual median cut loses them.
    kept.quantize(64, method=Image.Quantize.MAXCOVERAGE).save(png, optimize=True)


if __name__ == "__main__":
    main()
