"""`restore` of a 4 GiB volume against genuine Cinder's restore of the same store."""

import rescue

TITLE = "Restore of the ext4 volume"
VOLUMES = "ext4"
BAR_TIME, BAR_MEMORY = 8, 10


def measure(run):
    return rescue.of(run).restore_table(BAR_TIME, BAR_MEMORY)
