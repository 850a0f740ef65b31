//! Runs the program and ends it, or fails it, at one of its system calls.
//!
//! Problem: whether a run that dies anywhere leaves a store clean is shown by letting it die everywhere. A hook in the code
//! knows only the calls that the code sends through it. Idea: a debugger's view (ptrace) of the whole program: all threads stop before
//! each system call, those that matter are counted in the order in which they come, and one of them meets its fate.
//!
//! Linux on x86-64 only: how a call is told, and skipped, is the processor's.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::cases::Watchdog;

/// The calls that are counted.
#[allow(dead_code, reason = "each test binary counts some")]
#[derive(Clone, Copy)]
pub(crate) enum Calls<'a> {
    /// Those that change files, names, or what is durable.
    Writing,
    /// Those that read this file.
    Reading(&'a Path),
}

/// What becomes of the call.
#[allow(dead_code, reason = "each test binary tries some")]
#[derive(Clone, Copy)]
pub(crate) enum Fate<'a> {
    /// The program is killed before it.
    Killed,
    /// It does nothing, and returns this error.
    Fails(i32),
    /// It and all that follow do nothing, and return this error.
    FailsFromThenOn(i32),
    /// It takes place after this, which is told whose call it is.
    ComesAfter(&'a dyn Fn(Pid)),
}

/// A run that came to its end.
#[derive(Debug)]
pub(crate) struct Traced {
    /// The calls that were counted, in their order; that of the number that was asked for met its fate, if there were so many.
    pub(crate) calls: Vec<&'static str>,
    /// `None` where it was killed.
    pub(crate) code: Option<i32>,
    #[allow(dead_code, reason = "not all look at it")]
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What changes files, names, or what is durable. `flock` too, for who has a folder hangs on it.
const WRITING: &[(i64, &str)] = &[
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_pwritev2, "pwritev"),
    (libc::SYS_copy_file_range, "copy_file_range"),
    (libc::SYS_sendfile, "sendfile"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
    (libc::SYS_open, "open"),
    (libc::SYS_openat, "open"),
    (libc::SYS_openat2, "open"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdir"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "rename"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "link"),
    (libc::SYS_symlinkat, "symlink"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlink"),
    (libc::SYS_rmdir, "rmdir"),
    (libc::SYS_fchmod, "chmod"),
    (libc::SYS_fchmodat, "chmod"),
    (libc::SYS_fchown, "chown"),
    (libc::SYS_utimensat, "utimens"),
    (libc::SYS_flock, "flock"),
];

/// The name of the call that a thread is about to make, if it writes.
fn writing_call(thread: Pid, regs: &libc::user_regs_struct) -> Option<&'static str> {
    let number = regs.orig_rax as i64;
    let name = WRITING.iter().find(|(known, _)| *known == number)?.1;
    let is_writing = match number {
        // What it says is no part of the store.
        libc::SYS_write | libc::SYS_writev => regs.rdi > 2,
        libc::SYS_open => is_creating(regs.rsi),
        libc::SYS_openat => is_creating(regs.rdx),
        libc::SYS_openat2 => {
            ptrace::read(thread, regs.rdx as ptrace::AddressType).is_ok_and(|flags| is_creating(flags as u64))
        }
        _ => true,
    };
    is_writing.then_some(name)
}

/// The name of the call that a thread is about to make, if it reads that file.
fn reading_call(thread: Pid, regs: &libc::user_regs_struct, path: &Path) -> Option<&'static str> {
    let is_reading = matches!(
        regs.orig_rax as i64,
        libc::SYS_read | libc::SYS_readv | libc::SYS_pread64 | libc::SYS_preadv | libc::SYS_preadv2
    );
    let opened = || std::fs::read_link(format!("/proc/{thread}/fd/{}", regs.rdi));
    (is_reading && opened().is_ok_and(|opened| opened == path)).then_some("read")
}

fn is_creating(flags: u64) -> bool {
    flags & (libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64 != 0
}

/// Runs a command; that of the calls that has the number `at`, from 0, meets its fate. A number that no run reaches lets it end.
pub(crate) fn run(command: &Command, counted: Calls<'_>, at: u64, fate: Fate<'_>) -> Traced {
    let _watchdog = Watchdog::new();
    // It waits until it is watched.
    let mut waiting = Command::new("sh");
    waiting
        .args(["-c", "read -r go && exec \"$0\" \"$@\""])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => waiting.env(name, value),
            None => waiting.env_remove(name),
        };
    }
    waiting.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[expect(clippy::zombie_processes, reason = "it is waited for with all its threads")]
    let mut child = waiting.spawn().unwrap();
    let leader = Pid::from_raw(child.id().try_into().unwrap());
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(leader, options).unwrap();
    ptrace::interrupt(leader).unwrap();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let (calls, code) = watch(leader, counted, at, fate);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    Traced { calls, code, stdout, stderr }
}

/// Follows all threads to the end.
fn watch(leader: Pid, counted: Calls<'_>, at: u64, fate: Fate<'_>) -> (Vec<&'static str>, Option<i32>) {
    let mut calls = Vec::new();
    let mut is_program = false;
    // Threads within a call, and of these those whose call was skipped.
    let (mut within, mut skipped) = (HashSet::new(), HashSet::new());
    let go_on = |thread, signal: Option<Signal>| match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("cannot go on: {errno}"),
    };
    loop {
        // Not the children of other tests' threads.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        match waitpid(Pid::from_raw(-1), Some(flags)).unwrap() {
            WaitStatus::Exited(pid, code) if pid == leader => return (calls, Some(code)),
            WaitStatus::Signaled(pid, signal, _) if pid == leader => {
                assert_eq!(signal, Signal::SIGKILL, "{calls:?}");
                return (calls, None);
            }
            WaitStatus::PtraceEvent(thread, _, event) => {
                if event == Event::PTRACE_EVENT_EXEC as i32 {
                    // Where it was met is not known; now it is within `execve`.
                    is_program = true;
                    within.insert(thread);
                }
                go_on(thread, None);
            }
            WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal)),
            WaitStatus::PtraceSyscall(thread) if within.remove(&thread) => {
                if let (true, Some(errno)) = (skipped.remove(&thread), fate.errno())
                    && let Ok(mut regs) = ptrace::getregs(thread)
                {
                    regs.rax = i64::from(-errno) as u64;
                    ptrace::setregs(thread, regs).unwrap();
                }
                go_on(thread, None);
            }
            WaitStatus::PtraceSyscall(thread) => {
                within.insert(thread);
                if let (true, Ok(mut regs)) = (is_program, ptrace::getregs(thread))
                    && let Some(name) = match counted {
                        Calls::Writing => writing_call(thread, &regs),
                        Calls::Reading(path) => reading_call(thread, &regs, path),
                    }
                {
                    assert_eq!(
                        regs.rax as i64,
                        -i64::from(libc::ENOSYS),
                        "this is the end of a call, not its beginning"
                    );
                    let number = calls.len() as u64;
                    calls.push(name);
                    match fate {
                        Fate::Killed if number == at => kill(leader, Signal::SIGKILL).unwrap(),
                        Fate::ComesAfter(that) if number == at => that(leader),
                        Fate::Killed | Fate::ComesAfter(_) => {}
                        Fate::Fails(_) if number != at => {}
                        Fate::FailsFromThenOn(_) if number < at => {}
                        Fate::Fails(_) | Fate::FailsFromThenOn(_) => {
                            // There is no such call.
                            regs.orig_rax = u64::MAX;
                            ptrace::setregs(thread, regs).unwrap();
                            skipped.insert(thread);
                        }
                    }
                }
                go_on(thread, None);
            }
            _ => {}
        }
    }
}

impl Fate<'_> {
    fn errno(self) -> Option<i32> {
        match self {
            Self::Killed | Self::ComesAfter(_) => None,
            Self::Fails(errno) | Self::FailsFromThenOn(errno) => Some(errno),
        }
    }
}
