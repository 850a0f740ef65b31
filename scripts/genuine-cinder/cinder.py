#!/usr/bin/env python3
"""Genuine Cinder's backup drivers as a command: back an image file up, restore a backup into a file.

The store is a folder, `s3:BUCKET` (S3_ENDPOINT and AWS_* in the environment) or `swift:CONTAINER` (OS_*, tempauth).

Every byte that enters or leaves a container passes through Cinder's own code (a driver and the chunked driver under it) and its own database layer. This file supplies what the API, the scheduler and the volume service would: a
volume's row, a backup's row and an opened file in place of the device.

The database is an sqlite file that lives as long as the process. The store is the only state: a backup that the database
does not know gets its row from its `_metadata` document, ancestors first, as an administrator would import it.

Run it with the interpreter that setup.sh prints. `batch` reads one job a line from stdin, because a cold start of Cinder
takes 1.5 s, and answers each with one line as soon as it is done:

    {"command": "backup", "image": "vol.img", "container": "team/one", "compression": "zstd"}
    {"command": "restore", "backup_id": "...", "output": "out.img", "bytes": 3000000}

The keys are the parameters of Cinder.backup, restore, read and delete below; the single commands take them as
--options. What Cinder's code logs as a warning or worse meanwhile comes with the answer, as `warnings`.
"""
import argparse
import json
import logging
import os
import pathlib
import sys
import tempfile
import uuid
import warnings

MIB, GIB = 1 << 20, 1 << 30
PROJECT = USER = VOLUME_TYPE = '00000000-0000-0000-0000-00000000000f'
# What an existing volume holds before a restore. A range that no object covers keeps it, and so shows.
OLD_DATA = b'\xa5'


CONFIGURATION = """
[DEFAULT]
transport_url = fake:/
state_path = {scratch}
backup_enable_progress_timer = false
{driver}
[database]
connection = sqlite:///{scratch}/cinder.sqlite
sqlite_synchronous = false
"""


S3 = """backup_s3_endpoint_url = {S3_ENDPOINT}
backup_s3_store_access_key = {AWS_ACCESS_KEY_ID}
backup_s3_store_secret_key = {AWS_SECRET_ACCESS_KEY}
backup_s3_store_bucket = {container}
"""

SWIFT = """backup_swift_auth = single_user
backup_swift_auth_version = 1
backup_swift_auth_url = {OS_AUTH_URL}
backup_swift_user = {OS_USERNAME}
backup_swift_key = {OS_PASSWORD}
backup_swift_container = {container}
backup_swift_enable_progress_timer = false
"""

# By the word before the store's name: settings, module, class, and what the size of an object is called.
DRIVERS = {
    '': ('backup_posix_path = {container}\n', 'posix', 'PosixBackupDriver', 'backup_file_size', 'backup_sha_block_size_bytes'),
    's3': (S3, 's3', 'S3BackupDriver', 'backup_s3_object_size', 'backup_s3_block_size'),
    'swift': (SWIFT, 'swift', 'SwiftBackupDriver', 'backup_swift_object_size', 'backup_swift_block_size'),
}


def load_cinder(configuration):
    """Import Cinder and start it as far as the cinder-backup process would, without a message queue."""
    warnings.simplefilter('ignore')
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().handlers[0].setLevel(logging.ERROR)
    sys.path.remove(os.path.dirname(os.path.realpath(__file__)))  # else `cinder` would be this file
    os.environ['OS_CINDER_DISABLE_EVENTLET_PATCHING'] = '1'
    try:
        from cinder import monkey_patch
        monkey_patch.patch()
    except ImportError:  # before 29, which knew only eventlet
        from oslo_service import backend
        backend.init_backend(backend.BackendType.THREADING)
    from cinder import objects, rpc
    from cinder.common import config
    try:
        from cinder.db import api, models
    except ImportError:  # before 29
        from cinder.db.sqlalchemy import api, models
    objects.register_all()
    config.CONF(['--config-file', str(configuration)], project='cinder')
    rpc.init(config.CONF)
    if hasattr(api, 'configure'):
        api.configure(config.CONF)
    models.BASE.metadata.create_all(api.get_engine())
    return config.CONF


class Warnings(logging.Handler):
    """Collects what Cinder warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []
        logging.getLogger().addHandler(self)

    def emit(self, record):
        self.texts.append(f'{record.name}: {record.getMessage()}')

    def take(self):
        taken, self.texts = self.texts, []
        return taken


class Cinder:
    """One store, with a database of its own in `scratch`."""

    def __init__(self, store, scratch):
        word, _, name = str(store).partition(':')
        self.kind = word if word in DRIVERS else ''
        if self.kind:
            self.store = name
        else:
            self.store = pathlib.Path(store).absolute()
            self.store.mkdir(parents=True, exist_ok=True)
        configuration = pathlib.Path(scratch, 'cinder.conf')
        driver = DRIVERS[self.kind][0].format(container=self.store, **os.environ)
        configuration.write_text(CONFIGURATION.format(scratch=scratch, driver=driver), encoding='utf-8')
        self.conf = load_cinder(configuration)
        from cinder import context, exception
        from cinder.db import api
        self.db, self.exception = api, exception
        self.context = context.RequestContext(user_id=USER, project_id=PROJECT, is_admin=True)

    def backup(self, image, backup_id=None, volume_id=None, parent=None, compression='zlib', object_size=None,
               hash_block=None, container=None, name=None, description=None, volume_name=None, created_at=None,
               properties=None):
        """Back `image` up: in full, or the changes since the backup `parent`.

        `object_size` and `hash_block` are bytes and default to Cinder's own; `created_at` (ISO 8601, UTC) is also what
        Cinder takes the time to be; `properties` are the volume's own metadata.
        """
        from oslo_utils import timeutils
        backup_id = backup_id or str(uuid.uuid4())
        image_bytes = os.path.getsize(image)
        size_gib = max(1, -(-image_bytes // GIB))
        if parent:
            parent_row = self.known(parent)  # in any case: Cinder finds the parent by its row
            volume_id = volume_id or parent_row.volume_id
        volume_id = volume_id or str(uuid.uuid4())
        when = timeutils.normalize_time(timeutils.parse_isotime(created_at)) if created_at else timeutils.utcnow()
        timeutils.set_time_override(when)
        try:
            self.put_volume(volume_id, size_gib, volume_name)
            if properties:
                self.db.volume_metadata_update(self.context, volume_id, properties, True)
            backup = self.put_backup(
                id=backup_id, volume_id=volume_id, parent_id=parent, container=container, status='creating',
                size=size_gib, display_name=name, display_description=description, created_at=when,
                data_timestamp=when)
            with open(image, 'rb') as device:
                self.driver(compression, object_size, hash_block).backup(backup, device)
        finally:
            timeutils.clear_time_override()
        backup.status = 'available'
        backup.save()
        return {'backup_id': backup_id, 'volume_id': volume_id, 'parent_id': parent, 'container': backup.container,
                'prefix': backup.service_metadata, 'objects': backup.object_count, 'bytes': image_bytes}

    def restore(self, backup_id, output, bytes=0, imported=False, new=False):
        """Restore a backup into `output`, which stands for an existing volume of `bytes` bytes full of old data, or for
        a `new` one, which reads as zeros.

        The file ends up longer where the chain's objects reach further. The answer tells what the volume is called then
        and which properties it has. With `imported` only what the database holds is looked at.
        """
        from cinder import objects
        backup = objects.Backup.get_by_id(self.context, backup_id) if imported else self.known(backup_id)
        target = str(uuid.uuid4())
        self.put_volume(target, max(1, -(-bytes // GIB)), None)
        with open(output, 'wb') as device:
            for at in range(0, 0 if new else bytes, MIB):
                device.write(OLD_DATA * min(MIB, bytes - at))
            device.truncate(bytes)
        backup.status = 'restoring'
        backup.save()
        try:
            with open(output, 'r+b') as device:
                self.driver().restore(backup, target, device, volume_is_new=new)
        finally:
            backup.status = 'available'
            backup.save()
        return {'backup_id': backup_id, 'bytes': os.path.getsize(output),
                'volume_name': self.db.volume_get(self.context, target)['display_name'],
                'properties': self.db.volume_metadata_get(self.context, target)}

    def read(self, backup_id):
        """Both documents of a backup, as Cinder's driver reads them."""
        backup, driver = self.known(backup_id), self.driver()
        return {'metadata': driver._read_metadata(backup), 'sha256file': driver._read_sha256file(backup)}

    def export(self, backup_id):
        """The record of a backup, as `cinder backup-export` prints it."""
        backup = self.known(backup_id)
        return {'backup_service': backup.service,
                'backup_url': backup.encode_record(driver_info=self.driver().export_record(backup))}

    def import_record(self, backup_service, backup_url):
        """What `cinder backup-import` makes of a record: the API's row, then the service's own import."""
        from cinder import objects
        from cinder.backup import manager
        claimed = objects.Backup.decode_record(backup_url)
        row = objects.BackupImport(
            context=self.context, id=claimed['id'], user_id=USER, project_id=PROJECT, status='creating',
            volume_id='0000-0000-0000-0000', deleted=False, deleted_at=None, metadata={})
        row.create()
        backup = objects.Backup.get_by_id(self.context, claimed['id'])
        manager.BackupManager.import_record(Service(self), self.context, backup, backup_service, backup_url, [])
        backup = objects.Backup.get_by_id(self.context, claimed['id'])
        return {'backup_id': backup.id, 'status': backup.status, 'record': objects.Backup.decode_record(
            backup.encode_record(driver_info={}))}

    def delete(self, backup_id):
        """Delete a backup, files and row."""
        backup = self.known(backup_id)
        self.driver().delete_backup(backup)
        backup.destroy()
        return {'backup_id': backup_id}

    def driver(self, compression='zlib', object_size=None, hash_block=None):
        """A driver as one that the service starts with these settings."""
        import importlib
        _, module, name, size_option, block_option = DRIVERS[self.kind]
        made = getattr(importlib.import_module(f'cinder.backup.drivers.{module}'), name)
        for option, value in [('backup_compression_algorithm', compression), (size_option, object_size),
                              (block_option, hash_block)]:
            self.conf.clear_override(option)
            if value is not None:
                self.conf.set_override(option, value)
        return made(self.context)

    # The rows that the API and the volume service would have made.

    def put_volume(self, volume_id, size_gib, name):
        try:
            self.db.volume_get(self.context, volume_id)
            self.db.volume_update(self.context, volume_id, {'size': size_gib})
        except self.exception.VolumeNotFound:
            self.db.volume_create(self.context, {
                'id': volume_id, 'size': size_gib, 'display_name': name, 'status': 'backing-up',
                'attach_status': 'detached', 'host': 'gate@lvm#lvm', 'availability_zone': 'nova',
                'user_id': USER, 'project_id': PROJECT, 'volume_type_id': VOLUME_TYPE})

    def put_backup(self, **row):
        from cinder import objects
        self.db.backup_create(self.context, {
            'user_id': USER, 'project_id': PROJECT, 'host': 'gate', 'availability_zone': 'nova', 'metadata': {},
            'service': 'cinder.backup.drivers.posix.PosixBackupDriver', **row})
        return objects.Backup.get_by_id(self.context, row['id'])

    def known(self, backup_id):
        """The backup's row; made from the store, with its ancestors', where the database has none."""
        from cinder import objects
        try:
            return objects.Backup.get_by_id(self.context, backup_id)
        except self.exception.BackupNotFound:
            container, prefix, metadata = self.find(backup_id)
        if metadata['parent_id']:
            self.known(metadata['parent_id'])
        base = json.loads(metadata['volume_meta'] or '{}').get('volume-base-metadata', {})
        return self.put_backup(
            id=backup_id, volume_id=metadata['volume_id'], parent_id=metadata['parent_id'], container=container,
            service_metadata=prefix, object_count=len(metadata['objects']), size=base.get('size', 1),
            status='available', display_name=metadata['backup_name'],
            display_description=metadata['backup_description'])

    def find(self, backup_id):
        """Container, prefix and `_metadata` document of a backup in the store."""
        if self.kind:
            driver = self.driver()
            for name in driver.get_container_entries(self.store, ''):
                if name.endswith('_metadata') and backup_id in name:
                    with driver.get_object_reader(self.store, name) as reader:
                        return self.store, name.removesuffix('_metadata'), json.loads(reader.read())
            raise LookupError(f'no backup {backup_id} in {self.store}')
        for path in self.store.rglob('*_metadata'):
            metadata = json.loads(path.read_text(encoding='utf-8'))
            if metadata['backup_id'] == backup_id:
                return str(path.parent.relative_to(self.store)), path.name.removesuffix('_metadata'), metadata
        raise LookupError(f'no backup {backup_id} in {self.store}')


class Service:
    """What the service's import asks of itself."""

    driver_name, az, host = 'cinder.backup.drivers.posix.PosixBackupDriver', 'nova', 'gate'

    def __init__(self, cinder):
        self.service = lambda _context: cinder.driver()

    def _is_our_backup(self, service):
        return self.driver_name.startswith(service)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('store', help='the backup repository, made when missing (backup_posix_path), or s3:BUCKET, swift:CONTAINER')
    commands = parser.add_subparsers(dest='command', required=True)
    backup = commands.add_parser('backup', help='back an image file up')
    backup.add_argument('image')
    for option in ['backup-id', 'volume-id', 'parent', 'compression', 'container', 'name', 'description',
                   'volume-name', 'created-at']:
        backup.add_argument(f'--{option}')
    for option in ['object-size', 'hash-block']:
        backup.add_argument(f'--{option}', type=int, help='bytes')
    restore = commands.add_parser('restore', help='restore a backup into a file, as into an existing volume')
    restore.add_argument('backup_id')
    restore.add_argument('output')
    restore.add_argument('--bytes', type=int, help="the volume's length")
    export = commands.add_parser('export', help="print a backup's record")
    export.add_argument('backup_id')
    record = commands.add_parser('import', help='take a record into the database')
    record.add_argument('backup_service')
    record.add_argument('backup_url')
    restore.add_argument('--new', action='store_true', help='as into a new volume')
    commands.add_parser('read', help='print both documents').add_argument('backup_id')
    commands.add_parser('delete', help='delete a backup').add_argument('backup_id')
    commands.add_parser('batch', help='run jobs from stdin, one JSON object a line')
    return {key: value for key, value in vars(parser.parse_args()).items() if value is not None}


def main():
    job = parse_arguments()
    failed = False
    with tempfile.TemporaryDirectory(prefix='genuine-cinder-') as scratch:
        cinder, listener = Cinder(job.pop('store'), scratch), Warnings()
        commands = {name: getattr(cinder, name) for name in ('backup', 'restore', 'read', 'export', 'delete')}
        commands['import'] = cinder.import_record
        for job in map(json.loads, sys.stdin) if job['command'] == 'batch' else [job]:
            try:
                answer = commands[job.pop('command')](**job)
            except Exception as error:  # whatever Cinder raises is the answer to this job, and ends no other
                answer, failed = {'error': f'{type(error).__name__}: {error}'}, True
            warned = listener.take()
            if warned:
                answer['warnings'] = warned
            print(json.dumps(answer), flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
