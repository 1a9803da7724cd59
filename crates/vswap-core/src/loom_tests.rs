//! Every interleaving, under the memory model, of what threads do to one descriptor or header.
//!
//!     RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test -p vswap-core --lib --release
//!
//! Two preemptions find what these tests are for, and keep each below some seconds. The object
//! that a descriptor names is a loom cell, so that a use after a free, or without the lock, is
//! reported as such.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use crate::descriptor::{
    AtomicDescriptor, COUNT_OVERFLOW, Dead, Descriptor, Dup, Encoding, Place, Put, dup_excess,
    put_excess,
};
use crate::entry::{GroupId, Stored};
use crate::header::{Header, State};
use crate::platform::MmapPlatform;
use crate::sync::{AtomicU64, RawSpinLock, SpinLock};

/// A slot whose object is at one of two places.
struct Slot {
    word: AtomicDescriptor,
    objects: [UnsafeCell<u32>; 2],
}

const LIVE: u32 = 7;
const RELEASED: u32 = 0;

fn at(index: u64) -> Place {
    Place::Compressed { object: Stored { location: index, slack: 0 }, encoding: Encoding::Lz4 }
}

fn index_of(place: Option<Place>) -> usize {
    match place {
        Some(Place::Compressed { object, .. }) => object.location as usize,
        other => panic!("no object at {other:?}"),
    }
}

impl Slot {
    fn new(count: u8, cached: bool) -> Arc<Self> {
        let word = AtomicDescriptor::free();
        word.publish(Descriptor::new(at(0), GroupId::ROOT).with_count(count).with_cached(cached));
        Arc::new(Self { word, objects: [UnsafeCell::new(LIVE), UnsafeCell::new(RELEASED)] })
    }

    fn write(&self, index: usize, value: u32) {
        // SAFETY: this is what is tested: loom reports an access that overlaps with another.
        self.objects[index].with_mut(|object| unsafe { *object = value });
    }

    fn read(&self, index: usize) -> u32 {
        // SAFETY: as above.
        self.objects[index].with(|object| unsafe { *object })
    }

    /// What every operation does with a word that it set free.
    fn release(&self, word: Descriptor) {
        let index = index_of(word.place());
        assert_eq!(self.read(index), LIVE, "released twice");
        self.write(index, RELEASED);
    }

    fn free(&self) {
        match self.word.put() {
            Put::Freed(word) => self.release(word),
            Put::Done => {}
            other => panic!("{other:?}"),
        }
    }

    fn load(&self) -> Result<(), Dead> {
        let word = self.word.lock(&MmapPlatform)?;
        assert_eq!(self.read(index_of(word.place())), LIVE, "read after it was released");
        if let Some(word) = self.word.unlock() {
            self.release(word);
        }
        Ok(())
    }

    fn transfer(&self) {
        let Ok(word) = self.word.lock(&MmapPlatform) else { return };
        let (from, to) = (index_of(word.place()), 1 - index_of(word.place()));
        self.write(to, LIVE);
        if let Some(dead) = self.word.unlock_at(at(to as u64)) {
            self.release(dead);
        }
        assert_eq!(self.read(from), LIVE);
        self.write(from, RELEASED);
    }

    fn assert_gone(&self) {
        assert_eq!(self.word.peek(), Descriptor::FREE);
        assert_eq!((self.read(0), self.read(1)), (RELEASED, RELEASED));
    }
}

/// Runs closures in threads of their own, the last one here.
macro_rules! race {
    ($slot:ident: $($work:expr),+ ; $last:expr) => {{
        let threads = [$({
            let $slot = $slot.clone();
            thread::spawn(move || $work)
        }),+];
        $last;
        for thread in threads {
            thread.join().unwrap();
        }
    }};
}

#[test]
fn a_load_races_with_the_last_free() {
    loom::model(|| {
        let slot = Slot::new(1, false);
        race!(slot: { let _ = slot.load(); }; slot.free());
        slot.assert_gone();
    });
}

#[test]
fn two_frees_race_with_a_load() {
    loom::model(|| {
        let slot = Slot::new(2, false);
        race!(slot: slot.free(), { let _ = slot.load(); }; slot.free());
        slot.assert_gone();
    });
}

#[test]
fn a_transfer_races_with_a_load_and_the_last_free() {
    loom::model(|| {
        let slot = Slot::new(1, false);
        race!(slot: slot.transfer(), { let _ = slot.load(); }; slot.free());
        slot.assert_gone();
    });
}

#[test]
fn a_dup_races_with_the_last_free() {
    loom::model(|| {
        let slot = Slot::new(1, false);
        race!(slot: if let Ok(Dup::Done) = slot.word.dup() { slot.free() }; slot.free());
        slot.assert_gone();
    });
}

#[test]
fn the_last_count_and_the_cache_go_at_once() {
    loom::model(|| {
        let slot = Slot::new(1, true);
        race!(slot: slot.free(), { let _ = slot.load(); };
            if let Put::Freed(word) = slot.word.uncache() { slot.release(word) });
        slot.assert_gone();
    });
}

#[test]
fn one_of_two_faults_gets_the_swap_cache() {
    loom::model(|| {
        let slot = Slot::new(1, false);
        let won = Arc::new(AtomicU64::new(0));
        let count = won.clone();
        race!(slot: if slot.word.cache() == Ok(false) {
            count.fetch_add(1, crate::sync::Ordering::Relaxed);
        };
        if slot.word.cache() == Ok(false) {
            won.fetch_add(1, crate::sync::Ordering::Relaxed);
        });
        assert_eq!(won.load(crate::sync::Ordering::Relaxed), 1);
    });
}

#[test]
fn erasing_into_the_cache_never_loses_the_page() {
    loom::model(|| {
        let slot = Slot::new(1, true);
        // One thread makes the resident page the only copy, the other drops that page. If the
        // drop comes first the erased page is in the cache again; if it comes second it is refused.
        race!(slot: {
                let Ok(word) = slot.word.lock(&MmapPlatform) else { return };
                assert_eq!(slot.word.unlock_at(Place::Page), None);
                slot.release(word);
            };
            assert!(matches!(slot.word.uncache(), Put::Done | Put::Refused)));
        let word = slot.word.peek();
        assert!(word.place() == Some(Place::Page) && word.is_cached(), "{word:?}");
    });
}

#[test]
fn counts_around_the_overflow_are_exact() {
    struct Counted {
        word: AtomicDescriptor,
        lock: RawSpinLock,
        number: AtomicU64,
    }
    impl Counted {
        fn dup(&self) {
            while self.word.dup() == Ok(Dup::Overflow) {
                if dup_excess(&self.word, &self.lock, &self.number, &MmapPlatform).is_some() {
                    break;
                }
            }
        }
        fn put(&self) {
            while self.word.put() == Put::Overflow {
                let number = || Some(&self.number);
                if put_excess(&self.word, &self.lock, number, &MmapPlatform).is_some() {
                    break;
                }
            }
        }
    }
    loom::model(|| {
        let word = AtomicDescriptor::free();
        let full = Descriptor::new(Place::Zero, GroupId::ROOT).with_count(COUNT_OVERFLOW - 1);
        word.publish(full);
        let number = AtomicU64::new(0);
        let slot = Arc::new(Counted { word, lock: RawSpinLock::new(), number });
        race!(slot: { slot.dup(); slot.put() }; { slot.dup(); slot.dup(); slot.put() });
        assert_eq!(slot.word.peek().count(), COUNT_OVERFLOW);
        assert_eq!(slot.number.load(crate::sync::Ordering::Relaxed), 0);
    });
}

/// A cluster of three slots, the rules of [`crate::slots`] in small: whoever learns that the state
/// should change takes the lock and looks again.
struct Cluster {
    header: Header,
    lists: SpinLock<u32>,
}

impl Cluster {
    fn settle(&self) {
        let mut emptied = self.lists.lock(&MmapPlatform);
        let now = self.header.now();
        if !now.needs_settling() {
            return;
        }
        if now.used > 0 {
            self.header.set_state(State::Listed);
        } else {
            self.header.set_state(State::Unused);
            *emptied += 1;
        }
    }

    fn release(&self, n: usize) {
        if self.header.release(n).needs_settling() {
            self.settle();
        }
    }
}

impl Cluster {
    /// An owned cluster, in which this many slots have been filled.
    fn owned(filled: usize) -> (Arc<Self>, usize) {
        let cluster = Self { header: Header::unused(), lists: SpinLock::new(0) };
        let credit = cluster.header.take() - filled;
        (Arc::new(cluster), credit)
    }

    fn give_up(&self, credit: usize) {
        let lists = self.lists.lock(&MmapPlatform);
        self.header.set_state(State::Full);
        self.header.release(credit);
        drop(lists);
        self.settle();
    }

    fn assert_given_back_once(&self) {
        assert_eq!(self.header.now().state, State::Unused);
        assert_eq!(*self.lists.lock(&MmapPlatform), 1);
    }
}

#[test]
fn an_owner_gives_up_while_the_last_slots_are_freed() {
    loom::model(|| {
        let (cluster, credit) = Cluster::owned(2);
        race!(cluster: { cluster.release(1); cluster.release(1) }; cluster.give_up(credit));
        cluster.assert_given_back_once();
    });
}

#[test]
fn two_threads_free_the_last_slots_of_a_full_cluster() {
    loom::model(|| {
        let (cluster, credit) = Cluster::owned(2);
        cluster.give_up(credit);
        race!(cluster: cluster.release(1); cluster.release(1));
        cluster.assert_given_back_once();
    });
}
