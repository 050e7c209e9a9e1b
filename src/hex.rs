//! Bytes as people compare them: a hex dump, in the form of `hexdump -C`.

use std::fmt;
use std::io::Write;

/// Bytes in a line.
const WIDTH: usize = 16;

/// Appends `bytes` as lines: the position of the first byte, up to 16 bytes in hexadecimal digits, and the same as
/// text, with a dot for what is not printable ASCII. `position` is where `bytes` begin in their stream.
pub fn dump(position: u64, bytes: &[u8], into: &mut Vec<u8>) {
    for line in lines(position, bytes) {
        writeln!(into, "{line}").expect("memory takes everything");
    }
}

/// The lines of a dump. What is empty has one line, with nothing in it.
pub fn lines(position: u64, bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let at = move |number: usize| (number * WIDTH).min(bytes.len());
    (0..bytes.len().div_ceil(WIDTH).max(1))
        .map(move |number| Line { position: position + at(number) as u64, bytes: &bytes[at(number)..at(number + 1)] })
}

/// A line of a dump, without its newline.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    position: u64,
    bytes: &'a [u8],
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Two digits and a space for each byte, and a space before each eight.
        let mut numbers = [b' '; 3 * WIDTH + 2];
        let mut text = [b'.'; WIDTH];
        for (place, &byte) in self.bytes.iter().enumerate() {
            let at = 1 + 3 * place + place / 8;
            (numbers[at], numbers[at + 1]) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
            if byte.is_ascii_graphic() || byte == b' ' {
                text[place] = byte;
            }
        }
        let [numbers, text] =
            [&numbers[..], &text[..self.bytes.len()]].map(|ascii| str::from_utf8(ascii).unwrap_or_default());
        write!(f, "{:08x} {numbers} |{text}|", self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_like_hexdump() {
        let mut text = Vec::new();
        dump(0x20, b"Hello, w\xc3\xb6rld!\r\n\0", &mut text);
        let expected = "\
00000020  48 65 6c 6c 6f 2c 20 77  c3 b6 72 6c 64 21 0d 0a  |Hello, w..rld!..|
00000030  00                                                |.|
";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
