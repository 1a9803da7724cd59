//! Pages to swap.

#![allow(dead_code)] // each test file uses a part of this

pub mod backings;

use vswap_core::{PAGE_SIZE, Page};

/// A small generator of numbers that look random, so that a page needs no more than a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03)
    }

    /// The next number (xorshift64*).
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A page that compresses to about a third, different for each seed.
pub fn page_of(seed: u64) -> Page {
    let mut random = Random::new(seed);
    let mut page = Page::ZERO;
    let words: Vec<u64> = (0..12).map(|_| random.next()).collect();
    for chunk in page.0.chunks_exact_mut(16) {
        chunk[..8].copy_from_slice(&words[random.below(words.len())].to_ne_bytes());
        chunk[8..10].copy_from_slice(&(random.next() as u16).to_ne_bytes());
    }
    page
}

/// A page that does not compress.
pub fn noise(seed: u64) -> Page {
    let mut random = Random::new(seed);
    let mut page = Page::ZERO;
    for chunk in page.0.chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.next().to_ne_bytes());
    }
    page
}

/// A page that repeats one word.
pub fn filled(word: u64) -> Page {
    let mut page = Page::ZERO;
    page.fill(word);
    page
}

/// The page that belongs to a number: all kinds occur, and a number's page is always the same.
pub fn any_page(number: u64) -> Page {
    match number % 8 {
        0 => Page::ZERO,
        1 => filled(number),
        2 => filled(!0 - number),
        3 => filled(number << 50 | 0x1234_5678_9abc_def1),
        4 => noise(number),
        5 => {
            let mut page = Page::ZERO;
            page.0[number as usize % PAGE_SIZE] = number as u8 | 1;
            page
        }
        _ => page_of(number),
    }
}

/// Pages of all kinds.
pub fn pages(n: usize) -> impl Iterator<Item = Page> {
    (0..n as u64).map(any_page)
}
