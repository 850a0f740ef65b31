//! One bit of a genuine store turned over: what may come of it, and what does.
//!
//! Problem: "the damage was found" is easy to say of a reader that judges itself. Idea: three parts that know nothing of each other. [`model`]
//! knows the store without the library: its documents as plain JSON, its chains painted block by block, its objects through plain decoders. [`blame`]
//! says from that alone which bytes a flipped bit may cost. [`trial`] reads the images through the library and the program, and compares; [`verified`] asks `verify` about the same bit.

pub(crate) mod blame;
pub(crate) mod model;
pub(crate) mod plain;
pub(crate) mod report;
pub(crate) mod trial;
pub(crate) mod verified;
