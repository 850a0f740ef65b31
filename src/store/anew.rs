//! An object that is opened anew when what was opened of it has gone stale.
//!
//! Problem: who keeps an object of a file server open finds, after the server was away or withdrew its export, that this descriptor fails for
//! good, however well the server answers others. Idea: after a failure the object is opened once more under its name, and taken if it is
//! the very one that was opened first.
//!
//! Invariants: bytes come of the version that was opened first, or not at all; a store that fails is not asked for more than a descriptor
//! each [`PAUSE`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{ObjectSource, ObjectStat, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// How long after a failure, and after each attempt, the object is opened anew. A server that is away costs a reader one deadline, not two.
const PAUSE: Duration = Duration::from_secs(1);

/// An object that is opened anew after failures.
pub(crate) struct Anew {
    store: Arc<dyn Store>,
    name: ObjectName,
    stat: ObjectStat,
    is_far: bool,
    now: Mutex<Now>,
}

struct Now {
    source: Arc<dyn ObjectSource>,
    /// When it failed first, or was last tried to be opened anew.
    suspect: Option<Instant>,
}

impl Anew {
    /// `source`, which is `name` of `store`; itself where no descriptor can go stale.
    pub(crate) fn wrap(
        source: Arc<dyn ObjectSource>,
        store: &Arc<dyn Store>,
        name: &ObjectName,
    ) -> Arc<dyn ObjectSource> {
        if !source.may_go_stale() {
            return source;
        }
        let (stat, is_far) = (source.stat().clone(), source.is_far());
        let now = Mutex::new(Now { source, suspect: None });
        Arc::new(Self { store: store.clone(), name: name.clone(), stat, is_far, now })
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is open now, opened anew where it has failed.
    fn source(&self) -> Arc<dyn ObjectSource> {
        let mut now = self.lock();
        if now.suspect.is_none_or(|since| since.elapsed() < PAUSE) {
            return now.source.clone();
        }
        now.suspect = Some(Instant::now());
        let old = now.source.clone();
        // Nobody waits for the lock while the store is asked.
        drop(now);
        // What is there under this name now may be another backup's, and proves nothing of this one.
        let opened = self.store.open(&self.name).ok().filter(|new| new.stat().version == self.stat.version);
        let Some(new) = opened else { return old };
        tracing::debug!("object {:?} is opened anew", self.name);
        let mut now = self.lock();
        *now = Now { source: new.clone(), suspect: None };
        new
    }

    fn note<T>(&self, outcome: Result<T>) -> Result<T> {
        let is_failure = |error: &Error| error.kind() == ErrorKind::StoreIo;
        if outcome.as_ref().is_err_and(is_failure) {
            self.lock().suspect.get_or_insert_with(Instant::now);
        }
        outcome
    }
}

impl ObjectSource for Anew {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.note(self.source().read_at(buf, offset))
    }

    fn read_at_hand(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let source = self.lock().source.clone();
        source.read_at_hand(buf, offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        let source = self.lock().source.clone();
        source.will_need(offset, len);
    }

    fn will_read_on(&self, offset: u64) {
        let source = self.lock().source.clone();
        source.will_read_on(offset);
    }

    fn doubt(&self) -> bool {
        let source = self.lock().source.clone();
        source.doubt()
    }

    fn is_changed(&self) -> Result<bool> {
        self.note(self.source().is_changed())
    }

    fn is_far(&self) -> bool {
        self.is_far
    }

    fn may_go_stale(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::store::Listing;
    use crate::store::memory::MemoryStore;

    /// A store whose descriptors go stale, all that are open at once.
    #[derive(Default)]
    struct Stale {
        inner: MemoryStore,
        withdrawn: Mutex<Arc<AtomicBool>>,
    }

    struct Descriptor(Arc<dyn ObjectSource>, Arc<AtomicBool>);

    impl Store for Stale {
        fn location(&self) -> &str {
            "stale"
        }
        fn list(&self, suffix: &str) -> Result<Listing> {
            self.inner.list(suffix)
        }
        fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
            Ok(Arc::new(Descriptor(self.inner.open(name)?, self.withdrawn.lock().unwrap().clone())))
        }
    }

    impl ObjectSource for Descriptor {
        fn stat(&self) -> &ObjectStat {
            self.0.stat()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
            match self.1.load(Ordering::Relaxed) {
                true => Err(Error::new(ErrorKind::StoreIo, "stale file handle")),
                false => self.0.read_at(buf, offset),
            }
        }
        fn may_go_stale(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_stale_descriptor_is_replaced_by_one_of_the_same_object_and_of_no_other() {
        let name = ObjectName::parse("o").unwrap();
        let stale = Arc::new(Stale::default());
        stale.inner.insert(name.clone(), *b"digests");
        let store: Arc<dyn Store> = stale.clone();
        let source = Anew::wrap(store.open(&name).unwrap(), &store, &name);
        let mut buf = [0; 7];
        // All that are open, and none that is opened later.
        let withdraw = || {
            let before = std::mem::take(&mut *stale.withdrawn.lock().unwrap());
            before.store(true, Ordering::Relaxed);
        };
        for _ in 0..2 {
            assert_eq!(source.read_at(&mut buf, 0).unwrap(), 7);
            withdraw();
            assert!(source.read_at(&mut buf, 0).is_err());
            std::thread::sleep(PAUSE);
            assert_eq!(source.read_at(&mut buf, 0).unwrap(), 7);
            assert_eq!(&buf, b"digests");
        }
        stale.inner.insert(name.clone(), *b"another");
        withdraw();
        for _ in 0..2 {
            assert!(source.read_at(&mut buf, 0).is_err(), "digests of another backup");
            std::thread::sleep(PAUSE);
        }
    }
}
