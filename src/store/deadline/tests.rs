use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use super::calls::{PROBE_EVERY, STUCK_MAX, THREADS_MAX};
use super::*;
use crate::expendable;
use crate::store::{ObjectStat, Ownership};

const SHORT: Duration = Duration::from_millis(100);

/// While it is shut, calls wait in front of it.
#[derive(Default)]
struct Gate {
    is_shut: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    fn set(&self, is_shut: bool) {
        *self.is_shut.lock().unwrap() = is_shut;
        self.changed.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.changed.wait_while(self.is_shut.lock().unwrap(), |is_shut| *is_shut).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Lets everybody pass in the end, so that a test that fails ends.
struct Opened<'a>(&'a Gate);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

struct GatedStore(Arc<Gate>, bool);

struct GatedObject(Arc<Gate>, bool, ObjectStat);

impl Store for GatedStore {
    fn location(&self) -> &str {
        "gated"
    }

    fn list(&self, _: &str) -> Result<Listing> {
        self.0.pass();
        Ok(Listing::default())
    }

    fn open(&self, _: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        self.0.pass();
        let stat = ObjectStat {
            len_bytes: 10,
            version: ObjectVersion("1".into()),
            modified: None,
            owner: Ownership { mode: 0o644, uid: 0, gid: 0 },
        };
        Ok(Arc::new(GatedObject(self.0.clone(), self.1, stat)))
    }
}

impl ObjectSource for GatedObject {
    fn stat(&self) -> &ObjectStat {
        &self.2
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.0.pass();
        assert_ne!(offset, 99, "a bug");
        let n = buf.len().min(10);
        buf[..n].fill(offset as u8);
        Ok(n)
    }

    fn is_local(&self) -> bool {
        self.1
    }
}

fn gated(timeout: Duration, is_local: bool) -> (DeadlineStore, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let store = DeadlineStore::new(Arc::new(GatedStore(gate.clone(), is_local)), timeout);
    store.arm();
    (store, gate)
}

fn name() -> ObjectName {
    ObjectName::parse("a/b").unwrap()
}

#[track_caller]
fn fails<T>(result: Result<T>, with: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::StoreIo);
    assert!(error.to_string().contains(with), "{error}");
}

#[test]
fn a_store_that_answers_is_itself() {
    let (store, _) = gated(Duration::from_secs(20), false);
    assert_eq!(store.location(), "gated");
    assert!(store.list("x").unwrap().objects.is_empty());
    let object = store.open(&name()).unwrap();
    assert_eq!(object.stat().len_bytes, 10);
    let mut buf = [0; 20];
    assert_eq!(object.read_at(&mut buf, 7).unwrap(), 10);
    assert!(buf[..10] == [7; 10] && buf[10..] == [0; 10]);
    assert_eq!(object.read_at(&mut buf[..3], 8).unwrap(), 3);
    assert!(!object.is_changed().unwrap());
    assert_eq!(store.calls.lock().threads, 1, "one caller, one thread");
    fails(object.read_at(&mut buf, 99), "a bug");
    assert_eq!(object.read_at(&mut buf, 1).unwrap(), 10);
}

#[test]
fn a_stalled_store_fails_in_time_then_at_once_and_recovers() {
    let (store, gate) = gated(SHORT, false);
    let object = store.open(&name()).unwrap();
    gate.set(true);
    fails(object.read_at(&mut [0; 4], 0), "did not answer within");
    for _ in 0..100 {
        fails(object.read_at(&mut [0; 4], 0), "has not answered for");
        fails(store.list("x"), "has not answered for");
        fails(store.open(&name()), "has not answered for");
    }
    assert_eq!(store.calls.lock().stuck, 1, "nobody else was sent");
    gate.set(false);
    while store.calls.lock().stuck > 0 {
        thread::yield_now();
    }
    assert_eq!(object.read_at(&mut [0; 4], 0).unwrap(), 4);
    assert!(store.list("x").is_ok() && store.calls.lock().stall.is_none());
}

#[test]
fn a_probe_finds_out_what_a_stuck_call_does_not() {
    let (store, gate) = gated(SHORT, false);
    gate.set(true);
    fails(store.list("x"), "did not answer within");
    let long_ago = Instant::now().checked_sub(PROBE_EVERY).unwrap();
    for stuck in 2..=STUCK_MAX {
        store.calls.lock().stall.as_mut().unwrap().tried = Some(long_ago);
        fails(store.list("x"), "did not answer within");
        assert_eq!(store.calls.lock().stuck, stuck);
    }
    store.calls.lock().stall.as_mut().unwrap().tried = Some(long_ago);
    fails(store.list("x"), "has not answered for");
    assert_eq!(store.calls.lock().threads, STUCK_MAX);
    gate.set(false);
    while store.calls.lock().stuck > 0 {
        thread::yield_now();
    }
    assert_eq!(store.calls.lock().idle.len(), STUCK_MAX, "all have come back");
    assert!(store.list("x").is_ok());
}

#[test]
fn threads_are_few_however_many_call() {
    let (store, gate) = gated(Duration::from_millis(300), false);
    gate.set(true);
    thread::scope(|scope| {
        for _ in 0..THREADS_MAX + 20 {
            scope.spawn(|| store.list("x").unwrap_err());
        }
    });
    assert!(store.calls.lock().threads <= THREADS_MAX && gate.waiting.load(Ordering::SeqCst) <= THREADS_MAX);
    gate.set(false);
}

#[test]
fn threads_that_nobody_needs_end_and_others_take_their_place() {
    let gate = Arc::new(Gate::default());
    let mut store = DeadlineStore::new(Arc::new(GatedStore(gate.clone(), false)), Duration::from_secs(20));
    Arc::get_mut(&mut store.calls).unwrap().idle_max = Duration::from_millis(50);
    store.arm();
    gate.set(true);
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| store.list("x").unwrap());
        }
        while gate.waiting.load(Ordering::SeqCst) < 10 {
            thread::yield_now();
        }
        gate.set(false);
    });
    while store.calls.lock().threads > 0 {
        thread::yield_now();
    }
    assert!(store.calls.lock().idle.is_empty());
    for round in 0..30 {
        // Some calls come just when the thread is about to end.
        thread::sleep(Duration::from_millis(40 + round));
        store.list("x").unwrap();
    }
    let state = store.calls.lock();
    assert!(
        state.threads <= 1 && state.joined.len() <= 2,
        "{} threads, {}",
        state.threads,
        state.joined.len()
    );
}

#[test]
fn local_objects_are_read_by_the_caller() {
    let (store, _) = gated(SHORT, true);
    let object = store.open(&name()).unwrap();
    let threads = store.calls.lock().threads;
    assert!(object.is_local() && object.read_at(&mut [0; 4], 0).is_ok());
    assert_eq!((threads, store.calls.lock().idle.len()), (1, 1));
}

#[test]
fn before_it_is_armed_there_are_no_threads() {
    let gate = Arc::new(Gate::default());
    let store = DeadlineStore::new(Arc::new(GatedStore(gate, false)), SHORT);
    assert!(store.list("x").is_ok() && store.open(&name()).is_ok());
    assert_eq!(store.calls.lock().threads, 0);
}

#[test]
fn disarming_ends_all_threads_also_those_that_close_objects() {
    for _ in 0..50 {
        let (store, _) = gated(Duration::from_secs(20), false);
        (0..5).for_each(|_| drop(store.open(&name()).unwrap()));
        store.disarm().unwrap();
        let state = store.calls.lock();
        assert_eq!((state.threads, state.idle.len()), (0, 0));
    }
}

#[test]
fn an_expendable_thread_calls_by_itself_and_a_hung_one_stalls_the_store() {
    let (store, gate) = gated(Duration::from_secs(1), false);
    let object = store.open(&name()).unwrap();
    gate.set(true);
    thread::scope(|scope| {
        let object = &object;
        let reader = scope.spawn(move || {
            expendable::declare();
            object.read_at(&mut [0; 4], 3).unwrap()
        });
        let _opened = Opened(&gate);
        // It is noted before it begins.
        while store.calls.reads.oldest(1) == 0 || gate.waiting.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        assert_eq!(gate.waiting.load(Ordering::SeqCst), 1, "and nobody else in its place");
        let looks: Vec<_> = (0..12).map(|_| store.look()).collect();
        assert!(!looks[1].is_slow && looks[5].is_slow, "{looks:?}");
        assert!(looks[11].is_hung && looks[11].is_stalled && !store.is_answering(), "{looks:?}");
        // The first call after that finds out whether it is the store or that object; those after it need not.
        fails(store.list("x"), "did not answer within");
        fails(store.list("x"), "has not answered for");
        gate.set(false);
        assert_eq!(reader.join().unwrap(), 4);
    });
    while store.calls.lock().stuck > 0 {
        thread::yield_now();
    }
    assert!(store.list("x").is_ok() && !store.look().is_stalled);
}

/// A store that gives up by itself, and says so a moment after its caller did.
struct Judge(Arc<Gate>, Arc<AtomicBool>);

impl Store for Judge {
    fn location(&self) -> &str {
        "judge"
    }

    fn list(&self, _: &str) -> Result<Listing> {
        self.0.pass();
        Ok(Listing::default())
    }

    fn open(&self, _: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        self.0.pass();
        Err(Error::new(ErrorKind::StoreIo, "given up"))
    }

    fn silence(&self) -> Option<Duration> {
        Some(SHORT)
    }

    fn is_answering(&self) -> bool {
        self.1.load(Ordering::SeqCst)
    }
}

#[test]
fn a_call_that_was_given_up_is_no_answer() {
    let (gate, says_so) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(true)));
    let store = DeadlineStore::new(Arc::new(Judge(gate.clone(), says_so.clone())), SHORT);
    store.arm();
    let is_stalled = || store.calls.lock().stall.is_some();
    gate.set(true);
    fails(store.open(&name()), "did not answer within");
    fails(store.open(&name()), "has not answered for");
    assert!(store.look().is_stalled, "it has not noticed yet");
    gate.set(false);
    while store.calls.lock().stuck > 0 {
        thread::yield_now();
    }
    assert!(is_stalled(), "all that came was that it was given up");
    says_so.store(false, Ordering::SeqCst);
    assert!(store.look().is_stalled);
    says_so.store(true, Ordering::SeqCst);
    assert!(!store.look().is_stalled && !is_stalled(), "it was heard");
}

#[test]
fn a_stuck_call_that_fails_in_the_end_is_no_answer() {
    let (store, gate) = gated(SHORT, false);
    let object = store.open(&name()).unwrap();
    gate.set(true);
    fails(object.read_at(&mut [0; 4], 99), "did not answer within");
    gate.set(false);
    while store.calls.lock().stuck > 0 {
        thread::yield_now();
    }
    assert!(store.look().is_stalled);
}

/// A store whose objects this machine remembers, some at once and others in time.
struct Remembered {
    objects: Arc<Gate>,
    server: Arc<Gate>,
}

impl Store for Remembered {
    fn location(&self) -> &str {
        "remembered"
    }

    fn list(&self, _: &str) -> Result<Listing> {
        Ok(Listing::default())
    }

    fn open(&self, _: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        self.objects.pass();
        Err(Error::new(ErrorKind::ObjectNotFound, "an answer"))
    }

    fn hello(&self) -> Result<()> {
        self.server.pass();
        Ok(())
    }
}

#[test]
fn what_this_machine_remembers_is_no_answer() {
    let (objects, server) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let remembered = Remembered { objects: objects.clone(), server: server.clone() };
    let store = DeadlineStore::new(Arc::new(remembered), SHORT);
    store.arm();
    let is_stalled = || store.calls.lock().stall.is_some();
    let _opened = [Opened(&objects), Opened(&server)];
    objects.set(true);
    server.set(true);
    fails(store.open(&name()), "did not answer within");
    let long_ago = Instant::now().checked_sub(PROBE_EVERY).unwrap();
    store.calls.lock().stall.as_mut().unwrap().tried = Some(long_ago);
    fails(store.list("x"), "did not answer within");
    // A call that began while the store answered.
    store.calls.returned_here(store.calls.tick(), true);
    assert!(is_stalled());
    // One that was stuck, and was answered without the server.
    objects.set(false);
    while server.waiting.load(Ordering::SeqCst) < 2 && is_stalled() {
        thread::yield_now();
    }
    assert!(is_stalled());
    server.set(false);
    while store.calls.lock().stuck > 0 {
        thread::yield_now();
    }
    assert!(!is_stalled() && store.list("x").is_ok());
}
