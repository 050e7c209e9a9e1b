//! An echo server on one event loop, for very many connections, a line client, and a load generator.
//!
//! This is also a place to see non-blocking I/O done whole. A tour, in the order in which it is best read:
//!
//! 1. [`reactor`]: the event loop. Its `connection` module is one peer's state machine, and `outbound` is what
//!    happens to the bytes that a `send` did not take; `deadlines` are timeouts that cost nothing while bytes move.
//!    It drives a [`reactor::Protocol`]; the module's documentation shows one, whole.
//! 2. [`serve`]: the server on it. `echo` is what echo means, `acceptor` is how connections are accepted when there
//!    is room for them, and when there is not; `access` is who may come in. `datagrams` is the echo without
//!    connections. `inside` shows all that over HTTP: a second protocol, on a reactor of its own that shares the poll.
//! 3. [`mod@connect`]: the line client, another protocol on the same reactor.
//! 4. [`mod@bench`]: the load generator, one more protocol on it. `client` sends and verifies, `payload` is the bytes,
//!    `pace` is when they are due; [`bench::report`] is what others see of it.
//! 5. [`cli`], [`limits`], [`logging`] on [`outlet`], [`signals`], [`stdio`]: the program around them.
//!
//! Imports point downward only: the reactor knows no protocol, and the protocols do not know each other.
//!
//! # The facts, and where each is handled
//!
//! | fact of non-blocking I/O | place |
//! | --- | --- |
//! | `send` may take only a part | `reactor/outbound.rs`: `write`; `Connection::send`, `Connection::flush` |
//! | readiness is an edge, reported once | `Connection::readable`, the ready queue of [`reactor::Reactor`] |
//! | a short read proves the socket dry, unless the peer has closed its side | `Connection::receive` |
//! | where edges are emulated it proves nothing | [`reactor::SHORT_IS_CONCLUSIVE`] |
//! | one peer can keep a socket readable for ever | the budget in `reactor/mod.rs`: `drive` |
//! | a peer may send and never read | `Connection::may_receive` |
//! | a peer may close only its sending side | [`reactor::Protocol::ended`], `Connection::settle` |
//! | closing with unread bytes resets, and may destroy what was sent | `Connection::settle`, [`reactor::LINGER`] |
//! | a reset can come at any call | `Reactor::step`: every error ends that connection alone |
//! | `accept` may fail for want of descriptors, and who waits raises no new edge | `serve/acceptor.rs` |
//! | slab keys are reused, events are hints | [`reactor::Reactor::turn`], `Connection::mark` |
//! | a datagram that does not fit into the send queue is dropped, for nobody would wait for it | `serve/datagrams.rs` |
//! | who is bound to all addresses must answer from the one that was asked | `serve/datagrams.rs`: `pktinfo` |
//! | two services that answer everything never stop | `serve/access.rs`: `DatagramGate` |
//! | opening a Unix connection does not wait: where TCP would, it fails with WouldBlock | [`reactor::socket::Socket::connect_unix`] |
//! | a socket file outlives its server | `serve/listener.rs`: `replace_stale`, `SocketFile` |
//! | standard output cannot be made non-blocking for one program alone | [`outlet`] |
//! | what others made of a standard stream: non-blocking, limited, closed | [`stdio`] |
//! | a signal must end the program whatever it is doing | [`signals`] |
//! | registering costs a system call | [`reactor::Poller::interest`]: once, for life |

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod check;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod connect;
#[cfg(feature = "cli")]
pub mod escape;
#[cfg(feature = "cli")]
pub mod hex;
#[cfg(feature = "cli")]
pub mod limits;
#[cfg(feature = "cli")]
pub mod logging;
#[cfg(feature = "cli")]
pub mod outlet;
pub mod reactor;
#[cfg(feature = "cli")]
pub mod serve;
#[cfg(feature = "cli")]
pub mod signals;
#[cfg(feature = "cli")]
pub mod stdio;
#[cfg(feature = "cli")]
pub mod values;
