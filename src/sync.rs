//! The locks of what many threads meet in: the block cache, flights, turns.
//!
//! Problem: who waits for whom is decided by the order in which threads come, and a test that starts threads sees few orders.
//! Idea: in the unit tests these locks are ones that can be told to run on a made-up scheduler (`scheduled`), which tries
//! thousands of orders and notices when nobody can go on. Everywhere else they are those of `std`.

#[cfg(test)]
pub(crate) mod scheduled;

#[cfg(test)]
pub(crate) use self::scheduled::{Condvar, Mutex, MutexGuard};
#[cfg(not(test))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
