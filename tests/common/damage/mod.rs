//! The kit that interprets `tests/damage/<name>/case.json`.
//!
//! Problem: damage is easy to describe and hard to check: what must be lost, what must not, in how many ways a reader
//! can come by it. Idea: a case is data (a genuine store, what is done to it, what must become of each backup), and this
//! kit does the same for all of them: [`world`] copies the store and keeps the true bytes, [`mutate`] and [`forge`] do
//! the damage, and then [`library`], [`binary`] and the mount look at the result, each through its own door.
//!
//! Invariant: a backup that a case does not name must be equal. So each case also shows that damage stays where it is.

pub(crate) mod binary;
pub(crate) mod case;
pub(crate) mod forge;
pub(crate) mod library;
pub(crate) mod mount;
pub(crate) mod mutate;
pub(crate) mod watch;
pub(crate) mod world;

use std::path::Path;

use self::case::Case;
use self::world::World;

/// Everything that is not as the case says; empty when all is well.
pub(crate) fn run(case: &Case) -> Vec<String> {
    let mut world = World::of(case);
    for step in &case.damage {
        mutate::apply(step, &mut world);
    }
    let mut wrong = Vec::new();
    library::check(case, &world, &mut wrong);
    binary::check(case, &world, &mut wrong);
    mount::check(case, &world, &mut wrong);
    wrong
}

/// Where the cases are.
pub(crate) fn cases_folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/damage"))
}
