# Runs that are ended from outside while their snapshot is there. shellcheck shell=dash

for pair in INT:130 TERM:143; do
    begin "SIG${pair%:*} while the snapshot is read"
    create /tmp/killed /dev/vg/web --snapshot lvm
    hold
    kill -"${pair%:*}" $job
    ends "${pair#*:}"
    check "the snapshot is dropped" has_snapshots 0
    check "the store is empty" store_is_empty /tmp/killed
done

begin "SIGINT while lvcreate runs"
create /tmp/killed /dev/vg/web --snapshot lvm
making
kill -INT $job
ends 130
check "the snapshot is dropped" has_snapshots 0
check "the store is empty" store_is_empty /tmp/killed

begin "SIGKILL while the snapshot is read"
create /tmp/killed /dev/vg/web --snapshot lvm
hold
kill -KILL $job
ends 137
check "the snapshot is left" has_snapshots 1
check "the store is empty" store_is_empty /tmp/killed

begin "SIGKILL while lvcreate runs"
create /tmp/killed /dev/vg/web --snapshot lvm
making
kill -KILL $job
ends 137
while lvcreate_runs; do sleep 0.05; done
check "the first leftover is dropped, a second is left" has_snapshots 1

begin "the next run drops what is left"
create /out/after /dev/vg/web --snapshot lvm
hold
keep "$snapshot"
check "only its own snapshot is there" has_snapshots 1
ends 0
check "it says so" has /tmp/err "dropped the snapshot of a run that was killed"
is_what_was_kept
check "no snapshot is left" has_snapshots 0
