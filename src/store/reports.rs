//! What of a listing could not be read.
//!
//! Problem: what could not be read must be known by its name, since what was known to lie there is not gone; but a listing may meet millions of
//! such places, and nobody reads more than a few reasons. Idea: a place that the store fails or refuses to tell is kept by its name, and only
//! the first of them with its reason; of names that no backup can have, and the like, only the first are kept.
//!
//! Invariant: what is not kept is counted, and told in one report at the end.

use crate::error::{Error, ErrorKind};

/// Reports that have a reason of their own: nobody reads more, and each holds a message. As many of what no backup can be.
pub(crate) const REASONS_MAX: usize = 1000;

/// Places that the store fails or refuses to tell, kept by their names: as many as an account may have containers. They take some 100 bytes
/// each, which who lists them had to hold already.
const UNSEEN_MAX: usize = 1_000_000;

/// The reports of one listing.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    kept: Vec<(String, Error)>,
    unseen: usize,
    odd: usize,
    /// Those that are not kept.
    more: u64,
    /// Why, where backups may lie there.
    more_unseen: Option<ErrorKind>,
    /// The reasons of places that have none of their own, one of each kind.
    shared: Vec<Error>,
}

impl Reports {
    /// What lies at `place`, or what is called so, cannot be told.
    pub(crate) fn add(&mut self, place: String, error: Error) {
        if !may_hide_backups(error.kind()) {
            if self.odd < REASONS_MAX {
                self.odd += 1;
                self.kept.push((place, error));
            } else {
                self.more += 1;
            }
            return;
        }
        if self.unseen >= UNSEEN_MAX {
            self.more += 1;
            self.more_unseen = Some(error.kind());
            return;
        }
        let error = if self.unseen < REASONS_MAX { error } else { self.shared(error.kind()) };
        self.unseen += 1;
        self.kept.push((place, error));
    }

    /// All that is kept, and in the end, as one of the store at `location`, how many more there are.
    pub(crate) fn finish(mut self, location: &str) -> Vec<(String, Error)> {
        if self.more > 0 {
            let kind = self.more_unseen.unwrap_or(ErrorKind::LimitExceeded);
            let message = format!("{} more folders or objects cannot be read", self.more);
            self.kept.push((location.to_owned(), Error::new(kind, message)));
        }
        self.kept
    }

    fn shared(&mut self, kind: ErrorKind) -> Error {
        if let Some(known) = self.shared.iter().find(|error| error.kind() == kind) {
            return known.clone();
        }
        let error = Error::new(kind, format!("it cannot be read, like {REASONS_MAX} and more others"));
        self.shared.push(error.clone());
        error
    }
}

/// Whether backups may lie where something of this kind went wrong.
fn may_hide_backups(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StoreIo | ErrorKind::AccessDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_known_by_name_and_odd_names_are_counted() {
        let mut reports = Reports::default();
        for at in 0..2 * REASONS_MAX {
            reports.add(format!("odd {at}"), Error::new(ErrorKind::UnsafeName, format!("odd {at}")));
        }
        for at in 0..2 * REASONS_MAX {
            let kind = if at % 2 == 0 { ErrorKind::StoreIo } else { ErrorKind::AccessDenied };
            reports.add(format!("c{at}"), Error::new(kind, format!("c{at} fails")));
        }
        let told = reports.finish("s3://b");
        assert_eq!(told.len(), 3 * REASONS_MAX + 1);
        let (place, last) = &told[3 * REASONS_MAX - 1];
        assert_eq!((&**place, last.kind()), ("c1999", ErrorKind::AccessDenied));
        assert!(!last.to_string().contains("c1999"), "{last}");
        let (place, error) = told.last().unwrap();
        assert_eq!((&**place, error.kind()), ("s3://b", ErrorKind::LimitExceeded));
        assert_eq!(error.to_string(), "1000 more folders or objects cannot be read");
    }

    #[test]
    fn what_is_beyond_all_bounds_may_still_hide_backups() {
        let mut reports = Reports { unseen: UNSEEN_MAX - 1, ..Reports::default() };
        for at in 0..3 {
            reports.add(at.to_string(), Error::new(ErrorKind::StoreIo, "it fails"));
        }
        let kinds: Vec<_> =
            reports.finish("/s").into_iter().map(|(place, error)| (place, error.kind())).collect();
        assert_eq!(kinds, [("0".to_owned(), ErrorKind::StoreIo), ("/s".to_owned(), ErrorKind::StoreIo)]);
    }
}
