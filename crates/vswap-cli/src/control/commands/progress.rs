//! A bar that fills, for somebody who watches.

use std::io::{IsTerminal as _, Write as _};

use crate::size::Size;

const WIDTH: u64 = 40;

/// The bar, on a line of stderr that is written over; nothing if that is no terminal.
pub struct Bar {
    shown: bool,
}

impl Bar {
    /// Shows one if somebody can see it.
    pub fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal() }
    }

    /// Fills it as far.
    pub fn show(&self, done: u64, of: u64) {
        if self.shown {
            let filled = (u128::from(done) * u128::from(WIDTH) / u128::from(of.max(1))) as usize;
            let (filled, amount) = ("=".repeat(filled.min(WIDTH as usize)), Size(done.max(1)));
            write(&format!("\r[{filled:<40}] {amount} of {}\x1b[K", Size(of)));
        }
    }
}

/// Clears its line.
impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            write("\r\x1b[K");
        }
    }
}

fn write(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
