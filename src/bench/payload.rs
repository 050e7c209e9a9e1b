//! The bytes that are sent, and the check that they came back.
//!
//! Every connection sends a stream of its own: a long block of random bytes, repeated, from a start of its own. So a
//! byte that is lost, repeated, swapped or another connection's shows as a wrong byte, and making and checking a stream
//! costs no more than pointing into the block and comparing. The period is a prime number of bytes, so
//! that no two positions a message or a buffer apart are alike, and small enough for the block to stay in a processor's
//! cache. (A loss or a repetition of a whole period would show in the number of bytes, and in that alone.)
//!

use std::fmt;

use crate::count::counted;
use memchr::memmem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes after which a stream repeats itself: the largest prime below 2^16. A block of a mebibyte made each message
/// touch cold memory, which showed.
const PERIOD: u64 = 65_521;

/// How far apart the streams of successive connections start. Any number that is not a multiple of the prime period
/// gives each of [`PERIOD`] connections in a row a start of its own.
const STRIDE: u64 = 40_503;

/// The longest piece of a stream that [`Payload::piece`] returns, in bytes.
pub(super) const PIECE: usize = 64 * 1024;

/// Bytes that are needed to recognise a position in the block.
const MIN_RECOGNISED: usize = 8;

/// Bytes shown of each side of a mismatch.
const SHOWN: usize = 8;

/// Blocks that are made at most: each is of [`PERIOD`] connections in a row.
const MAX_BLOCKS: u64 = 64;

/// The streams of all connections.
pub(super) struct Payload {
    seed: u64,
    /// The blocks of as many connections as there have been, each with its beginning once more so that pieces need not
    /// end where it does.
    blocks: Vec<Box<[u8]>>,
}

impl Payload {
    /// The streams that belong to `seed`.
    pub fn new(seed: u64) -> Self {
        let mut payload = Payload { seed, blocks: Vec::new() };
        payload.prepare(0);
        payload
    }

    /// Makes what a connection's stream is made from, if no other needed it before.
    pub fn prepare(&mut self, connection: u64) {
        while self.blocks.len() as u64 <= block_of(connection) {
            let seed = self.seed.wrapping_add((self.blocks.len() as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
            let mut block = Vec::with_capacity(PERIOD as usize + PIECE);
            for word in 0..PERIOD.div_ceil(8) {
                block.extend_from_slice(&mix(seed, word).to_le_bytes());
            }
            block.truncate(PERIOD as usize);
            while block.len() < PERIOD as usize + PIECE {
                let missing = PERIOD as usize + PIECE - block.len();
                block.extend_from_within(..missing.min(PERIOD as usize));
            }
            self.blocks.push(block.into_boxed_slice());
        }
    }

    /// A number that is a socket's own: what makes its datagrams' numbers different from those of others.
    pub fn mark(&self, connection: u64) -> u64 {
        mix(self.seed ^ 0x5851_F42D_4C95_7F2D, connection)
    }

    /// Up to `length` bytes of a connection's stream from `position` on; at most [`PIECE`]. The connection has been
    /// [prepared](Payload::prepare).
    pub fn piece(&self, connection: u64, position: u64, length: u64) -> &[u8] {
        let at = ((start(connection) + position) % PERIOD) as usize;
        &self.blocks[block_of(connection) as usize][at..at + length.min(PIECE as u64) as usize]
    }

    /// The number of leading `bytes` that are the connection's stream from `position` on.
    pub fn matching(&self, connection: u64, position: u64, bytes: &[u8]) -> usize {
        let mut checked = 0;
        for chunk in bytes.chunks(PIECE) {
            let expected = self.piece(connection, position + checked as u64, chunk.len() as u64);
            if expected != chunk {
                return checked + expected.iter().zip(chunk).take_while(|(expected, got)| expected == got).count();
            }
            checked += chunk.len();
        }
        checked
    }

    /// Describes `got`, which should be the connection's stream from `position` on and is not, not even its first
    /// byte. `in_flight` are the other connections, each with the position up to which it has received and sent.
    pub fn explain(
        &self,
        connection: u64,
        position: u64,
        got: &[u8],
        in_flight: impl Iterator<Item = (u64, u64, u64)>,
    ) -> Mismatch {
        let expected = self.piece(connection, position, got.len() as u64);
        Mismatch {
            connection,
            offset: position,
            datagram: None,
            expected: hex(expected),
            got: hex(got),
            cause: self.cause(connection, position, got, in_flight),
        }
    }

    fn cause(
        &self,
        connection: u64,
        position: u64,
        got: &[u8],
        in_flight: impl Iterator<Item = (u64, u64, u64)>,
    ) -> Cause {
        let expected = self.piece(connection, position, got.len() as u64);
        if got.len() > MIN_RECOGNISED
            && got[got.len() - MIN_RECOGNISED..] == expected[expected.len() - MIN_RECOGNISED..]
        {
            return Cause::Altered;
        }
        let telling = &got[..got.len().min(2 * MIN_RECOGNISED)];
        if telling.len() < MIN_RECOGNISED {
            return Cause::Unknown;
        }
        let found =
            self.blocks.iter().map(|block| memmem::find(&block[..PERIOD as usize + telling.len() - 1], telling));
        let found: Vec<Option<usize>> = found.collect();
        // The first position of a connection at `from` or after it that looks like what was found.
        let position_in = |other: u64, from: u64| {
            let found = found[block_of(other) as usize]? as u64;
            let here = (start(other) + from) % PERIOD;
            Some(from + (found + PERIOD - here) % PERIOD)
        };
        for (other, received, sent) in in_flight {
            if let Some(offset) = position_in(other, received).filter(|&offset| other != connection && offset < sent) {
                return Cause::Foreign { connection: other, offset };
            }
        }
        let Some(ahead) = position_in(connection, position).map(|found| found - position) else {
            return Cause::Unknown;
        };
        if ahead < PERIOD / 2 {
            Cause::Lost { bytes: ahead }
        } else if PERIOD - ahead <= position {
            Cause::Repeated { bytes: PERIOD - ahead }
        } else {
            Cause::Unknown
        }
    }
}

/// A place in a stream where other bytes came back than were sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mismatch {
    /// The connection's number, counted from 0 in the order in which they were opened.
    pub connection: u64,
    /// The byte's position in the connection's stream, or in the datagram, counted from 0.
    pub offset: u64,
    /// Which of the socket's datagrams it is, counted from 0, if it is known; null over streams.
    #[serde(default)]
    pub datagram: Option<u64>,
    /// The bytes that were sent there, in hexadecimal.
    pub expected: String,
    /// The bytes that came back, in hexadecimal.
    pub got: String,
    /// What seems to have happened.
    pub cause: Cause,
}

/// What seems to have happened to bytes that did not come back as they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Bytes are missing: so many before these.
    Lost {
        /// The number of missing bytes.
        bytes: u64,
    },
    /// The stream jumps back by so many bytes.
    Repeated {
        /// The number of bytes.
        bytes: u64,
    },
    /// These are bytes of another connection.
    Foreign {
        /// That connection's number.
        connection: u64,
        /// Their position in its stream; of a datagram, its number.
        offset: u64,
    },
    /// A datagram is shorter or longer than it was sent.
    Length {
        /// The bytes that were sent.
        expected: u64,
        /// The bytes that came back.
        got: u64,
    },
    /// Some bytes are wrong, and those after them are right again.
    Altered,
    /// They are nothing that was sent.
    Unknown,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { connection, offset, datagram, expected, got, cause } = self;
        match datagram {
            Some(datagram) => write!(f, "socket {connection}, datagram {datagram}, byte {offset}")?,
            None => write!(f, "connection {connection}, offset {offset}")?,
        }
        let [expected, got] = [expected, got].map(|bytes| if bytes.is_empty() { "nothing" } else { bytes });
        write!(f, ": expected {expected}, got {got}: ")?;
        match cause {
            Cause::Lost { bytes } => write!(f, "{} lost", counted(*bytes, "byte")),
            Cause::Repeated { bytes } => write!(f, "the stream jumps back by {}", counted(*bytes, "byte")),
            Cause::Foreign { connection, offset } if datagram.is_some() => {
                write!(f, "that is datagram {offset} of socket {connection}")
            }
            Cause::Foreign { connection, offset } => write!(f, "that is connection {connection} at offset {offset}"),
            Cause::Length { expected, got } => write!(f, "{} came back of {expected}", counted(*got, "byte")),
            Cause::Altered if datagram.is_some() => write!(f, "bytes were altered"),
            Cause::Altered => write!(f, "bytes were altered, and later ones are right"),
            Cause::Unknown => write!(f, "nothing that was sent"),
        }
    }
}

/// The sizes of messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    smallest: u64,
    spread: u64,
    seed: u64,
}

impl Sizes {
    /// Uniform from `smallest` to `largest` bytes, both included.
    pub fn new(smallest: u64, largest: u64, seed: u64) -> Self {
        Sizes { smallest, spread: largest - smallest + 1, seed: seed.wrapping_add(1) }
    }

    /// The size of a connection's message, by its number.
    pub fn of(&self, connection: u64, message: u64) -> u64 {
        if self.spread == 1 {
            return self.smallest;
        }
        let random = mix(self.seed ^ connection.rotate_left(32), message);
        self.smallest + ((u128::from(random) * u128::from(self.spread)) >> 64) as u64
    }
}

fn block_of(connection: u64) -> u64 {
    connection / PERIOD % MAX_BLOCKS
}

fn start(connection: u64) -> u64 {
    connection % PERIOD * STRIDE % PERIOD
}

/// A random number for each `index` (SplitMix64: G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014).
fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connection's bytes from `from` to `to`.
    fn stream(payload: &Payload, connection: u64, from: u64, to: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while from + (bytes.len() as u64) < to {
            let at = from + bytes.len() as u64;
            bytes.extend_from_slice(payload.piece(connection, at, to - at));
        }
        bytes
    }

    fn cause(payload: &Payload, position: u64, got: &[u8]) -> Cause {
        let others = [(0, 0, 100), (1, 1000, 2000), (2, 1000, 2000), (3, 5_000_000, 5_000_100)];
        payload.explain(1, position, got, others.into_iter()).cause
    }

    #[test]
    fn verifying_a_stream_ignores_where_it_is_cut() {
        let payload = Payload::new(7);
        let whole = stream(&payload, 3, 0, 3 * PERIOD);
        for (from, to) in [(0, 1), (PERIOD - 3, PERIOD + 70_000), (5, 3 * PERIOD), (2 * PERIOD, 2 * PERIOD)] {
            assert!(whole[from as usize..to as usize] == stream(&payload, 3, from, to));
            assert_eq!(payload.matching(3, from, &whole[from as usize..to as usize]) as u64, to - from);
        }
    }

    #[test]
    fn streams_differ_by_connection_seed_and_position() {
        let payload = Payload::new(7);
        let here = stream(&payload, 3, 1000, 1064);
        assert_ne!(here, stream(&payload, 4, 1000, 1064));
        assert_ne!(here, stream(&payload, 3, 1064, 1128));
        assert_ne!(here, stream(&Payload::new(8), 3, 1000, 1064));
        assert_eq!(here, stream(&Payload::new(7), 3, 1000, 1064));
        // Where successive connections have used up the starts, another block follows.
        let mut payload = payload;
        payload.prepare(3 + PERIOD);
        assert_ne!(here, stream(&payload, 3 + PERIOD, 1000, 1064));
        let foreign =
            payload.explain(3, 1000, &stream(&payload, 3 + PERIOD, 70, 130), [(3 + PERIOD, 0, 200)].into_iter());
        assert_eq!(foreign.cause, Cause::Foreign { connection: 3 + PERIOD, offset: 70 });
        let starts: std::collections::HashSet<_> = (0..PERIOD).map(start).collect();
        assert_eq!(starts.len() as u64, PERIOD);
    }

    #[test]
    fn the_first_wrong_byte_is_found() {
        let payload = Payload::new(1);
        for wrong in [0, 1, 63, PIECE - 1, PIECE, 100_000] {
            let mut got = stream(&payload, 5, 123, 123 + 100_001);
            got[wrong] ^= 1;
            assert_eq!(payload.matching(5, 123, &got), wrong);
        }
    }

    #[test]
    fn what_happened_is_recognised() {
        let payload = Payload::new(1);
        let at = |from| stream(&payload, 1, from, from + 64);
        assert_eq!(cause(&payload, 1000, &at(1064)), Cause::Lost { bytes: 64 });
        assert_eq!(cause(&payload, 1000, &at(1001)), Cause::Lost { bytes: 1 });
        assert_eq!(cause(&payload, 1064, &at(1000)), Cause::Repeated { bytes: 64 });
        let foreign = Cause::Foreign { connection: 2, offset: 1500 };
        assert_eq!(cause(&payload, 1000, &stream(&payload, 2, 1500, 1520)), foreign);
        let mut altered = at(1000);
        altered[0] ^= 1;
        assert_eq!(cause(&payload, 1000, &altered), Cause::Altered);
        assert_eq!(cause(&payload, 1000, &[0; 64]), Cause::Unknown);
        assert_eq!(cause(&payload, 1000, b"HTTP"), Cause::Unknown);
    }

    #[test]
    fn sizes_are_uniform_reproducible_and_within_bounds() {
        let sizes = Sizes::new(10, 19, 42);
        let mut counts = [0; 10];
        for message in 0..10_000 {
            counts[sizes.of(3, message) as usize - 10] += 1;
            assert_eq!(sizes.of(3, message), Sizes::new(10, 19, 42).of(3, message));
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        assert_eq!(Sizes::new(64, 64, 1).of(9, 9), 64);
    }
}
