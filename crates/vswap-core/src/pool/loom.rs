//! Every interleaving, under the memory model, of what threads do to the header of a segment.
//!
//!     RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test -p vswap-core --lib --release pool
//!
//! Only the header exists under loom, since all else of the pool lies in zeroed memory. An object
//! is a loom cell, so that overlapping use is reported as such.

pub mod class;
pub mod segment;

#[cfg(test)]
mod tests {
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::thread;

    use super::class::Class;
    use super::segment::{Header, Status};
    use crate::page::PAGE_SIZE;
    use crate::platform::MmapPlatform;
    use crate::sync::RawSpinLock;

    const PAGE_0: u64 = 1;
    const STORED: u32 = 7;
    const DISCARDED: u32 = 0;

    /// A segment of raw pages, so that slot 0 is page 0, and what lies on that page.
    struct Segment {
        header: Header,
        lock: RawSpinLock,
        page: UnsafeCell<u32>,
        given_back: AtomicU32,
    }

    impl Segment {
        /// Owned, with this many objects.
        fn new(objects: u32) -> Arc<Self> {
            let header = Header::new();
            header.begin(Class::of(PAGE_SIZE));
            for index in 0..objects {
                assert!(header.fill(index, 0));
                header.take_pages(1 << index);
            }
            Arc::new(Self {
                header,
                lock: RawSpinLock::new(),
                page: UnsafeCell::new(STORED),
                given_back: AtomicU32::new(0),
            })
        }

        fn write(&self, value: u32) {
            // SAFETY: this is what is tested: loom reports an access that overlaps with another.
            self.page.with_mut(|page| unsafe { *page = value });
        }

        fn read(&self) -> u32 {
            // SAFETY: as above.
            self.page.with(|page| unsafe { *page })
        }

        /// Reads an object for the last time and frees it as the pool does.
        fn read_and_free(&self, index: u32) {
            assert_eq!(self.read(), STORED);
            let Some(class) = self.header.free(index, 0) else { return };
            self.lock.acquire(&MmapPlatform);
            let due = self.header.is_due(class);
            if due {
                self.header.own();
            }
            self.lock.release();
            if due {
                self.settle();
            }
        }

        fn settle(&self) {
            self.lock.acquire(&MmapPlatform);
            let state = self.header.settle();
            self.lock.release();
            if state.status() == Status::Free && !state.has_victims() {
                self.give_back();
            }
        }

        /// All memory goes, so that nobody may be using it.
        fn give_back(&self) {
            self.write(DISCARDED);
            self.header.drop_pages(u64::MAX);
            self.given_back.fetch_add(1, Ordering::Relaxed);
        }

        /// Stores on page 0 if that can be had.
        fn store(&self) -> bool {
            if self.header.unused_slot(0) != Some(0) || !self.header.fill(0, 0) {
                return false;
            }
            self.header.take_pages(PAGE_0);
            self.write(STORED);
            true
        }

        fn compact(&self) {
            if !self.header.condemn(PAGE_0) {
                return;
            }
            let empty = self.header.drop_pages(self.header.emptied());
            if empty & PAGE_0 != 0 {
                self.write(DISCARDED);
            }
            if self.header.pardon() {
                self.give_back();
            }
        }
    }

    fn spawn(segment: &Arc<Segment>, work: impl Fn(&Segment) + 'static) -> thread::JoinHandle<()> {
        let segment = Arc::clone(segment);
        thread::spawn(move || work(&segment))
    }

    #[test]
    fn a_slot_is_filled_again_only_after_its_last_reader() {
        loom::model(|| {
            let segment = Segment::new(1);
            let reader = spawn(&segment, |segment| segment.read_and_free(0));
            segment.store();
            reader.join().unwrap();
        });
    }

    #[test]
    fn the_compactor_never_takes_a_page_that_is_being_filled() {
        loom::model(|| {
            let segment = Segment::new(0);
            segment.header.take_pages(PAGE_0);
            let compactor = spawn(&segment, Segment::compact);
            let stored = segment.store();
            if stored {
                assert_eq!(segment.read(), STORED);
            }
            compactor.join().unwrap();
            if stored {
                assert_eq!(segment.read(), STORED);
                assert_eq!(segment.header.taken(), PAGE_0);
            }
        });
    }

    #[test]
    fn the_compactor_takes_a_page_only_after_its_last_reader() {
        loom::model(|| {
            let segment = Segment::new(2);
            let reader = spawn(&segment, |segment| segment.read_and_free(0));
            segment.compact();
            reader.join().unwrap();
        });
    }

    #[test]
    fn a_segment_that_empties_while_it_is_settled_is_given_back_once() {
        loom::model(|| {
            let segment = Segment::new(2);
            let threads = [0, 1].map(|index| spawn(&segment, move |s| s.read_and_free(index)));
            segment.settle();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(segment.given_back.load(Ordering::Relaxed), 1);
        });
    }

    #[test]
    fn a_victim_that_empties_is_given_back_once() {
        loom::model(|| {
            let segment = Segment::new(1);
            segment.settle();
            let freeing = spawn(&segment, |segment| segment.read_and_free(0));
            segment.compact();
            freeing.join().unwrap();
            assert_eq!(segment.given_back.load(Ordering::Relaxed), 1);
            assert_eq!(segment.header.taken(), 0);
        });
    }
}
