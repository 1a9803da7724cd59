//! What moving pages costs at the least: the codec's time, and the copies that its output and a page that comes
//! back need. No fault, no table, no lock.
//!
//! Measured in the bench's own process, on pages with the workload's contents that no cache holds, by the
//! codec that vswap's rows use, which stands for the kernel's lz4 and lzo too. Where nothing is compressed
//! the floor is a copy of the page.

use std::io;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vswap_core::CodecKind;
use vswap_core::codec::{Codec as _, Scratch};
use vswap_core::page::{PAGE_SIZE, Page};
use vswap_core::same_filled::repeated_word;
use vswap_pager::arena::Arena;

use super::contents::{Contents, Mix};
use super::rows::Row;
use super::workload::Memory;

/// Far more than any cache holds of them, together with what they become.
const PAGES: usize = 16 << 10;

/// Of which the fastest counts: a floor has no other load.
const PASSES: usize = 3;

/// Nanoseconds for each page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Floor {
    /// Coded, and what became of it put elsewhere.
    pub out: f64,
    /// Decoded, and the page put elsewhere.
    pub back: f64,
    /// Only copied.
    pub copy: f64,
}

impl Floor {
    /// Measures pages of these contents; `None` without memory for them.
    pub fn measure(contents: Mix) -> Option<Self> {
        let mut work = Work::new(&Contents::new(contents), PAGES).ok()?;
        let mut scratch = Scratch::new(CodecKind::Lz4, &Arena)?;
        let passes: Vec<Self> = (0..PASSES).map(|_| work.pass(&mut scratch)).collect();
        scratch.release(&Arena);
        let least = |ns: fn(&Self) -> f64| passes.iter().map(ns).fold(f64::INFINITY, f64::min);
        Some(Self {
            out: least(|floor| floor.out),
            back: least(|floor| floor.back),
            copy: least(|floor| floor.copy),
        })
    }

    /// For each page of a row that moved so many, of which some went out.
    pub fn of_row(&self, row: Row, moved: u64, out: u64) -> Option<f64> {
        if moved == 0 {
            return None;
        }
        let back = moved.saturating_sub(out) as f64;
        let (out_ns, back_ns) = match row {
            Row::SwapFile => (self.copy, self.copy),
            _ => (self.out, self.back),
        };
        Some((out as f64 * out_ns + back * back_ns) / moved as f64)
    }
}

/// What a page became.
#[derive(Clone, Copy)]
enum Stored {
    /// Nothing that has to be kept.
    Filled(u64),
    /// So many bytes.
    Coded(usize),
    Raw,
}

struct Work {
    pages: Memory,
    stored: Memory,
    lens: Vec<Stored>,
}

impl Work {
    fn new(contents: &Contents, count: usize) -> io::Result<Self> {
        let mut pages = Memory::map(count)?;
        for (page, number) in pages.iter_mut().zip(0..) {
            contents.fill(page, number);
        }
        Ok(Self { pages, stored: Memory::map(count)?, lens: vec![Stored::Raw; count] })
    }

    fn pass(&mut self, scratch: &mut Scratch) -> Floor {
        let mut page = Page::ZERO;
        let mut coded = [0; PAGE_SIZE];
        let count = self.lens.len();
        let copy = per_page(count, || {
            self.stored.as_bytes_mut().copy_from_slice(self.pages.as_bytes());
        });
        let out = per_page(count, || {
            let (from, _) = self.pages.as_bytes().as_chunks::<PAGE_SIZE>();
            let (to, _) = self.stored.as_bytes_mut().as_chunks_mut::<PAGE_SIZE>();
            for ((from, to), len) in from.iter().zip(to).zip(&mut self.lens) {
                page.0 = *from;
                *len = match repeated_word(&page) {
                    Some(word) => Stored::Filled(word),
                    None => match scratch.compress(&page, &mut coded[..PAGE_SIZE - 1]) {
                        Some(len) => Stored::Coded(len),
                        None => Stored::Raw,
                    },
                };
                match *len {
                    Stored::Filled(_) => {}
                    Stored::Coded(len) => to[..len].copy_from_slice(&coded[..len]),
                    Stored::Raw => *to = page.0,
                }
            }
        });
        let back = per_page(count, || {
            let (from, _) = self.stored.as_bytes().as_chunks::<PAGE_SIZE>();
            let (to, _) = self.pages.as_bytes_mut().as_chunks_mut::<PAGE_SIZE>();
            for ((from, to), len) in from.iter().zip(to).zip(&self.lens) {
                match *len {
                    Stored::Filled(word) => page.fill(word),
                    Stored::Coded(len) => {
                        scratch.decompress(&from[..len], &mut page).expect("what was just coded");
                    }
                    Stored::Raw => page.0 = *from,
                }
                *to = page.0;
            }
        });
        Floor { out, back, copy }
    }
}

/// CPU time, as that of the rows is: others may use the CPU meanwhile.
fn per_page(count: usize, work: impl FnOnce()) -> f64 {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    };
    let started = now();
    work();
    (now() - started) / count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Floor = Floor { out: 400.0, back: 100.0, copy: 10.0 };

    #[test]
    fn a_row_is_held_to_the_directions_in_which_it_moved_pages() {
        assert_eq!(FLOOR.of_row(Row::Handoff, 4, 1), Some(175.0));
        assert_eq!(FLOOR.of_row(Row::ZramLz4, 3, 3), Some(400.0));
        assert_eq!(FLOOR.of_row(Row::SwapFile, 4, 1), Some(10.0));
        assert_eq!(FLOOR.of_row(Row::Handoff, 0, 0), None);
    }

    #[test]
    fn pages_come_back_as_they_were() {
        let contents = Contents::new(Mix::Mixed);
        let mut work = Work::new(&contents, 256).unwrap();
        let mut scratch = Scratch::new(CodecKind::Lz4, &Arena).unwrap();
        let floor = work.pass(&mut scratch);
        scratch.release(&Arena);
        for (page, number) in work.pages.iter().zip(0..) {
            contents.check(page, number, 0).unwrap();
        }
        assert!(floor.out > 0.0 && floor.back > 0.0, "{floor:?}");
    }
}
