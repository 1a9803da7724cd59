//! Segments on their way: from the space to a worker, to the lists of their class, and back.

use super::Pool;
use super::class::Class;
use super::lists::Lists;
use super::segment::Status;
use super::space::Segment;
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::sync::SpinGuard;

impl<P: Platform> Pool<P> {
    pub(super) fn lists(&self, class: Class) -> SpinGuard<'_, Lists> {
        self.classes[class.number()].0.lock(&self.platform)
    }

    /// A segment for the caller alone: the fullest listed one, or a new one.
    pub(super) fn acquire(&self, class: Class) -> Option<Segment<'_>> {
        {
            let mut lists = self.lists(class);
            if let Some((group, number)) = lists.fullest() {
                lists.remove(&self.space, group, number);
                let segment = self.space.segment(number);
                segment.header.own();
                return Some(segment);
            }
        }
        self.begin(class)
    }

    /// A new segment for the caller alone.
    pub(super) fn begin(&self, class: Class) -> Option<Segment<'_>> {
        let segment = self.space.take(&self.platform)?;
        segment.header.begin(class);
        Some(segment)
    }

    /// The slow path of a free: puts the segment where it belongs now.
    #[cold]
    pub(super) fn move_segment(&self, segment: Segment<'_>, class: Class) {
        let mut lists = self.lists(class);
        if !segment.header.is_due(class) {
            return;
        }
        if let Status::Listed(group) = segment.header.state().status() {
            lists.remove(&self.space, group, segment.number);
        }
        let state = segment.header.own();
        drop(lists);
        // In a fuller segment few pages are unused, and they would soon be taken again.
        if state.live() <= class.capacity() / 4 {
            self.trim(segment.number);
        }
        self.settle(segment.number);
    }

    /// Puts a segment that the caller owns where it belongs, and owns it no longer.
    pub(super) fn settle(&self, number: u32) {
        let segment = self.space.segment(number);
        let mut lists = self.lists(segment.header.class());
        let state = segment.header.settle();
        match state.status() {
            Status::Listed(group) => lists.push(&self.space, group, number),
            // One with victims is given back by the compactor.
            Status::Free if !state.has_victims() => {
                drop(lists);
                self.give_back(segment);
            }
            _ => {}
        }
    }

    /// Makes a segment that has just become free available to all classes.
    pub(super) fn give_back(&self, segment: Segment<'_>) {
        self.discard(segment, segment.header.taken());
        self.space.give(segment, &self.platform);
    }

    /// Gives back the pages of an owned segment on which no object is left.
    pub(super) fn trim(&self, number: u32) {
        let segment = self.space.segment(number);
        let idle = segment.header.taken() & !segment.header.needed(segment.header.class());
        self.discard(segment, idle);
    }

    /// Gives back pages on which no slot is used, nor will be before this returns: the caller owns
    /// the segment, or they are victims.
    pub(super) fn discard(&self, segment: Segment<'_>, pages: u64) {
        let mut rest = segment.header.drop_pages(pages);
        self.budget.give(rest.count_ones() as usize);
        while rest != 0 {
            let first = rest.trailing_zeros();
            let run = (rest >> first).trailing_ones();
            // SAFETY: the pages are in the segment and nobody reads or writes them.
            unsafe {
                let start = segment.data.add(first as usize * PAGE_SIZE);
                self.platform.discard(start, run as usize * PAGE_SIZE);
            }
            rest &= !((u64::MAX >> (64 - run)) << first);
        }
    }
}
