//! Bytes as people compare them: a hex dump, in the form of `hexdump -C`.

use std::io::Write;

/// Bytes in a line.
const WIDTH: usize = 16;

/// Appends `bytes` as lines: the position of the first byte, up to 16 bytes in hexadecimal digits, and the same as
/// text, with a dot for what is not printable ASCII. `position` is where `bytes` begin in their stream.
pub fn dump(position: u64, bytes: &[u8], into: &mut Vec<u8>) {
    for (number, line) in bytes.chunks(WIDTH).enumerate() {
        let begin = position + (number * WIDTH) as u64;
        write!(into, "{begin:08x} ").expect("memory takes everything");
        for place in 0..WIDTH {
            if place % 8 == 0 {
                into.push(b' ');
            }
            match line.get(place) {
                Some(byte) => write!(into, "{byte:02x} ").expect("memory takes everything"),
                None => into.extend_from_slice(b"   "),
            }
        }
        into.extend_from_slice(b" |");
        into.extend(line.iter().map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'.' }));
        into.extend_from_slice(b"|\n");
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
