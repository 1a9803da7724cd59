//! The pool's invariants, checked while no operation is under way.

use super::Pool;
use super::class::{Class, SLACK_LIMIT};
use super::segment::{GROUPS, Status};
use crate::page::PAGE_SIZE;
use crate::platform::Platform;
use crate::sync::Ordering;

/// What [`Pool::check`] found wrong, and in which segment or class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} ({number})")]
pub struct Violation {
    /// The rule that is broken.
    pub what: &'static str,
    /// The segment, or the class, or the number of pages.
    pub number: usize,
}

fn ensure(holds: bool, what: &'static str, number: usize) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { what, number }) }
}

impl<P: Platform> Pool<P> {
    /// Checks everything that can be checked without knowing the objects.
    ///
    /// # Errors
    /// The first rule found broken.
    pub fn check(&self) -> Result<(), Violation> {
        let mut pages = 0;
        let mut listed = 0;
        for number in 0..self.space.known() {
            pages += self.check_segment(number)?;
            let status = self.space.segment(number).header.state().status();
            listed += usize::from(status.is_listed());
        }
        ensure(pages * PAGE_SIZE == self.memory(), "counted pages are those taken", pages)?;
        for class in Class::all() {
            listed -= self.check_lists(class)?;
        }
        ensure(listed == 0, "each listed segment is on a list", listed)
    }

    /// Checks one segment and returns how many pages it has.
    fn check_segment(&self, number: u32) -> Result<usize, Violation> {
        let header = self.space.segment(number).header;
        let (state, n) = (header.state(), number as usize);
        let taken = header.taken();
        if state.status() == Status::Free {
            ensure(state.live() == 0 && state.slack() == 0, "a free segment is empty", n)?;
            ensure(taken == 0 || state.has_victims(), "a free segment has no pages", n)?;
            return Ok(taken.count_ones() as usize);
        }
        let class = state.class();
        let used = header.used_slots(class).count();
        ensure(used == state.live() as usize, "live objects are the bits set", n)?;
        ensure(state.slack() < used.max(1) * SLACK_LIMIT, "slack is that of live objects", n)?;
        ensure(state.live() >= state.alarm(), "no alarm is pending", n)?;
        let shortest = class.size().saturating_sub(SLACK_LIMIT);
        let on_pages = |index| class.pages(index, shortest) & !taken == 0;
        ensure(header.used_slots(class).all(on_pages), "objects lie on taken pages", n)?;
        ensure(state.status() == Status::Owned || used > 0, "a settled segment has objects", n)?;
        Ok(taken.count_ones() as usize)
    }

    /// Checks the lists of a class and returns how many segments are on them.
    fn check_lists(&self, class: Class) -> Result<usize, Violation> {
        let lists = self.lists(class);
        let mut listed = 0;
        for group in 0..GROUPS as u8 {
            let mut prev = 0;
            for number in lists.iter(&self.space, group) {
                let header = self.space.segment(number).header;
                let here = header.state().is(Status::Listed(group), class);
                ensure(here, "a list holds segments of its class and fullness", number as usize)?;
                let linked = header.prev.load(Ordering::Relaxed) == prev;
                ensure(linked, "links agree in both directions", number as usize)?;
                prev = number + 1;
                listed += 1;
            }
        }
        Ok(listed)
    }
}
