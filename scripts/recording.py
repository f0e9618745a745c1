"""`make recording`: run commands in a real terminal (a pty) and draw what they printed as an SVG.

Nothing is typed by hand: the picture is the output, colours included, abridged to the lines that `KEEP` names;
each gap is marked with an ellipsis. Without commands it records the quickstart from an empty folder.
"""

from __future__ import annotations

import argparse
import fcntl
import html
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
COLUMNS, ROWS = 100, 50
LARGEST_BYTES = 120_000
PROMPT = "$ "
CELL_WIDTH = 12.2  # rich's, for its characters of 20 pixels
TITLE = re.compile(r"^[\w-]+ \((curate|train_tokenizer|encode|train|evaluate)\)$")
STEP = re.compile(r"^step \d+/")
SCORE = re.compile(r"^  validation at step")
SAMPLE = re.compile(r"^  (?!base |chat ).* → ")
SECTION = re.compile(rf"{TITLE.pattern}|^serving at")  # an empty line comes before
QUESTION = re.compile(r"^you +>")  # from here on nothing is left out
KEEP = re.compile(rf"^\$ |^✓ |records:|^learned |parameters, \d|are trained on$|^serving at|{TITLE.pattern}|{STEP.pattern}|{SCORE.pattern}|{SAMPLE.pattern}")
FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
  <style>
    .{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace; font-size: {char_height}px; line-height: {line_height}px; }}
    .{unique_id}-title {{ font-size: 18px; font-family: sans-serif; }}
    {styles}
  </style>
  <defs>
    <clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
    {lines}
  </defs>
  {chrome}
  <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">{matrix}</g>
  </g>
</svg>
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", help="commands to record, each one shell line; none: the quickstart")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "quickstart.svg", help="the picture")
    parser.add_argument("--title", default="Luban 鲁班", help="text in the window's frame")
    parser.add_argument("--folder", type=Path, help="where the commands run; none: an empty temporary folder")
    parser.add_argument("--override", action="append", default=[], help="override for the quickstart recipe, such as base.length='20 steps'")
    parser.add_argument("--whole", action="store_true", help="leave nothing out")
    parser.add_argument("--transcript", type=Path, help="keep the raw output in this file; where it exists, draw it and run nothing")
    arguments = parser.parse_args()
    if arguments.transcript and arguments.transcript.exists():
        raw = arguments.transcript.read_text(encoding="utf-8")
    else:
        raw = _record(arguments)
        if arguments.transcript:
            arguments.transcript.write_text(raw, encoding="utf-8")
    lines = screen(raw)
    svg = draw(lines if arguments.whole else abridge(lines), arguments.title)
    if len(svg.encode()) > LARGEST_BYTES:
        sys.exit(f"the picture would be {len(svg.encode()):,} bytes, more than {LARGEST_BYTES:,}: record fewer lines")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(svg, encoding="utf-8")
    print(f"{arguments.out}: {len(svg.encode()):,} bytes")
    return 0


def _record(arguments: argparse.Namespace) -> str:
    quickstart = shlex.join([sys.executable, str(ROOT / "scripts" / "quickstart.py"), *arguments.override])
    shown_and_run = [(line, line) for line in arguments.commands] or [("make quickstart", quickstart)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        return "".join(f"\x1b[1m{PROMPT}{shown}\x1b[0m\r\n" + run_in_terminal(line, folder) for shown, line in shown_and_run)


def run_in_terminal(line: str, folder: Path) -> str:
    """What a shell line prints to a terminal of `COLUMNS` columns, escape codes included. Exits if the line fails."""
    main_end, terminal_end = pty.openpty()
    fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(["bash", "-c", line], cwd=folder, env=environment, stdin=terminal_end, stdout=terminal_end, stderr=terminal_end)
    os.close(terminal_end)
    pieces = []
    while True:
        try:
            piece = os.read(main_end, 65536)
        except OSError:  # Linux says so when the last process has closed the terminal
            break
        if not piece:
            break
        pieces.append(piece)
        sys.stdout.buffer.write(piece)
        sys.stdout.flush()
    os.close(main_end)
    if code := process.wait():
        sys.exit(f"{line}: ended with status {code}")
    return b"".join(pieces).decode("utf-8", "replace")


def screen(raw: str) -> list[Text]:
    """The lines that are left on the screen: what a progress bar overwrote is gone."""
    lines: list[str] = [""]
    for part in re.split(r"(\r\n|\n|\r|\x1b\[\d*A|\x1b\[2K)", raw):
        if part in ("\r\n", "\n"):
            lines.append("")
        elif part in ("\r", "\x1b[2K"):
            lines[-1] = ""
        elif up := re.fullmatch(r"\x1b\[(\d*)A", part):
            del lines[max(0, len(lines) - 1 - int(up[1] or 1)) + 1 :]
        else:
            lines[-1] += re.sub(r"\x1b\[\?\d+[hl]", "", part)
    return [Text.from_ansi(line) for line in lines]


def abridge(lines: list[Text]) -> list[Text]:
    """The lines that tell the story, with an ellipsis for steps that are left out; of several cards the last."""
    last_card = max((index for index, line in enumerate(lines) if line.plain.startswith("╭")), default=0)
    kept: list[Text] = []
    whole = gap = False
    for index, line in enumerate(lines):
        whole = (whole or bool(QUESTION.search(line.plain)) or index == last_card) and not (line.plain.startswith("╭") and index < last_card)
        step = bool(STEP.search(line.plain))
        if whole or (KEEP.search(line.plain) and not _superseded(lines, index)):
            if gap and step:
                kept.append(Text("⋯", style="dim"))
            kept += [Text()] if SECTION.search(line.plain) else []
            kept.append(line)
            gap = False
        gap = gap or (step and line is not kept[-1])
    return kept


def _superseded(lines: list[Text], index: int) -> bool:
    """True for a step, a score or a sample that later ones of the same stage say better."""
    kind = next((pattern for pattern in (STEP, SCORE, SAMPLE) if pattern.search(lines[index].plain)), None)
    if kind is None or re.search(r"^step 1/|at step 0 ", lines[index].plain):
        return False
    later = 0
    for line in lines[index + 1 :]:
        if line.plain.startswith("✓"):
            break
        later += bool(kind.search(line.plain))
    return later >= (1 if kind is SCORE else 2)


def draw(lines: list[Text], title: str) -> str:
    """The lines as an SVG in a terminal's frame; it loads nothing from anywhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line, overflow="fold", no_wrap=False)
    svg = console.export_svg(title=title, code_format=FORMAT, unique_id="luban")
    return re.sub(r'(?<=textLength=")[\d.]+(?="[^>]*>([^<]*)</text>)', _true_length, svg)


def _true_length(found: re.Match) -> str:
    """The width of a text in cells: rich takes a Chinese character for one, and draws it at half its width."""
    return f"{cell_len(html.unescape(found[1])) * CELL_WIDTH:g}"


if __name__ == "__main__":
    sys.exit(main())
