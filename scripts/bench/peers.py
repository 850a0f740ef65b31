"""Others that show the same volume: images that can be mounted, and backup programs with a mount.

Each is made from the raw image with its own defaults (zstd at level 3 where it must be said, as Cinder's) and kept beside the
stores. A peer that is not installed raises `Missing`; the tables then say so, and the bar stands as not measured.
`setup-peers.sh` installs them all.
"""

import contextlib
import os
import shutil
import subprocess

import kit

PEERS_FOLDER = os.environ.get("CINDERFS_PEERS", os.path.expanduser("~/.cache/cinderfs/peers"))
IMAGE_NAME = "volume.img"


class Peer:
    """`prepare` makes what it reads, once; `mount` is a context manager that gives the path of the image."""

    def __init__(self, run, image, size):
        self.run, self.image, self.size = run, image, size
        self.place = os.path.join(run.stores, "%s-of-%s" % (self.key, os.path.basename(image)))
        self.environment = None

    def prepare(self):
        self.find()
        if not os.path.exists(self.place + ".done"):
            kit.say("making %s" % self.place)
            if os.path.isdir(self.place):
                shutil.rmtree(self.place)
            self.make()
            open(self.place + ".done", "w").close()

    def warm(self):
        kit.warm(self.place)

    def command(self, words, **options):
        kit.timed(words, stdout=subprocess.DEVNULL, env={**os.environ, **(self.environment or {})}, **options)

    @contextlib.contextmanager
    def named_image(self):
        """The raw image as `volume.img` in a folder of its own, which is what the others take in."""
        with kit.folder(self.run.stores, "named-") as folder:
            path = os.path.join(folder, IMAGE_NAME)
            os.link(self.image, path)
            yield path


class Qcow2(Peer):
    key, label = "qcow2-zstd", "qcow2 zstd, qemu-storage-daemon's FUSE export"
    compression = "zstd"

    def find(self):
        self.convert = kit.program("qemu-img", "apt: qemu-utils")
        self.daemon = kit.program("qemu-storage-daemon", "apt: qemu-system-common or qemu-utils")
        self.version = kit.output_of(self.daemon, "--version").splitlines()[0]
        if "fuse" not in kit.output_of(self.daemon, "--help"):
            raise kit.Missing("this qemu-storage-daemon has no FUSE export")

    def make(self):
        self.command([self.convert, "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=" + self.compression, self.image,
                      self.place])

    @contextlib.contextmanager
    def mount(self):
        export = os.path.join(self.run.folder("qemu-"), IMAGE_NAME)
        open(export, "w").close()
        command = [self.daemon, "--blockdev", "driver=file,node-name=file,read-only=on,filename=" + self.place,
                   "--blockdev", "driver=qcow2,node-name=image,read-only=on,file=file",
                   "--export", "type=fuse,id=export,node-name=image,writable=off,mountpoint=" + export]
        with kit.Daemon(command, export):
            yield export


class Qcow2Zlib(Qcow2):
    key, label = "qcow2-zlib", "qcow2 zlib, qemu-storage-daemon's FUSE export"
    compression = "zlib"


class Squashfs(Peer):
    key, label = "squashfs-zstd-1M", "squashfs zstd, blocks of 1 MiB, kernel"

    def find(self):
        self.program = kit.program("mksquashfs", "apt: squashfs-tools")
        self.version = "%s, Linux %s" % (kit.output_of(self.program, "-version").splitlines()[0], os.uname().release)
        if os.geteuid() != 0:
            raise kit.Missing("only root may mount a squashfs")

    def make(self):
        with self.named_image() as path:
            self.command([self.program, os.path.dirname(path), self.place, "-comp", "zstd", "-Xcompression-level", "3", "-b", "1M",
                          "-noappend", "-quiet", "-no-progress"])

    @contextlib.contextmanager
    def mount(self):
        with kit.loop_mount(self.place, self.run.folder("squashfs-"), "squashfs") as where:
            yield os.path.join(where, IMAGE_NAME)


class BackupProgram(Peer):
    """One that has a repository and mounts it."""

    def __init__(self, run, image, size):
        super().__init__(run, image, size)
        self.environment = {"HOME": run.folder("home-")}

    @contextlib.contextmanager
    def mount(self):
        where = self.run.folder(self.key + "-")
        with kit.Daemon(self.mount_command(where), where, self.environment, by_umount=True):
            yield find(where)


def find(where):
    """The image, wherever the program shows it. Its links to the newest snapshot are not followed."""
    for here, _, names in os.walk(where):
        if IMAGE_NAME in names:
            return os.path.join(here, IMAGE_NAME)
    raise kit.Failed("no %s in %s" % (IMAGE_NAME, where))


class Restic(BackupProgram):
    key, label = "restic", "restic mount"

    def find(self):
        self.program = kit.program("restic", "apt: restic")
        self.version = kit.output_of(self.program, "version")
        self.environment |= {"RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": self.place}

    def make(self):
        self.command([self.program, "init"])
        with self.named_image() as path:
            self.command([self.program, "backup", path])

    def mount_command(self, where):
        return [self.program, "mount", where]


class Rustic(Restic):
    """Another program for restic's repositories, with the same words."""
    key, label = "rustic", "rustic mount"

    def find(self):
        own = os.path.join(PEERS_FOLDER, "bin", "rustic")
        self.program = own if os.path.exists(own) else kit.program("rustic", "scripts/bench/setup-peers.sh builds it")
        self.version = kit.output_of(self.program, "--version")
        self.environment |= {"RUSTIC_PASSWORD": "bench", "RUSTIC_REPOSITORY": self.place, "RUSTIC_NO_PROGRESS": "true"}
        if subprocess.run([self.program, "mount", "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise kit.Missing("this rustic was built without its mount")


class Borg(BackupProgram):
    key, label = "borg", "borg mount"

    def find(self):
        self.program = kit.program("borg", "apt: borgbackup, python3-pyfuse3")
        self.version = kit.output_of(self.program, "--version")
        self.environment |= {"BORG_REPO": self.place, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
                             "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}

    def make(self):
        self.command([self.program, "init", "--encryption=none"])
        with self.named_image() as path:
            self.command([self.program, "create", "--compression=zstd,3", "::volume", path])

    def mount_command(self, where):
        return [self.program, "mount", "-f", "::volume", where]


def ready(run, kinds, image, size):
    """(those that can be measured, for each of the others a line that says why not)."""
    found, missing = [], []
    for kind in kinds:
        peer = kind(run, image, size)
        try:
            peer.prepare()
        except kit.Missing as error:
            kit.say("%s: %s" % (peer.label, error))
            missing.append((peer, str(error)))
        else:
            found.append(peer)
    return found, missing
