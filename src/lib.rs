//! An echo server for very many connections on one event loop, a line client, and a load generator.
//!
//! This is also a place to see non-blocking I/O done whole. `docs/architecture.md` is the map, on one page;
//! `docs/glossary.md` has the words. A tour, in the order in which it is best read:
//!
//! Without the feature `cli` the crate is [`reactor`] alone: points 1 to 4.
//!
//! 1. [`reactor`]: the event loop as a library, and a protocol of your own in three steps. `examples/` has whole programs.
//! 2. [`reactor::Source`]: what may live on a poll; [`reactor::Protocol`] and [`reactor::Transport`]: what a protocol is told,
//!    and what it can do.
//! 3. [`reactor::connection`]: one peer's state machine; [`reactor::outbound`]: the bytes that a `send` did not take;
//!    [`reactor::Reactor`]: the slab, the ready queue, the turn.
//! 4. [`reactor::acceptor`]: accepting connections when there is room for them, and when there is not;
//!    [`reactor::timer_wheel`]: timeouts that cost nothing while bytes move; [`reactor::datagrams`]: UDP.
//! 5. [`serve`]: the server. [`serve::echo`] is what echo means, [`serve::access`] is access control, [`serve::service`] has
//!    several sources on one poll, of which [`serve::admin`] is a second protocol: HTTP.
//! 6. [`mod@connect`]: the line client, a protocol that opens its connection itself.
//! 7. [`mod@bench`]: the load generator. [`mod@bench::schedule`] is when messages are due, [`mod@bench::load`] sends and verifies them,
//!    [`mod@bench::ledger`] is the account of what became of each; [`bench::report`] is what others see of it.
//! 8. [`mod@check`]: a grader for any echo service: each promise, tried from outside.
//! 9. [`cli`], [`limits`], [`logging`] on [`outlet`], [`signals`], [`stdio`]: the program around them.
//!
//! Imports point downward only: the reactor knows no protocol, and the protocols do not know each other.
//!
//! # The facts, and where each is handled
//!
//! Each test fails without its fact. It is named as `cargo test` takes it: `cargo test --lib NAME`, `cargo test --test FILE
//! NAME`.
//!
//! | fact | consequence in the code | page | test |
//! | --- | --- | --- | --- |
//! | `send` may take only a part of the bytes | the unsent rest waits in the connection's outbound buffer until WRITABLE; nothing is resent or lost | [`reactor::outbound`] | `--lib reactor::reactor::tests::rest_of_a_partial_send_waits_for_writable` |
//! | readiness is an *edge*, reported once; a *level* would be reported as long as it lasts | a connection stays readable until a read said WouldBlock or came back conclusively short | [`reactor::connection`], `Connection::note` | `--lib reactor::reactor::tests::connection_stays_readable_until_read_finds_end` |
//! | a short read proves that nothing more has arrived, but not after the peer's close or in front of urgent data | the `recv` that would only say WouldBlock is saved, where that is safe (epoll(7) on EPOLLET; tokio PR 4840) | [`reactor::Stream::short_read_is_conclusive`] | `--lib reactor::reactor::tests::short_read_after_peer_closed_still_reads_end`, `--lib reactor::reactor::tests::urgent_data_ends_one_read_not_all_reading` |
//! | where edges are emulated, only WouldBlock arms the next one | there, no call is saved (tokio PR 5881) | [`reactor::EDGES`] | `--lib reactor::reactor::tests::emulated_edges_need_would_block_to_end` |
//! | one peer can keep a socket readable for ever | a budget of bytes per turn; the connection goes to the back of the ready queue | [`reactor::Settings::read_budget`] | `--lib reactor::reactor::tests::busy_peer_spends_budget_and_others_get_theirs` |
//! | a peer may send and never read | while bytes wait for it, nothing more is read from it: memory is bounded by one read, and TCP pushes back | [`reactor::connection`], `Connection::may_receive` | `--lib reactor::reactor::tests::unreading_peer_holds_at_most_one_read` |
//! | a peer may close only its sending side | everything it sent is still echoed before the connection is dropped | [`reactor::Protocol::eof`] | `--lib reactor::reactor::tests::half_closed_peer_gets_everything_before_the_end` |
//! | closing with unread bytes resets, and may destroy what was sent (RFC 1122, 4.2.2.13) | shut down, discard within a bound, then close | [`reactor::Transport::close`], [`reactor::LINGER_TIMEOUT`] | `--lib reactor::reactor::tests::peer_that_goes_on_sending_is_lingered_briefly` |
//! | an end of file looks like success | bytes that cannot be sent any more end in a reset | [`reactor::Stream::reset_on_drop`] | `--lib reactor::reactor::tests::lost_bytes_are_told_by_a_reset` |
//! | a reset can come at any call | that connection ends and is counted; the loop never does | [`reactor::CloseReason`] | `--lib reactor::reactor::tests::a_reset_ends_that_connection_alone` |
//! | a call may be interrupted by a signal (EINTR) | it is made again; the poll returns early, with nothing ready | [`reactor::Poller::wait`], [`reactor::outbound`] | `--lib reactor::reactor::tests::interrupted_calls_are_made_again` |
//! | `accept` can fail for a shortage of descriptors (EMFILE), and who waits in the backlog raises no new edge | accepting pauses, says so once, resumes by itself; no connection is dropped from the backlog (sozu issue 82) | [`reactor::acceptor`] | `--lib serve::tests::without_descriptors_accepting_pauses_and_does_not_spin` |
//! | a slot may become free at any point of a turn | how long to sleep is a function of the state after the turn, and of nothing else | [`reactor::Source`] | `--lib serve::tests::slot_freed_after_accepting_is_taken_without_event` |
//! | slab keys are reused, and events are hints | every handler survives WouldBlock and an event that was meant for a predecessor (mio issues 172 and 219) | [`reactor::Readiness`] | `--lib reactor::reactor::tests::stale_event_does_no_harm_to_slots_successor` |
//! | a socket that is being opened may be reported readable before it is connected | it is asked whether it is established, and nothing is received before | [`reactor::Stream::established`] | `--lib reactor::reactor::tests::connecting_socket_that_is_readable_waits_for_writable` |
//! | opening a Unix connection does not wait: with a full backlog it fails with WouldBlock | it is tried again | [`reactor::socket::Socket::connect_unix`] | `--test operator full_unix_backlog_is_waited_for` |
//! | a socket file outlives its server | a stale one is replaced, one in use is not | [`reactor::Listener`] | `--lib reactor::listener::tests::stale_socket_file_is_replaced_live_one_kept` |
//! | a datagram that does not fit into the send queue is gone, now or later | dropped and counted, never waited for | [`reactor::datagrams`] | `--lib serve::datagrams::tests::unsendable_datagram_is_dropped_and_errors_end_nothing` |
//! | an error from a UDP socket may be about an earlier datagram (udp(7)) | counted, and the socket goes on; one that stays is a pause | [`reactor::datagrams`] | `--lib serve::datagrams::tests::a_receive_that_always_fails_pauses` |
//! | a UDP socket on a wildcard address must reply from the address it was asked on | IP_PKTINFO (ip(7)) | [`reactor::Envelope::to`] | `--test operator answer_comes_from_the_address_asked` |
//! | two services that answer everything never stop (CVE-2024-2169) | what may be another service, broadcast or multicast is not answered; the rest is bounded | [`serve::access`] | `--lib serve::access::tests::two_servers_answering_each_other_come_to_rest` |
//! | timeouts are many and rarely due | activity notes the time, and a timer wheel asks later: O(1), and nothing per message | [`reactor::timer_wheel`] | `--lib reactor::timer_wheel::tests::activity_defers_without_touching_the_wheel` |
//! | a slow reader takes bytes without an event: WRITABLE comes when a third of the buffer is free | an idle timeout asks the socket itself before it closes (Envoy issue 34035) | [`reactor::Settings::idle_timeout`] | `--lib reactor::reactor::tests::bytes_taken_without_event_count_as_movement` |
//! | registering costs a system call | once, for READABLE and WRITABLE, for life: an edge that nobody waits for costs none | [`reactor::Poller::interest`] | `--lib reactor::reactor::tests::writable_without_anything_to_send_costs_no_call` |
//! | standard output cannot be made non-blocking for one program alone | the loop puts lines into a bounded queue, which a thread empties | [`outlet`] | `--test process stopped_log_reader_delays_neither_serving_nor_stop` |
//! | a descriptor may be non-blocking because somebody else made it so | EAGAIN on a standard stream means wait, not end | [`stdio`] | `--test process non_blocking_streams_lose_nothing` |
//! | a signal must end the program whatever it is doing | a thread receives signals, and the loop has the first while it polls | [`signals`] | `--test process second_signal_ends_what_waits_for_a_reader` |
//! | a generator that waits for replies hides stalls: *coordinated omission* | messages are due on a schedule, and latency counts from there | [`mod@bench::schedule`] | `--test bench open_loop_latency_counts_from_due_time` |
//! | a message that is not answered has no latency, and must not vanish | each message that was due has exactly one outcome | [`mod@bench::ledger`] | `--lib bench::ledger::tests::outcomes_add_up_to_what_was_due`, `--test bench messages_of_a_lost_connection_end_the_run` |

// The tour also goes through the program.
#![cfg_attr(not(feature = "cli"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod build;
#[cfg(feature = "cli")]
pub mod check;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod connect;
mod count;
#[cfg(feature = "cli")]
mod destination;
#[cfg(feature = "cli")]
pub mod escape;
#[cfg(feature = "cli")]
pub mod files;
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
#[cfg(test)]
#[cfg(feature = "cli")]
mod simulation;
#[cfg(feature = "cli")]
pub mod stdio;
#[cfg(feature = "cli")]
pub mod values;
