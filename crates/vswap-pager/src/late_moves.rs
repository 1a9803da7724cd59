//! Moves that were told of before it was told what had left their new places.
//!
//! The kernel puts a mapping where another thread has just unmapped or moved one, and each thread tells of
//! its own change when it gets to it: events come in the order of the telling. A move whose new place is
//! still known waits here for the event about its former owner, which would drop what moved otherwise.

use crate::address::{PageNumber, PageRange};
use crate::regions::Regions;

/// Threads that can be overtaken at once; more is not known to happen, since each of them has to be
/// scheduled out between its change and its event.
const ROOM: usize = 8;

/// A mapping that was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where it was.
    pub from: PageRange,
    /// First page of where it is.
    pub to: PageNumber,
}

impl Move {
    /// Where it is.
    pub fn target(&self) -> PageRange {
        PageRange { start: self.to, end: PageNumber(self.to.0 + self.from.pages()) }
    }

    /// Whether something else is still known where it is.
    pub fn is_late(&self, regions: &Regions) -> bool {
        regions.within(self.target()).next().is_some()
    }
}

/// Moves that wait, oldest first.
#[derive(Debug, Default)]
pub struct LateMoves {
    moves: [Option<Move>; ROOM],
}

impl LateMoves {
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.moves.iter().all(Option::is_none)
    }

    /// Lets a move wait.
    ///
    /// # Errors
    /// The move, if there is no room.
    pub fn push(&mut self, late: Move) -> Result<(), Move> {
        match self.moves.iter_mut().find(|place| place.is_none()) {
            Some(place) => {
                *place = Some(late);
                Ok(())
            }
            None => Err(late),
        }
    }

    /// Takes the first move of which `may_go` holds.
    pub fn take(&mut self, may_go: impl Fn(&Move) -> bool) -> Option<Move> {
        let at = self.moves.iter().position(|place| place.as_ref().is_some_and(&may_go))?;
        let found = self.moves[at].take();
        self.moves[at..].rotate_left(1);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: usize, end: usize) -> PageRange {
        PageRange { start: PageNumber(start), end: PageNumber(end) }
    }

    #[test]
    fn moves_are_taken_in_the_order_in_which_they_came() {
        let mut late = LateMoves::default();
        let moves: [Move; ROOM] = core::array::from_fn(|i| Move {
            from: pages(10 * i, 10 * i + 5),
            to: PageNumber(1000 + 10 * i),
        });
        for one in moves {
            late.push(one).unwrap();
        }
        assert_eq!(late.push(moves[0]), Err(moves[0]), "there is no more room");
        assert_eq!(late.take(|one| *one == moves[3]), Some(moves[3]));
        late.push(moves[3]).unwrap();
        for i in [0, 1, 2, 4, 5, 6, 7, 3] {
            assert_eq!(late.take(|_| true), Some(moves[i]));
        }
        assert!(late.is_empty());
    }

    #[test]
    fn a_move_is_late_while_any_of_its_new_place_is_known() {
        let mut regions = Regions::new();
        let moved = Move { from: pages(0, 10), to: PageNumber(100) };
        assert!(!moved.is_late(&regions));
        for (known, late) in [
            (pages(90, 101), true),
            (pages(109, 120), true),
            (pages(90, 100), false),
            (pages(110, 120), false),
        ] {
            regions.insert(known, crate::regions::Attributes::default()).unwrap();
            assert_eq!(moved.is_late(&regions), late, "{known:?}");
            regions.remove(known).unwrap();
        }
    }
}
