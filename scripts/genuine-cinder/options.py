#!/usr/bin/env python3
"""What genuine Cinder takes from configuration files: for each line of stdin, a JSON list of files and one of folders, a line with its options.

    [["/etc/cinder/cinder.conf"], ["/etc/cinder/cinder.conf.d"]]
    {"backup_posix_path": ["value", "/var/lib/cinder/backup"], "backup_container": ["error", "TemplateSubstitutionError"], ...}

A line of `null` means that a file is not taken, one of `{}` that the service would not start for some option's value. Run it with the interpreter that setup.sh prints.
"""
import json
import sys
import warnings

warnings.filterwarnings('ignore')
del sys.path[0]  # cinder.py lies beside this file
from oslo_service import backend  # noqa: E402

backend.init_backend(backend.BackendType.THREADING)

from cinder.backup.drivers import posix, swift  # noqa: E402, F401
from oslo_config import cfg  # noqa: E402

NAMES = ('backup_posix_path', 'backup_container', 'backup_file_size', 'backup_sha_block_size_bytes', 'backup_compression_algorithm')


def options(files, folders):
    conf = cfg.CONF
    conf.reset()
    try:
        conf([], project='cinder', default_config_files=files, default_config_dirs=folders)
    except (cfg.ConfigFileParseError, UnicodeDecodeError):
        return None
    except (cfg.Error, RecursionError):
        return {}  # of some option, which may be none of these
    found = {}
    for name in NAMES:
        try:
            found[name] = ('value', conf[name])
        except (cfg.Error, ValueError, RecursionError) as error:
            found[name] = ('error', type(error).__name__)
    return found


print('ready', flush=True)
for line in sys.stdin:
    print(json.dumps(options(*json.loads(line))), flush=True)
