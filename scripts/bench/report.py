"""Puts results between their marks in docs/PERFORMANCE.md, and leaves what was not measured as it is."""

import os

import kit

NOTES = os.path.join(kit.SCRIPTS, "..", "docs", "PERFORMANCE.md")


def marks(name):
    return "<!-- bench:%s:begin -->\n" % name, "<!-- bench:%s:end -->" % name


def between(text, name):
    """What stands between a section's marks; the marks must be there, once."""
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise kit.Failed("%s has no place for %s: expected %r, then %r" % (NOTES, name, begin, end))
    return text.split(begin)[1].split(end)[0]


def read():
    with open(NOTES) as file:
        return file.read()


def write(sections):
    """`sections`: name -> text that ends with a line feed."""
    text = read()
    for name, new in sections.items():
        old, (begin, end) = between(text, name), marks(name)
        text = text.replace(begin + old + end, begin + new + end)
    with open(NOTES + ".part", "w") as file:
        file.write(text)
    os.rename(NOTES + ".part", NOTES)
