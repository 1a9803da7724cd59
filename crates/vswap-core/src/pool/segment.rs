//! The header of a segment: which slots are used, and who may put objects into it.
//!
//! One cache line describes [`SLOTS`] slots. Two rules carry the concurrency:
//!
//! - **Only the owner of a segment fills slots.** A segment that no worker owns is settled (full or
//!   listed), and becomes owned only under the lock of its class.
//! - **Anybody frees.** A free clears the slot's bit and then counts the object out of the state
//!   word. The bit comes first: once the count reaches zero, nobody will touch the header on
//!   behalf of an old object, so the segment can be given away.
//!
//! The state word carries an *alarm* level. The free that finds fewer objects left than that goes
//! to the slow path, which moves the segment to the list where it now belongs; all others are done
//! after two atomic operations on this one line. Whoever owns a segment has the alarm at zero.
//!
//! The compactor takes pages away from segments that others own. It names them in `victims` and
//! raises a flag in the state word, *then* looks which slots are used; the owner sets the slot's
//! bit, counts the object into the state word, and *then* looks at the flag that the count came
//! back with. Both act on the one state word, so one of them is first: either the compactor sees
//! the bit and leaves the page, or the owner sees the flag and leaves the slot. A segment that
//! becomes free meanwhile is not reused before the compactor is done with it.

use super::class::Class;
use crate::page::{PAGE_SHIFT, PAGE_SIZE};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Binary logarithm of [`SEGMENT_SIZE`]: as many pages as a word has bits.
pub const SEGMENT_SHIFT: u32 = PAGE_SHIFT + 6;

/// Bytes of address space in a segment.
pub const SEGMENT_SIZE: usize = 1 << SEGMENT_SHIFT;

/// Most slots in a segment. Small classes use only the start of it: that costs addresses, of which
/// there are plenty, and keeps the header at one line.
pub const SLOTS: usize = 1 << SLOT_BITS;

/// Bits of a slot's index.
pub const SLOT_BITS: u32 = 8;

/// Lists by fullness, fullest first.
pub const GROUPS: usize = 4;

const WORDS: usize = SLOTS / 64;

/// Who may do what with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Holds nothing and belongs to no class. A header of zeros says this.
    Free,
    /// One thread fills or empties it.
    Owned,
    /// Has too few holes to be worth a list.
    Full,
    /// On a list of its class, by fullness.
    Listed(u8),
}

impl Status {
    /// Whether the segment is on a list.
    pub fn is_listed(self) -> bool {
        matches!(self, Self::Listed(_))
    }
}

/// The state word, as read at one moment.
///
/// | bits | field |
/// |---|---|
/// | 0..16 | live objects |
/// | 16..40 | bytes that these leave unused in their slots |
/// | 40..50 | alarm: a free that leaves fewer objects takes the slow path |
/// | 50..53 | status |
/// | 53..55 | list, if the status is `Listed` |
/// | 55 | some pages are victims |
/// | 56..64 | class |
///
/// A slot can be filled again before the free that emptied it has counted, so that up to twice
/// [`SLOTS`] objects are counted for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u64);

const SLACK_SHIFT: u32 = 16;
const ALARM_SHIFT: u32 = 40;
const STATUS_SHIFT: u32 = 50;
const GROUP_SHIFT: u32 = 53;
const VICTIMS: u64 = 1 << 55;
const CLASS_SHIFT: u32 = 56;

const fn field(word: u64, shift: u32, bits: u32) -> u64 {
    (word >> shift) & ((1 << bits) - 1)
}

impl State {
    /// Objects in the segment.
    #[inline]
    pub fn live(self) -> u32 {
        field(self.0, 0, 16) as u32
    }

    /// Bytes of their slots that these objects leave unused.
    #[inline]
    pub fn slack(self) -> usize {
        field(self.0, SLACK_SHIFT, 24) as usize
    }

    /// The slow path is due when fewer objects than this are left.
    #[inline]
    pub fn alarm(self) -> u32 {
        field(self.0, ALARM_SHIFT, 10) as u32
    }

    /// The class of the objects; meaningless in a free segment.
    #[inline]
    pub fn class(self) -> Class {
        Class::from_number(field(self.0, CLASS_SHIFT, 8) as u8)
    }

    /// Who may do what.
    pub fn status(self) -> Status {
        match field(self.0, STATUS_SHIFT, 3) {
            0 => Status::Free,
            1 => Status::Owned,
            2 => Status::Full,
            _ => Status::Listed(field(self.0, GROUP_SHIFT, 2) as u8),
        }
    }

    /// Whether it is of that status and class.
    pub fn is(self, status: Status, class: Class) -> bool {
        self.status() == status && self.class() == class
    }

    /// Whether the compactor wants some of the pages.
    #[inline]
    pub fn has_victims(self) -> bool {
        self.0 & VICTIMS != 0
    }

    /// Whether a free that found this state left too few objects for the segment's place.
    #[inline]
    fn rings(self) -> bool {
        self.live() < self.alarm()
    }

    /// Bytes of the objects themselves.
    pub fn payload(self) -> usize {
        if self.status() == Status::Free {
            return 0;
        }
        self.live() as usize * self.class().size() - self.slack()
    }

    fn with(self, status: Status, alarm: u32) -> Self {
        let kept = self.0 & (field(u64::MAX, 0, ALARM_SHIFT) | VICTIMS | u64::MAX << CLASS_SHIFT);
        let (code, group) = match status {
            Status::Free => (0, 0),
            Status::Owned => (1, 0),
            Status::Full => (2, 0),
            Status::Listed(group) => (3, group),
        };
        Self(
            kept | (alarm as u64) << ALARM_SHIFT
                | code << STATUS_SHIFT
                | (group as u64) << GROUP_SHIFT,
        )
    }

    /// Where a segment with this many objects belongs once nobody owns it.
    fn place(self) -> Self {
        let (live, capacity) = (self.live(), self.class().capacity());
        if live == 0 {
            return self.with(Status::Free, 0);
        }
        let listed_from = listing_level(capacity);
        if live >= listed_from {
            return self.with(Status::Full, listed_from);
        }
        let quarter = (4 * live / capacity).min(GROUPS as u32 - 1);
        let lower = (quarter * capacity).div_ceil(4).max(1);
        self.with(Status::Listed((GROUPS as u32 - 1 - quarter) as u8), lower)
    }
}

/// A segment is full while it has at least this many objects. Listing it at the first hole would
/// mean a lock for each object when stores and frees alternate; three percent of holes pay for it.
fn listing_level(capacity: u32) -> u32 {
    capacity - capacity.div_ceil(32) + 1
}

/// Everything the pool knows about a segment. All zeros is a free segment.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Header {
    used: [AtomicU64; WORDS],
    state: AtomicU64,
    /// Pages of the segment that hold physical memory.
    taken: AtomicU64,
    /// Pages that the compactor wants; changed by it alone.
    victims: AtomicU64,
    /// Neighbours on the list that the status names, under the lock of the class (or of the free
    /// segments): segment numbers plus one.
    pub next: AtomicU32,
    /// See `next`.
    pub prev: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(SEGMENT_SIZE / PAGE_SIZE == u64::BITS as usize);

impl Header {
    /// A free segment, for loom, whose atomics cannot lie in zeroed memory.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            used: std::array::from_fn(|_| AtomicU64::new(0)),
            state: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            victims: AtomicU64::new(0),
            next: AtomicU32::new(0),
            prev: AtomicU32::new(0),
        }
    }

    /// The state at this moment. Acquire: what was done to the segment before is visible.
    #[inline]
    pub fn state(&self) -> State {
        State(self.state.load(Ordering::Acquire))
    }

    /// The class, by somebody who holds an object in the segment, so that it cannot change.
    #[inline]
    pub fn class(&self) -> Class {
        // Relaxed: the object's location was published after the class was set.
        State(self.state.load(Ordering::Relaxed)).class()
    }

    /// Makes a free segment the caller's, for objects of `class`.
    pub fn begin(&self, class: Class) {
        debug_assert_eq!(self.state().status(), Status::Free);
        let capacity = class.capacity() as usize;
        for (i, word) in self.used.iter().enumerate() {
            // Slots past the capacity count as used for ever.
            let valid = capacity.saturating_sub(64 * i).min(64) as u32;
            word.store(u64::MAX.checked_shl(valid).unwrap_or(0), Ordering::Relaxed);
        }
        let state = State((class.number() as u64) << CLASS_SHIFT).with(Status::Owned, 0);
        self.state.store(state.0, Ordering::Release);
    }

    /// The first unused slot at or after `from`. Only the owner can rely on it to stay unused.
    #[inline]
    pub fn unused_slot(&self, from: u32) -> Option<u32> {
        let mut mask = u64::MAX << (from % 64);
        for i in from as usize / 64..WORDS {
            // Acquire pairs with the release in `free`: the last reader of the slot is done.
            let unused = !self.used[i].load(Ordering::Acquire) & mask;
            if unused != 0 {
                return Some(64 * i as u32 + unused.trailing_zeros());
            }
            mask = u64::MAX;
        }
        None
    }

    /// Counts an object into an unused slot; owner only. False if the slot lies on a victim.
    #[inline]
    pub fn fill(&self, index: u32, slack: u8) -> bool {
        let (word, bit) = place_of(index);
        // Relaxed: whoever has to see the bit sees it through the state word.
        self.used[word].fetch_or(bit, Ordering::Relaxed);
        // Release: a compactor whose flag comes later sees the bit. Acquire: if its flag came and
        // went before, its discarding is over; if it is up, we see which pages it wants.
        let before = self.state.fetch_add(object(slack), Ordering::AcqRel);
        if State(before).has_victims() && self.is_victim(index) {
            self.empty(index, slack);
            return false;
        }
        true
    }

    /// Takes back a [`Header::fill`] that nobody was told of; owner only.
    #[cold]
    pub fn empty(&self, index: u32, slack: u8) {
        let due = self.free(index, slack);
        debug_assert_eq!(due, None, "an owned segment has no alarm");
    }

    /// Counts an object out. Returns its class if the segment has to change its place.
    ///
    /// After this the caller's claim on the segment is gone: it may be empty and reused, so that
    /// the slow path looks again, under the lock.
    #[inline]
    pub fn free(&self, index: u32, slack: u8) -> Option<Class> {
        let (word, bit) = place_of(index);
        // Release: our reads of the object come before the owner's next write to the slot.
        let before = self.used[word].fetch_and(!bit, Ordering::Release);
        debug_assert!(before & bit != 0, "slot {index} freed twice");
        let freed = object(slack);
        // Release: whoever sees the count at zero (acquire in `state`) and discards the pages does
        // so after every reader of every object in them.
        let after = State(self.state.fetch_sub(freed, Ordering::Release) - freed);
        after.rings().then(|| after.class())
    }

    /// Makes a settled segment the caller's; under the lock of its class.
    pub fn own(&self) -> State {
        self.transition(|state| state.with(Status::Owned, 0))
    }

    /// Gives up an owned segment; under the lock of its class. The result says where it belongs: on
    /// a list, with the other full ones, or, free, back to the space.
    pub fn settle(&self) -> State {
        self.transition(State::place)
    }

    /// Whether the slow path that a free asked for is still due; under the lock of `class`. The
    /// segment may have been emptied and filled again since, by any class.
    pub fn is_due(&self, class: Class) -> bool {
        let state = self.state();
        let settled = !matches!(state.status(), Status::Free | Status::Owned);
        // A settled segment of this class stays so while we hold the lock.
        settled && state.class() == class && state.rings()
    }

    /// Changes status and alarm while frees count objects out. Acquire and release: the next owner
    /// sees the work of this one, and the one that empties it the reads of all who freed.
    fn transition(&self, change: impl Fn(State) -> State) -> State {
        let mut old = self.state.load(Ordering::Relaxed);
        loop {
            let new = change(State(old)).0;
            match self.state.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return State(new),
                Err(now) => old = now,
            }
        }
    }

    /// Pages with physical memory, a bit each. Exact for the owner, a moment's view for others.
    #[inline]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Pages on which objects may be put without taking memory, as far as one can tell before.
    #[inline]
    pub fn usable(&self) -> u64 {
        self.taken() & !self.victims.load(Ordering::Relaxed)
    }

    /// Adds to the pages with physical memory, and returns which of these are new; owner only.
    pub fn take_pages(&self, pages: u64) -> u64 {
        pages & !self.taken.fetch_or(pages, Ordering::Relaxed)
    }

    /// Removes from the pages with physical memory, and returns which of these were there. For the
    /// owner, and for the compactor if they are victims and no slot on them is used.
    pub fn drop_pages(&self, pages: u64) -> u64 {
        // Relaxed, as above: what keeps the two apart is the flag in the state word.
        pages & self.taken.fetch_and(!pages, Ordering::Relaxed)
    }

    /// Asks for pages: nothing is put on them until [`Header::pardon`]. False if the segment is
    /// free. Compactor only.
    pub fn condemn(&self, pages: u64) -> bool {
        let before = self.victims.load(Ordering::Relaxed);
        self.victims.store(before | pages, Ordering::Release);
        let state = self.transition(|state| match state.status() {
            Status::Free => state,
            _ => State(state.0 | VICTIMS),
        });
        if !state.has_victims() {
            self.victims.store(before, Ordering::Release);
        }
        state.has_victims()
    }

    /// The pages asked for that no slot in use lies on: they can be discarded. Compactor only.
    pub fn emptied(&self) -> u64 {
        self.victims.load(Ordering::Relaxed) & !self.needed(self.class())
    }

    /// Ends what [`Header::condemn`] began, when all discarding is done. True if the segment became
    /// free meanwhile, so that it is now for the compactor to give back. Compactor only.
    pub fn pardon(&self) -> bool {
        // Release, twice: an owner that sees either sees the pages as they are now. Acquire: if the
        // segment is free, all that was done in it is over.
        self.victims.store(0, Ordering::Release);
        State(self.state.fetch_and(!VICTIMS, Ordering::AcqRel)).status() == Status::Free
    }

    /// Whether the slot lies on a victim. The segment may have passed to a class that has no such
    /// slot, if nobody keeps the object alive for the caller.
    pub fn is_victim(&self, index: u32) -> bool {
        let class = self.class();
        index < class.capacity()
            && class.pages(index, class.size()) & self.victims.load(Ordering::Acquire) != 0
    }

    /// Slots in use at this moment. Acquire: the last reader of any other is done with it.
    pub fn used_slots(&self, class: Class) -> impl Iterator<Item = u32> + '_ {
        let bits = self.used.iter().zip(0..).flat_map(|(word, i)| {
            let mut rest = word.load(Ordering::Acquire);
            core::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(64 * i + bit)
            })
        });
        bits.take_while(move |&index| index < class.capacity())
    }

    /// Pages that slots in use lie on.
    pub fn needed(&self, class: Class) -> u64 {
        let size = class.size();
        self.used_slots(class).fold(0, |pages, index| pages | class.pages(index, size))
    }
}

/// What one object adds to the state word.
#[inline]
fn object(slack: u8) -> u64 {
    1 | (slack as u64) << SLACK_SHIFT
}

#[inline]
fn place_of(index: u32) -> (usize, u64) {
    (index as usize / 64 % WORDS, 1 << (index % 64))
}
