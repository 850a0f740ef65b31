//! Work on numbered parts by several threads, with the results in order.
//!
//! Problem: digests, and devices that are compared with them, are gone through by all cores, documents behind a network are asked for by
//! several threads, and what is found is to be told from the beginning to the end, without holding all of it. Idea: the threads take the parts in turn, each has room for one
//! result that nobody has taken yet, and the caller takes them in the same turn.
//!
//! Invariants: results come in the order of their parts; at most two for each thread exist at a time; the first error, of the
//! work or of the taker, ends all of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};

/// Gives the result of `work` for each of `0..parts` to `take`, in order. `work` is called by up to `threads` threads, each with
/// a state of its own that `begin` makes; a single one is the caller's. Ends with [`ErrorKind::Interrupted`] once `cancel` is true.
pub(crate) fn in_order<State, T: Send>(
    parts: u64,
    threads: usize,
    cancel: &AtomicBool,
    begin: impl Fn() -> State + Sync,
    work: impl Fn(&mut State, u64) -> Result<T> + Sync,
    mut take: impl FnMut(u64, T) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, usize::try_from(parts).unwrap_or(usize::MAX).max(1));
    let work = |state: &mut State, part| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        work(state, part)
    };
    if threads == 1 {
        let mut state = begin();
        return (0..parts).try_for_each(|part| take(part, work(&mut state, part)?));
    }
    std::thread::scope(|scope| {
        let slots: Vec<_> = (0..threads)
            .map(|thread| {
                let (give, slot) = mpsc::sync_channel(1);
                let (begin, work) = (&begin, &work);
                scope.spawn(move || {
                    let mut state = begin();
                    for part in (thread as u64..parts).step_by(threads) {
                        let result = work(&mut state, part);
                        let failed = result.is_err();
                        // Who is not waited for any more stops.
                        if give.send(result).is_err() || failed {
                            break;
                        }
                    }
                });
                slot
            })
            .collect();
        for (part, slot) in (0..parts).zip(slots.iter().cycle()) {
            let gone = |_| Error::new(ErrorKind::Interrupted, "a thread ended early");
            take(part, slot.recv().map_err(gone)??)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_an_error_ends_it() {
        for (parts, threads) in [(0, 3), (1, 8), (9, 1), (7, 2), (1000, 5)] {
            let mut seen = Vec::new();
            let cancel = AtomicBool::new(false);
            in_order(
                parts,
                threads,
                &cancel,
                || (),
                |(), part| Ok(part * 2),
                |part, result| {
                    assert_eq!(result, part * 2);
                    seen.push(part);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(seen, (0..parts).collect::<Vec<_>>());
        }
        let fails = |(): &mut (), part| {
            if part == 5 { Err(Error::new(ErrorKind::StoreIo, "five")) } else { Ok(part) }
        };
        let mut last = 0;
        let cancel = AtomicBool::new(false);
        let take = |part, _| {
            last = part;
            Ok(())
        };
        let error = in_order(1_000_000, 3, &cancel, || (), fails, take).unwrap_err();
        assert_eq!((error.kind(), last), (ErrorKind::StoreIo, 4));
    }

    #[test]
    fn it_can_be_cancelled() {
        let cancel = AtomicBool::new(false);
        let take = |part, ()| {
            cancel.fetch_or(part == 3, Ordering::Relaxed);
            Ok(())
        };
        let error = in_order(u64::MAX, 2, &cancel, || (), |(), _| Ok(()), take).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }
}
