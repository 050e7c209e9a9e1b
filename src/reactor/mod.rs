//! An event loop for very many connections, on which protocols stand.
//!
//! A [`Reactor`] keeps its connections in a slab, remembers which of them can make a step, accepts others when there is
//! room, and drives a [`Protocol`], in the shape that Twisted and asyncio made familiar: a connection is `opened`, bytes
//! are `received`, the socket is `read_drained`, what waited is `flushed`, the peer has sent its `eof`, the connection is
//! `closed`. The protocol answers through a [`Transport`]: `write`, `shutdown_write`, `close`, `abort`.
//!
//! # A protocol of your own, in three steps
//!
//! **One: what is remembered about a connection, and what is done with its bytes.** RFC 863's discard service, whole:
//!
//! ```
//! use std::time::Instant;
//!
//! use echoloop::reactor::socket::Origin;
//! use echoloop::reactor::{Protocol, Refusal, Stream, Transport};
//!
//! /// Throws away what it receives, and counts it.
//! #[derive(Default)]
//! struct Discard {
//!     bytes: usize,
//! }
//!
//! impl<S: Stream> Protocol<S> for Discard {
//!     type State = (); // nothing to remember about a connection
//!
//!     fn accept(&mut self, _: Origin, _: Instant) -> Result<(), Refusal> {
//!         Ok(()) // no access control
//!     }
//!
//!     fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), bytes: &[u8]) {
//!         self.bytes += bytes.len();
//!     }
//! }
//! ```
//!
//! **Two: a reactor with a listener on a poll.** Surviving a shortage of descriptors, half-closed and reset
//! connections, and peers that do not read, is the reactor's business.
//!
//! ```
//! # use std::time::Instant;
//! # use echoloop::reactor::socket::Origin;
//! # use echoloop::reactor::{Protocol, Refusal, Stream, Transport};
//! # #[derive(Default)]
//! # struct Discard { bytes: usize }
//! # impl<S: Stream> Protocol<S> for Discard {
//! #     type State = ();
//! #     fn accept(&mut self, _: Origin, _: Instant) -> Result<(), Refusal> { Ok(()) }
//! #     fn received(&mut self, _: &mut Transport<'_, S>, _: &mut (), bytes: &[u8]) { self.bytes += bytes.len(); }
//! # }
//! use std::io::Write;
//! use std::time::Duration;
//!
//! use echoloop::reactor::{Listener, Poller, Reactor, Settings, SocketOptions};
//!
//! let mut poller = Poller::new(Duration::ZERO)?;
//! let mut reactor = Reactor::new(Discard::default(), Settings::default());
//! let (any, options) = ("127.0.0.1:0".parse()?, SocketOptions::default());
//! let mut address = None;
//! reactor.listen(|token| {
//!     let listener = Listener::tcp(any, &options, poller.registry(), token)?;
//!     address = Some(listener.endpoint()?);
//!     Ok(listener)
//! })?;
//! # let address = match address { Some(echoloop::reactor::address::Endpoint::Tcp(address)) => address, _ => panic!() };
//! # reactor.set_accept_limit(Some(1));
//! # std::net::TcpStream::connect(address)?.write_all(b"into the void")?;
//! # let mut turns = 0;
//! # while reactor.counters().closed_total() == 0 {
//! #     use echoloop::reactor::Source;
//! #     let (now, events) = poller.wait(reactor.sleep(Instant::now()))?;
//! #     reactor.turn_with(now, events);
//! # }
//! # reactor.stop_listening();
//!
//! reactor.run(&mut poller)?; // until nothing is listening and no connection is left
//! # assert_eq!(reactor.protocol().bytes, 13);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **Three: what else lives on the poll.** A reactor is a [`Source`], and so is whatever a program needs beside it: other
//! reactors, [`Datagrams`], timers. A loop over several is: sleep for the shortest of their sleeps, route each
//! [`Readiness`] to the one that owns its token, and give each its turn. `examples/` has whole programs: `discard`,
//! `daytime`, `chargen` (backpressure from the sender's side), `chat` (acting on other connections). A reactor's tokens are
//! those below [`Settings::TOKENS`], unless its settings say otherwise; so with datagrams whose tokens begin there:
//!
//! ```no_run
//! # use std::time::{Duration, Instant};
//! # use echoloop::reactor::{DatagramProtocol, Datagrams, Poller, Protocol, Reactor, Settings, Source, UdpPort, shortest};
//! # use echoloop::reactor::socket::Socket;
//! # fn serve<P: Protocol<Socket>, D: DatagramProtocol<UdpPort>>(protocol: P, answers: D) -> std::io::Result<()> {
//! let mut poller = Poller::new(Duration::ZERO)?;
//! let mut reactor = Reactor::new(protocol, Settings::default());
//! let mut datagrams = Datagrams::new(answers, Settings::TOKENS);
//! loop {
//!     let now = Instant::now();
//!     let (now, events) = poller.wait(shortest([reactor.sleep(now), datagrams.sleep(now)]))?;
//!     for readiness in events {
//!         match readiness.token.0 < Settings::TOKENS {
//!             true => reactor.note(readiness),
//!             false => datagrams.note(readiness),
//!         }
//!     }
//!     reactor.turn(now);
//!     datagrams.turn(now);
//! }
//! # }
//! ```
//!
//! A `mio::Waker` on [`Poller::registry`], under a token of its own, ends a wait from another thread.
//!
//! What happens is told through the `log` crate: accepting that pauses is a warning, each step of a connection a trace.
//! [`Reactor::is_starved`] and the counters tell it too.
//!
//! Datagrams have a loop and a protocol of their own: [`datagrams`] begins with a whole program.
//!
//! The turn touches the world only through [`Stream`], [`Listen`] and [`DatagramSocket`], and is given the time, so that a
//! test can be the kernel and the clock.

pub mod acceptor;
pub mod address;
mod close_reason;
pub mod connection;
mod counters;
pub mod datagrams;
mod listener;
pub mod outbound;
mod pause;
mod poller;
mod protocol;
#[allow(clippy::module_inception, reason = "it is the reactor's own file")]
mod reactor;
#[cfg(test)]
pub(crate) mod scripted;
mod settings;
pub mod socket;
mod source;
mod stream;
pub mod timer_wheel;
mod transport;
mod udp;

pub use acceptor::Listen;
pub use close_reason::CloseReason;
pub use connection::{CLOSE_TIMEOUT, LINGER_TIMEOUT};
pub use counters::{Counter, Counters, Kind, LIFETIMES, ListenerCounters, TURN_SIZES};
pub use datagrams::{
    DatagramCounters, DatagramProtocol, DatagramSocket, Datagrams, Envelope, MAX_DATAGRAM, Outlet, Sent,
};
pub use listener::{Listener, SocketOptions, check_backlog};
/// Names a connection or a socket, for as long as it lives: mio's, from the poll to the protocol.
pub use mio::Token;
pub use poller::Poller;
pub use protocol::{Protocol, Refusal};
pub use reactor::{Activity, Reactor};
pub use settings::Settings;
pub use source::{Readiness, Source, shortest};
pub use stream::{EDGES, Stream};
pub use transport::Transport;
pub use udp::UdpPort;
