"""Does genuine Cinder restore, and chain onto, what `cinderfs consolidate` made of a chain, and needs it none of the chain?

Each volume is backed up in turns by `cinderfs create` and genuine Cinder: a chain of five that ends elsewhere each time, and a branch. Its
tip, a link from the middle and the branch are consolidated; on each result Cinder makes a genuine increment and `cinderfs` the next. All of
these are looked at as in the part `create`, by a Cinder that knows nothing but the store. Then all backups that were consolidated are deleted,
of every other volume by Cinder itself, and what is left is looked at again.
"""
import datetime
import json
import multiprocessing
import signal
import subprocess

import creates
import documents
import kit
import volumes

OURS, CINDER = creates.OURS, creates.CINDER
CONTAINERS = [None, 'team/one', 'monthly/2024']


def chain_of(rng, images, codec, makers):
    """Every way for an end to move, and a branch off the second link. No length is that of a block but after a shrink to a border."""
    volume = creates.Volume(rng, images, rng.choice(creates.HASH_BLOCKS))

    def turn(link):
        maker = makers[link % 2]
        return maker, codec if maker == OURS else rng.choice(volumes.CODECS)

    maker, its_codec = turn(0)
    data = creates.text(rng, 200_000) + creates.random_content(rng, volume.hash_block)  # so that each codec has something to do
    last = volume.back_up(maker, data, None, 'full', its_codec)
    for link, edits in enumerate([
            [volumes.change_blocks, volumes.zero, volumes.change_end], [volumes.change, volumes.shrink_within_block],
            [volumes.grow_within_block, volumes.change_blocks], [volumes.shrink_to_border, volumes.change]], 1):
        maker, its_codec = turn(link)
        last = volume.edited(maker, last, its_codec, edits)
    maker, its_codec = turn(1)
    volume.edited(maker, volume.backups[1], its_codec)
    return volume


class Consolidated(volumes.Backup):
    """A full backup that shows what `of` shows."""

    def __init__(self, rng, of, codec, container):
        image = of.image.with_name(f'{volumes.new_id(rng)}.img')
        settings = of.settings | {
            'compression': codec, 'container': container, 'name': rng.choice(volumes.NAMES),
            'description': f'consolidated from {of.id}',
            'object_size': of.settings['hash_block'] * rng.randint(1, 40)}
        super().__init__(image, of.image.read_bytes(), None, f'consolidated from {of.id} ({of.story})', settings)
        self.volume, self.maker, self.restores, self.of = of.volume, OURS, of.restores, of
        of.volume.backups.append(self)

    def make(self, cinderfs, store, twins):
        """Runs the program, and lets the second Cinder make a full backup of the same image."""
        settings = self.settings
        command = [cinderfs, 'consolidate', store, self.of.id, '--progress', 'json',
                   f"--compression={settings['compression']}", f"--object-size={settings['object_size']}"]
        command += [f'--{option}={settings[option]}' for option in ('container', 'name') if settings[option] is not None]
        done = subprocess.run(command, capture_output=True, timeout=kit.TIMEOUT_S, stdin=subprocess.DEVNULL, text=True)
        if done.returncode:
            raise RuntimeError(f'exit status {done.returncode} of {command}: {done.stderr}')
        summary = json.loads(done.stderr.splitlines()[-1])['summary']
        wanted = [link.id for link in self.of.chain()]
        if summary['consolidated_from'] != wanted or done.stdout != summary['backup_id'] + '\n':
            raise RuntimeError(f"consolidated from {summary['consolidated_from']}, not from {wanted}")
        self.id, when = summary['backup_id'], summary['created_at']
        self.created_at = datetime.datetime.fromisoformat(when.removesuffix('Z'))
        twins.do(command='backup', backup_id=self.id, created_at=when, image=str(self.image), volume_id=self.volume.id,
                 volume_name=self.volume.name, properties=self.volume.properties, **settings)


def chain_on(cinderfs, store, cinder, consolidated):
    """Cinder's increment of what was consolidated, and ours of that one."""
    volume, rng = consolidated.volume, consolidated.volume.rng
    codec = consolidated.settings['compression']
    edits = [volumes.change_blocks, volumes.change_end]
    theirs = volume.edited(CINDER, consolidated, rng.choice(volumes.CODECS), edits)
    theirs.id = volumes.new_id(rng)
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None, microsecond=0)
    when = max(now, consolidated.created_at.replace(microsecond=0) + datetime.timedelta(seconds=1)).isoformat() + 'Z'
    cinder.do(command='backup', backup_id=theirs.id, created_at=when, image=str(theirs.image), volume_id=volume.id,
              volume_name=volume.name, properties=volume.properties, parent=consolidated.id, **theirs.settings)
    ours = volume.edited(OURS, theirs, codec, [volumes.change, volumes.zero])
    status, summary, told = creates.create(cinderfs, store, ours.image, *creates.options(ours, None))
    if status or summary['parent_id'] != theirs.id:
        raise RuntimeError(told)
    ours.id = summary['backup_id']
    return [theirs, ours]


def delete_ancestors(cinderfs, store, cinder, volume, originals):
    """The chain goes: by Cinder the newest first, or at once by its full backup."""
    if volume.serial % 2:
        for backup in reversed(originals):
            cinder.do(command='delete', backup_id=backup.id)
        return
    done = subprocess.run([cinderfs, 'delete', store, originals[0].id, '--cascade'], capture_output=True, text=True,
                          timeout=kit.TIMEOUT_S, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f'exit status {done.returncode} of delete: {done.stderr}')


def look(cinderfs, store, work, rng, backups, mountpoint, tally):
    """The four views of each backup, with a Cinder that never saw any of them."""
    cinder = kit.Cinder(store)
    try:
        for backup in backups:
            kit.check_genuine(cinder, backup, work / 'restored.img', tally)
            kit.check_genuine_new(cinder, backup, work / 'restored.img', tally)
    finally:
        cinder.close()
    for backup in backups:
        kit.check_restore(cinderfs, store, backup, tally)
    with kit.mounted(cinderfs, store, mountpoint, work / f'{mountpoint.name}.log'):
        with multiprocessing.Pool(1, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as reader:
            for backup in backups:
                kit.check_mount(mountpoint, backup, rng, reader, tally)


def run(cinderfs, work, rng, rounds, tally):
    store, images = work / 'store', work / 'images'
    for folder in store, images:
        folder.mkdir(parents=True)
    planned = [chain_of(rng, images, codec, makers) for _ in range(rounds) for codec in creates.CODECS
               for makers in ([OURS, CINDER], [CINDER, OURS])]
    # In each volume three are consolidated, looked at in 4 ways and in their documents; six are made on those; 4 views of all nine after the
    # deletion; the ids left, and the codecs.
    tally.expected += len(planned) * (3 * 5 + 9 * 4) + 2
    print(f'consolidate: {len(planned)} volumes, chains of 5 and a branch, {len(planned) * 3} consolidated', flush=True)
    cinder, twins = kit.Cinder(store), kit.Cinder(work / 'twins')
    comparison = documents.Comparison(store, work / 'twins')
    kept, originals = [], {}
    try:
        for serial, volume in enumerate(planned):
            volume.serial = serial
            creates.make(cinderfs, store, cinder, None, volume)
            originals[volume] = list(volume.backups)
            codec = creates.CODECS[serial // 2 % len(creates.CODECS)]
            for which, of in enumerate([volume.backups[4], volume.backups[2], volume.backups[5]]):
                consolidated = Consolidated(rng, of, codec, CONTAINERS[(serial + which) % len(CONTAINERS)])
                consolidated.make(cinderfs, store, twins)
                read = cinder.do(command='read', backup_id=consolidated.id)
                tally.note('documents', consolidated, comparison.wrong(consolidated, read, True))
                kept += [consolidated, *chain_on(cinderfs, store, cinder, consolidated)]
    finally:
        cinder.close()
        twins.close()
    look(cinderfs, store, work, rng, [backup for backup in kept if not backup.parent], work / 'before', tally)
    cinder = kit.Cinder(store)
    try:
        for volume, backups in originals.items():
            delete_ancestors(cinderfs, store, cinder, volume, backups)
    finally:
        cinder.close()
    look(cinderfs, store, work, rng, kept, work / 'after', tally)
    left = {json.loads(path.read_bytes())['backup_id'] for path in store.rglob('*_metadata')}
    wanted = {backup.id for backup in kept}
    tally.note('deletion', kept[0], None if left == wanted else f'left are {left}, not {wanted}')
    comparison.print()
    used = {kind.split(',')[0] for kind in comparison.objects}
    missing = [codec for codec in creates.CODECS if codec not in used]
    tally.note('objects', kept[0], f'no object was {missing}' if missing else None)
