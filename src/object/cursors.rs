//! Decoders that stopped somewhere and may go on.
//!
//! Problem: a decoder that stands at plain offset 1.5 GB is worth a second of work, but it holds 50 KiB (zlib) to
//! 128 MiB (zstd with its largest window). Idea: one list for the whole process, oldest first, bounded by the memory
//! that the decoders report.
//!
//! Invariant: idle decoders hold at most the bound, or there is one. (Without that exception a decoder larger than the
//! bound could never be resumed, and a sequential reader would start the stream anew for each request.)

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use super::passes::Pass;
use crate::codec::windows::{self, IdleWindows};
use crate::codec::{Decoder, Recording};

/// Most idle decoders, whatever they weigh: each keeps its object's file open.
const CURSORS_MAX: usize = 128;

/// Idle decoders of one object may hold this much, in bytes: enough for several readers of it, and a reader that jumps
/// about in one image does not drive out those of others.
const OBJECT_BYTES_MAX: usize = 16 << 20;

/// A decoder and where it stands.
pub(super) struct Cursor {
    /// The plain offset of the next byte it gives.
    pub(super) at: u64,
    /// The decoder.
    pub(super) decoder: Box<dyn Decoder>,
    /// Up to where the points that it passed have been taken; `None` while it should note points and may not.
    pub(super) noted_to: Option<u64>,
    /// Its way through the object.
    pub(super) pass: Pass,
    /// What it records.
    pub(super) recording: Option<Recording>,
    /// The object's generation when it began: a decoder that began at a restart point which was wrong is of no use.
    pub(super) generation: u64,
    /// The plain offset where it began.
    pub(super) entered: u64,
    /// How often bytes of the object had been wrong when it began.
    pub(super) doubts: u64,
}

/// The idle decoders of a process.
pub(super) struct IdleCursors {
    bytes_max: usize,
    idle: Mutex<VecDeque<(u64, Cursor)>>,
}

impl IdleCursors {
    /// Keeps idle decoders of about `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, idle: Mutex::default() }
    }

    /// Takes the decoder of object `id` that stands closest before the end of `range`, or at it, but not before its start.
    pub(super) fn take(&self, id: u64, range: RangeInclusive<u64>) -> Option<Cursor> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits =
            |(_, (owner, cursor)): &(usize, &(u64, Cursor))| *owner == id && range.contains(&cursor.at);
        let (index, _) = idle.iter().enumerate().filter(fits).max_by_key(|(_, (_, cursor))| cursor.at)?;
        idle.remove(index).map(|(_, cursor)| cursor)
    }

    /// Keeps a decoder of object `id` for later.
    pub(super) fn put(&self, id: u64, cursor: Cursor) {
        let mut dropped = Vec::new();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked with the lock: who waits from now on looks at what is idle after us.
        if cursor.decoder.holds_large_window() && windows::are_wanted() {
            drop(idle);
            return;
        }
        idle.push_back((id, cursor));
        while weight(idle.iter().filter(|(owner, _)| *owner == id)) > OBJECT_BYTES_MAX {
            // The one just put is the last, and stays.
            let oldest = idle.iter().take(idle.len() - 1).position(|(owner, _)| *owner == id);
            let Some(oldest) = oldest else { break };
            dropped.extend(idle.remove(oldest));
        }
        while idle.len() > 1 && (idle.len() > CURSORS_MAX || weight(idle.iter()) > self.bytes_max) {
            dropped.extend(idle.pop_front());
        }
        drop(idle); // before what was dropped frees its memory
    }

    /// Drops all decoders of object `id`.
    pub(super) fn drop_all_of(&self, id: u64) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).retain(|(owner, _)| *owner != id);
    }
}

impl IdleWindows for IdleCursors {
    fn let_go(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let (dropped, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut *idle)
            .into_iter()
            .partition(|(_, cursor)| cursor.decoder.holds_large_window());
        *idle = kept;
        drop(idle); // before what was dropped frees its memory
        drop(dropped);
    }
}

fn weight<'a>(cursors: impl Iterator<Item = &'a (u64, Cursor)>) -> usize {
    cursors.map(|(_, cursor)| cursor.decoder.memory_bytes()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;

    struct Weight(usize);

    impl Decoder for Weight {
        fn read(&mut self, _: &mut [u8]) -> Result<usize> {
            Ok(0)
        }

        fn memory_bytes(&self) -> usize {
            self.0
        }
    }

    fn cursor(at: u64, weight: usize) -> Cursor {
        Cursor {
            at,
            decoder: Box::new(Weight(weight)),
            noted_to: Some(at),
            pass: Pass::EARLIER,
            entered: 0,
            recording: None,
            generation: 0,
            doubts: 0,
        }
    }

    #[test]
    fn the_closest_before_goes_on() {
        let cursors = IdleCursors::new(1000);
        for at in [10, 30, 20] {
            cursors.put(1, cursor(at, 1));
        }
        cursors.put(2, cursor(25, 1));
        assert!(cursors.take(1, 0..=9).is_none());
        assert!(cursors.take(1, 21..=29).is_none());
        assert_eq!(cursors.take(1, 0..=29).unwrap().at, 20);
        assert_eq!(cursors.take(1, 0..=29).unwrap().at, 10);
        assert!(cursors.take(1, 0..=29).is_none());
        cursors.drop_all_of(1);
        assert!(cursors.take(1, 0..=99).is_none());
        assert_eq!(cursors.take(2, 0..=25).unwrap().at, 25);
    }

    #[test]
    fn one_object_does_not_drive_out_the_others() {
        let cursors = IdleCursors::new(100 << 20);
        cursors.put(1, cursor(1, 4 << 20));
        for at in 0..20 {
            cursors.put(2, cursor(at, 4 << 20));
        }
        assert!(cursors.take(1, 0..=9).is_some());
        let kept: Vec<_> = std::iter::from_fn(|| cursors.take(2, 0..=99)).map(|cursor| cursor.at).collect();
        assert_eq!(kept, [19, 18, 17, 16]);
    }

    #[test]
    fn the_bound_drops_the_oldest_but_keeps_one() {
        let cursors = IdleCursors::new(100);
        cursors.put(1, cursor(1, 60));
        cursors.put(2, cursor(2, 60));
        assert!(cursors.take(1, 0..=9).is_none());
        cursors.put(3, cursor(3, 500));
        assert!(cursors.take(2, 0..=9).is_none());
        assert_eq!(cursors.take(3, 0..=9).unwrap().at, 3);
    }
}
