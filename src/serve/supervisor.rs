//! Who started the server, if it is systemd: sockets that are inherited, and what it is told.
//!
//! A supervisor may hand over sockets that listen already (sd_listen_fds(3)), wants to know when the server is ready
//! and when it stops, and may want a sign of life now and then (sd_notify(3), sd_watchdog_enabled(3)). The sign comes
//! from the event loop itself, for it is the loop whose life matters. Without a supervisor nothing of this happens.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::bail;
use listenfd::ListenFd;
use log::warn;
use sd_notify::NotifyState;
use socket2::SockRef;

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

/// A socket that was handed over.
#[derive(Debug)]
pub(super) enum Inherited {
    Tcp(TcpListener),
    Unix(UnixListener),
    Udp(UdpSocket),
}

/// The sockets that were handed over to this process, in their order.
///
/// # Errors
///
/// If one is none that this server can use, as a connection is that was accepted already.
pub(super) fn inherited() -> anyhow::Result<Vec<Inherited>> {
    let mut descriptors = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..descriptors.len() {
        let descriptor = FIRST + number;
        let (socket, is_connection) = if let Ok(Some(socket)) = descriptors.take_tcp_listener(number) {
            // A connection passes for a listener, until it is asked for its peer.
            let is_connection = SockRef::from(&socket).peer_addr().is_ok();
            (Inherited::Tcp(socket), is_connection)
        } else if let Ok(Some(socket)) = descriptors.take_unix_listener(number) {
            let is_connection = SockRef::from(&socket).peer_addr().is_ok();
            (Inherited::Unix(socket), is_connection)
        } else if let Ok(Some(socket)) = descriptors.take_udp_socket(number) {
            (Inherited::Udp(socket), false)
        } else {
            bail!("descriptor {descriptor} of LISTEN_FDS is neither a TCP or Unix listener nor a UDP socket");
        };
        if is_connection {
            bail!(
                "descriptor {descriptor} of LISTEN_FDS is a connection, and no listener: a socket unit needs Accept=no"
            );
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The supervisor, who may not exist.
pub(super) struct Supervisor {
    /// How often it wants a sign of life, and when it had the last.
    watchdog: Option<(Duration, Instant)>,
}

impl Supervisor {
    /// The one that the environment tells of.
    pub fn new() -> Self {
        // Twice as often as asked for, as sd_watchdog_enabled(3) recommends.
        Supervisor { watchdog: sd_notify::watchdog_enabled().map(|every| (every / 2, Instant::now())) }
    }

    /// Tells that the server serves.
    pub fn ready(&self, status: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Tells that the server is stopping.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Gives a sign of life, if it is time for one.
    pub fn turn(&mut self, now: Instant) {
        if let Some((every, last)) = &mut self.watchdog
            && now >= *last + *every
        {
            *last = now;
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// How long the poll may sleep until the next sign of life; `None`: for ever.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        self.watchdog.map(|(every, last)| (last + every).saturating_duration_since(now))
    }
}

/// Without a supervisor this does nothing.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell the supervisor: {error}");
    }
}
