//! What `vswap run` tells the engine inside a program: one environment variable.
//!
//! The variable has to survive `exec` in any process of the tree, so it is plain text, and it has
//! to be read before the program's libc is usable, so parsing allocates nothing.

use core::fmt;

/// Name of the environment variable that carries a [`Config`].
pub const ENV_NAME: &str = "VSWAP_RUN";

/// Longest socket name that fits an abstract `sockaddr_un` (108 bytes less the leading NUL).
pub const SOCKET_NAME_MAX: usize = 100;

/// Who resolves a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The pager process does; faults inside system calls work.
    Handoff,
    /// The faulting thread does, in a SIGBUS handler; a system call on a swapped-out buffer fails
    /// with EFAULT.
    Inline,
}

/// Compressor of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecChoice {
    /// LZ4, the default.
    Lz4,
    /// Zstandard at the given level.
    Zstd(i32),
    /// No compression: pages are zero, same-filled or kept raw.
    None,
}

/// Settings of one run, the same for each process of its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// RAM budget of the whole tree, in bytes.
    pub ram: u64,
    /// How faults are resolved.
    pub engine: Engine,
    /// Compressor of the pool.
    pub codec: CodecChoice,
    /// Compressor for what has been in the pool for long.
    pub cold_codec: Option<CodecChoice>,
    /// Seconds after which what lies in the pool untouched goes to a swap device.
    pub writeback_after: Option<u32>,
    /// Whether a page that comes back for a read may keep its compressed copy. Without only to measure what
    /// that is worth.
    pub swap_cache: bool,
    /// Seed of chaos mode: evict random pages after every mapping call. For tests.
    pub chaos: Option<u64>,
    /// The token of the group that it belongs to, which the coordinator gave to a nested run; 0 is the run itself.
    pub group: u32,
    /// Abstract socket of the coordinator, without the leading NUL. Empty if there is none.
    pub socket: SocketName,
}

/// Name of an abstract Unix socket, held without allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SocketName {
    bytes: [u8; SOCKET_NAME_MAX],
    len: u8,
}

impl SocketName {
    /// The name, or `None` if it is longer than [`SOCKET_NAME_MAX`] or holds a separator (`;`).
    pub fn new(name: &str) -> Option<Self> {
        if name.len() > SOCKET_NAME_MAX || name.contains(';') {
            return None;
        }
        let mut bytes = [0; SOCKET_NAME_MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self { bytes, len: name.len() as u8 })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len as usize]).unwrap_or("")
    }
}

impl fmt::Debug for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Why an environment value is not a [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text was written by another version of vswap.
    #[error("written by another version of vswap")]
    Version,
    /// A field is unknown or its value does not parse.
    #[error("malformed field")]
    Malformed,
}

/// The value of [`ENV_NAME`] for this configuration; [`Config::parse`] reads it back.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1;ram={}", self.ram)?;
        f.write_str(match self.engine {
            Engine::Handoff => ";engine=handoff",
            Engine::Inline => ";engine=inline",
        })?;
        write!(f, ";codec={}", self.codec)?;
        if let Some(codec) = self.cold_codec {
            write!(f, ";cold={codec}")?;
        }
        if let Some(seconds) = self.writeback_after {
            write!(f, ";writeback-after={seconds}")?;
        }
        if !self.swap_cache {
            f.write_str(";swap-cache=off")?;
        }
        if let Some(seed) = self.chaos {
            write!(f, ";chaos={seed}")?;
        }
        if self.group != 0 {
            write!(f, ";group={}", self.group)?;
        }
        write!(f, ";socket={}", self.socket.as_str())
    }
}

impl Config {
    /// Reads the text that [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    /// [`ConfigError`] if the text is of another version or a field does not parse.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut fields = text.split(';');
        if fields.next() != Some("1") {
            return Err(ConfigError::Version);
        }
        let mut config = Self {
            ram: 0,
            engine: Engine::Handoff,
            codec: CodecChoice::Lz4,
            cold_codec: None,
            writeback_after: None,
            swap_cache: true,
            chaos: None,
            group: 0,
            socket: SocketName { bytes: [0; SOCKET_NAME_MAX], len: 0 },
        };
        for field in fields {
            let (key, value) = field.split_once('=').ok_or(ConfigError::Malformed)?;
            config.set(key, value).ok_or(ConfigError::Malformed)?;
        }
        if config.ram == 0 { Err(ConfigError::Malformed) } else { Ok(config) }
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "ram" => self.ram = value.parse().ok()?,
            "engine" => {
                self.engine = match value {
                    "handoff" => Engine::Handoff,
                    "inline" => Engine::Inline,
                    _ => return None,
                }
            }
            "codec" => self.codec = CodecChoice::parse(value)?,
            "cold" => self.cold_codec = Some(CodecChoice::parse(value)?),
            "writeback-after" => self.writeback_after = Some(value.parse().ok()?),
            "swap-cache" => self.swap_cache = value != "off",
            "chaos" => self.chaos = Some(value.parse().ok()?),
            "group" => self.group = value.parse().ok()?,
            "socket" => self.socket = SocketName::new(value)?,
            _ => return None,
        }
        Some(())
    }
}

/// As it is typed.
impl fmt::Display for CodecChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl CodecChoice {
    /// Reads `lz4`, `none`, `zstd` (level 1) or `zstd:LEVEL`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "lz4" => Some(Self::Lz4),
            "none" => Some(Self::None),
            "zstd" => Some(Self::Zstd(1)),
            _ => {
                let level: i32 = text.strip_prefix("zstd:")?.parse().ok()?;
                (-7..=19).contains(&level).then_some(Self::Zstd(level))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn every_field_survives_the_environment() {
        let config = Config {
            ram: 64 << 20,
            engine: Engine::Inline,
            codec: CodecChoice::Zstd(-1),
            cold_codec: Some(CodecChoice::Zstd(3)),
            writeback_after: Some(600),
            swap_cache: false,
            chaos: Some(7),
            group: 3,
            socket: SocketName::new("vswap-1-2").unwrap(),
        };
        assert_eq!(Config::parse(&config.to_string()), Ok(config));
    }

    #[test]
    fn foreign_text_is_refused() {
        assert_eq!(Config::parse("2;ram=1"), Err(ConfigError::Version));
        for text in ["1", "1;ram=0", "1;ram=1;engine=x", "1;ram=1;codec=zstd:99", "1;ram=1;x=y"] {
            assert_eq!(Config::parse(text), Err(ConfigError::Malformed), "{text}");
        }
    }
}
