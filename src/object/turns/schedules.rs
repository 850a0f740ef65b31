//! Turns in thousands of orders of their threads: everybody gets one, and no two decode the same bytes at a time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::super::seek_index::{Entry, State};
use super::{Turns, Urgency};
use crate::sync::scheduled::in_any_order;

/// A reader: the range it wants, whether somebody waits, and how far apart it notes points on its way.
type Reader = (Range<u64>, Urgency, u64);

/// Turns, and where each who has one began, by ticket.
#[derive(Default)]
struct World {
    turns: Turns,
    began: std::sync::Mutex<HashMap<u64, u64>>,
}

/// Decodes as an object's reader does: from the stretch's beginning, step by step, telling how far it has come.
fn read(World { turns, began }: &World, (wanted, urgency, spacing): Reader) {
    let turn = turns.enter(wanted.clone(), urgency);
    let mut at = {
        let traffic = turns.lock();
        let own = traffic.runners.iter().find(|runner| runner.ticket == turn.ticket).unwrap();
        // Nobody else who began there is on the way to the same bytes. (Who comes from the stretch before may be: what he
        // wants ends behind the border.)
        let mut began = began.lock().unwrap();
        let way = own.at..=wanted.start;
        let mut others = traffic.runners.iter().filter(|other| began.get(&other.ticket) == Some(&own.at));
        assert!(others.all(|other| !way.contains(&other.at)), "two decode from {}", own.at);
        began.insert(turn.ticket, own.at);
        own.at
    };
    while at < wanted.end {
        let before = at;
        at = wanted.end.min(at + 50);
        turn.reach(at, |index| {
            for place in (before + 1..=at).filter(|place| place % spacing == 0) {
                index.add(Entry::new(place, 0, State::Raw([].into())));
            }
        });
    }
}

fn everybody_gets_a_turn(points: &'static [u64], readers: &'static [Reader]) {
    in_any_order(move || {
        let world = Arc::new(World::default());
        for &point in points {
            world.turns.lock().index.add(Entry::new(point, 0, State::Raw([].into())));
        }
        let threads: Vec<_> = readers
            .iter()
            .map(|reader| {
                let (world, reader) = (world.clone(), reader.clone());
                shuttle::thread::spawn(move || read(&world, reader))
            })
            .collect();
        // A waiter that nobody wakes is a deadlock, which ends the test.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let traffic = world.turns.lock();
        assert!(traffic.runners.is_empty() && traffic.waiting.is_empty());
    });
}

use Urgency::{Ahead, Wanted};

/// So far apart that none is noted.
const NONE: u64 = 1 << 40;

#[test]
fn in_a_stream_without_points() {
    everybody_gets_a_turn(
        &[],
        &[
            (0..10, Wanted, NONE),
            (300..310, Wanted, NONE),
            (100..200, Ahead, NONE),
            (100..110, Wanted, NONE),
            (200..400, Ahead, NONE),
        ],
    );
}

#[test]
fn while_stretches_split() {
    everybody_gets_a_turn(
        &[],
        &[
            (350..400, Wanted, 100),
            (0..50, Ahead, 60),
            (90..210, Wanted, 100),
            (120..130, Ahead, NONE),
            (250..260, Wanted, 25),
        ],
    );
}

#[test]
fn over_the_borders_of_stretches() {
    everybody_gets_a_turn(
        &[100, 200, 300],
        &[
            (50..250, Wanted, NONE),
            (150..160, Wanted, 30),
            (190..310, Ahead, NONE),
            (250..350, Wanted, NONE),
            (0..400, Ahead, 70),
        ],
    );
}

/// Points that turned out to be wrong are forgotten while others wait.
#[test]
fn while_points_are_forgotten() {
    in_any_order(|| {
        let turns = Arc::new(Turns::default());
        for point in [100, 200, 300] {
            turns.lock().index.add(Entry::new(point, 0, State::Raw([].into())));
        }
        let readers = [
            (150..160, Wanted, NONE),
            (250..350, Ahead, NONE),
            (120..220, Wanted, 50),
            (0..10, Wanted, NONE),
        ];
        let mut threads: Vec<_> = readers
            .into_iter()
            .map(|reader| {
                let turns = turns.clone();
                shuttle::thread::spawn(move || forgetful(&turns, reader))
            })
            .collect();
        let forgets = turns.clone();
        threads.push(shuttle::thread::spawn(move || {
            for point in [200, 100] {
                forgets.lock().index.remove(point);
                shuttle::thread::yield_now();
            }
        }));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// As [`read`], but what was a stretch when it began may be part of another by now.
fn forgetful(turns: &Turns, (wanted, urgency, _): Reader) {
    let turn = turns.enter(wanted.clone(), urgency);
    shuttle::thread::yield_now();
    turn.reach(wanted.start, |_| ());
    turn.reach(wanted.end, |_| ());
}
