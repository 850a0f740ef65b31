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

use super::engine::{Engine, Tries};
use super::failure::Failed;
use super::window::{Answer, Shelf, Window, WindowError};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{ObjectSource, ObjectStat};
use crate::types::ObjectName;

/// First window of a reader that goes on where it was.
const WINDOW_BYTES_MIN: u64 = 256 << 10;

/// Largest window: at 100 MB/s two of them hide 40 ms.
const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// Least that is fetched at once. A few bytes more cost nothing beside the journey, and digests lie side by side.
const FETCH_BYTES_MIN: u64 = 4 << 10;

/// Most bytes that an announcement fetches.
const ANNOUNCED_BYTES_MAX: u64 = WINDOW_BYTES_MAX;

/// Readers of one object that are followed.
const STREAMS_MAX: usize = 16;

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
    streams: Vec<Stream>,
}

/// A reader that may go on where it was.
struct Stream {
    /// Where it was.
    next: u64,
    /// Behind what was asked for on its behalf.
    asked: u64,
    /// How much is asked for at once; 0 until it has gone on behind what it announced.
    window: u64,
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
        let known = plan.find(offset);
        let followed = plan.streams.iter().position(|stream| stream.next == offset);
        let mut stream = match followed {
            Some(at) => plan.streams.remove(at),
            None => Stream { next: offset, asked: offset, window: 0 },
        };
        stream.next = offset + len;
        let found = match known {
            Some(window) => {
                stream.asked = stream.asked.max(window.end());
                Some(window)
            }
            None => {
                // One that was followed goes on behind what it said it would need.
                let is_going_on = followed.is_some();
                if is_going_on {
                    stream.window = (stream.window * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
                }
                let window = self.fetch(&mut plan, offset, len.max(stream.window).max(FETCH_BYTES_MIN), true);
                stream.asked = window.as_ref().map_or(offset, |window| window.end());
                window
            }
        };
        if stream.window > 0 {
            while stream.asked < stream.next.saturating_add(stream.window) {
                let wider = (stream.window * 2).min(WINDOW_BYTES_MAX);
                if plan.find(stream.asked).is_some() {
                    break;
                }
                let Some(window) = self.fetch(&mut plan, stream.asked, wider, false) else { break };
                (stream.asked, stream.window) = (window.end(), wider);
            }
            // What lies behind it will hardly be read again.
            let behind = stream.next.saturating_sub(stream.window.max(WINDOW_BYTES_MIN));
            plan.windows.retain(|_, window| {
                window.len < WINDOW_BYTES_MIN || window.end() > behind || window.start > offset
            });
        }
        if plan.streams.len() == STREAMS_MAX {
            plan.streams.remove(0);
        }
        plan.streams.push(stream);
        found
    }

    fn forget(&self, window: &Arc<Window>) {
        let mut plan = self.lock();
        if plan.windows.get(&window.start).is_some_and(|known| Arc::ptr_eq(known, window)) {
            plan.windows.remove(&window.start);
        }
    }
}

impl Plan {
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

    fn will_need(&self, offset: u64, len: u64) {
        let mut plan = self.lock();
        if plan.find(offset).is_none() {
            self.fetch(&mut plan, offset, len.min(ANNOUNCED_BYTES_MAX), false);
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
async fn fill(tries: Tries, source: Arc<Source>, filled: Filled, start: u64, len: u64) {
    let window = &filled.0;
    let outcome = tries
        .run(|progress| {
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
