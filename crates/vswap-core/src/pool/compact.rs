//! Compaction: which pages to empty.
//!
//! The pool does not know who refers to its objects, so it only chooses. Nothing new is put on a
//! victim, the caller stores each object that lies on one anew and frees the old one, and
//! [`Pool::release_victims`] gives back the pages that have become empty. Objects move into holes
//! on other pages or, densely, to new ones, so that a page on which objects of `n` bytes lie is
//! worth at least a page less `n`.
//!
//! Pages are chosen one by one, not segments: how full they are varies far more, so that emptying
//! the sparsest moves far less. Victims in segments that workers own are no trouble to these; how
//! the two keep apart is told in [`super::segment`].

use super::segment::{SEGMENT_SIZE, Status};
use super::{Pool, Segment, slot_index};
use crate::page::{PAGE_SHIFT, PAGE_SIZE};
use crate::platform::Platform;

/// Steps of weight in which pages are compared.
const STEPS: usize = 64;

/// Segments that one call looks at: a gibibyte of objects, in a few milliseconds.
const WINDOW: u32 = 4096;

type Weights = [u32; SEGMENT_SIZE / PAGE_SIZE];

impl<P: Platform> Pool<P> {
    /// Chooses the sparsest pages as victims, until emptying them would give back about `goal`
    /// bytes, and returns how many it would, at least. Looks at a part of a large pool only, and
    /// at the next part in the next call. Chooses nothing while another thread does this.
    pub fn choose_victims(&self, goal: usize) -> usize {
        let Some(mut cursor) = self.compaction.try_lock() else { return 0 };
        let known = self.space.known();
        let window = known.min(WINDOW);
        let start = *cursor;
        let segments = || (0..window).map(|i| self.space.segment((start + i) % known));
        let mut worth = [0; STEPS];
        for segment in segments() {
            for (_, weight) in candidates(segment) {
                worth[weight * STEPS / PAGE_SIZE] += PAGE_SIZE - weight;
            }
        }
        let mut expected = 0;
        let below = worth.iter().take_while(|&worth| {
            let more = expected < goal;
            expected += worth;
            more
        });
        let limit = below.count() * PAGE_SIZE / STEPS;

        let mut total = 0;
        for segment in segments() {
            if total >= goal {
                break;
            }
            let (mut victims, mut worth) = (0, 0);
            for (page, weight) in candidates(segment).filter(|&(_, weight)| weight < limit) {
                victims |= 1 << page;
                worth += PAGE_SIZE - weight;
            }
            if victims != 0 && segment.header.condemn(victims) {
                total += worth;
            }
        }
        *cursor = (start + window) % known.max(1);
        total
    }

    /// Whether the object lies on a victim, so that it should move. For a location that was freed
    /// meanwhile the answer means nothing.
    #[inline]
    pub fn is_victim(&self, location: u64) -> bool {
        let header = self.segment_of(location).header;
        header.state().has_victims() && header.is_victim(slot_index(location))
    }

    /// Gives back the victims that are empty now, and lets objects onto the others again. Does
    /// nothing while another thread is choosing or releasing.
    pub fn release_victims(&self) {
        let Some(_compaction) = self.compaction.try_lock() else { return };
        for number in 0..self.space.known() {
            let segment = self.space.segment(number);
            if segment.header.state().has_victims() {
                // Victims without objects stay so until they are pardoned.
                self.discard(segment, segment.header.emptied());
                if segment.header.pardon() {
                    self.give_back(segment);
                }
            }
        }
    }
}

/// The pages of a segment that are worth emptying, and the bytes that would have to move.
fn candidates(segment: Segment<'_>) -> impl Iterator<Item = (usize, usize)> {
    let header = segment.header;
    let state = header.state();
    let mut weights: Weights = [0; _];
    let mut taken = 0;
    if state.status() != Status::Free {
        let class = state.class();
        let size = class.size();
        taken = header.taken();
        for index in header.used_slots(class) {
            let first = (index as usize * size) >> PAGE_SHIFT;
            let last = (index as usize * size + size - 1) >> PAGE_SHIFT;
            weights[first] += size as u32;
            if last != first {
                weights[last] += size as u32;
            }
        }
    }
    weights.into_iter().map(|weight| weight as usize).enumerate().filter(move |&(page, weight)| {
        taken >> page & 1 != 0 && weight < PAGE_SIZE - PAGE_SIZE / STEPS
    })
}
