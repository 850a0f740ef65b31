//! The campaign's figures, as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::trial::Outcome;
use super::verified::Verified;

/// What became of the flips of one kind of file.
#[derive(Clone, Debug, Default)]
struct Row {
    flips: u64,
    images: u64,
    unusable: u64,
    lost: u64,
    lost_blocks: u64,
    healed: u64,
    by_md5: u64,
    spared: u64,
    harmless: u64,
    verify_damage: u64,
    verify_warned: u64,
    verify_right: u64,
}

#[derive(Default)]
pub(crate) struct Report {
    rows: BTreeMap<String, Row>,
    harmless: BTreeMap<&'static str, u64>,
    pub(crate) restores: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) complaints: Vec<String>,
}

impl Report {
    /// Each flip counts once, under the worst of what became of it.
    pub(crate) fn add(&mut self, kind: &str, outcome: Outcome) {
        let row = self.rows.entry(kind.to_owned()).or_default();
        row.flips += 1;
        row.images += outcome.images;
        row.lost_blocks += outcome.lost_blocks;
        self.wrong_bytes += outcome.wrong_bytes;
        match outcome.verified {
            Some(Verified::Damage) => row.verify_damage += 1,
            Some(Verified::Warned) => row.verify_warned += 1,
            Some(Verified::Right) | None => row.verify_right += 1,
        }
        self.complaints.extend(outcome.complaints);
        if outcome.unusable > 0 {
            row.unusable += 1;
        } else if outcome.lost_blocks > 0 {
            row.lost += 1;
        } else if outcome.healed_blocks > 0 {
            row.healed += 1;
        } else if outcome.by_md5 > 0 {
            row.by_md5 += 1;
        } else if outcome.spared_blocks > 0 {
            row.spared += 1;
        } else {
            row.harmless += 1;
            let why = outcome.harmless.unwrap_or("UNEXPLAINED");
            if outcome.harmless.is_none() {
                self.complaints.push(format!("a flip in {kind} did nothing, and nobody knows why"));
            }
            *self.harmless.entry(why).or_default() += 1;
        }
    }

    pub(crate) fn flips(&self) -> u64 {
        self.rows.values().map(|row| row.flips).sum()
    }

    /// As it stands in the documentation.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from(
            "| flipped bit in | flips | images read | backup unusable | blocks lost (how many) | healed | proven by md5 | \
             served right nevertheless | harmless |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for (kind, row) in &self.rows {
            let Row { flips, images, unusable, lost, lost_blocks, healed, by_md5, spared, harmless, .. } =
                row;
            let lost = format!("{lost} ({lost_blocks})");
            writeln!(
                text,
                "| {kind} | {flips} | {images} | {unusable} | {lost} | {healed} | {by_md5} | {spared} | {harmless} |"
            )
            .unwrap();
        }
        text.push_str(
            "\n| flipped bit in | `verify` tells damage, exit 3 | a warning or a note | nothing |\n| --- | --- | --- | --- |\n",
        );
        for (kind, row) in &self.rows {
            let Row { verify_damage, verify_warned, verify_right, .. } = row;
            writeln!(text, "| {kind} | {verify_damage} | {verify_warned} | {verify_right} |").unwrap();
        }
        text.push_str("\nWhy the harmless ones are:\n\n");
        for (why, count) in &self.harmless {
            writeln!(text, "- {count}: {why}").unwrap();
        }
        text
    }
}
