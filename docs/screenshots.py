"""Take the pictures of docs/images from real plans: ``nox -s screenshots``.  It needs a Chromium.

The plan is that for a recorded runtime, from the lock beside its matrix, so it is the same on each machine.
"""

from __future__ import annotations

import html
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

import colablock

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parent / "images"
MATRIX, RUNTIME = "qlora-2026", "colab-2026.08-gpu"
COMMAND = f"colablock plan {MATRIX} --runtime {RUNTIME}"
CELL = f'colablock.plan("{MATRIX}", runtime="{RUNTIME}")'
COLUMNS, LINES = 88, 26  # what follows is notes
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LIMIT = 150_000  # bytes of a picture
COLOURS = 64
# Black, red, green, yellow, blue, magenta and cyan.
NORMAL = ("000000", "cf222e", "116329", "946200", "0969da", "8250df", "1b7c83")
BRIGHT = ("000000", "ff7b72", "3fb950", "d29922", "58a6ff", "bc8cff", "39c5cf")


def theme(ground: str, ink: str, white: str, colours: tuple[str, ...]) -> TerminalTheme:
    """Return a theme of colours in hex."""
    rgb = [tuple(bytes.fromhex(colour)) for colour in (ground, ink, *colours, white)]
    return TerminalTheme(rgb[0], rgb[1], rgb[2:])


THEMES = {
    "light": theme("ffffff", "1f2328", "59636e", NORMAL),
    "dark": theme("0d1117", "e6edf3", "b1bac4", BRIGHT),
}
PAGE = """\
<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 16px; font-family: system-ui, sans-serif; color-scheme: {mode};
        background: {ground}; color: {ink} }}
.code {{ font: 13px/1.5 ui-monospace, monospace; background: {box}; border: 1px solid {line};
         border-radius: 4px; padding: 6px 10px; margin-bottom: 10px; white-space: pre-wrap }}
</style><div class="code">{code}</div>{output}
"""
PAPER = {
    "light": {"ground": "#ffffff", "ink": "#1f2328", "box": "#f6f8fa", "line": "#d1d9e0"},
    "dark": {"ground": "#111418", "ink": "#e6edf3", "box": "#1b2027", "line": "#3d444d"},
}


def terminal(mode: str) -> None:
    """Write the plan as a terminal shows it, as SVG."""
    environ = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    # As a command on the search path: the notes name it as it was called.
    start = "import sys; from colablock.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, *COMMAND.split()[1:]]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()[:LINES]
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in (f"$ {COMMAND}", *shown):
        console.print(Text.from_ansi(line), soft_wrap=True)
    text = console.export_svg(title="", theme=THEMES[mode], unique_id=f"plan-{mode}")
    text = re.sub(r"@font-face \{.*?\}\n?", "", text, flags=re.DOTALL)  # no picture asks a server
    kept(IMAGES / f"terminal-plan-{mode}.svg", text.encode())


def notebook(mode: str, browser: Browser) -> None:
    """Write the plan as a cell of a notebook shows it, as PNG."""
    output = colablock.plan(MATRIX, runtime=RUNTIME, quiet=True)._repr_html_()
    page = browser.new_page(viewport={"width": 640, "height": 400}, color_scheme=mode, device_scale_factor=2)
    page.set_content(PAGE.format(mode=mode, code=html.escape(CELL), output=output, **PAPER[mode]))
    taken = page.screenshot(full_page=True)
    page.close()
    small = io.BytesIO()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS).save(small, "PNG", optimize=True)
    kept(IMAGES / f"notebook-plan-{mode}.png", small.getvalue())


def kept(path: Path, data: bytes) -> None:
    """Write a picture, unless it is too large."""
    if len(data) > LIMIT:
        raise SystemExit(f"{path.name} would have {len(data):,} bytes")
    path.write_bytes(data)
    print(f"{path.name}: {len(data):,} bytes")


def main() -> None:
    """Take all pictures."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for mode in THEMES:
            terminal(mode)
            notebook(mode, browser)
        browser.close()


if __name__ == "__main__":
    main()
