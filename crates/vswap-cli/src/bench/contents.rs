//! What the pages of the workload hold, and how a reader knows that it got the right ones.
//!
//! A page is one of a few templates with a *stamp* over the first word of each 512-byte part. The
//! stamp carries the page's number, the part's and the page's generation, which every write
//! raises. So a page that comes back from the wrong slot, from an older copy, or with its parts
//! mixed up is told apart from the right one, and nothing but the page number and the generation
//! has to be remembered to check every byte.
//!
//! By default the templates imitate a heap: headers with few distinct values, pointers into one region,
//! short text, numbers. Under lz4 they shrink to 1/2.4, and no page is same-filled. The other choices
//! are a [`Mix`]. Pages that hold one word all over carry no stamps before they are first rewritten.

use std::fmt;

use serde::Serialize;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// 8-byte words in a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Stamps in a page, one per part.
pub const PARTS: usize = 8;
/// Words in a part.
const PART_WORDS: usize = PAGE_WORDS / PARTS;
/// Of each kind. Enough that a compressor learns nothing from one page for the next, few enough (256 KiB) that
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

/// What the pages hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// Objects of an imitated heap.
    #[default]
    Heap,
    /// Words, as in a document.
    Text,
    /// Some of each kind.
    Mixed,
    /// Random bits, which nothing makes smaller.
    Random,
}

impl Mix {
    /// Kinds of pages, in per cent.
    const fn shares(self) -> &'static [(Kind, usize)] {
        match self {
            Self::Heap => &[(Kind::Heap, 100)],
            Self::Text => &[(Kind::Text, 100)],
            Self::Mixed => &[
                (Kind::Heap, 40),
                (Kind::Text, 20),
                (Kind::Floats, 15),
                (Kind::Zero, 10),
                (Kind::SameFilled, 5),
                (Kind::Random, 10),
            ],
            Self::Random => &[(Kind::Random, 100)],
        }
    }

    /// Name on the command line.
    pub const fn argument(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Text => "text",
            Self::Mixed => "mixed",
            Self::Random => "random",
        }
    }

    /// How many times smaller lz4 makes the pages, one by one.
    pub const fn ratio(self) -> f64 {
        match self {
            Self::Heap => 2.4,
            Self::Text => 1.5,
            Self::Mixed => 2.1,
            Self::Random => 1.0,
        }
    }

    /// Whether so many bytes can be held in so much RAM, compressed. Pools do not keep all of a codec's ratio,
    /// and a program needs room beside them.
    pub fn fits(self, bytes: u64, ram: u64) -> bool {
        bytes as f64 <= 0.95 * self.ratio() * ram as f64
    }

    /// For the report.
    pub fn describe(self) -> String {
        let shares = self.shares().iter();
        let shares: Vec<_> =
            shares.map(|(kind, share)| format!("{share} % {}", kind.title())).collect();
        format!("{}; {:.1}:1 under lz4", shares.join(", "), self.ratio())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Heap,
    Text,
    Floats,
    Zero,
    SameFilled,
    Random,
}

impl Kind {
    const fn title(self) -> &'static str {
        match self {
            Self::Heap => "heap objects",
            Self::Text => "text",
            Self::Floats => "floating-point numbers",
            Self::Zero => "zero",
            Self::SameFilled => "same-filled",
            Self::Random => "random",
        }
    }

    /// One word all over, with no place for stamps.
    const fn is_uniform(self) -> bool {
        matches!(self, Self::Zero | Self::SameFilled)
    }

    fn page(self, random: &mut Random) -> Page {
        match self {
            Self::Heap => heap_page(random),
            Self::Text => text_page(random),
            Self::Floats => float_page(random),
            Self::Zero => [0; PAGE_WORDS],
            Self::SameFilled => [random.next() | 1; PAGE_WORDS],
            Self::Random => std::array::from_fn(|_| random.next()),
        }
    }
}

/// The templates; all of a workload's pages are made from them.
pub struct Contents {
    templates: Vec<(Kind, Vec<Page>)>,
    /// Which of those a page has, by its number's hash.
    by_hash: Vec<u8>,
}

impl Contents {
    /// Makes the templates, always the same ones for a mix.
    pub fn new(mix: Mix) -> Self {
        let mut random = Random::new(0x76_73_77_61_70);
        let pages =
            |kind: Kind, random: &mut Random| (0..TEMPLATES).map(|_| kind.page(random)).collect();
        let shares = mix.shares().iter();
        let templates = shares.clone().map(|&(kind, _)| (kind, pages(kind, &mut random))).collect();
        let by_hash = shares.zip(0..).flat_map(|((_, share), kind)| vec![kind; *share]).collect();
        Self { templates, by_hash }
    }

    fn template(&self, page_number: u64) -> (Kind, &Page) {
        let mut random = Random::new(page_number);
        let index = random.below(TEMPLATES);
        let (kind, pages) = match self.templates.as_slice() {
            [only] => only,
            kinds => &kinds[usize::from(self.by_hash[random.below(self.by_hash.len())])],
        };
        (*kind, &pages[index])
    }

    /// The first word of a part.
    fn stamp(&self, page_number: u64, part: usize, generation: u16) -> u64 {
        match self.template(page_number) {
            (kind, page) if kind.is_uniform() && generation == 0 => page[0],
            _ => stamp(page_number, part, generation),
        }
    }

    /// Writes all of a page, or of its beginning, at generation 0.
    pub fn fill(&self, page: &mut [u64], page_number: u64) {
        let (kind, template) = self.template(page_number);
        page.copy_from_slice(&template[..page.len()]);
        if !kind.is_uniform() {
            stamp_all(page, page_number, 0);
        }
    }

    /// Checks every byte of a page, or of its beginning.
    ///
    /// # Errors
    /// [`WrongBytes`] that names the first word that differs.
    pub fn check(&self, page: &[u64], page_number: u64, generation: u16) -> Result<(), WrongBytes> {
        let (_, template) = self.template(page_number);
        for part in 0..page.len().div_ceil(PART_WORDS) {
            self.check_stamp(page, page_number, generation, part)?;
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

    /// Checks one part's stamp and returns it: one read of one cache line.
    ///
    /// # Errors
    /// [`WrongBytes`] if the stamp is another page's, part's or generation's.
    pub fn check_stamp(
        &self,
        page: &[u64],
        page_number: u64,
        generation: u16,
        part: usize,
    ) -> Result<u64, WrongBytes> {
        let word = part * PART_WORDS;
        let (expected, found) = (self.stamp(page_number, part, generation), page[word]);
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
    pub fn rewrite(
        &self,
        page: &mut Page,
        page_number: u64,
        generation: u16,
    ) -> Result<u16, WrongBytes> {
        for part in 0..PARTS {
            self.check_stamp(page, page_number, generation, part)?;
        }
        // Never 0 again, for which there may be no stamps.
        let next = generation.checked_add(1).unwrap_or(1);
        stamp_all(page, page_number, next);
        Ok(next)
    }
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

const WORDS: [&[u8]; 48] = [
    b"the",
    b"of",
    b"and",
    b"to",
    b"in",
    b"a",
    b"is",
    b"that",
    b"for",
    b"it",
    b"was",
    b"on",
    b"with",
    b"be",
    b"by",
    b"are",
    b"this",
    b"not",
    b"from",
    b"or",
    b"have",
    b"an",
    b"which",
    b"but",
    b"memory",
    b"would",
    b"there",
    b"their",
    b"when",
    b"program",
    b"number",
    b"other",
    b"system",
    b"people",
    b"between",
    b"second",
    b"example",
    b"against",
    b"without",
    b"reading",
    b"nothing",
    b"question",
    b"different",
    b"machine",
    b"morning",
    b"written",
    b"thousand",
    b"remember",
];

/// A page of words, the first ones the most frequent, with some punctuation and numbers.
fn text_page(random: &mut Random) -> Page {
    let mut text = Vec::with_capacity(PAGE_BYTES + 32);
    while text.len() < PAGE_BYTES {
        let last = 1 + random.below(WORDS.len());
        text.extend_from_slice(WORDS[random.below(last)]);
        match random.below(16) {
            0 => text.extend_from_slice(b", "),
            1 => text.extend_from_slice(b".\n"),
            2 => text.extend_from_slice(format!(" {} ", random.below(10_000)).as_bytes()),
            // Letters as in words that no list has.
            3 => {
                text.push(b' ');
                text.extend((0..4 + random.below(4)).map(|_| b'a' + random.below(26) as u8));
                text.push(b' ');
            }
            _ => text.push(b' '),
        }
    }
    std::array::from_fn(|index| u64::from_le_bytes(text.as_chunks().0[index]))
}

/// A page of measurements: a slow walk in steps of a sixteenth.
fn float_page(random: &mut Random) -> Page {
    let mut value = random.below(1000) as f64;
    std::array::from_fn(|_| {
        value += (random.below(65) as f64 - 32.0) / 16.0;
        value.to_bits()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(page: &Page) -> Vec<u8> {
        page.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn ratio(mix: Mix) -> f64 {
        let contents = Contents::new(mix);
        let sizes = (0..2000).map(|number| {
            let mut page = [0; PAGE_WORDS];
            contents.fill(&mut page, number);
            // Nobody stores a page of one word, or one that did not shrink, as the codec left it.
            let uniform = page.iter().all(|&word| word == page[0]);
            let size = lz4_flex::block::compress(&bytes(&page)).len().min(PAGE_BYTES);
            if uniform { 0 } else { size }
        });
        (2000 * PAGE_BYTES) as f64 / sizes.sum::<usize>() as f64
    }

    #[test]
    fn pages_shrink_under_lz4_as_the_report_says() {
        for mix in [Mix::Heap, Mix::Text, Mix::Mixed, Mix::Random] {
            let (found, said) = (ratio(mix), mix.ratio());
            assert!((found / said - 1.0).abs() < 0.05, "{mix:?}: {found:.3}, not {said}");
        }
    }

    #[test]
    fn no_page_of_a_heap_is_much_smaller_than_another() {
        let contents = Contents::new(Mix::Heap);
        for number in 0..1000 {
            let mut page = [0; PAGE_WORDS];
            contents.fill(&mut page, number);
            let size = lz4_flex::block::compress(&bytes(&page)).len();
            assert!((1200..2400).contains(&size), "page {number} takes {size} bytes");
        }
    }

    #[test]
    fn a_mix_has_the_shares_that_it_states() {
        for mix in [Mix::Heap, Mix::Text, Mix::Mixed, Mix::Random] {
            let contents = Contents::new(mix);
            let kinds: Vec<_> = (0..10_000).map(|number| contents.template(number).0).collect();
            assert_eq!(mix.shares().iter().map(|(_, share)| share).sum::<usize>(), 100);
            for (kind, share) in mix.shares() {
                let found = kinds.iter().filter(|found| *found == kind).count();
                assert!(found.abs_diff(share * 100) < 200, "{mix:?}: {kind:?} {found}");
                assert!(mix.describe().contains(&format!("{share} % {}", kind.title())));
            }
        }
    }

    #[test]
    fn uniform_pages_are_uniform_until_they_are_written_to() {
        let contents = Contents::new(Mix::Mixed);
        let uniform = |number: &u64| contents.template(*number).0.is_uniform();
        for number in (0..200).filter(uniform) {
            let mut page = [7; PAGE_WORDS];
            contents.fill(&mut page, number);
            assert!(page.iter().all(|&word| word == page[0]));
            let older = page;
            assert_eq!(contents.rewrite(&mut page, number, 0), Ok(1));
            assert_eq!(contents.check(&page, number, 1), Ok(()));
            assert!(contents.check(&older, number, 1).is_err());
            assert_eq!(contents.rewrite(&mut page, number, 1), Ok(2));
        }
        let mut page = [0; PAGE_WORDS];
        stamp_all(&mut page, 3, u16::MAX);
        assert_eq!(contents.rewrite(&mut page, 3, u16::MAX), Ok(1));
    }

    #[test]
    fn a_wrong_byte_anywhere_is_found() {
        let contents = Contents::new(Mix::Heap);
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
        let contents = Contents::new(Mix::Heap);
        let mut page = [0; PAGE_WORDS];
        contents.fill(&mut page, 5);
        let older = page;
        assert_eq!(contents.rewrite(&mut page, 5, 0), Ok(1));
        assert_eq!(contents.check(&page, 5, 1), Ok(()));
        for part in 0..PARTS {
            assert!(contents.check_stamp(&older, 5, 1, part).is_err());
            assert!(contents.check_stamp(&page, 6, 1, part).is_err());
        }
        assert!(contents.rewrite(&mut page, 5, 0).is_err());
        assert_eq!(contents.check(&page, 5, 1), Ok(()), "a failed rewrite leaves the page");
    }

    #[test]
    fn swapped_parts_are_found() {
        let contents = Contents::new(Mix::Heap);
        let mut page = [0; PAGE_WORDS];
        contents.fill(&mut page, 9);
        let first: [u64; PART_WORDS] = page[..PART_WORDS].try_into().unwrap();
        page.copy_within(PART_WORDS..2 * PART_WORDS, 0);
        page[PART_WORDS..2 * PART_WORDS].copy_from_slice(&first);
        assert!(contents.check(&page, 9, 0).is_err());
    }
}
