//! What the verbs that compare, look and mend do with a file that fails.

use std::fs;

use serde_json::Value;

use crate::store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};
use crate::{BLOCK, Cell, ID, LEN, cinderfs, exit};

const OTHER: &str = "11111111-0000-4000-8000-000000000003";
/// The block that is wrong in an audited volume, and that another backup has otherwise.
const CHANGED: usize = 5;

fn rows(stdout: &[u8]) -> Vec<Value> {
    serde_json::from_slice::<Value>(stdout).unwrap().as_array().unwrap().clone()
}

fn number(row: &Value, key: &str) -> usize {
    row[key].as_u64().unwrap() as usize
}

impl Cell<'_> {
    /// Repairs a volume of which one block is wrong.
    pub(crate) fn audit(&self) -> String {
        let target = self.path("volume.raw");
        let mut wrong = self.sound.plain.clone();
        wrong[CHANGED * BLOCK..(CHANGED + 1) * BLOCK].fill(7);
        fs::write(&target, &wrong).unwrap();
        let mut command = cinderfs(&self.path("cache"));
        command.arg("audit").arg(self.path("store")).arg(ID).arg(&target);
        let output = self.run(command.args(["--repair", "--yes", "--force"]));
        let code = output.status.code().unwrap();
        let found = fs::read(&target).unwrap();
        let blocks = found.chunks(BLOCK).zip(wrong.chunks(BLOCK)).zip(self.sound.plain.chunks(BLOCK));
        let is_fine = |((found, wrong), plain)| found == plain || found == wrong;
        assert!(found.len() == LEN && blocks.into_iter().all(is_fine), "A WRONG BYTE");
        let is_right = found == self.sound.plain;
        assert!(code != 0 || is_right, "it is called right and is not: {output:?}");
        let verdict = match (code, is_right) {
            (0, _) => "right",
            (1, false) => "refused, nothing written",
            (_, true) => "repaired, the rest told",
            (_, false) => "left, and told",
        };
        format!("{verdict}{}", exit(code))
    }

    /// Where all lies in the one object that there is.
    pub(crate) fn map(&self) -> String {
        let mut command = cinderfs(&self.path("cache"));
        let output = self.run(command.arg("map").arg(self.path("store")).args([ID, "-f", "json"]));
        let code = output.status.code().unwrap();
        if code != 0 {
            return format!("refused{}", exit(code));
        }
        let (mut at, mut lost) = (0, 0);
        for row in rows(&output.stdout) {
            assert_eq!(number(&row, "start"), at, "{row}");
            at += number(&row, "length");
            match row["state"].as_str() {
                Some("lost") => lost += number(&row, "length"),
                state => {
                    assert!(state == Some("data") && row["zero"] == false, "{row}");
                    assert_eq!(number(&row, "object_offset"), number(&row, "start"), "{row}");
                }
            }
        }
        assert_eq!(at, LEN);
        assert!(lost < LEN / 2, "{lost} bytes are called lost");
        if lost == 0 { "right".into() } else { "some blocks called lost".into() }
    }

    /// Against a backup of which one block is another.
    pub(crate) fn diff(&self) -> String {
        let mut spec = BackupSpec::new(OTHER, "22222222-0000-4000-8000-000000000002");
        let mut plain = self.sound.plain.clone();
        plain[CHANGED * BLOCK..(CHANGED + 1) * BLOCK].fill(7);
        spec.digests = Some((BLOCK, digests_of(&plain, BLOCK)));
        spec.objects = vec![ObjectSpec { offset: 0, plain, packing: Packing::Plain("none") }];
        spec.write_to_folder(&self.path("store"));
        let mut command = cinderfs(&self.path("cache"));
        let output = self.run(command.arg("diff").arg(self.path("store")).args([ID, OTHER, "-f", "json"]));
        fs::remove_dir_all(self.path("store").join(spec.container())).unwrap();
        let code = output.status.code().unwrap();
        if code != 0 {
            return format!("refused{}", exit(code));
        }
        let mut is_dirty = [false; LEN / BLOCK];
        for row in rows(&output.stdout).iter().filter(|row| row["dirty"] == true) {
            let start = number(row, "start");
            is_dirty[start / BLOCK..(start + number(row, "length")).div_ceil(BLOCK)].fill(true);
        }
        assert!(is_dirty[CHANGED], "a change is not told: {output:?}");
        match is_dirty.iter().filter(|dirty| **dirty).count() {
            1 => "right".into(),
            _ => "more called changed".into(),
        }
    }

    /// It would change nothing that is right.
    pub(crate) fn repair(&self) -> String {
        let mut command = cinderfs(&self.path("cache"));
        command.arg("repair").arg(self.path("store")).args([ID, "--dry-run", "-f", "json"]);
        let output = self.run(&mut command);
        let code = output.status.code().unwrap();
        if output.stdout.is_empty() {
            return format!("refused{}", exit(code));
        }
        let mut words: Vec<String> =
            rows(&output.stdout).iter().map(|row| row["Outcome"].as_str().unwrap().to_owned()).collect();
        if words.is_empty() && code == 0 {
            return "right".into();
        }
        words.dedup();
        format!("{}{}", words.join(", "), exit(code))
    }

    /// With a cache directory that knows nothing yet; and then a reader that uses what it noted.
    pub(crate) fn index(&self) -> String {
        let cache = self.path("fresh");
        let output = self.run(cinderfs(&cache).arg("index").arg(self.path("store")));
        self.sick.end();
        let target = self.path("image");
        let restored = cinderfs(&cache).arg("restore").arg(self.path("store")).arg(ID).arg(&target).output();
        assert!(restored.as_ref().unwrap().status.success(), "{restored:?}");
        assert!(fs::read(&target).unwrap() == self.sound.plain, "A WRONG BYTE");
        fs::remove_file(&target).unwrap();
        fs::remove_dir_all(&cache).unwrap();
        let code = output.status.code().unwrap();
        format!("{}{}", if code == 0 { "right" } else { "told" }, exit(code))
    }

    /// A full backup of the full one.
    pub(crate) fn consolidate(&self) -> String {
        let mut command = cinderfs(&self.path("cache"));
        command.arg("consolidate").arg(self.path("store")).args([ID, "--container", "new"]);
        let output = self.run(&mut command);
        self.made(&output, &self.sound.plain)
    }
}
