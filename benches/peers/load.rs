//! Load that `echoloop bench` does not make: many connects at once, and peers that send and never read. Clients on the
//! library, which run as processes of their own.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use echoloop::reactor::socket::Socket;
use echoloop::reactor::{CloseReason, Poller, Protocol, Reactor, Settings, Source, Stream, Transport};
use mio::Token;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Type};

/// How long a burst may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A server has taken all that it takes when in so long only one connection in ten has got rid of anything: what trickles
/// through for seconds are the kernel's probes of closed windows (RFC 9293, 3.8.6.1).
const FULL: Duration = Duration::from_millis(100);

/// The socket buffers of a peer that does not read, so that it is not the kernel's memory that is looked at.
const SMALL: usize = 32 * 1024;

/// What came of a burst.
#[derive(Debug, Serialize, Deserialize)]
pub struct Burst {
    /// Until all had their echo.
    pub all_ms: f64,
    /// From before the first connect to an echo: of half of them, and of all but a hundredth.
    pub p50_us: f64,
    pub p99_us: f64,
    pub mismatches: u64,
    pub errors: u64,
}

struct Greeting {
    began: Instant,
    times: Vec<Duration>,
    mismatches: u64,
    errors: u64,
}

/// The message of a connection, which no other has.
struct Awaited {
    message: [u8; 64],
    received: usize,
}

impl Awaited {
    fn new(number: usize) -> Self {
        let mut message = [b'.'; 64];
        let _ = write!(&mut message[..], "connection {number}");
        Awaited { message, received: 0 }
    }
}

impl<S: Stream> Protocol<S> for Greeting {
    type State = Awaited;

    fn opened(&mut self, transport: &mut Transport<'_, S>, awaited: &mut Awaited) {
        transport.write(&awaited.message);
    }

    fn received(&mut self, transport: &mut Transport<'_, S>, awaited: &mut Awaited, bytes: &[u8]) {
        if !awaited.message[awaited.received..].starts_with(bytes) {
            self.mismatches += 1;
            return transport.abort();
        }
        awaited.received += bytes.len();
        if awaited.received == awaited.message.len() {
            // The turn's clock stands still while it deals with what has come.
            self.times.push(self.began.elapsed());
        }
    }

    fn closed(&mut self, _: Token, awaited: Awaited, _: &CloseReason) {
        self.errors += u64::from(awaited.received < awaited.message.len());
    }
}

/// Opens `count` connections at once, and waits until each has had its own message back.
pub fn burst(server: SocketAddr, count: usize) -> anyhow::Result<()> {
    echoloop::limits::raise_open_files();
    let mut poller = Poller::new(Duration::ZERO)?;
    let greeting = Greeting { began: Instant::now(), times: Vec::with_capacity(count), mismatches: 0, errors: 0 };
    let mut reactor = Reactor::new(greeting, Settings::default());
    for number in 0..count {
        reactor.connect(|token, _| {
            // Closed connections keep their ports for a while: several addresses have more.
            let source = [127, 0, 1, (number % 8) as u8 + 1].into();
            let mut socket = Socket::connect_tcp(server, Some(source))?;
            poller.registry().register(&mut socket, token, Poller::interest())?;
            Ok((socket, Awaited::new(number)))
        })?;
    }
    let due = reactor.protocol().began + TIMEOUT;
    let settled = |greeting: &Greeting| greeting.times.len() + greeting.errors as usize;
    while settled(reactor.protocol()) < count && Instant::now() < due {
        let sleep = reactor.sleep(Instant::now()).unwrap_or(TIMEOUT).min(due.saturating_duration_since(Instant::now()));
        let (now, events) = poller.wait(Some(sleep))?;
        reactor.turn_with(now, events);
    }
    let greeting = reactor.protocol();
    let mut times = greeting.times.clone();
    times.sort();
    let at =
        |share: f64| times.get((times.len() as f64 * share) as usize).map_or(f64::NAN, |it| it.as_secs_f64() * 1e6);
    let result = Burst {
        all_ms: times.last().context("nobody was answered")?.as_secs_f64() * 1e3,
        p50_us: at(0.5),
        p99_us: at(0.99),
        mismatches: greeting.mismatches,
        errors: greeting.errors - greeting.mismatches + (count - settled(greeting)) as u64,
    };
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}

/// A peer that sends as long as somebody takes it, and never reads.
struct Unreading {
    piece: Vec<u8>,
    /// Pieces that were taken.
    taken: usize,
}

impl<S: Stream> Protocol<S> for Unreading {
    type State = ();

    fn opened(&mut self, transport: &mut Transport<'_, S>, state: &mut ()) {
        transport.pause_reading();
        self.flushed(transport, state);
    }

    fn flushed(&mut self, transport: &mut Transport<'_, S>, _: &mut ()) {
        self.taken += 1;
        transport.write(&self.piece);
        if transport.waiting() == 0 {
            transport.call_again(); // the others first
        }
    }

    fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), _: &[u8]) {}
}

/// Opens `count` connections that send and never read, says when the server takes no more of them, and holds them.
pub fn unreading(server: SocketAddr, count: usize) -> anyhow::Result<()> {
    echoloop::limits::raise_open_files();
    let mut poller = Poller::new(Duration::ZERO)?;
    let mut reactor = Reactor::new(Unreading { piece: vec![b'u'; 16 * 1024], taken: 0 }, Settings::default());
    for _ in 0..count {
        reactor.connect(|token, _| {
            let mut socket = connect_small(server)?;
            poller.registry().register(&mut socket, token, Poller::interest())?;
            Ok((socket, ()))
        })?;
    }
    let (mut told, mut since, mut before) = (false, Instant::now(), 0);
    while !reactor.is_empty() {
        let sleep = reactor.sleep(Instant::now()).unwrap_or(FULL).min(FULL);
        let (now, events) = poller.wait(Some(sleep))?;
        reactor.turn_with(now, events);
        if !told && now > since + FULL {
            let taken = reactor.protocol().taken;
            if taken - before <= count / 10 {
                told = true;
                println!("full {}", reactor.len());
            }
            (since, before) = (now, taken);
        }
    }
    anyhow::bail!("the server dropped them")
}

fn connect_small(server: SocketAddr) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Before it is connected, for its window is settled in the handshake (tcp(7)).
    socket.set_recv_buffer_size(SMALL)?;
    socket.set_send_buffer_size(SMALL)?;
    match socket.connect(&server.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
        _ => Ok(Socket::Tcp(mio::net::TcpStream::from_std(socket.into()))),
    }
}
