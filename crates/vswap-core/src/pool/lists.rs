//! The listed segments of a class, by fullness, as doubly linked lists of segment numbers.

use super::segment::{GROUPS, Header};
use super::space::Space;
use crate::sync::Ordering;

/// Heads of the lists: segment numbers plus one, zero for none. Guarded by the lock of the class,
/// which guards the links of listed segments as well.
#[derive(Debug)]
pub struct Lists([u32; GROUPS]);

impl Lists {
    /// Lists nothing.
    pub const fn new() -> Self {
        Self([0; GROUPS])
    }

    /// Puts a segment at the head of a list.
    pub fn push(&mut self, space: &Space, group: u8, number: u32) {
        let head = &mut self.0[group as usize];
        let header = space.segment(number).header;
        header.prev.store(0, Ordering::Relaxed);
        header.next.store(*head, Ordering::Relaxed);
        if let Some(next) = linked(space, *head) {
            next.prev.store(number + 1, Ordering::Relaxed);
        }
        *head = number + 1;
    }

    /// Takes a segment off its list.
    pub fn remove(&mut self, space: &Space, group: u8, number: u32) {
        let header = space.segment(number).header;
        let (next, prev) =
            (header.next.load(Ordering::Relaxed), header.prev.load(Ordering::Relaxed));
        match linked(space, prev) {
            Some(before) => before.next.store(next, Ordering::Relaxed),
            None => self.0[group as usize] = next,
        }
        if let Some(after) = linked(space, next) {
            after.prev.store(prev, Ordering::Relaxed);
        }
    }

    /// The head of the fullest list that has one, and that list.
    pub fn fullest(&self) -> Option<(u8, u32)> {
        (0..).zip(self.0).find_map(|(group, head)| Some((group, head.checked_sub(1)?)))
    }

    /// The segments of a list, in order.
    pub fn iter<'a>(&self, space: &'a Space, group: u8) -> impl Iterator<Item = u32> + 'a {
        let mut link = self.0[group as usize];
        core::iter::from_fn(move || {
            let number = link.checked_sub(1)?;
            link = space.segment(number).header.next.load(Ordering::Relaxed);
            Some(number)
        })
    }
}

fn linked(space: &Space, link: u32) -> Option<&Header> {
    link.checked_sub(1).map(|number| space.segment(number).header)
}
