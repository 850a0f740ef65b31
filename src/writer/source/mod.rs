//! Where the bytes of a backup come from.

// What changed since the parent, as somebody else tells it.
pub mod changed;
// Where the machine tells about itself.
pub mod host;
// Which volume it is.
pub mod identity;
// Who else uses it.
pub mod in_use;
mod lease;
