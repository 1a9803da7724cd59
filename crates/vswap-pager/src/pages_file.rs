//! The file with the pages that a core dump lacks: written by a pager, read by `vswap core-fix`.
//!
//! A [`Header`], then records: a head of eight bytes ([`Head`]) and as many bytes as it says, which are a
//! page as it is, or compressed with lz4. A head of zeros is the end; a file without it is not whole.

/// What a file begins with.
const MAGIC: [u8; 8] = *b"vswapcp1";

/// Bits of a head that are the length.
const LENGTH_BITS: u32 = 16;

/// The address space that the pages are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its process ID in its own PID namespace.
    pub pid: u32,
    /// The random bytes that the kernel gave its program at exec (AT_RANDOM), which the core has too.
    pub random: [u8; 16],
}

impl Identity {
    /// Size of the packed form.
    pub const SIZE: usize = 20;

    /// The packed form.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.pid.to_le_bytes());
        bytes[4..].copy_from_slice(&self.random);
        bytes
    }

    /// Reads it.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let mut random = [0; 16];
        random.copy_from_slice(&bytes[4..]);
        Self { pid: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), random }
    }
}

/// What the file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub Identity);

impl Header {
    /// Size of the packed form.
    pub const SIZE: usize = MAGIC.len() + Identity::SIZE;

    /// The packed form.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
        bytes[MAGIC.len()..].copy_from_slice(&self.0.to_bytes());
        bytes
    }

    /// Reads it; `None` if the file is none of these.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let identity = bytes.strip_prefix(&MAGIC)?;
        Some(Self(Identity::from_bytes(identity.try_into().ok()?)))
    }
}

/// What a record begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of the page: its address in pages.
    pub page: usize,
    /// Bytes that follow.
    pub length: usize,
}

impl Head {
    /// Size of the packed form.
    pub const SIZE: usize = 8;
    /// Behind the last record.
    pub const END: [u8; Self::SIZE] = [0; Self::SIZE];

    /// The packed form.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        ((self.page as u64) << LENGTH_BITS | self.length as u64).to_le_bytes()
    }

    /// Reads it; `None` at the end.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Option<Self> {
        let word = u64::from_le_bytes(bytes);
        let length = (word & ((1 << LENGTH_BITS) - 1)) as usize;
        (word != 0).then_some(Self { page: (word >> LENGTH_BITS) as usize, length })
    }
}

#[cfg(test)]
mod tests {
    use vswap_core::page::PAGE_SIZE;

    use super::*;

    #[test]
    fn everything_survives_packing() {
        let identity = Identity { pid: 4711, random: *b"0123456789abcdef" };
        assert_eq!(Identity::from_bytes(identity.to_bytes()), identity);
        let header = Header(identity);
        assert_eq!(Header::from_bytes(&header.to_bytes()), Some(header));
        assert_eq!(Header::from_bytes(&[0; Header::SIZE]), None);
        for head in [Head { page: (1 << 35) - 1, length: PAGE_SIZE }, Head { page: 16, length: 1 }]
        {
            assert_eq!(Head::from_bytes(head.to_bytes()), Some(head));
        }
        assert_eq!(Head::from_bytes(Head::END), None);
    }
}
