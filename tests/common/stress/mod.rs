//! A mounted store that many read while others add to it and delete from it.
//!
//! Problem: what leaks, and what is served wrongly only now and then, shows after many hours of many readers at once. Idea: volumes whose every
//! byte is a number that can be [computed](pattern), so that any read of any length at any time can be judged at once. [`life`] makes backups of
//! them with the real program and deletes them again, [`readers`] read them in every way there is, and [`watch`] looks at the daemon meanwhile.
//!
//! Invariant: a reader may be told that there is no such backup (any more) only from the moment on when somebody set out to delete it.

pub(crate) mod life;
pub(crate) mod pattern;
pub(crate) mod readers;
pub(crate) mod report;
pub(crate) mod watch;
