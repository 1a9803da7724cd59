//! Packets between a member and its coordinator, on an abstract SEQPACKET socket.
//!
//! A member connects when it starts its pager and sends [`Hello`] with its userfaultfd attached
//! (SCM_RIGHTS): the coordinator keeps that descriptor open, so that evicted pages never read as
//! zeros when the pager dies. It answers with [`Welcome`] and descriptors: the memfd of the
//! [`RunPage`](crate::run_page::RunPage), then the run's swap devices.
//!
//! From then on only the pager holds the member's end. [`BYE`] means that the program ended (or
//! replaced itself by `exec`); an end of file without it means that the pager died, and the
//! coordinator ends the program.

/// First byte of a [`Hello`].
pub const HELLO: u8 = 1;
/// First byte of a packet whose rest is a line of text for the user's stderr.
pub const MESSAGE: u8 = 2;
/// As [`MESSAGE`], and the program is about to be killed because its data does not fit: the
/// coordinator exits with 137 if it is the program that it started.
pub const OUT_OF_MEMORY: u8 = 3;
/// The only byte of the packet that ends a connection in good order.
pub const BYE: u8 = 4;

/// First byte of a [`NewDevice`].
pub const DEVICE: u8 = 5;

/// From the coordinator: the run has one more swap device, whose descriptor is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// Its number.
    pub number: u8,
    /// Which of the devices with that number it is.
    pub serial: u32,
}

impl NewDevice {
    /// The packet.
    pub fn to_bytes(self) -> [u8; 6] {
        let [a, b, c, d] = self.serial.to_le_bytes();
        [DEVICE, self.number, a, b, c, d]
    }

    /// Reads a packet; `None` if it is none of these.
    pub fn from_bytes(packet: &[u8]) -> Option<Self> {
        match *packet {
            [DEVICE, number, a, b, c, d] => {
                Some(Self { number, serial: u32::from_le_bytes([a, b, c, d]) })
            }
            _ => None,
        }
    }
}

/// First byte of what somebody says instead of a hello: it is about to become a program that cannot
/// be paged. An [`Unmanaged`] follows, and the program's path. The answer is the connection's end.
pub const UNMANAGED: u8 = 6;

/// First byte of what a nested `vswap run` says instead of a hello, and of what it says later; and of the answers. A
/// line of JSON follows, of the coordinator's own making.
pub const NESTED: u8 = 7;

/// First byte of what a pager says when its program has left a core dump; the packed
/// [`Identity`](crate::pages_file::Identity) of the program follows. The answer is this byte, with the
/// descriptor of a file attached that the pages go to which the core lacks, if there is a place for one.
pub const CORE_DUMPED: u8 = 8;

/// First byte of a [`CoreSaved`].
pub const CORE_SAVED: u8 = 9;

/// What became of the pages that a core dump lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreSaved {
    /// Pages in the file.
    pub pages: u64,
    /// Pages that could not be read.
    pub lost: u64,
    /// Why the file is not whole; 0 if it is.
    pub error: i32,
}

impl CoreSaved {
    /// Size of the packet.
    pub const SIZE: usize = 21;

    /// The packet.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [CORE_SAVED; Self::SIZE];
        bytes[1..9].copy_from_slice(&self.pages.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.lost.to_le_bytes());
        bytes[17..].copy_from_slice(&self.error.to_le_bytes());
        bytes
    }

    /// Reads a packet; `None` if it is none of these.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[CORE_SAVED])?;
        let (pages, rest) = rest.split_first_chunk()?;
        let (lost, rest) = rest.split_first_chunk()?;
        let error = i32::from_le_bytes(rest.try_into().ok()?);
        Some(Self { pages: u64::from_le_bytes(*pages), lost: u64::from_le_bytes(*lost), error })
    }
}

/// Longest packet in bytes.
pub const PACKET_MAX: usize = 512;

/// Why a program inside a tree cannot be paged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmanaged {
    /// It has no dynamic linker.
    Static = 0,
    /// It is of another architecture, or of 32 bits.
    Foreign = 1,
    /// It gains privileges, and its dynamic linker ignores `LD_PRELOAD`.
    Privileged = 2,
}

impl Unmanaged {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Static, Self::Foreign, Self::Privileged];
}

/// What a member says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The program's process ID in its own PID namespace. The coordinator takes the real one from
    /// SO_PEERCRED.
    pub pid: u32,
    /// The token of its group, as [`Config::group`](crate::config::Config::group) has it.
    pub group: u32,
    /// Name of the program (`/proc/self/comm`), NUL padded.
    pub name: [u8; 16],
}

impl Hello {
    /// Size of the packet.
    pub const SIZE: usize = 25;

    /// The packet.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = HELLO;
        bytes[1..5].copy_from_slice(&self.pid.to_le_bytes());
        bytes[5..9].copy_from_slice(&self.group.to_le_bytes());
        bytes[9..].copy_from_slice(&self.name);
        bytes
    }

    /// Reads a packet; `None` if it is not a hello.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        if kind != HELLO || bytes.len() != Self::SIZE {
            return None;
        }
        let (pid, rest) = rest.split_first_chunk::<4>()?;
        let (group, name) = rest.split_first_chunk::<4>()?;
        let [pid, group] = [*pid, *group].map(u32::from_le_bytes);
        Some(Self { pid, group, name: name.try_into().ok()? })
    }
}

/// The coordinator's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Index into [`RunPage::members`](crate::run_page::RunPage::members).
    pub index: u32,
    /// Which swap devices there are, one bit each; their descriptors come in this order.
    pub devices: u8,
}

impl Welcome {
    /// Size of the packet.
    pub const SIZE: usize = 6;

    /// The numbers of the swap devices.
    pub fn devices(self) -> impl Iterator<Item = usize> {
        (0..u8::BITS as usize).filter(move |number| self.devices & (1 << number) != 0)
    }

    /// The packet.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = HELLO;
        bytes[1..5].copy_from_slice(&self.index.to_le_bytes());
        bytes[5] = self.devices;
        bytes
    }

    /// Reads a packet; `None` if it is not a welcome.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (index, &[devices]) = bytes.strip_prefix(&[HELLO])?.split_first_chunk::<4>()? else {
            return None;
        };
        Some(Self { index: u32::from_le_bytes(*index), devices })
    }
}
