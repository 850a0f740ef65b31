//! What does the user see? The real binary: words, streams, exit codes.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn cinderfs(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(words)
        .env_remove("CINDERFS_LOG")
        .env_remove("OS_CLOUD")
        .env_remove("OS_AUTH_URL")
        .env_remove("ST_AUTH")
        .env("CINDERFS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn fails(words: &[&str], code: i32, message: &str) {
    let output = cinderfs(words);
    assert_eq!(output.status.code(), Some(code), "{words:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{words:?}");
    assert!(stderr(&output).contains(message), "{words:?}: {}", stderr(&output));
}

#[test]
fn the_version_is_one_line_on_stdout() {
    for words in [["--version"], ["-V"]] {
        let output = cinderfs(&words);
        assert!(output.status.success());
        assert_eq!(stdout(&output), concat!("cinderfs ", env!("CARGO_PKG_VERSION"), "\n"));
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn help_is_a_success_with_examples_and_exit_codes() {
    let output = cinderfs(&["--help"]);
    assert!(output.status.success());
    for word in ["Examples:", "Exit codes:", "CINDERFS_LOG", "list", "show", "restore"] {
        assert!(stdout(&output).contains(word), "{word}");
    }
    for verb in ["list", "show", "restore"] {
        let output = cinderfs(&[verb, "--help"]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("Examples:"), "{verb}");
    }
}

#[test]
fn a_wrong_call_exits_2() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().to_str().unwrap();
    fails(&[], 2, "Usage:");
    fails(&["frobnicate"], 2, "unrecognized subcommand");
    fails(&["list"], 2, "STORE");
    fails(&["list", store, "-f", "xml"], 2, "possible values: table, json, yaml, value, csv");
    fails(&["list", store, "--status", "gone"], 2, "possible values: available, error");
    fails(
        &["list", store, "-c", "Sise"],
        2,
        "cinderfs: there is no column \"Sise\"\nhint: the columns are ID, Name",
    );
    let named = cinderfs(&["list", store, "-c", "Volume", "-c", "Container"]);
    assert!(named.status.success(), "{}", stderr(&named));
    fails(&["show", store], 2, "BACKUP");
    fails(&["restore", store, "x"], 2, "TARGET");
    fails(&["restore", store, "x", "y", "--on-damage", "ignore"], 2, "possible values: stop, zero");
    fails(&["restore", store, "x", "y", "--threads", "0"], 2, "--threads");
}

#[test]
fn a_missing_store_exits_10() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("no\x1b[2Jne");
    let missing = missing.to_str().unwrap();
    for words in [
        &["list", missing][..],
        &["show", missing, "latest"],
        &["restore", missing, "latest", "/dev/null"],
        &["list", &format!("file://{}", missing.replace('\x1b', "%1B"))],
    ] {
        fails(words, 10, "cinderfs: cannot open the store \"");
        assert!(!cinderfs(words).stderr.contains(&0x1b), "{words:?}");
    }
    let file = directory.path().join("cinder.conf");
    fs::write(&file, "[DEFAULT]\n").unwrap();
    fails(&["list", file.join("below").to_str().unwrap()], 10, "cannot open the store");
    // Without a word about backups it means Swift, as for cinder-backup.
    fails(&["list", file.to_str().unwrap()], 12, "no credentials for Swift; set OS_CLOUD");
}

#[test]
fn words_for_servers_that_say_too_little_or_too_much_are_refused() {
    for (word, why) in [
        ("swift:a/b", "names more than a container"),
        ("s3://bucket/folder", "expected s3://BUCKET?endpoint=URL"),
        ("s3://key:s3cret@bucket", "holds credentials"),
        ("gs://bucket?region=x", "unknown setting \"region\""),
        ("https://host/bucket", "is no store; expected"),
    ] {
        fails(&["list", word], 2, why);
        assert!(!stderr(&cinderfs(&["list", word])).contains("s3cret"), "{word}");
    }
    fails(&["list", "swift:container"], 12, "no credentials for Swift; set OS_CLOUD");
}

/// Root may read everything, so the command runs as somebody else then.
#[test]
fn a_store_behind_a_closed_door_exits_12() {
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let closed = directory.path().join("closed");
    fs::create_dir_all(closed.join("store")).unwrap();
    let mut command = command_as_nobody(directory.path());
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    command.arg("list").arg(closed.join("store"));
    // A sibling test that forks while the copy is written keeps it busy for a moment.
    let output = loop {
        match command.output() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            result => break result,
        }
    };
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(12), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("cinderfs: cannot open the store"), "{}", stderr(&output));
}

/// The binary, run without the privilege to pass permission bits. `directory` is opened up for it.
fn command_as_nobody(directory: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may be closed to others; a copy is not.
    let binary = directory.join("cinderfs");
    // By another process: what a sibling test starts meanwhile would hold this one's copy open for writing.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_cinderfs")).arg(&binary).status();
    assert!(copied.unwrap().success());
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(binary);
    command.stdin(Stdio::null()).env_remove("CINDERFS_LOG");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

#[test]
fn a_wrong_filter_is_a_wrong_call() {
    let output = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .args(["list", "/"])
        .env("CINDERFS_LOG", "cinderfs=loud")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("cinderfs: CINDERFS_LOG is no filter: "), "{}", stderr(&output));
}

#[test]
fn a_reader_that_leaves_early_sees_no_panic() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cinderfs"))
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(stderr(&output), "");
    assert_eq!(output.status.code(), Some(0));
}
