//! The figures of a run, as they stand in the documentation.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::life::Deeds;
use super::readers::Tally;
use super::watch::{Sample, mean, most};

/// Rows of the table of a run.
const ROWS: usize = 10;

/// What one run came to, in Markdown.
pub(crate) fn render(title: &str, tally: &Tally, deeds: &Deeds, samples: &[Sample]) -> String {
    let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    let rounds = tally.rounds.lock().unwrap();
    let kinds: Vec<String> = rounds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let gone = tally.gone.lock().unwrap();
    let errors: Vec<String> = gone.iter().map(|(errno, n)| format!("{n} {}", name_of(*errno))).collect();
    let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
    let seconds = samples.last().map_or(0.0, |sample| sample.at);
    let mut text = format!(
        "{title}, {seconds:.0} s: {} reads, {:.1} GiB compared, **{} complaints**. Rounds of reading: {}. Meanwhile {} backups were created, {} of \
         Cinder's copied in, {} deleted; of the rounds on a backup that was being deleted {} ended well, the others with an error: {errors}.\n\n\
         | second | MiB | threads | descriptors | backups | inodes | open files |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        count(&tally.reads),
        count(&tally.bytes) as f64 / f64::from(1 << 30),
        tally.complaints.lock().unwrap().len(),
        kinds.join(", "),
        count(&deeds.created),
        count(&deeds.copied),
        count(&deeds.deleted),
        count(&tally.served_while_deleted),
    );
    for part in samples.chunks(samples.len().div_ceil(ROWS).max(1)) {
        text += &format!(
            "| {:.0} | {} | {} | {} | {} | {} | {} |\n",
            part[part.len() - 1].at,
            mean(part, |sample| sample.rss_kib) / 1024,
            most(part, |sample| sample.threads),
            most(part, |sample| sample.descriptors),
            mean(part, |sample| sample.images),
            most(part, |sample| sample.inodes),
            most(part, |sample| sample.handles),
        );
    }
    text
}

fn name_of(errno: i32) -> String {
    match errno {
        libc::ENOENT => "ENOENT".to_owned(),
        libc::EIO => "EIO".to_owned(),
        libc::ESTALE => "ESTALE".to_owned(),
        errno => format!("errno {errno}"),
    }
}

/// Replaces the figures in the documentation.
pub(crate) fn write(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/RELIABILITY.md");
    let page = fs::read_to_string(&path).unwrap();
    let (begin, end) = (format!("<!-- stress-{name}:begin -->\n"), format!("<!-- stress-{name}:end -->"));
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(&end).unwrap();
    fs::write(&path, format!("{before}{begin}{text}{end}{after}")).unwrap();
}
