"""How the page looks: colours, themes of bokeh, and style sheets."""

from __future__ import annotations

from bokeh.themes import Theme
from distributed.dashboard.components.scheduler import env

# Of a step's time.
TIMES = {
    "compute": "#27ae60",
    "exchange": "#e2574c",
    "update": "#9b6ef3",
    "evaluation": "#c9a227",
    "waiting": "#b8c0cc",
}
# By theme: background, card, ink, faint ink, lines.
LIGHT = {"page": "#fafafa", "card": "#ffffff", "ink": "#111827", "faint": "#5b6472", "line": "#e5e7eb"}
DARK = {"page": "#0f141b", "card": "#171e28", "ink": "#f3f4f6", "faint": "#a3adbb", "line": "#2b3441"}


def theme_of(dark: bool) -> Theme:
    """Return a theme for what bokeh paints."""
    c = DARK if dark else LIGHT
    axis = {
        "axis_line_color": c["line"],
        "major_tick_line_color": c["line"],
        "minor_tick_line_color": None,
        "major_label_text_color": c["faint"],
        "axis_label_text_color": c["faint"],
        "axis_label_text_font_style": "normal",
        "axis_label_text_font_size": "11px",
        "major_label_text_font_size": "11px",
    }
    legend = {
        "label_text_color": c["ink"],
        "label_text_font_size": "11px",
        "background_fill_color": c["card"],
        "background_fill_alpha": 0.75,
        "border_line_color": None,
        "padding": 4,
        "spacing": 0,
        "glyph_height": 12,
        "glyph_width": 14,
    }
    plot = {
        "background_fill_color": None,
        "border_fill_color": None,
        "outline_line_color": None,
        "min_border_left": 8,
        "min_border_right": 8,
        "min_border_top": 4,
        "min_border_bottom": 4,
    }
    return Theme(
        json={
            "attrs": {
                "Plot": plot,
                "Axis": axis,
                "Legend": legend,
                "Grid": {"grid_line_color": c["line"], "grid_line_alpha": 0.8},
                "Title": {"text_color": c["ink"], "text_font_size": "13px", "text_font_style": "bold"},
                "Toolbar": {"logo": None},
            }
        }
    )


def _variables(colours: dict[str, str]) -> str:
    return "; ".join(f"--fg-{name}: {colour}" for name, colour in colours.items())


STYLE = f"""
:root {{color-scheme: light dark; {_variables(LIGHT)}}}
@media (prefers-color-scheme: dark) {{
  :root {{{_variables(DARK)}}}
  .navbar ul, .dropdown-content {{background-color: #1c2531 !important}}
  .navbar li a {{color: #e5e7eb !important}}
  .navbar li:hover > a, .navbar li.active a {{color: #111827 !important}}
}}
html {{background: var(--fg-page)}}
body {{color: var(--fg-ink); height: auto}}
.content {{height: auto; padding-top: 8px}}
.bk-Tooltip {{opacity: 1 !important; background: var(--fg-card) !important; color: var(--fg-ink) !important}}
/* Beside a card and not on it; bokeh calls what is below a point `above`, for that is the side with the arrow. */
.bk-Tooltip.bk-above {{margin-top: 32px}}
.bk-Tooltip.bk-below {{margin-top: -32px}}
.moved .bk-Tooltip {{visibility: hidden}}
#gone {{margin: 0 0 8px; padding: 9px 14px; border-radius: 10px; background: var(--fg-line); color: var(--fg-ink);
  font: 13px/1.45 system-ui}}
"""
# Within bokeh's own elements.
SHEET = """
.bk-clearfix {display: block; width: 100%}
:host {color: var(--fg-ink); font: 13px/1.45 system-ui, Helvetica, Arial, sans-serif}
.tiles {display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px}
.tile, .panel {background: var(--fg-card); border: 1px solid var(--fg-line); border-radius: 10px; padding: 9px 14px}
.tile b {display: block; font-size: 21px; line-height: 1.25; font-variant-numeric: tabular-nums; white-space: nowrap}
.tile span, .faint {color: var(--fg-faint); font-size: 12px}
h3 {margin: 0 0 2px; font-size: 13px}
p {margin: 3px 0}
.said {margin-top: 10px}
table {border-collapse: collapse; width: 100%; font-size: 12px; font-variant-numeric: tabular-nums}
th {text-align: left; color: var(--fg-faint); font-weight: 500}
td, th {padding: 2px 10px 2px 0; white-space: nowrap}
td:has(.wide) {white-space: normal; width: 40%}
tr.strong {font-weight: 600}
.bar {background: var(--fg-line); border-radius: 4px; height: 9px; min-width: 80px}
.bar i {display: block; background: #27ae60; border-radius: 4px; height: 9px}
.dot {display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 6px}
tr.idle {color: var(--fg-faint)}
.progress {height: 4px; background: var(--fg-line); border-radius: 2px; margin-top: 5px}
.progress i {display: block; height: 4px; border-radius: 2px; background: #4f8fea}
"""
INPUT = """
.bk-input, .bk-btn {background-color: var(--fg-card) !important; color: var(--fg-ink) !important}
.bk-input, .bk-btn {border-color: var(--fg-line) !important}
select.bk-input {background-image: url('data:image/svg+xml;utf8,<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20">\
<path d="M 0 4 L 10 16 L 20 4 Z" fill="gray"/></svg>') !important}
"""
CARD = ":host {background: var(--fg-card); border: 1px solid var(--fg-line); border-radius: 10px; padding: 6px 6px 2px}"
TEMPLATE = env.from_string(
    '{% extends "base.html" %}\n{% block extra_resources %}<style>' + STYLE + "</style>{% endblock %}\n"
    '{% block content %}<p id="gone" hidden>This scheduler has ended, '
    "or cannot be reached: what you see is the last that it told.</p>"
    "{{ plot_div }}{{ plot_script }}{% endblock %}"
)
