//! A bar that fills, for somebody who watches.

use std::io::{IsTerminal as _, Write as _};

use crate::size::Size;

/// Its length in characters.
const WIDTH: usize = 40;

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
            write(&format!("\r{}\x1b[K", line(done, of)));
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

fn line(done: u64, of: u64) -> String {
    let filled = u128::from(done.min(of)) * WIDTH as u128 / u128::from(of.max(1));
    let filled = "=".repeat(filled as usize);
    format!("[{filled:<WIDTH$}] {} of {}", Size::text(done), Size::text(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_full_at_the_end() {
        let (empty, half, full) = (" ".repeat(WIDTH), "=".repeat(WIDTH / 2), "=".repeat(WIDTH));
        assert_eq!(line(0, 4096), format!("[{empty}] 0 of 4K"));
        assert!(line(1 << 40, 2 << 40).starts_with(&format!("[{half} ")));
        assert_eq!(line(8192, 4096), format!("[{full}] 8K of 4K"));
        assert_eq!(line(0, 0), format!("[{empty}] 0 of 0"));
    }
}
