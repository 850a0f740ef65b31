//! Runs the programs that make and drop snapshots.
//!
//! Problem: they are other people's programs, may hang on a broken disk, may ask questions, and speak the user's language. Idea: exact
//! arguments and no shell, the C locale, nothing to read from, a time limit, bounded output.
//!
//! They run in a process group of their own: a Ctrl-C is for us, and must not reach the program that drops a snapshot.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::writer::source::host::{FAILED, Host};

/// Most output kept, in bytes; the rest is read and passed over.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;

/// Most of the error output that is shown, in characters.
const SHOWN_CHARS_MAX: usize = 400;

/// How long a program may take: LVM waits for its locks and for the device to be quiet.
pub(super) const TIMEOUT: Duration = Duration::from_secs(180);

/// How long a program has for its end after it was asked to, and again after it was killed.
const GRACE: Duration = Duration::from_secs(3);

/// What is kept of our environment: where LVM's configuration is, and whether it waits for udev.
const ENVIRONMENT: [&str; 2] = ["LVM_SYSTEM_DIR", "DM_DISABLE_UDEV"];

/// A program with its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Call {
    pub(super) program: &'static str,
    pub(super) arguments: Vec<OsString>,
}

impl Call {
    pub(super) fn new<A: AsRef<OsStr>>(
        program: &'static str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        Self { program, arguments: arguments.into_iter().map(|a| a.as_ref().to_owned()).collect() }
    }

    /// As a person would type it.
    pub(super) fn shown(&self) -> String {
        let mut text = self.program.to_owned();
        for argument in &self.arguments {
            let argument = argument.to_string_lossy();
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./@=,+:".contains(c);
            match argument.chars().all(is_plain) && !argument.is_empty() {
                true => text.push_str(&format!(" {argument}")),
                false => text.push_str(&format!(" {argument:?}")),
            }
        }
        text
    }

    /// Runs it and returns what it printed. [`ErrorKind::Unsupported`] when there is no such program.
    pub(super) fn run(&self, host: &Host) -> Result<String> {
        self.run_within(host, TIMEOUT)
    }

    pub(super) fn run_within(&self, host: &Host, timeout: Duration) -> Result<String> {
        let Some(path) =
            host.programs.iter().map(|folder| folder.join(self.program)).find(|path| path.is_file())
        else {
            let message = format!("the program {:?} is not installed", self.program);
            return Err(Error::new(ErrorKind::Unsupported, message));
        };
        let mut command = Command::new(path);
        command.args(&self.arguments).env_clear().process_group(0).current_dir("/");
        command.env("PATH", std::env::join_paths(&host.programs).unwrap_or_default());
        command.env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1");
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let failed = |e| Error::caused_by(FAILED, format!("cannot run {:?}", self.program), e);
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        let status = wait(&mut child, timeout).map_err(failed)?;
        let text = |output: Option<Receiver<Vec<u8>>>| {
            // What it left running may hold the pipe open.
            let bytes = output.and_then(|output| output.recv_timeout(GRACE).ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        let why = match status {
            Some(status) if status.success() => return Ok(stdout),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with exit code {code}"),
                (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
            },
            None => format!("did not end within {} s", timeout.as_secs()),
        };
        let shown: String = stderr.trim().chars().take(SHOWN_CHARS_MAX).collect();
        let shown = if shown.is_empty() { String::new() } else { format!(": {shown:?}") };
        Err(Error::new(FAILED, format!("`{}` {why}{shown}", self.shown())))
    }
}

/// Reads on a thread of its own, so that a program that prints much does not wait for us.
fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits for the end. `None` when it took too long and was killed; a program that cannot be killed is left behind.
fn wait(child: &mut Child, timeout: Duration) -> std::io::Result<Option<ExitStatus>> {
    if let Some(status) = wait_until(child, Instant::now() + timeout)? {
        return Ok(Some(status));
    }
    let group = rustix::process::Pid::from_child(child);
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let _ = rustix::process::kill_process_group(group, signal);
        if wait_until(child, Instant::now() + GRACE)?.is_some() {
            break;
        }
    }
    Ok(None)
}

fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Call {
        Call::new("sh", ["-c", script])
    }

    #[test]
    fn programs_get_their_arguments_as_they_are_and_a_plain_environment() {
        let host = Host::default();
        assert_eq!(Call::new("echo", ["a b", "$HOME", "*"]).run(&host).unwrap(), "a b $HOME *\n");
        let environment = Call::new("env", [""; 0]).run(&host).unwrap();
        assert!(environment.lines().any(|line| line == "LC_ALL=C"), "{environment}");
        assert!(!environment.contains("CARGO"), "{environment}");
        assert_eq!(Call::new("a", ["b c", "-d"]).shown(), "a \"b c\" -d");
    }

    #[test]
    fn failures_tell_what_was_run_and_why() {
        let host = Host::default();
        let error = sh("echo \"no\n room\" >&2; exit 5").run(&host).unwrap_err().to_string();
        assert!(error.contains("ended with exit code 5: \"no\\n room\""), "{error}");
        let error = Call::new("no-such-program", [""; 0]).run(&host).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_all_it_started() {
        let start = Instant::now();
        let limit = Duration::from_millis(200);
        let error =
            sh("trap '' TERM; sleep 600 & wait; sleep 600").run_within(&Host::default(), limit).unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }

    #[test]
    fn much_output_is_cut_off_and_does_not_block() {
        let text = sh("head -c 20000000 /dev/zero").run(&Host::default()).unwrap();
        assert_eq!(text.len() as u64, OUTPUT_BYTES_MAX);
    }
}
