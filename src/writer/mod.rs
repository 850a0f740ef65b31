//! Writing backups that genuine Cinder restores.
//!
//! Problem: a backup is made once and must be restorable years later by programs that check little, and the run that makes
//! it may be killed at any moment. Idea: write exactly what Cinder writes, by way of pipelines over all cores, and let
//! nothing be seen of a backup until all of it is there.

// Nothing of a backup is visible until all of it is there.
pub mod staging;
