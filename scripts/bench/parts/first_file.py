"""From nothing to one file of a 4 GiB ext4 volume, against genuine Cinder's restore and the same read."""

import rescue

TITLE = "One file of the ext4 volume"
VOLUMES = "ext4"
BAR_NO_INDEX, BAR_INDEX = 15, 100


def measure(run):
    return rescue.of(run).first_file_table(BAR_NO_INDEX, BAR_INDEX)
