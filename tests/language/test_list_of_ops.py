"""The table of all ops is what their classes say."""

from conftest import ROOT

import flowgrad as fg


def test_the_table_is_current(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = __import__("list_ops")
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "run `python docs/list_ops.py`"
    public = {
        name for name in fg.__all__ if isinstance(getattr(fg, name), type) and issubclass(getattr(fg, name), fg.Op)
    }
    listed = {line.split(" | ")[0].removeprefix("| ") for line in script.rows()}
    assert listed == public - {"Op", "Elementwise"}
    assert len(listed) > 15
