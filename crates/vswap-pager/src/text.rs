//! Lines of text without allocation.

use core::fmt;

/// A line that is cut off at its capacity.
#[derive(Clone, Copy, Debug)]
pub struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Line<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> Line<N> {
    /// The formatted text.
    pub fn format(arguments: fmt::Arguments<'_>) -> Self {
        let mut line = Self::default();
        // A full line is the only error, and it is what the type is for.
        let _ = fmt::write(&mut line, arguments);
        line
    }

    /// Appends bytes; `false` if there is not enough room for all of them.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let part = &bytes[..bytes.len().min(N - self.len)];
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
        part.len() == bytes.len()
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The text as a C string, cut off if it fills the line.
    pub fn as_c_str(&mut self) -> &core::ffi::CStr {
        self.len = self.len.min(N - 1);
        self.bytes[self.len] = 0;
        core::ffi::CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

impl<const N: usize> fmt::Write for Line<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.push(text.as_bytes()) { Ok(()) } else { Err(fmt::Error) }
    }
}

/// First number in a text, and what follows it.
pub fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let start = text.iter().position(u8::is_ascii_digit)?;
    let digits = text[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text[start..].split_at(digits);
    let value = digits
        .iter()
        .try_fold(0u64, |value, byte| value.checked_mul(10)?.checked_add(u64::from(byte - b'0')))?;
    Some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_off() {
        let mut line = Line::<8>::format(format_args!("{}{}", "abcde", "fghij"));
        assert_eq!(line.as_bytes(), b"abcdefgh");
        assert_eq!(line.as_c_str(), c"abcdefg");
    }

    #[test]
    fn numbers_are_found() {
        assert_eq!(number(b"Uid:\t12 34"), Some((12, &b" 34"[..])));
        assert_eq!(number(b"none"), None);
    }
}
