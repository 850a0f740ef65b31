//! An opened object of a store behind HTTP.
//!
//! Problem: decoders read 512 bytes to 128 KiB at once, at a restart point or from the beginning to the end, and say now and then what they will
//! need; 20 ms lie between a request and its answer. Idea: what is asked for or announced is fetched exactly. Only who goes on where
//! a read ended before is given more than that: windows that double, fetched before they are asked for.
//!
//! Invariants: all bytes are of the object that was opened, since every request names its ETag (or generation); a random read transfers what was
//! asked for and no byte more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use opendal::Operator;
use opendal::options::ReaderOptions;

use super::ahead::{BEHIND_BYTES_MAX, Stream, Streams, WINDOW_BYTES_MAX};
use super::engine::{Engine, Tries};
use super::failure::Failed;
use super::window::{Answer, Shelf, Window, WindowError};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{ObjectSource, ObjectStat};
use crate::types::ObjectName;

/// Least that is fetched at once. A few bytes more cost nothing beside the journey, and digests lie side by side.
const FETCH_BYTES_MIN: u64 = 4 << 10;

/// Most bytes that an announcement fetches, in windows side by side: what lies between two restart points of zstd is 14 MB of mixed data.
const ANNOUNCED_BYTES_MAX: u64 = 16 << 20;

/// Windows of one object; further ones take the place of the lowest.
const WINDOWS_MAX: usize = 4096;

/// Windows that may have to be looked at to find an offset: they overlap seldom.
const OVERLAPS_MAX: usize = 4;

/// How often a read begins anew because its window gave way.
const ROUNDS_MAX: usize = 8;

/// What a request for bytes of the object says.
pub(super) struct Source {
    pub(super) operator: Operator,
    pub(super) path: String,
    pub(super) options: ReaderOptions,
}

/// An opened object.
pub(super) struct RemoteObject {
    name: ObjectName,
    stat: ObjectStat,
    source: Arc<Source>,
    engine: Arc<Engine>,
    shelf: Arc<Shelf>,
    plan: Mutex<Plan>,
}

/// What is there or on its way, and who reads where.
#[derive(Default)]
struct Plan {
    windows: BTreeMap<u64, Arc<Window>>,
    streams: Streams,
}

impl RemoteObject {
    pub(super) fn new(
        name: ObjectName,
        stat: ObjectStat,
        source: Source,
        engine: Arc<Engine>,
        shelf: Arc<Shelf>,
    ) -> Self {
        Self { name, stat, source: Arc::new(source), engine, shelf, plan: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        // No code between the parts of a change can panic.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `[start, start + len)`, as far as the object goes.
    fn fetch(&self, plan: &mut Plan, start: u64, len: u64, is_needed: bool) -> Option<Arc<Window>> {
        let len = len.min(self.stat.len_bytes.saturating_sub(start));
        if len == 0 {
            return None;
        }
        let window = self.shelf.window(start, len, is_needed)?;
        if plan.windows.len() >= WINDOWS_MAX {
            plan.windows.pop_first();
        }
        plan.windows.insert(start, window.clone());
        let task = fill(
            self.engine.tries().clone(),
            self.name.clone(),
            self.source.clone(),
            Filled(Arc::downgrade(&window)),
            start,
            len,
        );
        self.engine.start(task);
        Some(window)
    }

    /// The window that has or gets the byte at `offset`, asked for now if there is none. `len` bytes from there on are wanted.
    fn window_at(&self, offset: u64, len: u64) -> Option<Arc<Window>> {
        let mut plan = self.lock();
        let mut stream = plan.streams.take(offset, len);
        let found = plan.find(offset).or_else(|| {
            stream.surprise();
            let wanted = if stream.goes_on { stream.window().min(plan.room_at(offset)) } else { 0 };
            self.fetch(&mut plan, offset, wanted.max(len).max(FETCH_BYTES_MIN), true)
        });
        let end = found.as_ref().map_or(offset, |window| window.end());
        stream.asked = stream.asked.max(end);
        stream.read(offset, end.min(offset + len));
        if stream.goes_on {
            self.go_ahead(&mut plan, &mut stream);
            // What all who read side by side have behind them will hardly be read again.
            let behind = stream.next.saturating_sub(BEHIND_BYTES_MAX);
            plan.windows.retain(|start, window| {
                let is_behind = window.end() <= behind || (window.end() <= stream.next && window.is_done());
                window.len <= FETCH_BYTES_MIN || *start >= offset || !is_behind
            });
        }
        plan.streams.put(stream);
        found
    }

    /// Asks for what a reader that goes on will want next.
    fn go_ahead(&self, plan: &mut Plan, stream: &mut Stream) {
        let share = self.shelf.share(Arc::as_ptr(&self.source) as usize);
        let until = stream.next.saturating_add(stream.ahead(share)).min(self.stat.len_bytes);
        while stream.asked < until {
            if let Some(known) = plan.find(stream.asked) {
                stream.asked = known.end();
                continue;
            }
            let wanted = stream.window().min(plan.room_at(stream.asked));
            let Some(window) = self.fetch(plan, stream.asked, wanted, false) else { break };
            stream.asked = window.end();
        }
    }

    fn forget(&self, window: &Arc<Window>) {
        let mut plan = self.lock();
        if plan.windows.get(&window.start).is_some_and(|known| Arc::ptr_eq(known, window)) {
            plan.windows.remove(&window.start);
        }
    }
}

impl Plan {
    /// How many bytes from `offset` on are in no window; at least 1.
    fn room_at(&self, offset: u64) -> u64 {
        let next = self.windows.range(offset.saturating_add(1)..).next();
        next.map_or(u64::MAX, |(start, _)| start - offset)
    }

    /// Whether the byte at `offset` is there.
    fn holds(&self, offset: u64) -> bool {
        let near = self.windows.range(..=offset).rev().take(OVERLAPS_MAX).map(|(_, window)| window);
        // The one that a read would take.
        near.into_iter().find(|window| window.covers(offset)).is_some_and(|window| window.holds(offset))
    }

    /// A window with the byte at `offset`, or one that gets it.
    fn find(&mut self, offset: u64) -> Option<Arc<Window>> {
        let near = self.windows.range(..=offset).rev().take(OVERLAPS_MAX);
        let window = near.map(|(_, window)| window).find(|window| window.covers(offset))?.clone();
        if window.is_spent() {
            // What failed a while ago is tried anew.
            self.windows.remove(&window.start);
            return None;
        }
        Some(window)
    }
}

impl ObjectSource for RemoteObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let left = self.stat.len_bytes.saturating_sub(offset);
        let len = (buf.len() as u64).min(left).min(WINDOW_BYTES_MAX);
        if len == 0 {
            return Ok(0);
        }
        let failed = |why: Error| why.context(format!("cannot read object {:?} at byte {offset}", self.name));
        // The task that fills the window gives up first, and knows why.
        let patience = self.engine.tries().limits().deadline + Duration::from_secs(5);
        for _ in 0..ROUNDS_MAX {
            let Some(window) = self.window_at(offset, len) else { return Ok(0) };
            let mut read = || window.read(&mut buf[..len as usize], offset, patience);
            let mut answer = read();
            // It may wait for a connection while something comes through the others.
            while matches!(answer, Err(WindowError::Late)) && self.engine.tries().silence() < patience {
                answer = read();
            }
            match answer {
                Ok(Answer::Read(read)) => return Ok(read),
                Ok(Answer::Gone) => self.forget(&window),
                Err(WindowError::Failed(why)) => {
                    self.forget(&window);
                    return Err(failed(why));
                }
                Err(WindowError::Late) => {
                    return Err(failed(Error::new(ErrorKind::StoreIo, "the store did not answer in time")));
                }
            }
        }
        Err(failed(Error::new(ErrorKind::StoreIo, "there is no memory for what the store sends")))
    }

    fn read_at_hand(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let left = self.stat.len_bytes.saturating_sub(offset);
        let len = (buf.len() as u64).min(left).min(WINDOW_BYTES_MAX);
        if len == 0 || !self.lock().holds(offset) {
            return None;
        }
        // From here on as any other read, or who reads on would not be noticed.
        let window = self.window_at(offset, len)?;
        window.read_now(&mut buf[..len as usize], offset)
    }

    fn will_need(&self, offset: u64, len: u64) {
        let mut plan = self.lock();
        let end = offset.saturating_add(len.min(ANNOUNCED_BYTES_MAX)).min(self.stat.len_bytes);
        let mut at = offset;
        while at < end {
            if let Some(known) = plan.find(at) {
                at = known.end();
                continue;
            }
            let wanted = (end - at).min(WINDOW_BYTES_MAX).min(plan.room_at(at));
            let Some(window) = self.fetch(&mut plan, at, wanted, false) else { break };
            at = window.end();
        }
    }

    fn doubt(&self) -> bool {
        let mut plan = self.lock();
        let before = plan.windows.len();
        // What nobody has read has led nobody astray.
        plan.windows.retain(|_, window| !window.is_begun());
        plan.windows.len() < before
    }

    fn is_far(&self) -> bool {
        true
    }

    fn will_read_on(&self, offset: u64) {
        let mut plan = self.lock();
        if !plan.streams.is_followed(offset) {
            let mut stream = Stream::reading_on(offset);
            self.go_ahead(&mut plan, &mut stream);
            plan.streams.put(stream);
        }
    }
}

/// A window that a task fills. Whatever ends the task, nobody waits in vain.
struct Filled(Weak<Window>);

impl Drop for Filled {
    fn drop(&mut self) {
        if let Some(window) = self.0.upgrade().filter(|window| !window.is_full()) {
            window.fail(Error::new(ErrorKind::StoreIo, "the request was dropped"));
        }
    }
}

/// Fetches a window, from where the last try ended.
async fn fill(tries: Tries, name: ObjectName, source: Arc<Source>, filled: Filled, start: u64, len: u64) {
    let window = &filled.0;
    let outcome = tries
        .run_for(&name, start..start + len, |progress| {
            let (source, window) = (source.clone(), window.clone());
            async move {
                let failed = |error: opendal::Error| Failed::from_opendal(&error);
                // Nobody waits any more where there is no window.
                let Some(filled) = window.upgrade().map(|window| window.filled()) else { return Ok(()) };
                if filled == len {
                    return Ok(());
                }
                let options = source.options.clone();
                let reader = source.operator.reader_options(&source.path, options).await.map_err(failed)?;
                let mut pieces = reader.into_stream(start + filled..start + len).await.map_err(failed)?;
                while let Some(piece) = pieces.next().await {
                    let piece = piece.map_err(failed)?;
                    let Some(window) = window.upgrade() else { return Ok(()) };
                    progress.note();
                    for bytes in piece {
                        window.push(&bytes);
                    }
                }
                match window.upgrade() {
                    Some(window) if window.filled() < len => Err(Failed::passing(Error::new(
                        ErrorKind::StoreIo,
                        format!("an answer ended after {} of {len} bytes", window.filled()),
                    ))),
                    _ => Ok(()),
                }
            }
        })
        .await;
    if let (Err(error), Some(window)) = (outcome, window.upgrade()) {
        window.fail(error);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ahead::{AHEAD_BYTES_MAX, AHEAD_FACTOR, AHEAD_WINDOWS_MIN, WINDOW_BYTES_MIN};
    use super::super::engine::Limits;
    use super::*;
    use crate::store::{ObjectVersion, Ownership};

    const LEN: u64 = 48 << 20;

    fn byte(at: u64) -> u8 {
        (at / 4099) as u8
    }

    fn object() -> RemoteObject {
        let operator = Operator::new(opendal::services::Memory::default()).unwrap();
        let bytes: Vec<u8> = (0..LEN).map(byte).collect();
        let engine = Arc::new(Engine::new(Limits::default()));
        engine
            .wait(async {
                operator.write("a", bytes).await.unwrap();
                Ok(())
            })
            .unwrap();
        let owner = Ownership { mode: 0o400, uid: 0, gid: 0 };
        let version = ObjectVersion("1".into());
        let stat = ObjectStat { len_bytes: LEN, version, modified: None, owner };
        let source = Source { operator, path: "a".into(), options: ReaderOptions::default() };
        RemoteObject::new(ObjectName::parse("a").unwrap(), stat, source, engine, Arc::default())
    }

    fn read(object: &RemoteObject, offset: u64, len: usize) {
        let mut buf = vec![0; len];
        let read = object.read_at(&mut buf, offset).unwrap();
        assert!(read > 0);
        let right = |(at, got): (usize, &u8)| *got == byte(offset + at as u64);
        assert!(buf[..read].iter().enumerate().all(right));
    }

    /// Bytes asked for behind `offset`, and whether any are asked for twice.
    fn ahead_of(object: &RemoteObject, offset: u64) -> (u64, bool) {
        let plan = object.lock();
        let windows: Vec<_> = plan.windows.values().collect();
        let end = windows.iter().map(|window| window.end()).max().unwrap();
        (end - offset, windows.windows(2).any(|two| two[0].end() > two[1].start))
    }

    #[test]
    fn what_is_ahead_of_a_reader_grows_with_what_it_has_read() {
        let object = object();
        object.shelf.allow(u64::MAX);
        let piece = 128 << 10;
        for at in (0..8 << 20).step_by(piece) {
            read(&object, at, piece);
            let next = at + piece as u64;
            let (ahead, is_twice) = ahead_of(&object, next);
            let most = (AHEAD_FACTOR * next).clamp(AHEAD_WINDOWS_MIN * WINDOW_BYTES_MIN, AHEAD_BYTES_MAX);
            assert!(ahead <= most + WINDOW_BYTES_MAX && !is_twice, "{ahead} ahead of {next}");
        }
        let (ahead, _) = ahead_of(&object, 8 << 20);
        assert!(ahead >= AHEAD_FACTOR * (8 << 20) - WINDOW_BYTES_MAX, "{ahead}");
        for at in (8 << 20..LEN).step_by(piece) {
            read(&object, at, piece);
        }
        assert!(!ahead_of(&object, LEN).1);
    }

    #[test]
    fn threads_that_read_large_pieces_side_by_side_are_one_reader() {
        let object = object();
        let piece = 512 << 10;
        for four in (0..8 << 20).step_by(4 * piece) {
            for place in [1, 0, 3, 2] {
                read(&object, four + place * piece as u64, piece);
            }
        }
        let (ahead, is_twice) = ahead_of(&object, 8 << 20);
        assert!(ahead >= 4 << 20 && !is_twice, "{ahead}");
        assert_eq!(object.lock().streams.len(), 1);
    }

    #[test]
    fn small_reads_near_each_other_get_what_they_ask_for() {
        let object = object();
        for at in [0, 300, 200, 100] {
            read(&object, at << 10, 16 << 10);
        }
        let plan = object.lock();
        assert_eq!(plan.windows.values().map(|window| window.len).collect::<Vec<_>>(), [16 << 10; 4]);
    }
}
