//! The pages of one listing of a bucket, watched beneath OpenDAL.
//!
//! Problem: OpenDAL goes from page to page for as long as the server names a next one, and tells only of entries; a server whose pages hold none
//! keeps it there for ever. Idea: a transport of the listing's own sees each request for a page, of which no two are the same, and few
//! follow each other without an entry.
//!
//! Whether requests repeat is found out as Brent does it: each is compared with one earlier, which is moved up at twice the distance each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use opendal::raw::Operation;
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter};

use super::failure::Failed;
use crate::error::{Error, ErrorKind, Result};

/// Pages without an entry that may follow each other. Servers send some where many objects were deleted.
const EMPTY_PAGES_MAX: u64 = 10_000;

/// A signature that is younger than this has not become too old, the clocks differ: servers take those of the last 15 minutes.
const SIGNED_MIN: Duration = Duration::from_secs(600);

/// What is known of a listing's pages.
#[derive(Default)]
pub(super) struct Watch(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    /// Since the last entry.
    empty: u64,
    /// An earlier request, how many came since, and with how many it is moved up.
    earlier: Option<Uri>,
    since: u64,
    stride: u64,
    /// How long the last request was tried.
    tried: Duration,
    /// The listing has begun anew since the last entry.
    is_anew: bool,
}

impl Watch {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listing goes on.
    pub(super) fn note_entry(&self) {
        let mut pages = self.lock();
        (pages.empty, pages.is_anew) = (0, false);
    }

    /// Whether a listing whose signature is too old for the server may begin anew behind its last entry: always when it was tried for long,
    /// else once.
    pub(super) fn may_begin_anew(&self) -> bool {
        let mut pages = self.lock();
        (pages.earlier, pages.since, pages.stride) = (None, 0, 0);
        let was_anew = std::mem::replace(&mut pages.is_anew, true);
        !was_anew || pages.tried >= SIGNED_MIN
    }

    /// A page is asked for. An error where the listing has no end.
    fn note_page(&self, uri: &Uri) -> Result<()> {
        let mut pages = self.lock();
        pages.empty += 1;
        if pages.empty > EMPTY_PAGES_MAX {
            let message = format!("the server lists nothing in {EMPTY_PAGES_MAX} pages, and tells of more");
            return Err(Error::new(ErrorKind::LimitExceeded, message));
        }
        if pages.earlier.as_ref() == Some(uri) {
            return Err(Error::new(ErrorKind::StoreIo, "the server's listing goes round in a circle"));
        }
        pages.since += 1;
        if pages.since >= pages.stride {
            pages.earlier = Some(uri.clone());
            (pages.since, pages.stride) = (0, (pages.stride * 2).max(1));
        }
        Ok(())
    }
}

/// A transport that tells a [`Watch`] of each page.
pub(super) struct Watched {
    inner: HttpTransporter,
    watch: Arc<Watch>,
}

impl Watched {
    pub(super) fn new(inner: HttpTransporter, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }
}

impl HttpTransport for Watched {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        // Credentials are asked for by the way.
        if request.extensions().get() != Some(&Operation::List) {
            return self.inner.fetch(request).await;
        }
        self.watch.note_page(request.uri()).map_err(|error| Failed::lasting(error).into_opendal())?;
        let begun = Instant::now();
        let answer = self.inner.fetch(request).await;
        self.watch.lock().tried = begun.elapsed();
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u64) -> Uri {
        format!("http://h/b?continuation-token={number}").parse().unwrap()
    }

    #[test]
    fn pages_that_come_again_are_found_wherever_the_circle_begins() {
        for (begin, len) in [(0, 1), (1, 1), (3, 7), (1000, 100)] {
            let watch = Watch::default();
            let round = |at: u64| if at < begin { at } else { begin + (at - begin) % len };
            let found = (0..10_000).find(|at| watch.note_page(&page(round(*at))).is_err()).unwrap();
            assert!(found > begin && found <= 6 * (begin + len), "{begin} {len}: {found}");
        }
    }

    #[test]
    fn pages_without_an_entry_end() {
        let watch = Watch::default();
        for at in 0..3 * EMPTY_PAGES_MAX {
            watch.note_page(&page(at)).unwrap();
            watch.note_entry();
        }
        let error = (0..=EMPTY_PAGES_MAX).find_map(|at| watch.note_page(&page(at)).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn a_listing_begins_anew_once_or_when_it_was_tried_for_long() {
        let watch = Watch::default();
        assert!(watch.may_begin_anew());
        assert!(!watch.may_begin_anew());
        watch.note_entry();
        assert!(watch.may_begin_anew());
        watch.lock().tried = SIGNED_MIN;
        assert!(watch.may_begin_anew());
    }
}
