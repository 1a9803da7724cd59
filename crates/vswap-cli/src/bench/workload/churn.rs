//! Blocks from malloc that come and go while their sum stays the same.

use super::super::contents::{Contents, PAGE_BYTES, PAGE_WORDS, Random, WrongBytes};

/// Sizes are spread evenly over the powers of two from here ...
const SMALLEST_WORDS: f64 = 8.0;
/// ... to here, below what malloc maps by itself.
const LARGEST_WORDS: f64 = 8192.0;
/// Pages in the largest block, so that the chunks of different blocks have different numbers.
const NUMBERS_PER_BLOCK: u64 = 16;

struct Block {
    words: Vec<u64>,
    number: u64,
}

/// A thread's blocks.
pub struct Churn {
    blocks: Vec<Block>,
    random: Random,
    next_number: u64,
    live_words: usize,
    most_words: usize,
}

impl Churn {
    /// Fills so many bytes with blocks.
    pub fn new(contents: &Contents, bytes: usize, thread: usize) -> Self {
        // Apart from the numbers of other threads and of the workload's pages.
        let next_number = 1 << 39 | (thread as u64 & 0x7f) << 32;
        let random = Random::new(0x5EED_0007 ^ thread as u64);
        let (blocks, most_words) = (Vec::new(), bytes / 8);
        let mut churn = Self { blocks, random, next_number, live_words: 0, most_words };
        while churn.allocate(contents).is_some() {}
        churn
    }

    /// Frees random blocks and allocates others, until so many pages' worth of new ones was filled.
    ///
    /// # Errors
    /// A freed block did not begin with its own stamp.
    pub fn replace(&mut self, contents: &Contents, pages: usize) -> Result<(), WrongBytes> {
        let mut filled = 0;
        while filled < pages * PAGE_WORDS {
            self.free(contents)?;
            while let Some(words) = self.allocate(contents) {
                filled += words;
            }
        }
        Ok(())
    }

    fn free(&mut self, contents: &Contents) -> Result<(), WrongBytes> {
        if self.blocks.is_empty() {
            return Ok(());
        }
        let block = self.blocks.swap_remove(self.random.below(self.blocks.len()));
        self.live_words -= block.words.len();
        contents.check_stamp(&block.words, block.number, 0, 0).map(drop)
    }

    /// The size of a new block, in words, or `None` if there is no room for it.
    fn allocate(&mut self, contents: &Contents) -> Option<usize> {
        let unit = (self.random.next() >> 11) as f64 / (1u64 << 53) as f64;
        let words = (SMALLEST_WORDS * (LARGEST_WORDS / SMALLEST_WORDS).powf(unit)) as usize;
        if self.live_words + words > self.most_words {
            return None;
        }
        let number = self.next_number;
        let mut block = Block { words: vec![0; words], number };
        for (chunk, number) in block.words.chunks_mut(PAGE_WORDS).zip(number..) {
            contents.fill(chunk, number);
        }
        self.next_number += NUMBERS_PER_BLOCK;
        self.live_words += words;
        self.blocks.push(block);
        Some(words)
    }

    /// Checks every byte of every block.
    ///
    /// # Errors
    /// The first wrong one.
    pub fn check(&self, contents: &Contents) -> Result<(), WrongBytes> {
        self.blocks.iter().try_for_each(|block| {
            let mut chunks = block.words.chunks(PAGE_WORDS).zip(block.number..);
            chunks.try_for_each(|(chunk, number)| contents.check(chunk, number, 0))
        })
    }
}

const _: () = assert!(LARGEST_WORDS as u64 * 8 == NUMBERS_PER_BLOCK * PAGE_BYTES as u64);

#[cfg(test)]
mod tests {
    use super::super::super::contents::Mix;
    use super::*;

    #[test]
    fn blocks_are_replaced_without_growth_and_keep_their_bytes() {
        let contents = Contents::new(Mix::Heap);
        let bytes = 1 << 20;
        let mut churn = Churn::new(&contents, bytes, 3);
        let first = churn.next_number;
        for _ in 0..10 {
            churn.replace(&contents, 100).unwrap();
            let live: usize = churn.blocks.iter().map(|block| block.words.len() * 8).sum();
            assert!((bytes / 2..=bytes).contains(&live), "{live} bytes");
            assert_eq!(live, churn.live_words * 8);
        }
        assert!(churn.next_number > first);
        churn.check(&contents).unwrap();
        let last = churn.blocks.len() - 1;
        *churn.blocks[last].words.last_mut().unwrap() ^= 1;
        churn.check(&contents).unwrap_err();
    }

    #[test]
    fn a_block_with_another_ones_start_is_found_when_it_is_freed() {
        let contents = Contents::new(Mix::Heap);
        let mut churn = Churn::new(&contents, 1 << 20, 0);
        churn.blocks.truncate(1);
        churn.blocks[0].words[0] += 1 << 24;
        churn.replace(&contents, 1).unwrap_err();
    }
}
