use std::sync::mpsc;

use super::*;

/// Tells that it was refused.
struct Reply(mpsc::Sender<&'static str>, &'static str);

impl Refuse for Reply {
    fn refuse(self) {
        self.0.send(self.1).unwrap();
    }
}

const STALLED: Look = Look { is_slow: true, is_hung: true, is_stalled: true };
const SLOW: Look = Look { is_slow: true, is_hung: false, is_stalled: false };

fn wait_until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        thread::yield_now();
    }
}

#[test]
fn what_takes_too_long_is_refused_and_answered_once() {
    let (desk, (sender, refused)) = (Desk::new(2), mpsc::channel());
    let held = Arc::new(Held::new(Reply(sender, "read")));
    let (release, hung) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let (desk, own) = (&desk, held.clone());
        scope.spawn(move || {
            desk.work(own.clone(), Asker(7), || {
                let _ = hung.recv();
                assert!(own.take().is_none());
            });
        });
        wait_until(|| {
            lock(&desk.0.seats).iter().any(|seat| lock(&seat.upgrade().unwrap().request).is_some())
        });
        // A store that is slow has time, and so has one that hangs, up to its timeout.
        (0..100).for_each(|_| desk.0.look(SLOW, 4));
        assert!(refused.try_recv().is_err());
        desk.0.look(STALLED, 4);
        assert_eq!(refused.try_recv(), Ok("read"));
        (0..100).for_each(|_| desk.0.look(STALLED, 4));
        assert!(refused.try_recv().is_err());
        drop(release);
    });
}

#[test]
fn the_last_thread_is_told_and_the_spare_one_comes_when_all_are_at_work() {
    let desk = Desk::new(2);
    thread::scope(|scope| {
        let spare = scope.spawn(|| drop(desk.enter()));
        wait_until(|| desk.0.is_parked.load(Ordering::Acquire));
        let (first, second) = (desk.enter(), desk.enter());
        assert!(!first.is_last() && !second.is_last(), "the spare one is there");
        desk.0.look(Look::default(), 4);
        assert!(!spare.is_finished(), "a store that answers needs no help");
        desk.0.look(SLOW, 4);
        spare.join().unwrap();
        let third = desk.enter();
        assert!(third.is_last());
        // None of these is to stay as the spare one.
        drop((third, first, second));
    });
}

#[test]
fn what_is_handed_over_is_done_by_few_threads_and_names_come_first() {
    let (desk, (sender, refused)) = (Desk::new(1), mpsc::channel());
    let (release, hung) = mpsc::channel::<()>();
    let hung = Arc::new(Mutex::new(hung));
    let hand_over = |wants, name, work: Box<dyn FnOnce() + Send>| {
        desk.hand_over(Arc::new(Held::new(Reply(sender.clone(), name))), Asker(0), wants, work);
    };
    for _ in 0..THREADS_MAX + 10 {
        let hung = hung.clone();
        hand_over(
            Wants::Bytes,
            "read",
            Box::new(move || {
                let _ = hung.lock().unwrap().recv();
            }),
        );
    }
    wait_until(|| lock(&desk.0.line).readers == READERS_MAX);
    let (done, names) = mpsc::channel();
    hand_over(Wants::Names, "lookup", Box::new(move || done.send(()).unwrap()));
    names.recv().unwrap();
    assert!(lock(&desk.0.line).threads <= THREADS_MAX);
    assert_eq!(lock(&desk.0.line).waiting.len(), THREADS_MAX + 10 - READERS_MAX);
    // Those in line are refused as well.
    let mut count = 0;
    wait_until(|| {
        desk.0.look(STALLED, 4);
        count += refused.try_iter().count();
        count == THREADS_MAX + 10
    });
    assert!(lock(&desk.0.line).waiting.is_empty());
    drop(release);
    wait_until(|| lock(&desk.0.line).readers == 0);
}

#[test]
fn who_was_killed_is_let_go_and_nobody_else() {
    let (desk, (sender, refused)) = (Desk::new(4), mpsc::channel());
    let (release, hung) = mpsc::channel::<()>();
    let hung = Mutex::new(hung);
    let owed = |name| Arc::new(Held::new(Reply(sender.clone(), name)));
    let asked = Mutex::new(Vec::new());
    let killed = |askers: &[u32]| {
        asked.lock().unwrap().push(askers.to_vec());
        vec![0, 7, 9]
    };
    thread::scope(|scope| {
        let (desk, hung) = (&desk, &hung);
        for (name, asker) in [("killed", 7), ("alive", 8), ("the kernel", 0)] {
            let owed = owed(name);
            scope.spawn(move || {
                desk.work(owed, Asker(asker), || {
                    let _ = hung.lock().unwrap().recv();
                });
            });
        }
        wait_until(|| {
            let seats = lock(&desk.0.seats);
            seats.iter().filter(|seat| lock(&seat.upgrade().unwrap().request).is_some()).count() == 3
        });
        desk.0.let_go(&killed);
        assert!(asked.lock().unwrap().is_empty(), "what is young is soon answered");
        (0..ABANDONED_LOOKS).for_each(|_| desk.0.look(Look::default(), 4));
        desk.0.let_go(&killed);
        let mut told = asked.lock().unwrap().pop().unwrap();
        told.sort_unstable();
        assert_eq!((told, refused.try_iter().collect::<Vec<_>>()), (vec![7, 8], vec!["killed"]));
        desk.0.let_go(&killed);
        assert_eq!(refused.try_recv(), Err(mpsc::TryRecvError::Empty), "each is answered once");
        drop(release);
    });
}
