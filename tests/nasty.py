"""Names that would do something where they are shown, if they were not data."""

NASTY = (
    "\x1b[31mred\x07",
    "\x1b]0;title\x07",
    "\x9b2J",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "a|b|c",
    "two\nlines",
    "re\rturn",
    "line\u2028separator",
    "\u202egnp.exe",
    '=HYPERLINK("http://example.org","x")',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "+1+cmd",
    "-2+3",
    "\t=1+1",
    "![x](javascript:alert(1))",
    "`code`",
    "$x^$",
    "{{7*7}}",
    '"quoted", with commas',
    "&lt;b&gt;",
    "\udcff",
    "nul\x00byte",
)
"""Of classes, files and runs."""
