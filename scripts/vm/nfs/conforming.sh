# What every store has to be, asked of this one by the project's own tests. shellcheck shell=dash

begin "NFS $version: the properties of every store"
mount_as_cinder
TEST_NFS_SHARE=$share share_nfs_store --ignored >/tmp/out 2>&1
status=$?
[ $status = 0 ] || cat /tmp/out
for property in $(sed -n 's/^test \(.*\) \.\.\. ok$/\1/p' /tmp/out); do check "$(echo "$property" | tr _ ' ')" true; done
check "all have them" [ "$status:$(grep -c '^test .* ok$' /tmp/out)" = 0:12 ]
rm -rf "$exported"/*
must umount "$cinders"
