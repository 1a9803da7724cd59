//! The check of objects that are not encrypted.

use twox_hash::{XxHash3_64, XxHash3_128};

use super::{CHECK, KEY, NONCE};

/// Makes objects of another run, or of an earlier use of the device, fail the check.
pub(super) fn key(run: &[u8; KEY]) -> u64 {
    XxHash3_64::oneshot(run)
}

/// The check of an object. What it is bound to comes in as the seed, which spares a copy of the two
/// into one piece.
pub(super) fn of(key: u64, nonce: [u8; NONCE], associated: [u8; 11], object: &[u8]) -> [u8; CHECK] {
    let mut bound = [0; NONCE + 11];
    bound[..NONCE].copy_from_slice(&nonce);
    bound[NONCE..].copy_from_slice(&associated);
    let seed = XxHash3_64::oneshot_with_seed(key, &bound);
    XxHash3_128::oneshot_with_seed(seed, object).to_le_bytes()
}
