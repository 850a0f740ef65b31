//! A store that fails on purpose, by a script.
//!
//! Problem: disks that fail, servers that hang and objects that rot are what this program is for, and none of them comes
//! when a test needs it. Idea: a decorator around any store, with a list of [`Rule`]s. A rule says which calls it means
//! (operation, object names, byte range), which of those it strikes (skip the first n, strike m), and what happens then.
//!
//! Every rule whose calls match takes its turn, in the script's order; the first error ends the call. A rule counts the
//! calls that it means, struck or not, so a script gives the same faults whenever the calls come in the same order.
//!
//! Invariants:
//! - without a script the store behaves as the one inside;
//! - what a call did not deliver is overwritten with [`SCRIBBLE`]: the whole buffer after an error, the rest of it after
//!   a short read. A caller that uses such bytes is found out.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::{Listing, ObjectSource, ObjectStat, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::types::ObjectName;

/// The byte that stands where a read delivered nothing.
pub const SCRIBBLE: u8 = 0xE5;

/// What a [`Rule`] strikes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// [`Store::list`].
    List,
    /// [`Store::open`].
    Open,
    /// [`ObjectSource::read_at`].
    Read,
}

/// What happens to a call that a [`Rule`] strikes. A fault that makes no sense for the operation does nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The call fails. A list whose rule means particular objects does not: those objects go from
    /// [`Listing::objects`] to [`Listing::unreadable`], as when their folder cannot be read.
    Error(ErrorKind),
    /// The call takes that much longer.
    Delay(Duration),
    /// A read delivers at most that many bytes, but at least one: what any store may do.
    ShortRead(usize),
    /// A read finds the end of the object at that offset. On open, the object says so of its length too.
    EndAt(u64),
    /// A read delivers the byte at that offset with one bit flipped.
    FlipBit {
        /// Offset of the byte in the stored object.
        offset_bytes: u64,
        /// Which bit, 0 (lowest) to 7; taken modulo 8.
        bit: u8,
    },
}

/// One line of a script: which calls, how many of them, what happens.
#[derive(Clone, Debug)]
pub struct Rule {
    operation: Operation,
    fault: Fault,
    names: String,
    bytes: Range<u64>,
    skip: u64,
    times: u64,
}

impl Rule {
    /// Strikes every call of `operation`, for every object, until narrowed down.
    pub fn new(operation: Operation, fault: Fault) -> Self {
        Self { operation, fault, names: "*".into(), bytes: 0..u64::MAX, skip: 0, times: u64::MAX }
    }

    /// Means only objects of these names; `*` in the pattern stands for any text, also with `/` in it.
    #[must_use]
    pub fn names(mut self, pattern: impl Into<String>) -> Self {
        self.names = pattern.into();
        self
    }

    /// Means only reads that ask for a byte of this range. Other operations are not narrowed.
    #[must_use]
    pub fn bytes(mut self, range: Range<u64>) -> Self {
        self.bytes = range;
        self
    }

    /// Lets the first `calls` pass.
    #[must_use]
    pub fn skip(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Strikes at most `calls` calls, after those skipped.
    #[must_use]
    pub fn times(mut self, calls: u64) -> Self {
        self.times = calls;
        self
    }
}

/// A rule with its count of the calls it meant.
#[derive(Debug)]
struct Armed {
    rule: Rule,
    calls: AtomicU64,
}

impl Armed {
    /// Counts a call that the rule means; true if it is struck.
    fn strikes(&self) -> bool {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        call >= self.rule.skip && call - self.rule.skip < self.rule.times
    }
}

/// Shared by the store and what was opened from it, so that a new script reaches opened objects.
#[derive(Debug, Default)]
struct Script(RwLock<Vec<Armed>>);

impl Script {
    /// The rules that strike a call, in order. Cloned, so that a delay holds no lock.
    fn strike(&self, operation: Operation, means: impl Fn(&Rule) -> bool) -> Vec<Rule> {
        let rules = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let struck = rules
            .iter()
            .filter(|armed| armed.rule.operation == operation && means(&armed.rule) && armed.strikes());
        struck.map(|armed| armed.rule.clone()).collect()
    }
}

/// A store whose calls fail by a script.
#[derive(Debug)]
pub struct FaultStore<S> {
    inner: S,
    script: Arc<Script>,
}

impl<S> FaultStore<S> {
    /// Wraps a store. An empty script changes nothing.
    pub fn new(inner: S, script: impl IntoIterator<Item = Rule>) -> Self {
        let store = Self { inner, script: Arc::default() };
        store.set_script(script);
        store
    }

    /// Replaces the script, also for objects that are open; the counts begin anew.
    pub fn set_script(&self, script: impl IntoIterator<Item = Rule>) {
        let armed = script.into_iter().map(|rule| Armed { rule, calls: AtomicU64::new(0) }).collect();
        *self.script.0.write().unwrap_or_else(PoisonError::into_inner) = armed;
    }

    /// The store inside.
    pub fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S: Store> Store for FaultStore<S> {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self, suffix: &str) -> Result<Listing> {
        // All rules for lists mean every list; their names say what of it they strike.
        let struck = self.script.strike(Operation::List, |_| true);
        for rule in &struck {
            match &rule.fault {
                Fault::Delay(time) => std::thread::sleep(*time),
                Fault::Error(kind) if rule.names == "*" => {
                    return Err(Error::new(*kind, format!("injected fault while listing {suffix:?}")));
                }
                _ => {}
            }
        }
        let mut listing = self.inner.list(suffix)?;
        for rule in struck {
            let Fault::Error(kind) = rule.fault else { continue };
            let Listing { objects, unreadable } = &mut listing;
            for object in objects.extract_if(.., |object| matches(&rule.names, object.name.as_str())) {
                let error = Error::new(kind, format!("injected fault while listing {:?}", object.name));
                unreadable.push((object.name.to_string(), error));
            }
        }
        Ok(listing)
    }

    fn open(&self, name: &ObjectName) -> Result<Arc<dyn ObjectSource>> {
        let struck = self.script.strike(Operation::Open, |rule| matches(&rule.names, name.as_str()));
        let mut end = None;
        for rule in struck {
            match rule.fault {
                Fault::Error(kind) => {
                    return Err(Error::new(kind, format!("injected fault while opening object {name:?}")));
                }
                Fault::Delay(time) => std::thread::sleep(time),
                Fault::EndAt(at) => end = Some(end.map_or(at, |end: u64| end.min(at))),
                Fault::ShortRead(_) | Fault::FlipBit { .. } => {}
            }
        }
        let inner = self.inner.open(name)?;
        let mut stat = inner.stat().clone();
        if let Some(end) = end {
            stat.len_bytes = stat.len_bytes.min(end);
        }
        let end = end.unwrap_or(u64::MAX);
        Ok(Arc::new(FaultObject { inner, name: name.clone(), stat, end, script: Arc::clone(&self.script) }))
    }

    fn allow_ahead(&self, bytes_max: u64) -> u64 {
        self.inner.allow_ahead(bytes_max)
    }

    fn hello(&self) -> Result<()> {
        self.inner.hello()
    }
}

/// An opened object whose reads fail by the script.
struct FaultObject {
    inner: Arc<dyn ObjectSource>,
    name: ObjectName,
    stat: ObjectStat,
    /// Where the script ended it on open.
    end: u64,
    script: Arc<Script>,
}

impl FaultObject {
    /// Reads as the script says, without the scribbling.
    fn read_struck(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let asked = offset..offset.saturating_add(buf.len() as u64);
        let struck = self.script.strike(Operation::Read, |rule| {
            let overlaps = rule.bytes.start < asked.end && asked.start < rule.bytes.end;
            overlaps && matches(&rule.names, self.name.as_str())
        });
        let (mut end, mut len) = (self.end, buf.len());
        for rule in &struck {
            match rule.fault {
                Fault::Error(kind) => {
                    let message =
                        format!("injected fault while reading object {:?} at byte {offset}", self.name);
                    return Err(Error::new(kind, message));
                }
                Fault::Delay(time) => std::thread::sleep(time),
                Fault::EndAt(at) => end = end.min(at),
                Fault::ShortRead(most) => len = len.min(most.max(1)),
                Fault::FlipBit { .. } => {}
            }
        }
        let before_end = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let n = self.inner.read_at(&mut buf[..len.min(before_end)], offset)?;
        for rule in &struck {
            if let Fault::FlipBit { offset_bytes, bit } = rule.fault {
                let index = offset_bytes.checked_sub(offset).and_then(|index| usize::try_from(index).ok());
                if let Some(byte) = index.and_then(|index| buf[..n].get_mut(index)) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
        Ok(n)
    }
}

impl ObjectSource for FaultObject {
    fn stat(&self) -> &ObjectStat {
        &self.stat
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let result = self.read_struck(buf, offset);
        let delivered = *result.as_ref().unwrap_or(&0);
        buf[delivered..].fill(SCRIBBLE);
        result
    }

    fn is_changed(&self) -> Result<bool> {
        self.inner.is_changed()
    }
}

/// Whether `text` fits `pattern`, where `*` stands for any text. Quadratic at worst; both come from a test's author.
fn matches(pattern: &str, text: &str) -> bool {
    let (first, rest) = match pattern.split_once('*') {
        None => return pattern == text,
        Some(parts) => parts,
    };
    let Some(text) = text.strip_prefix(first) else { return false };
    // Each middle piece at its first place leaves the most text for those after it.
    let mut text = text;
    let mut pieces = rest.split('*').peekable();
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return text.ends_with(piece);
        }
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_as_a_shell_would_say() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a/b"),
            ("a", "a"),
            ("a*", "a"),
            ("*-00001", "c/b-00001"),
            ("a*b*c", "a1b2b3c"),
            ("a**c", "ac"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("a", "ab"), ("a*a", "a"), ("*b", "bc"), ("a*b*c", "acb"), ("x*", "ax")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
