//! What an object looks like in its blocks, and how damage to it is found.
//!
//! # Format
//!
//! An object is 1 to 4096 bytes, and takes whole logical blocks:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | [`Nonce::process`], little-endian |
//! | 8 | [`Nonce::counter`], little-endian |
//! | 16 | the check |
//! | length | the object, encrypted or as it is |
//! | rest | zeros |
//!
//! Nothing says whose object this is or how long: the reader knows, and the check covers it. Nor is
//! there a version, because nothing on a device is read by another run.
//!
//! # Check
//!
//! It covers the nonce, the object and its length, and what [`Binding`] names. So it finds
//!
//! - flipped bits;
//! - misdirected writes and reads, and swapped blocks: what is here was not bound to this place;
//! - a torn write: blocks of two writes do not match one check;
//! - a lost write: the place still has another object, or an older write of this one, whose
//!   generation is another.
//!
//! The exception: if an older write of the same entry to the same place, with the same length, has
//! by chance the same generation (1 in 256), it is taken for the newer. The generation is all that
//! is kept of a write in RAM.
//!
//! The zeros behind the object are not looked at: damage there says something of the device, but
//! the object is whole, and refusing it would cost the program a page.
//!
//! # Protection
//!
//! [`Protection::Encrypted`] is AES-256-GCM with the run's key, so that nothing readable stays on a
//! device after the run, and who writes to the device can put back an older object (the exception
//! above) but cannot forge one. Entry, device, block and length are associated data.
//! [`Protection::Checked`] is 128 bits of XXH3 over the object, seeded with XXH3 of the rest and of
//! the run's key; it finds accidents only.
//!
//! A nonce that is used twice under one key gives away the difference of two objects and the means
//! to forge others. Hence [`Nonce::process`]: after a fork, both sides go on with the same key.
//!
//! # Measured
//!
//! `cargo bench -p vswap-core --bench sealing`, ns per object, in blocks of 512 bytes; Xeon with
//! VAES and AVX-512, 2 vCPUs shared with other work, idle-class scheduling; medians of five runs:
//!
//! | length | encrypted: seal | open | checked: seal | open |
//! |---|---|---|---|---|
//! | 1024 | 491 | 463 | 115 | 92 |
//! | 2048 | 791 | 743 | 177 | 138 |
//! | 4096 | 1448 | 1308 | 362 | 239 |
//!
//! Candidates on the same machine, sealing one object of 4 KiB in the first-level cache again and
//! again, by a program that was not kept: AES-256-GCM as here 1090 ns, AES-128-GCM 1000,
//! ChaCha20-Poly1305 4700, AEGIS-128X2 in Rust 25 000 (it does not look for AES instructions at run
//! time). ring takes 500, with C and assembly, and was not tried in the preload object. Of the
//! hashes, XXH3 takes 175 ns for 64 bits and for 128, and GHASH 520.
//!
//! Sealing and opening take up to 8 KiB of stack. The first [`Sealer::new`] asks the CPU what it
//! can do, which is slow in a guest: 150 us, with the page faults of first use. No libc is asked,
//! save on aarch64, where the cipher calls `getauxval`.

mod check;

use core::fmt;

use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit};

use super::space::Block;
use crate::entry::SwapEntry;
use crate::page::PAGE_SIZE;

const NONCE: usize = 12;
const CHECK: usize = 16;
/// The low byte of [`Nonce::counter`].
const GENERATION_AT: usize = 4;

/// Bytes that an object takes beside its own.
pub const HEADER: usize = NONCE + CHECK;

/// Bytes of a run's key.
pub const KEY: usize = 32;

/// Whole blocks that an object of `length` bytes takes.
///
/// # Panics
/// If no object has that length.
pub const fn blocks(length: usize, block_size: usize) -> u8 {
    assert!(0 < length && length <= PAGE_SIZE, "an object has 1 byte to a page");
    (HEADER + length).div_ceil(block_size) as u8
}

/// What the check binds an object to, beside its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whose data it is.
    pub entry: SwapEntry,
    /// The device that it is on, by a number that the run gives it.
    pub device: u8,
    /// The first of its blocks.
    pub block: Block,
    /// Which write of the entry it is: [`Nonce::generation`], which the caller keeps in RAM.
    pub generation: u8,
}

impl Binding {
    /// What is not stored with the object, for the check.
    fn associated(self, length: usize) -> [u8; 11] {
        let mut bytes = [0; 11];
        bytes[..4].copy_from_slice(&self.entry.raw().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.block.raw().to_le_bytes());
        bytes[8..10].copy_from_slice(&(length as u16).to_le_bytes());
        bytes[10] = self.device;
        bytes
    }
}

/// Names a write. None is used twice under one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce {
    /// Another one for each process of the run, also after a fork.
    pub process: u32,
    /// Rises with each write of that process.
    pub counter: u64,
}

impl Nonce {
    /// What the caller keeps of it: the low byte of the counter.
    pub const fn generation(self) -> u8 {
        self.counter as u8
    }

    fn to_bytes(self) -> [u8; NONCE] {
        let mut bytes = [0; NONCE];
        bytes[..4].copy_from_slice(&self.process.to_le_bytes());
        bytes[4..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}

/// The generation that sealed blocks claim to be of, 0 if they are too short for that.
pub fn generation_of(sealed: &[u8]) -> u8 {
    sealed.get(GENERATION_AT).copied().unwrap_or(0)
}

/// What is done to objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// They are unreadable without the run's key, and cannot be forged.
    Encrypted,
    /// They are stored as they are, with a check that finds accidents.
    Checked,
}

/// Why an object is not given to the program. The page that it was is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// Another write is in its place, or the nonce is damaged.
    #[error("its blocks hold write {found} (mod 256), not write {expected}")]
    Generation {
        /// Of the write that should be there.
        expected: u8,
        /// Of what is there.
        found: u8,
    },
    /// The check does not match: bits changed, or these blocks were not written together, or they
    /// belong to another entry, place or length.
    #[error("the check does not match its bytes, its entry, its place and its length")]
    Check,
    /// An object of that length would not fit the blocks that were read.
    #[error("it is longer than its blocks")]
    Length,
}

/// Seals objects for their way to a device, and opens them when they come back.
pub struct Sealer(Scheme);

#[expect(clippy::large_enum_variant, reason = "there is one for all devices of a process")]
enum Scheme {
    Encrypted(Aes256Gcm),
    Checked { key: u64 },
}

impl fmt::Debug for Sealer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Sealer").field(&self.protection()).finish()
    }
}

impl Sealer {
    /// A sealer for a run. The key is random and ends with the run; what the sealer makes of it is
    /// wiped when it is dropped.
    pub fn new(key: &[u8; KEY], protection: Protection) -> Self {
        Self(match protection {
            Protection::Encrypted => Scheme::Encrypted(Aes256Gcm::new(key.into())),
            Protection::Checked => Scheme::Checked { key: check::key(key) },
        })
    }

    /// What it does to objects.
    pub fn protection(&self) -> Protection {
        match self.0 {
            Scheme::Encrypted(_) => Protection::Encrypted,
            Scheme::Checked { .. } => Protection::Checked,
        }
    }

    /// Lays `bytes` out in `out`, which is all the object's blocks.
    ///
    /// # Panics
    /// If no object has that length, or it does not fit, or the binding has not the nonce's
    /// generation: nothing could read it back.
    pub fn seal(&self, binding: Binding, nonce: Nonce, bytes: &[u8], out: &mut [u8]) {
        let length = bytes.len();
        assert!((1..=PAGE_SIZE).contains(&length), "an object has 1 byte to a page");
        assert_eq!(binding.generation, nonce.generation(), "the caller keeps the nonce's");
        let (object, rest) = out.split_at_mut(HEADER + length);
        let (header, body) = object.split_at_mut(HEADER);
        let (nonce, associated) = (nonce.to_bytes(), binding.associated(length));
        let check: [u8; CHECK] = match &self.0 {
            Scheme::Encrypted(cipher) => {
                let buffer = InOutBuf::new(bytes, body).expect("they are equally long");
                cipher
                    .encrypt_inout_detached(&nonce.into(), &associated, buffer)
                    .expect("AES-GCM takes 64 GiB at once")
                    .into()
            }
            Scheme::Checked { key } => {
                body.copy_from_slice(bytes);
                check::of(*key, nonce, associated, bytes)
            }
        };
        header[..NONCE].copy_from_slice(&nonce);
        header[NONCE..].copy_from_slice(&check);
        rest.fill(0);
    }

    /// Takes an object of `out.len()` bytes out of its blocks.
    ///
    /// # Errors
    /// If it is not what was sealed with this binding. `out` is as it was then.
    pub fn open(&self, binding: Binding, sealed: &[u8], out: &mut [u8]) -> Result<(), Damaged> {
        let Some(object) = sealed.get(..HEADER + out.len()) else { return Err(Damaged::Length) };
        let (header, body) = object.split_at(HEADER);
        let (nonce, check) = header.split_first_chunk::<NONCE>().ok_or(Damaged::Length)?;
        let found = nonce[GENERATION_AT];
        if found != binding.generation {
            return Err(Damaged::Generation { expected: binding.generation, found });
        }
        let associated = binding.associated(out.len());
        match &self.0 {
            Scheme::Encrypted(cipher) => {
                let check = check.try_into().map_err(|_| Damaged::Length)?;
                let buffer = InOutBuf::new(body, out).map_err(|_| Damaged::Length)?;
                cipher
                    .decrypt_inout_detached(nonce.into(), &associated, buffer, check)
                    .map_err(|_| Damaged::Check)
            }
            Scheme::Checked { key } => {
                if check::of(*key, *nonce, associated, body) != check {
                    return Err(Damaged::Check);
                }
                out.copy_from_slice(body);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
