//! An image to a file, a block device or stdout.
//!
//! Problem: Cinder restores object by object, each wholly in memory, on one core, and checks nothing. Idea: the image is
//! cut into groups of ranges, one for each object; threads take a group each, read it through the image in order
//! (verified, zeros known from the digests) and write where the bytes belong. A thread that finds no untouched group
//! helps with one that has much left, so that decoding, hashing and writing of a single large object overlap. A target
//! that cannot seek is fed in order by the same threads.
//!
//! Invariants: nothing is written that was not verified, unless [`OnDamage::Zero`] asked for zeros in its place; what was
//! in the target before cannot show through: a blank file stays sparse, anything else gets its zeros written; a file
//! has its final name only when it is complete, and what it replaces stays until then; memory does not depend on the image's size.

mod plan;
mod sink;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use self::plan::Plan;
use self::sink::Sink;
use crate::error::{Error, ErrorKind, Result};
use crate::image::{Image, Part};

/// How often the observer is told.
const TICK: Duration = Duration::from_millis(100);

/// Most threads that read ahead for a target that cannot seek. Each holds up to three windows.
const READERS_MAX: usize = 8;

/// Where the bytes go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Standard output: no seeking, so holes are written as zeros.
    Stdout,
    /// A file or a block device.
    Path(PathBuf),
}

/// What to do about a block that cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnDamage {
    /// Stop with the error.
    Stop,
    /// Write zeros in its place and go on. What the store fails to deliver stops the restore all the same.
    Zero,
}

/// Settings of [`restore`].
#[derive(Clone, Debug)]
pub struct RestoreOptions<'a> {
    /// Overwrite a target that exists.
    pub force: bool,
    /// What to do about damage.
    pub on_damage: OnDamage,
    /// How many threads decode, at least 1.
    pub threads: usize,
    /// Once this is true the restore ends with [`ErrorKind::Interrupted`].
    pub cancel: &'a AtomicBool,
}

/// How far a restore has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Bytes of the image that are done, holes included.
    pub done_bytes: u64,
    /// The image's length.
    pub total_bytes: u64,
    /// How many of `done_bytes` were holes.
    pub hole_bytes: u64,
}

/// What a finished restore did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The image's length.
    pub image_bytes: u64,
    /// Bytes that are neither holes nor damaged.
    pub data_bytes: u64,
    /// Bytes that are holes.
    pub hole_bytes: u64,
    /// Blocks that were taken from another backup's copy.
    pub healed_blocks: u64,
    /// Ranges of the image that were replaced by zeros.
    pub damaged: Vec<Range<u64>>,
    /// How many bytes those are.
    pub damaged_bytes: u64,
}

#[cfg(test)]
impl Report {
    /// Of a restore without holes that found these ranges damaged.
    pub(crate) fn with_damage(image_bytes: u64, damaged: &[Range<u64>]) -> Self {
        let damaged_bytes = damaged.iter().map(|range| range.end - range.start).sum();
        Self {
            image_bytes,
            data_bytes: image_bytes,
            damaged: damaged.to_vec(),
            damaged_bytes,
            ..Self::default()
        }
    }
}

/// Takes a range of the image and its bytes, `None` for zeros.
type Write<'w> = dyn FnMut(Range<u64>, Option<&[u8]>) -> Result<()> + 'w;

/// What all threads of one restore share.
struct Work<'a> {
    image: &'a Arc<Image>,
    options: &'a RestoreOptions<'a>,
    /// Set by the first thread that fails.
    stop: AtomicBool,
    done_bytes: AtomicU64,
    hole_bytes: AtomicU64,
    damaged: Mutex<Vec<Range<u64>>>,
}

/// Writes `image` to `target`, and tells `observer` how far it is.
///
/// [`ErrorKind::Usage`] when the target exists and `force` is not set, [`ErrorKind::Target`] when it is too small or
/// cannot be written. On any error a new file is removed again, unless it is complete and its name was taken meanwhile. A file that
/// is to be overwritten is replaced when the new one is complete; a device is left as far as it was written.
pub fn restore(
    image: &Arc<Image>,
    target: Target,
    options: &RestoreOptions<'_>,
    observer: &dyn Fn(Progress),
) -> Result<Report> {
    if options.on_damage == OnDamage::Stop {
        // Before an existing target is emptied for an image of which not even the beginning can be read.
        let mut first = [0; 1];
        image.read_at(&mut first, 0)?;
    }
    let sink = Sink::open(&target, image.len_bytes(), options.force, options.cancel)?;
    let work = Work {
        image,
        options,
        stop: AtomicBool::new(false),
        done_bytes: AtomicU64::new(0),
        hole_bytes: AtomicU64::new(0),
        damaged: Mutex::default(),
    };
    let result =
        if sink.seeks() { work.in_parallel(&sink, observer) } else { work.in_order(&sink, observer) };
    match result {
        Ok(()) => sink.finish()?,
        Err(error) => {
            return Err(match sink.abandon() {
                Some(state) => error.context(state),
                None => error,
            });
        }
    }
    observer(work.progress());
    Ok(work.report())
}

impl Work<'_> {
    fn in_parallel(&self, sink: &Sink, observer: &dyn Fn(Progress)) -> Result<()> {
        let plan = Plan::new(self.image.groups());
        let run = || -> Result<()> {
            let mut group = None;
            while let Some(range) = plan.next(&mut group) {
                self.check_stop()?;
                self.image.prepare(range.clone());
                // From the first write to the window's end: a window is read before any of it is given out. (One of tiny
                // blocks, or without digests, is read in several steps; then others wait a little longer to write.)
                let mut turn = None;
                self.pass_on(range, &mut |part, bytes| match bytes {
                    Some(bytes) => {
                        turn.get_or_insert_with(|| sink.turn());
                        sink.write(part.start, bytes)
                    }
                    None => sink.write_zeros(part),
                })?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let (tell, results) = mpsc::channel();
            for _ in 0..self.options.threads.max(1) {
                let (tell, run) = (tell.clone(), &run);
                scope.spawn(move || {
                    let result = run();
                    if result.is_err() {
                        self.stop.store(true, Ordering::Relaxed);
                    }
                    // The receiver outlives the scope's threads.
                    let _ = tell.send(result);
                });
            }
            drop(tell);
            self.first_error(&results, observer)
        })
    }

    /// For a target that cannot seek: threads read ahead by a few windows, one writes them in order.
    fn in_order(&self, sink: &Sink, observer: &dyn Fn(Progress)) -> Result<()> {
        let windows = plan::windows(0..self.image.len_bytes());
        let readers = self.options.threads.clamp(1, READERS_MAX);
        std::thread::scope(|scope| {
            let (tell, results) = mpsc::channel();
            // One slot for each reader, given out in turn, keeps the windows in order and their number bounded. Buffers come
            // back: memory that is asked for anew is filled with zeros by the kernel, page by page.
            let (mut slots, mut returns) = (Vec::new(), Vec::new());
            for reader in 0..readers {
                let (slot, filled) = mpsc::sync_channel::<Result<Vec<u8>>>(1);
                let (give_back, empty) = mpsc::channel::<Vec<u8>>();
                slots.push(filled);
                returns.push(give_back);
                let mine = windows.clone().skip(reader).step_by(readers);
                scope.spawn(move || {
                    for range in mine {
                        self.image.prepare(range.clone());
                        let mut bytes = empty.try_recv().unwrap_or_default();
                        bytes.clear();
                        let read = self.check_stop().and_then(|()| self.gather(range, &mut bytes));
                        let failed = read.is_err();
                        if slot.send(read.map(|()| bytes)).is_err() || failed {
                            break;
                        }
                    }
                });
            }
            scope.spawn(move || {
                let write = || -> Result<()> {
                    for (range, (slot, give_back)) in windows.zip(slots.iter().zip(&returns).cycle()) {
                        let Ok(bytes) = slot.recv() else {
                            return Err(Error::new(
                                ErrorKind::Interrupted,
                                "a reader of the image ended early",
                            ));
                        };
                        let bytes = bytes?;
                        sink.write(range.start, &bytes)?;
                        sink.write_zeros(range.start + bytes.len() as u64..range.end)?;
                        // A reader that has no window left is gone.
                        let _ = give_back.send(bytes);
                    }
                    Ok(())
                };
                let result = write();
                if result.is_err() {
                    self.stop.store(true, Ordering::Relaxed);
                }
                drop(slots); // whoever waits for room gives up
                let _ = tell.send(result);
            });
            self.first_error(&results, observer)
        })
    }

    /// Appends the bytes of `range` up to the last one that is not in a hole.
    fn gather(&self, range: Range<u64>, bytes: &mut Vec<u8>) -> Result<()> {
        let start = range.start;
        self.pass_on(range, &mut |part, data| {
            if let Some(data) = data {
                bytes.resize((part.start - start) as usize, 0);
                bytes.extend_from_slice(data);
            }
            Ok(())
        })
    }

    /// Waits for all results, telling the observer meanwhile.
    fn first_error(&self, results: &mpsc::Receiver<Result<()>>, observer: &dyn Fn(Progress)) -> Result<()> {
        let mut first: Result<()> = Ok(());
        loop {
            match results.recv_timeout(TICK) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    // What a thread says that another's failure has stopped is not the reason.
                    let known = first.as_ref().err().map(Error::kind);
                    if known.is_none_or(|kind| kind == ErrorKind::Interrupted) {
                        first = Err(error);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => observer(self.progress()),
                Err(mpsc::RecvTimeoutError::Disconnected) => return first,
            }
        }
    }

    /// Reads a range and gives its parts to `write`.
    fn pass_on(&self, range: Range<u64>, write: &mut Write<'_>) -> Result<()> {
        self.image.visit(range, &mut |part, what| {
            let len = part.end - part.start;
            match what {
                Part::Data(bytes) => write(part, Some(bytes))?,
                Part::Zeros => {
                    write(part, None)?;
                    self.hole_bytes.fetch_add(len, Ordering::Relaxed);
                }
                // What the store fails to deliver now may be whole, and must not become zeros.
                Part::Lost(error)
                    if self.options.on_damage == OnDamage::Stop || !self.image.is_lost_for_good(error) =>
                {
                    return Err(error.clone().context(format!("image bytes {} to {}", part.start, part.end)));
                }
                Part::Lost(_) => {
                    write(part.clone(), None)?;
                    self.damaged.lock().unwrap_or_else(PoisonError::into_inner).push(part);
                }
            }
            self.done_bytes.fetch_add(len, Ordering::Relaxed);
            Ok(())
        })
    }

    fn check_stop(&self) -> Result<()> {
        if self.options.cancel.load(Ordering::Relaxed) || self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        Progress {
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.image.len_bytes(),
            hole_bytes: self.hole_bytes.load(Ordering::Relaxed),
        }
    }

    fn report(self) -> Report {
        let mut lost = self.damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
        lost.sort_by_key(|range| range.start);
        let mut damaged: Vec<Range<u64>> = Vec::new();
        for range in lost {
            match damaged.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => damaged.push(range),
            }
        }
        let damaged_bytes: u64 = damaged.iter().map(|range| range.end - range.start).sum();
        let (image_bytes, hole_bytes) = (self.image.len_bytes(), self.hole_bytes.into_inner());
        let healed_blocks = self.image.damage().healed_blocks;
        let data_bytes = image_bytes - hole_bytes - damaged_bytes;
        Report { image_bytes, data_bytes, hole_bytes, healed_blocks, damaged, damaged_bytes }
    }
}
