//! Mounting, signals, and the end.
//!
//! A mount ends in three ways: a signal to the daemon (it unmounts, lazily when files are open, so that no dead mount stays
//! behind), somebody's `umount` (the session ends by itself), or an error of the session (what is left is detached). In
//! the first two the daemon has done what it was asked to.
//!
//! fuser would unmount whatever stands at the mountpoint when its session is dropped, which after somebody's
//! `umount` may be another file system. So its handle is never dropped, and unmounting is done here, after a look at the
//! mount table.
//!
//! Between the mount and the first thread lies the moment to [restrict](Needs::restrict) the process: mounting is done, and every
//! thread inherits it. What has to be done from outside later, the [`Unmounter`] does.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::desk::Desk;
use super::fs::CinderFs;
use super::options::MountOptions;
use super::unmount::{self, SOURCE_PREFIX, Taken};
use super::unmounter::Unmounter;
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::{Needs, Report};
use crate::store::deadline::DeadlineStore;

/// The device through which the kernel is spoken to; each thread opens its own.
const FUSE_DEVICE: &str = "/dev/fuse";

/// Read-ahead of the mount, in KiB: one largest request. The kernel caps what FUSE may ask for at 128 KiB, which costs
/// more than half of the sequential speed; root may raise it afterwards.
const READ_AHEAD_KIB: &str = "1024";

/// How long the session may take to end after its mount was taken away without force.
const END_WAIT_MAX: Duration = Duration::from_secs(5);

/// A mount that answers.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    device: String,
    unmounter: Arc<Mutex<Unmounter>>,
    /// What the process gave up, to be told once the log is where it stays.
    report: Option<Report>,
    events: mpsc::Receiver<Event>,
}

#[derive(Debug)]
enum Event {
    Signal(i32),
    Ended(io::Result<()>),
    /// The kernel has ended the connection; threads that are stuck may still have to find out.
    Over,
}

/// Mounts `fs` at a checked, canonical mountpoint. The signals that end a mount are caught from here on, and the process is
/// restricted to `needs` and to what the mount itself takes, if there are any. `watched` is the store where it may stall.
///
/// [`ErrorKind::Target`] when the kernel refuses, or the mount does not answer.
pub fn mount(
    fs: CinderFs,
    store: &str,
    mountpoint: &Path,
    options: &MountOptions,
    needs: Option<Needs>,
    watched: Option<Arc<DeadlineStore>>,
) -> Result<Mounted> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => " (is the fuse module loaded, and fusermount3 installed?)",
            io::ErrorKind::PermissionDenied => {
                match std::fs::OpenOptions::new().read(true).write(true).open(FUSE_DEVICE) {
                    Err(_) => " (/dev/fuse is not open to you)",
                    Ok(_) => " (allow_other and allow_root need user_allow_other in /etc/fuse.conf)",
                }
            }
            _ => "",
        };
        // fusermount3's words come with their line's end.
        let error = match error.raw_os_error() {
            Some(_) => error,
            None => io::Error::new(error.kind(), error.to_string().trim_end().to_owned()),
        };
        Error::caused_by(ErrorKind::Target, format!("cannot mount at {mountpoint:?}{hint}"), error)
    };
    let unmounter = match needs {
        Some(_) => Unmounter::start(mountpoint)?,
        None => Unmounter::here(mountpoint),
    };
    let unmounter = Arc::new(Mutex::new(unmounter));
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let desk = fs.desk().clone();
    let session = Session::new(fs, mountpoint, &config(store, options, desk.threads())).map_err(failed)?;
    let found = unmount::mounted_at(mountpoint)?;
    let device = found.map(|line| line.device).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    raise_read_ahead(&device);
    let report = match needs {
        Some(mut needs) => {
            needs.device(Path::new(FUSE_DEVICE)).map_err(failed)?;
            Some(needs.restrict())
        }
        None => None,
    };
    let started = start(session, signals, &desk, watched, &unmounter).and_then(|events| {
        // The first question through the kernel: what is ready answers it.
        std::fs::metadata(mountpoint).map(|_| events)
    });
    let events = started.map_err(|error| {
        let _ = lock(&unmounter).take_away(&device, true);
        failed(error)
    })?;
    tracing::info!(mountpoint = %mountpoint.display(), store, "mounted");
    Ok(Mounted { mountpoint: mountpoint.to_owned(), device, unmounter, report, events })
}

/// Starts the threads: those that serve, and those that tell of the end.
fn start(
    session: Session<CinderFs>,
    mut signals: Signals,
    desk: &Desk,
    watched: Option<Arc<DeadlineStore>>,
    unmounter: &Arc<Mutex<Unmounter>>,
) -> io::Result<mpsc::Receiver<Event>> {
    let device = session.as_fd().try_clone_to_owned()?;
    let mut session = session.spawn()?;
    let (sender, events) = mpsc::channel();
    let over = sender.clone();
    let timeout = watched.as_ref().map_or(Duration::MAX, |store| store.timeout());
    let look = move || watched.as_ref().map(|store| store.look()).unwrap_or_default();
    desk.watch(device, timeout, look, move || drop(over.send(Event::Over)))?;
    // It ends with the mount, and must not outlive it for a thread that asks now and then.
    let unmounter = Arc::downgrade(unmounter);
    desk.let_go(move |threads| match unmounter.upgrade() {
        Some(unmounter) => lock(&unmounter).killed(threads),
        None => Vec::new(),
    })?;
    let serving = std::mem::replace(&mut session.guard, thread::spawn(|| Ok(())));
    // See the module's comment: dropping it would unmount by path.
    std::mem::forget(session);
    let ended = sender.clone();
    thread::Builder::new().name("end".to_owned()).spawn(move || {
        let outcome = serving.join().unwrap_or_else(|_| Err(io::Error::other("the session panicked")));
        // Nobody listens any more when the process is about to exit.
        let _ = ended.send(Event::Ended(outcome));
    })?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(events)
}

/// How a mount has ended.
#[derive(Debug)]
pub enum Ended {
    /// It is gone.
    Unmounted,
    /// It was in use, as the error says, and is out of the tree; what is open fails.
    Detached(Error),
}

impl Mounted {
    /// Serves until a signal or an unmount ends it; an error only when the session itself failed or the mount could not be
    /// taken away.
    pub fn serve(mut self) -> Result<Ended> {
        if let Some(report) = &self.report {
            report.log();
        }
        let event = match self.events.recv() {
            // Soon, unless the store has hung threads up.
            Ok(Event::Over) => match self.events.recv_timeout(END_WAIT_MAX) {
                Ok(event) => Ok(event),
                Err(_) => Ok(Event::Ended(Ok(()))),
            },
            event => event,
        };
        match event {
            Ok(Event::Over) => self.end(),
            Ok(Event::Signal(signal)) => {
                tracing::info!(signal, "unmounting");
                self.end()
            }
            Ok(Event::Ended(Ok(()))) => {
                tracing::info!(mountpoint = %self.mountpoint.display(), "unmounted by somebody else");
                Ok(Ended::Unmounted)
            }
            // A thread that was taking a request when the kernel took the connection away: the mount is gone, or dead.
            Ok(Event::Ended(Err(error))) if error.kind() == io::ErrorKind::ConnectionAborted => {
                tracing::info!(mountpoint = %self.mountpoint.display(), "unmounted by somebody else");
                self.detach(true).map(|()| Ended::Unmounted)
            }
            Ok(Event::Ended(Err(error))) => {
                // What is left answers nobody.
                self.detach(true)?;
                Err(Error::caused_by(ErrorKind::Target, "the FUSE session failed", error))
            }
            Err(mpsc::RecvError) => self.end(),
        }
    }

    /// Unmounts: at once where nothing is open, else by taking the mount out of the tree.
    pub fn end(mut self) -> Result<Ended> {
        match self.detach(false) {
            Ok(()) => {
                while let Ok(event) = self.events.recv_timeout(END_WAIT_MAX) {
                    if matches!(event, Event::Ended(_)) {
                        break;
                    }
                }
                Ok(Ended::Unmounted)
            }
            Err(error) => self.detach(true).map(|()| Ended::Detached(error)),
        }
    }

    fn detach(&mut self, lazy: bool) -> Result<()> {
        match lock(&self.unmounter).take_away(&self.device, lazy)? {
            Taken::Gone => {}
            Taken::Hidden(kind) => {
                tracing::warn!(
                    kind,
                    "another mount hides this one; it stays, and answers nobody from now on"
                );
            }
        }
        Ok(())
    }
}

fn lock(unmounter: &Mutex<Unmounter>) -> MutexGuard<'_, Unmounter> {
    // It is asked one thing at a time, and a line that was torn is answered with an error.
    unmounter.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(store: &str, options: &MountOptions, threads: usize) -> Config {
    let source = PathBuf::from(format!("{SOURCE_PREFIX}{store}"));
    // Root's source goes to mount(2) as it is; fusermount3 reads it from a list that commas part.
    let source = if rustix::process::geteuid().is_root() {
        source.to_string_lossy().into_owned()
    } else {
        unmount::escape_source(&source)
    };
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source),
        // fuser hands its own `Subtype` to fusermount3 only; as a plain option the kernel takes it too.
        MountOption::CUSTOM("subtype=cinderfs".to_owned()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    config.acl = match (options.allow_other, options.allow_root) {
        (true, _) => SessionACL::All,
        (false, true) => SessionACL::RootAndOwner,
        (false, false) => SessionACL::Owner,
    };
    config.n_threads = Some(threads);
    config.clone_fd = true;
    config
}

fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB) {
        // Only root may; sequential reads are slower without it and right all the same.
        tracing::debug!(path, "read-ahead stays as it is: {error}");
    }
}
