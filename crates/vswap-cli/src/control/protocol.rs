//! What clients and runs say to each other, a line of JSON each. The client's are those with a version:
//!
//! ```text
//! {"version":1,"request":"status"}
//! {"status":{"pid":4711,"ram_bytes":67108864, … }}
//!
//! {"version":1,"request":"reclaim","bytes":67108864}
//! {"progress":{"done":8388608,"of":67108864}}
//! {"reclaimed":{"bytes":67108864,"end":"done", … }}
//!
//! {"refused":{"what":"…","remedy":"…"}}
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Raised when a request changes its meaning. A run answers requests of its own version only.
pub const VERSION: u32 = 1;

/// Longest request in bytes, with its newline.
pub const REQUEST_MAX: usize = 8192;

/// What a run can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// How it is, or how the run nested in it is that has this name or process ID.
    Status {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
    },
    /// To evict so many bytes from its members now, or from those of the groups of a name.
    Reclaim {
        bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
    },
    /// To bring back all that is swapped out of its members, or of the one with this process ID, and to
    /// keep it in memory.
    SwapIn { process: Option<u32> },
    /// To take the last request back.
    SwapOut { process: Option<u32> },
    /// To use one more swap device; as `--swap`, with an absolute path.
    SwapOn {
        path: String,
        size: Option<u64>,
        priority: Option<i16>,
        #[serde(default)]
        tier: Option<String>,
    },
    /// To do without a swap device, or without any.
    SwapOff { path: Option<String> },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    #[serde(flatten)]
    request: Request,
}

/// What a run answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// The last line of [`Request::Status`], see `requests::status`.
    Status(Value),
    /// A long operation is under way.
    Progress { done: u64, of: u64 },
    /// The last line of [`Request::Reclaim`].
    Reclaimed(Reclaimed),
    /// The last line of [`Request::SwapIn`], with what was out.
    SwappedIn { bytes: u64, processes: usize, charged_bytes: u64, ram_bytes: u64 },
    /// The last line of [`Request::SwapOut`], with how many processes were kept in memory.
    SwappedOut { processes: usize },
    /// The last line of [`Request::SwapOn`].
    SwappedOn { filename: String, size_bytes: u64, priority: i16 },
    /// The last line of [`Request::SwapOff`], with what was moved.
    SwappedOff { bytes: u64 },
    /// The last line of a [`Request::SwapIn`] or [`Request::SwapOff`] that was taken back, with what is still
    /// swapped out, or on the device.
    Interrupted { left_bytes: u64 },
    /// The last line of a request that is not carried out.
    Refused { what: String, remedy: String },
}

/// How a reclaim ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// Evicted.
    pub bytes: u64,
    /// What had been asked for.
    pub asked_bytes: u64,
    /// What the run uses of its budget now.
    pub charged_bytes: u64,
    /// Its budget.
    pub ram_bytes: u64,
    /// Why not more.
    pub end: End,
}

/// Why a reclaim ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All that was asked for was evicted.
    Done,
    /// The client took it back.
    Interrupted,
    /// No process of the run has a pager.
    NoPager,
    /// Nothing else that can be paged is resident.
    NothingLeft,
    /// Neither pool nor swap device takes more.
    NoRoom,
    /// The pagers did nothing for long.
    NoAnswer,
}

impl Request {
    /// The request as a line.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(&Envelope { version: VERSION, request: self.clone() })
    }

    /// Reads a line without its newline; the answer if it is not a request.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        let not_a_request = || Reply::refused("that is not a request", "use the vswap command");
        let value: Value = serde_json::from_slice(line).map_err(|_| not_a_request())?;
        let version = value.get("version").and_then(Value::as_u64).ok_or_else(not_a_request)?;
        if version != u64::from(VERSION) {
            let what = format!("this run speaks version {VERSION} of the protocol, not {version}");
            return Err(Reply::refused(what, "use the vswap command that it was started with"));
        }
        let envelope: Envelope = serde_json::from_value(value).map_err(|_| not_a_request())?;
        Ok(envelope.request)
    }
}

impl Reply {
    /// A request that is not carried out.
    pub fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), remedy: remedy.into() }
    }

    /// The reply as a line.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }
}

fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("strings and numbers only");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let group = Some("index".to_owned());
        for request in [
            Request::Status { group: None },
            Request::Reclaim { bytes: 1 << 40, group: None },
            Request::Reclaim { bytes: 1, group },
        ] {
            let line = request.to_line();
            let (newline, text) = line.split_last().unwrap();
            assert_eq!((Request::parse(text), *newline), (Ok(request), b'\n'));
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in ["", "{}", "status", "{\"version\":1}", "{\"version\":1,\"request\":\"dance\"}"]
        {
            let refused = Request::parse(text.as_bytes()).unwrap_err();
            assert_eq!(refused, Reply::refused("that is not a request", "use the vswap command"));
        }
        let other = Request::parse(b"{\"version\":2,\"request\":\"status\"}").unwrap_err();
        assert!(matches!(other, Reply::Refused { what, .. } if what.contains("not 2")));
    }
}
