//! The work of one run: backups opened one after the other, and their objects checked on all cores.
//!
//! Invariant: no more backups are open at once than there are threads, and one.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::crew::Crew;
use super::layer::Layer;
use super::layers::{Layers, number};
use super::object::{self, Checked};
use super::plan::Item;
use super::stock;
use super::{Progress, VerifyOptions, now};
use crate::cache_dir::verified::Stamp;
use crate::catalog::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::store::ListedObject;

/// How often the observer is told.
const TICK: Duration = Duration::from_millis(100);

/// How often stamps are written down, so that a killed run is not in vain, in ticks.
const SAVE_EVERY: u32 = 600;
/// What became of an object, in one byte.
pub(super) const NOT_CHECKED: u8 = 0;
pub(super) const GOOD: u8 = 1;
/// It has an entry in [`Work::noted`].
const NOTED: u8 = 2;

/// What the threads share.
pub(super) struct Work<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) layers: &'a Layers<'a>,
    names: &'a [ListedObject],
    pub(super) options: &'a VerifyOptions<'a>,
    queue: Mutex<Queue>,
    total_bytes: AtomicU64,
    pub(super) done_bytes: AtomicU64,
    pub(super) stored_bytes: AtomicU64,
    pub(super) objects: AtomicU64,
    /// By layer and object.
    states: Vec<Vec<AtomicU8>>,
    pub(super) noted: Mutex<BTreeMap<(u32, u32), Checked>>,
    pub(super) unread: Mutex<Vec<(u32, u32, Error)>>,
    faults: AtomicU64,
    /// The time was up.
    pub(super) is_late: AtomicBool,
}

struct Queue {
    items: Vec<Item>,
    next: usize,
    open: Option<(u32, Arc<Layer>)>,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        catalog: &'a Catalog,
        layers: &'a Layers<'a>,
        names: &'a [ListedObject],
        items: Vec<Item>,
        options: &'a VerifyOptions<'a>,
    ) -> Self {
        let mut states = Vec::with_capacity(layers.entries.len());
        let mut total_bytes = 0;
        let wanted: HashSet<(u32, u32)> = items.iter().map(|item| (item.layer, item.object)).collect();
        for (layer, entry) in layers.entries.iter().enumerate() {
            let backup = catalog.backup(entry).ok();
            let objects = backup.as_ref().map_or(&[][..], |backup| &backup.objects);
            states.push(objects.iter().map(|_| AtomicU8::new(NOT_CHECKED)).collect());
            let bytes = |(index, len): (usize, u64)| {
                if wanted.contains(&(number(layer), number(index))) { len } else { 0 }
            };
            total_bytes += objects.iter().map(|object| object.len_bytes).enumerate().map(bytes).sum::<u64>();
        }
        Self {
            catalog,
            layers,
            names,
            options,
            queue: Mutex::new(Queue { items, next: 0, open: None }),
            total_bytes: AtomicU64::new(total_bytes),
            done_bytes: AtomicU64::new(0),
            stored_bytes: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            states,
            noted: Mutex::default(),
            unread: Mutex::default(),
            faults: AtomicU64::new(0),
            is_late: AtomicBool::new(false),
        }
    }

    /// Checks the objects.
    pub(super) fn run(&self, threads: usize, observer: &dyn Fn(Progress)) {
        let tell = || {
            observer(Progress {
                done_bytes: self.done_bytes.load(Ordering::Relaxed),
                total_bytes: self.total_bytes.load(Ordering::Relaxed),
                findings: self.faults.load(Ordering::Relaxed),
            });
        };
        let threads = threads.max(1);
        let crew = Crew::new(threads);
        let work = || {
            let busy = crew.begin();
            self.check_objects(&crew);
            crew.help(busy);
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut ticks = 0;
            while running.iter().any(|thread| !thread.is_finished()) {
                std::thread::park_timeout(TICK);
                tell();
                ticks += 1;
                if let (0, Some(stamps)) = (ticks % SAVE_EVERY, self.options.stamps)
                    && let Err(error) = stamps.save()
                {
                    tracing::debug!("{error}");
                }
            }
        });
        tell();
    }

    fn next(&self) -> Option<(Item, Result<Arc<Layer>>)> {
        if self.options.cancel.load(Ordering::Relaxed) {
            return None;
        }
        let mut queue = lock(&self.queue);
        let item = queue.items.get(queue.next)?.clone();
        if self.options.until.is_some_and(|until| std::time::Instant::now() >= until) {
            self.is_late.store(true, Ordering::Relaxed);
            return None;
        }
        queue.next += 1;
        if let Some((layer, open)) = &queue.open
            && *layer == item.layer
        {
            let open = open.clone();
            return Some((item, Ok(open)));
        }
        let opened = self.layers.open(item.layer as usize).map(Arc::new);
        queue.open = opened.as_ref().ok().map(|open| (item.layer, open.clone()));
        Some((item, opened))
    }

    fn check_objects(&self, crew: &Crew) {
        let tell = |bytes| _ = self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        while let Some((item, layer)) = self.next() {
            let checked = layer.and_then(|layer| {
                let (store, cancel) = (&**self.catalog.store(), self.options.cancel);
                object::check(store, &layer, item.object, crew, cancel, &tell).map(|checked| (layer, checked))
            });
            let (layer, checked) = match checked {
                Ok(checked) => checked,
                Err(error) if error.kind() == ErrorKind::Interrupted => return,
                Err(error) => {
                    lock(&self.unread).push((item.layer, item.object, error));
                    continue;
                }
            };
            self.objects.fetch_add(1, Ordering::Relaxed);
            self.stored_bytes.fetch_add(item.stored_bytes, Ordering::Relaxed);
            self.stamp(&layer, &item, checked.fault.is_none());
            let is_good = checked.fault.is_none() && checked.unproven.is_empty();
            if !is_good {
                self.faults.fetch_add(u64::from(checked.fault.is_some()), Ordering::Relaxed);
                lock(&self.noted).insert((item.layer, item.object), checked);
            }
            self.set_state(&item, if is_good { GOOD } else { NOTED });
        }
    }

    fn set_state(&self, item: &Item, state: u8) {
        let of_layer = self.states.get(item.layer as usize);
        if let Some(known) = of_layer.and_then(|states| states.get(item.object as usize)) {
            known.store(state, Ordering::Release);
        }
    }

    pub(super) fn state(&self, layer: usize, object: u32) -> u8 {
        let of_layer = self.states.get(layer);
        of_layer
            .and_then(|states| states.get(object as usize))
            .map_or(NOT_CHECKED, |state| state.load(Ordering::Acquire))
    }

    fn stamp(&self, layer: &Layer, item: &Item, is_good: bool) {
        let Some(stamps) = self.options.stamps else { return };
        let object = layer.backup.objects.get(item.object as usize);
        let name = object.and_then(|object| layer.backup.object_name(object).ok());
        if let Some(listed) = name.and_then(|name| stock::find(self.names, &name)) {
            stamps.set(&listed.name, &listed.stat, Stamp { at: now(), is_good });
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
