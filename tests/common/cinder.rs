//! Genuine Cinder's backup drivers at work on a store: one process that is given one job after the other, since its start takes seconds.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// `scripts/genuine-cinder/cinder.py STORE batch`.
pub(crate) struct Cinder {
    child: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Cinder {
    /// For a store as `cinder.py` names it, and what it has to know of the server.
    pub(crate) fn new(store: &str, environment: &[(String, String)]) -> Self {
        let python =
            std::env::var("TEST_CINDER_PYTHON").expect("TEST_CINDER_PYTHON; run scripts/services/test.sh");
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/genuine-cinder/cinder.py"));
        command.args([store, "batch"]).envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (jobs, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, jobs, answers }
    }

    /// What it answers to one job, which it can do.
    #[track_caller]
    pub(crate) fn does(&mut self, job: &Value) -> Value {
        writeln!(self.jobs.as_mut().unwrap(), "{job}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{job}: {answer:?}"));
        assert!(answer.get("error").is_none(), "{job}: {answer}");
        answer
    }

    /// The volume after a backup was restored onto one of `bytes` bytes that held something else.
    #[track_caller]
    pub(crate) fn restores(&mut self, backup_id: &str, bytes: usize) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("volume");
        self.does(&serde_json::json!({"command": "restore", "backup_id": backup_id, "output": output, "bytes": bytes}));
        std::fs::read(output).unwrap()
    }
}

impl Drop for Cinder {
    fn drop(&mut self) {
        // It ends behind its last job.
        drop(self.jobs.take());
        let _ = self.child.wait();
    }
}
