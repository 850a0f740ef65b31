#!/usr/bin/awk -f
# What a console of run.sh shows, in few lines: for each part what was found to be so, and what cinderfs said.

# Puts words into lines of at most 118 columns, each four columns in.
function wrapped(text,    words, count, line, i) {
    count = split(text, words, " ")
    line = "   "
    for (i = 1; i <= count; i++) {
        if (length(line) + length(words[i]) > 117 && line != "   ") {
            print line
            line = "   "
        }
        line = line " " words[i]
    }
    print line
}
function end_part(    i) {
    if (title == "") return
    print title
    wrapped(found ".")
    for (i = 1; i <= count; i++) wrapped(said[i])
}
function begin_part(what) {
    end_part()
    title = what
    found = ""
    count = 0
}
{
    gsub(/[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+/, "ID")
    sub(/`\/usr\/bin\/setpriv .* cinderfs /, "`cinderfs ")
}
/^--- / {
    sub(/^--- /, "")
    sub(/ \([0-9.]+ s\)$/, "")
    begin_part($0)
    next
}
/^ok: (cinderfs|Cinder) restores / && title !~ /^restored/ { begin_part("restored outside of the machine, from what the server had") }
/^ok: / {
    sub(/^ok: /, "")
    found = found (found == "" ? "" : "; ") $0
}
/^    cinderfs: / && !known[$0]++ {
    sub(/^    /, "")
    said[++count] = $0
}
/ passed, 0 failed$/ { summary = summary (summary == "" ? "" : ", ") $0 }
END {
    end_part()
    print "\n" summary
}
