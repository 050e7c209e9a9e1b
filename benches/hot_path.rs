//! What a message costs without a kernel: the reactor and its connections on sockets that are made up.
//!
//! And how it grows: the bytes that a connection takes, and the time of a turn, from a thousand connections to a
//! million. `cargo bench --bench hot_path`; a word behind `--` runs only what has it in its name.

use std::io::{self, ErrorKind, Read, Write};
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use echoloop::reactor::socket::Origin;
use echoloop::reactor::{Protocol, Reactor, Readiness, Settings, Source, Stream};
use echoloop::serve::Echo;
use mio::Token;

/// Lines without the terminator, as long as a read.
static TEXT: [u8; 65_536] = {
    let mut text = [b'x'; 65_536];
    let mut at = 31;
    while at < text.len() {
        text[at] = b'\n';
        at += 32;
    }
    text
};

/// A socket at which so many bytes arrive before each event, and which takes so many at once. As small as a real one,
/// which is a number.
struct Socket<const ARRIVE: u32, const TAKE: u32> {
    unread: u32,
}

impl<const ARRIVE: u32, const TAKE: u32> Read for Socket<ARRIVE, TAKE> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = into.len().min(self.unread as usize);
        into[..count].copy_from_slice(&TEXT[..count]);
        self.unread -= count as u32;
        // A read that comes short, or finds nothing, is the last before the next event.
        if count < into.len() {
            self.unread = ARRIVE;
        }
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }
}

impl<const ARRIVE: u32, const TAKE: u32> Write for Socket<ARRIVE, TAKE> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len().min(TAKE as usize))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<const ARRIVE: u32, const TAKE: u32> Stream for Socket<ARRIVE, TAKE> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn short_read_is_conclusive(&self) -> bool {
        true
    }

    fn short_write_is_conclusive(&self) -> bool {
        true
    }
}

const NOTHING: Readiness =
    Readiness { token: Token(0), readable: false, writable: false, read_closed: false, urgent: false };
const READABLE: Readiness = Readiness { readable: true, ..NOTHING };
const WRITABLE: Readiness = Readiness { writable: true, ..NOTHING };
const EVERYTHING: u32 = u32::MAX;

type Loop<const ARRIVE: u32, const TAKE: u32> = Reactor<Socket<ARRIVE, TAKE>, Echo>;

/// A reactor with so many connections.
fn reactor<const ARRIVE: u32, const TAKE: u32>(connections: usize, terminator: Option<&[u8]>) -> Loop<ARRIVE, TAKE> {
    let mut reactor = Reactor::new(Echo::new(terminator, None), Settings::default());
    let now = Instant::now();
    for _ in 0..connections {
        let open = |_, echo: &mut Echo| {
            let state =
                Protocol::<Socket<ARRIVE, TAKE>>::accept(echo, Origin::Unix, now).expect("everybody may come in");
            Ok((Socket { unread: ARRIVE }, state))
        };
        reactor.open(open).expect("there is memory");
    }
    reactor
}

/// The same event for a hundred connections, spread evenly over all of them, and others in each turn.
fn hundred(connections: usize, turn: usize) -> impl Iterator<Item = Readiness> {
    let apart = connections / 100;
    // A step that is odd and not small visits them all, and no neighbours one after the other.
    let first = turn.wrapping_mul(7919) % apart;
    (0..100).map(move |number| Readiness { token: Token(first + number * apart), ..READABLE })
}

fn messages(c: &mut Criterion) {
    let now = Instant::now();
    let mut group = c.benchmark_group("message");
    group.throughput(Throughput::Elements(1));
    let mut one = reactor::<64, EVERYTHING>(1, None);
    group.bench_function("64 B", |b| b.iter(|| one.turn_with(now, [READABLE])));
    let mut matched = reactor::<64, EVERYTHING>(1, Some(b"bye"));
    group.bench_function("64 B, two lines, terminator looked for", |b| b.iter(|| matched.turn_with(now, [READABLE])));
    let mut large = reactor::<65_536, EVERYTHING>(1, None);
    group.bench_function("64 KiB", |b| b.iter(|| large.turn_with(now, [READABLE])));
    let mut pieces = reactor::<1024, EVERYTHING>(1, None);
    group.bench_function("64 KiB, arriving in 64 pieces", |b| {
        b.iter(|| (0..64).for_each(|_| pieces.turn_with(now, [READABLE])));
    });
    let mut partial = reactor::<65_536, 16_384>(1, None);
    group.bench_function("64 KiB, sent in 4 parts", |b| {
        b.iter(|| {
            partial.turn_with(now, [READABLE]);
            (0..3).for_each(|_| partial.turn_with(now, [WRITABLE]));
            assert_eq!(partial.counters().waiting_bytes, 0);
        });
    });
    let mut lines = reactor::<65_535, EVERYTHING>(1, Some(b"bye"));
    group.bench_function("64 KiB, 2,048 lines, terminator looked for", |b| b.iter(|| lines.turn_with(now, [READABLE])));
    group.finish();
}

fn growth(c: &mut Criterion) {
    let now = Instant::now();
    let mut group = c.benchmark_group("turn of 100 messages");
    group.throughput(Throughput::Elements(100));
    for connections in [1_000, 10_000, 100_000, 1_000_000] {
        let mut slot = None;
        let memory = allocation_counter::measure(|| slot = Some(reactor::<64, EVERYTHING>(connections, None)));
        let mut reactor = slot.unwrap();
        let buffers = allocation_counter::measure(|| drop(self::reactor::<64, EVERYTHING>(0, None))).bytes_total;
        let bytes = memory.bytes_current.cast_unsigned() - buffers;
        println!("{connections} connections: {:.1} bytes each", bytes as f64 / connections as f64);
        let id = BenchmarkId::new("connections", connections);
        let mut turn = 0;
        group.bench_function(id, |b| {
            b.iter(|| {
                turn += 1;
                reactor.turn_with(now, hundred(connections, turn));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, messages, growth);
criterion_main!(benches);
