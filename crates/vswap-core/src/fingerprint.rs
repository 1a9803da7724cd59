//! Whether a page is still what it was, without keeping it.
//!
//! A page that came in from a device and was only read can be dropped again for nothing, if its slot is kept.
//! Where nobody tells which pages were written, they are compared, and reading the device again for that would
//! cost what it is to save. So 128 bits of a keyed universal hash (POLYVAL, RFC 8452) are kept instead: for
//! any two pages, whoever chose them without knowing the key, the fingerprints are equal with a
//! probability of 2^-120 at most (256 blocks in a field of 2^128).

use polyval::Polyval;
use polyval::universal_hash::UniversalHash;

use crate::page::Page;

/// Bytes of a key.
pub const KEY: usize = 16;

/// Makes fingerprints with a secret of its own.
#[derive(Clone, Debug)]
pub struct Fingerprinter(Polyval);

/// What a page is known by. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u64; 2]);

impl Fingerprinter {
    /// With a random key.
    pub fn new(key: &[u8; KEY]) -> Self {
        Self(Polyval::new(key.into()))
    }

    /// The fingerprint of a page.
    pub fn of(&self, page: &Page) -> Fingerprint {
        let mut hash = self.0.clone();
        hash.update_padded(&page.0);
        let tag: [u8; 16] = hash.finalize().into();
        let word = |half: usize| {
            let bytes = tag.as_chunks::<8>().0[half];
            u64::from_le_bytes(bytes)
        };
        // Zero stands for none. One bit less of 128.
        Fingerprint([word(0) | 1, word(1)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_page_counts() {
        let maker = Fingerprinter::new(&[7; KEY]);
        let mut page = Page::ZERO;
        page.0.iter_mut().zip(0..).for_each(|(byte, n)| *byte = (n % 251) as u8);
        let before = maker.of(&page);
        for bit in 0..page.0.len() * 8 {
            page.0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(maker.of(&page), before, "bit {bit}");
            page.0[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(maker.of(&page), before);
        assert_ne!(Fingerprinter::new(&[8; KEY]).of(&page), before);
        assert_ne!(maker.of(&Page::ZERO).0, [0, 0]);
    }
}
