//! What the pages of the workload hold, and how a reader knows that it got the right ones.
//!
//! A page is one of a few templates with a *stamp* over the first word of each 512-byte part. The
//! stamp carries the page's number, the part's and the page's generation, which every write
//! raises. So a page that comes back from the wrong slot, from an older copy, or with its parts
//! mixed up is told apart from the right one, and nothing but the page number and the generation
//! has to be remembered to check every byte.
//!
//! The templates imitate a heap: headers with few distinct values, pointers into one region,
//! short text, numbers. Under lz4 they shrink to 1/2.4, and no page is same-filled.

use std::fmt;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// 8-byte words in a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Stamps in a page, one per part.
pub const PARTS: usize = 8;
/// Words in a part.
const PART_WORDS: usize = PAGE_WORDS / PARTS;
/// Enough that a compressor learns nothing from one page for the next, few enough (256 KiB) that
/// copying a template costs no miss to main memory.
const TEMPLATES: usize = 64;

/// A page as the workload handles it.
pub type Page = [u64; PAGE_WORDS];

/// A page that does not hold what was written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongBytes {
    page: u64,
    generation: u16,
    word: usize,
    expected: u64,
    found: u64,
}

impl fmt::Display for WrongBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {} at generation {}: bytes {}..{} are {:#018x}, written were {:#018x}",
            self.page,
            self.generation,
            self.word * 8,
            self.word * 8 + 8,
            self.found,
            self.expected,
        )
    }
}

impl std::error::Error for WrongBytes {}

/// The sequence of random numbers that contents and accesses are made from (splitmix64): the
/// same seed gives the same run on every machine and under every peer.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A random number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// The templates; all of a workload's pages are made from them.
pub struct Contents {
    templates: Vec<Page>,
}

impl Contents {
    /// Makes the templates, always the same ones.
    pub fn new() -> Self {
        let mut random = Random::new(0x76_73_77_61_70);
        Self { templates: (0..TEMPLATES).map(|_| heap_page(&mut random)).collect() }
    }

    fn template(&self, page_number: u64) -> &Page {
        &self.templates[Random::new(page_number).below(TEMPLATES)]
    }

    /// Writes all of a page, or of its beginning, at generation 0.
    pub fn fill(&self, page: &mut [u64], page_number: u64) {
        page.copy_from_slice(&self.template(page_number)[..page.len()]);
        stamp_all(page, page_number, 0);
    }

    /// Checks every byte of a page, or of its beginning.
    ///
    /// # Errors
    /// [`WrongBytes`] that names the first word that differs.
    pub fn check(&self, page: &[u64], page_number: u64, generation: u16) -> Result<(), WrongBytes> {
        let template = self.template(page_number);
        for part in 0..page.len().div_ceil(PART_WORDS) {
            check_stamp(page, page_number, generation, part)?;
            let words = part * PART_WORDS + 1..page.len().min((part + 1) * PART_WORDS);
            if page[words.clone()] != template[words.clone()] {
                let differs = |&word: &usize| page[word] != template[word];
                let word = words.clone().find(differs).unwrap_or(words.start);
                let (expected, found) = (template[word], page[word]);
                return Err(WrongBytes { page: page_number, generation, word, expected, found });
            }
        }
        Ok(())
    }
}

/// Checks one part's stamp and returns it: one read of one cache line.
///
/// # Errors
/// [`WrongBytes`] if the stamp is another page's, part's or generation's.
pub fn check_stamp(
    page: &[u64],
    page_number: u64,
    generation: u16,
    part: usize,
) -> Result<u64, WrongBytes> {
    let word = part * PART_WORDS;
    let (expected, found) = (stamp(page_number, part, generation), page[word]);
    if found == expected {
        Ok(found)
    } else {
        Err(WrongBytes { page: page_number, generation, word, expected, found })
    }
}

/// Checks a page's stamps and raises them to the next generation, which it returns.
///
/// # Errors
/// [`WrongBytes`] if a stamp was wrong; the page is then left as it was.
pub fn rewrite(page: &mut Page, page_number: u64, generation: u16) -> Result<u16, WrongBytes> {
    for part in 0..PARTS {
        check_stamp(page, page_number, generation, part)?;
    }
    let next = generation.wrapping_add(1);
    stamp_all(page, page_number, next);
    Ok(next)
}

fn stamp_all(page: &mut [u64], page_number: u64, generation: u16) {
    for (part, words) in page.chunks_mut(PART_WORDS).enumerate() {
        words[0] = stamp(page_number, part, generation);
    }
}

/// | bits | 0–15 | 16–23 | 24–63 |
/// |---|---|---|---|
/// | hold | generation | part | page number |
const fn stamp(page_number: u64, part: usize, generation: u16) -> u64 {
    page_number << 24 | (part as u64) << 16 | generation as u64
}

const SYLLABLES: [&[u8]; 16] = [
    b"swap", b"page", b"slot", b"fault", b"data", b"_id", b"name", b"key", b"value", b"count",
    b"list", b"node", b"tree", b"map", b"user", b"time",
];

/// A page of imitated heap objects: header, pointers, a short text, numbers.
fn heap_page(random: &mut Random) -> Page {
    let region = 0x7f00_0000_0000 | (random.next() & 0xff_ff00_0000);
    let types: [u64; 4] = std::array::from_fn(|_| region | (random.next() & 0xff_fff0));
    let mut words = Vec::with_capacity(PAGE_WORDS + 16);
    while words.len() < PAGE_WORDS {
        words.push(1 + random.next() % 3);
        words.push(types[random.below(types.len())]);
        for _ in 0..random.below(3) {
            words.push(region | (random.next() & 0xff_fff0));
        }
        let mut text = Vec::new();
        for _ in 0..random.below(4) {
            text.extend_from_slice(SYLLABLES[random.below(SYLLABLES.len())]);
        }
        text.push(0);
        text.resize(text.len().next_multiple_of(8), 0);
        words.extend(text.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        words.push(random.next() & 0xff);
        words.extend([0; 2]);
    }
    std::array::from_fn(|index| words[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(page: &Page) -> Vec<u8> {
        page.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn pages_shrink_to_about_1_in_2_4_under_lz4() {
        let contents = Contents::new();
        let mut compressed = 0;
        for number in 0..1000 {
            let mut page = [0; PAGE_WORDS];
            contents.fill(&mut page, number);
            let size = lz4_flex::block::compress(&bytes(&page)).len();
            assert!((1200..2400).contains(&size), "page {number} takes {size} bytes");
            compressed += size;
        }
        let ratio = (1000 * PAGE_BYTES) as f64 / compressed as f64;

        assert!((2.2..=2.6).contains(&ratio), "ratio {ratio:.2}");
    }

    #[test]
    fn a_wrong_byte_anywhere_is_found() {
        let contents = Contents::new();
        let mut page = [0; PAGE_WORDS];
        contents.fill(&mut page, 77);
        assert_eq!(contents.check(&page, 77, 0), Ok(()));
        for word in 0..PAGE_WORDS {
            let right = page[word];
            page[word] ^= 1 << (word % 64);
            let wrong = contents.check(&page, 77, 0).unwrap_err();
            assert_eq!((wrong.word, wrong.expected), (word, right));
            page[word] = right;
        }
    }

    #[test]
    fn another_page_or_an_older_copy_is_not_taken_for_the_right_one() {
        let contents = Contents::new();
        let mut page = [0; PAGE_WORDS];
        contents.fill(&mut page, 5);
        let older = page;
        assert_eq!(rewrite(&mut page, 5, 0), Ok(1));
        assert_eq!(contents.check(&page, 5, 1), Ok(()));
        for part in 0..PARTS {
            assert!(check_stamp(&older, 5, 1, part).is_err());
            assert!(check_stamp(&page, 6, 1, part).is_err());
        }
        assert!(rewrite(&mut page, 5, 0).is_err());
        assert_eq!(contents.check(&page, 5, 1), Ok(()), "a failed rewrite leaves the page");
    }

    #[test]
    fn swapped_parts_are_found() {
        let contents = Contents::new();
        let mut page = [0; PAGE_WORDS];
        contents.fill(&mut page, 9);
        let first: [u64; PART_WORDS] = page[..PART_WORDS].try_into().unwrap();
        page.copy_within(PART_WORDS..2 * PART_WORDS, 0);
        page[PART_WORDS..2 * PART_WORDS].copy_from_slice(&first);
        assert!(contents.check(&page, 9, 0).is_err());
    }
}
