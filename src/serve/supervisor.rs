//! systemd, or a supervisor like it: the sockets that it hands over, and what it is told.
//!
//! A supervisor may hand over sockets that listen already (sd_listen_fds(3)), wants to know when the server is ready
//! and when it stops, and may want a sign of life now and then (sd_notify(3), sd_watchdog_enabled(3)). The sign comes
//! from the event loop itself, for it is the loop whose life matters. The loop does not wait until a supervisor reads what
//! it is told: what does not fit is tried again. Without a supervisor none of this happens.

use std::ffi::OsStr;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use listenfd::ListenFd;
use log::warn;
use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt::AcceptConn};
use socket2::SockRef;

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

/// How long to wait before a supervisor that does not read is told again.
const RETRY: Duration = Duration::from_millis(250);

/// A sign of life is not given more often than this, whatever is asked for.
const MIN_SIGN_INTERVAL: Duration = Duration::from_millis(1);

/// What the end of a process may take after the last deadline, before it is taken for one that hangs: to close a million
/// sockets takes seconds.
const STOP_GRACE: Duration = Duration::from_secs(5);

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
/// If there are not as many as is said, or if one is none that this server can use, as a connection is that was accepted
/// already.
pub(super) fn inherited() -> anyhow::Result<Vec<Inherited>> {
    if !check_listen_fds()? {
        return Ok(Vec::new());
    }
    let mut descriptors = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..descriptors.len() {
        let descriptor = FIRST + number;
        let socket = if let Ok(Some(socket)) = descriptors.take_tcp_listener(number) {
            check_listens(SockRef::from(&socket), descriptor)?;
            Inherited::Tcp(socket)
        } else if let Ok(Some(socket)) = descriptors.take_unix_listener(number) {
            check_listens(SockRef::from(&socket), descriptor)?;
            Inherited::Unix(socket)
        } else if let Ok(Some(socket)) = descriptors.take_udp_socket(number) {
            ensure!(
                socket.local_addr().is_ok_and(|address| address.port() != 0),
                "descriptor {descriptor} of LISTEN_FDS has no port: bind(2) must be called before it is handed over"
            );
            Inherited::Udp(socket)
        } else {
            bail!("descriptor {descriptor} of LISTEN_FDS is neither a TCP or Unix listener nor a UDP socket");
        };
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Checks that every descriptor which LISTEN_FDS promises is a socket, before memory is taken for that many. Returns
/// whether there is anything for this process.
fn check_listen_fds() -> anyhow::Result<bool> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(count) = variable("LISTEN_FDS") else { return Ok(false) };
    if variable("LISTEN_PID").is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
        return Ok(false); // they are for the process that started us
    }
    let Ok(number) = count.parse::<usize>() else { bail!("LISTEN_FDS={count} is not a number of descriptors") };
    for descriptor in (FIRST..).take(number) {
        ensure!(
            getsockname::<SockaddrStorage>(i32::try_from(descriptor)?) != Err(Errno::EBADF),
            "LISTEN_FDS={count}, but descriptor {descriptor} is not open: it must be the number of sockets that are \
             handed over, from descriptor {FIRST} on"
        );
    }
    Ok(true)
}

/// A connection passes for a listener until it is asked, and so does a socket on which nobody has called listen(2).
fn check_listens(socket: SockRef<'_>, descriptor: usize) -> anyhow::Result<()> {
    ensure!(
        socket.peer_addr().is_err(),
        "descriptor {descriptor} of LISTEN_FDS is a connection, and no listener: a socket unit needs Accept=no"
    );
    ensure!(
        getsockopt(&*socket, AcceptConn) != Ok(false),
        "descriptor {descriptor} of LISTEN_FDS does not listen: listen(2) must be called before it is handed over"
    );
    Ok(())
}

/// The supervisor, if there is one.
pub(super) struct Supervisor {
    told: Option<Told>,
    /// How often it wants a sign of life, and when it had the last.
    watchdog: Option<(Duration, Instant)>,
}

impl Supervisor {
    /// The one that the environment names.
    pub fn new() -> Self {
        let told = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let told = Told::new(&name).with_context(|| format!("NOTIFY_SOCKET={}", name.display()));
            told.inspect_err(|error| warn!("cannot reach the supervisor: {error:#}")).ok()
        });
        let variable = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = variable("WATCHDOG_USEC").filter(|_| is_ours && told.is_some());
        Supervisor { told, watchdog: watchdog.and_then(sign_interval).map(|every| (every, Instant::now())) }
    }

    /// Tells that the server serves.
    pub fn ready(&mut self, status: &str, now: Instant) {
        self.tell(&format!("READY=1\nSTATUS={status}"), now);
    }

    /// Tells that the server is stopping, and may take until `end` for it: longer, perhaps, than the unit's
    /// `TimeoutStopSec=`, of which this program knows nothing (sd_notify(3), `EXTEND_TIMEOUT_USEC`).
    pub fn stopping(&mut self, end: Instant, now: Instant) {
        let most = end.saturating_duration_since(now) + STOP_GRACE;
        self.tell(&format!("STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC={}", most.as_micros()), now);
    }

    /// Gives a sign of life, if one is due, and sends again what could not be sent.
    pub fn turn(&mut self, now: Instant) {
        if let Some((every, last)) = &mut self.watchdog
            && now >= *last + *every
        {
            *last = now;
            self.tell("WATCHDOG=1", now);
        } else if let Some(told) = &mut self.told
            && told.retry.is_some_and(|retry| now >= retry)
        {
            told.send(now);
        }
    }

    /// How long the poll may sleep until the next sign of life; `None`: without a limit.
    pub fn sleep(&self, now: Instant) -> Option<Duration> {
        let retry = self.told.as_ref().and_then(|told| told.retry);
        let sign = self.watchdog.map(|(every, last)| last + every);
        retry.into_iter().chain(sign).min().map(|then| then.saturating_duration_since(now))
    }

    fn tell(&mut self, state: &str, now: Instant) {
        if let Some(told) = &mut self.told {
            told.say(state);
            told.send(now);
        }
    }
}

/// The interval of signs of life if one is expected within this many microseconds: half of that, as
/// sd_watchdog_enabled(3) recommends. As there, neither 0 nor the largest number asks for any.
fn sign_interval(microseconds: u64) -> Option<Duration> {
    let asked = microseconds != 0 && microseconds != u64::MAX;
    asked.then(|| (Duration::from_micros(microseconds) / 2).max(MIN_SIGN_INTERVAL))
}

/// The socket to a supervisor.
struct Told {
    socket: UnixDatagram,
    address: SocketAddr,
    /// What it has not been told yet: a line each.
    unsaid: String,
    /// When to try again.
    retry: Option<Instant>,
    /// It has been logged that it cannot be told anything.
    warned: bool,
}

impl Told {
    fn new(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            [b'@', rest @ ..] => {
                #[cfg(target_os = "android")]
                use std::os::android::net::SocketAddrExt;
                #[cfg(target_os = "linux")]
                use std::os::linux::net::SocketAddrExt;
                SocketAddr::from_abstract_name(rest)?
            }
            _ => {
                let expected = "only an absolute path, or @NAME on Linux, is supported";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, expected));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Told { socket, address, unsaid: String::new(), retry: None, warned: false })
    }

    /// Adds what it is to be told: lines of `NAME=value`. The last of a name is what counts, so that what is kept is bounded
    /// whatever it reads.
    fn say(&mut self, state: &str) {
        for line in state.lines() {
            let name = line.split_inclusive('=').next().unwrap_or(line);
            let kept: String = self.unsaid.split_inclusive('\n').filter(|other| !other.starts_with(name)).collect();
            self.unsaid = kept + line + "\n";
        }
    }

    /// Sends what it has not been told yet, as far as it takes that.
    fn send(&mut self, now: Instant) {
        self.retry = None;
        match self.socket.send_to_addr(self.unsaid.as_bytes(), &self.address) {
            Ok(_) => {
                self.unsaid.clear();
                self.warned = false;
            }
            // Its queue is full (EAGAIN; ENOBUFS on BSD), or nobody is there at present, as when it restarts.
            Err(error) => {
                self.retry = Some(now + RETRY);
                if !std::mem::replace(&mut self.warned, true) {
                    warn!("cannot tell the supervisor, and will try again: {error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_interval_is_half_of_what_is_asked() {
        assert_eq!(sign_interval(0), None);
        assert_eq!(sign_interval(u64::MAX), None);
        assert_eq!(sign_interval(1), Some(MIN_SIGN_INTERVAL));
        assert_eq!(sign_interval(10_000_000), Some(Duration::from_secs(5)));
    }

    #[test]
    fn sign_of_life_comes_when_due_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let reader = UnixDatagram::bind(&path).unwrap();
        reader.set_nonblocking(true).unwrap();
        let (mut now, every, mut buffer) = (Instant::now(), Duration::from_secs(10), [0; 100]);
        let mut supervisor = Supervisor { told: Told::new(path.as_os_str()).ok(), watchdog: Some((every, now)) };
        for _ in 0..3 {
            assert_eq!(supervisor.sleep(now), Some(every));
            supervisor.turn(now + every - Duration::from_millis(1));
            assert!(reader.recv(&mut buffer).is_err(), "not before its time");
            now += every;
            supervisor.turn(now);
            let length = reader.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length].trim_ascii_end(), b"WATCHDOG=1");
        }
    }

    #[test]
    fn supervisor_that_does_not_read_is_told_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let reader = UnixDatagram::bind(&path).unwrap();
        reader.set_nonblocking(true).unwrap();
        let (now, told) = (Instant::now(), Told::new(path.as_os_str()).unwrap());
        let mut supervisor = Supervisor { told: Some(told), watchdog: None };
        let mut signs = 0;
        while supervisor.sleep(now).is_none() {
            supervisor.tell("WATCHDOG=1", now);
            signs += 1;
        }
        supervisor.ready("serving", now);
        supervisor.tell("WATCHDOG=1", now);
        supervisor.stopping(now + Duration::from_secs(7), now);
        assert_eq!(supervisor.sleep(now), Some(RETRY));
        let mut buffer = [0; 100];
        for _ in 1..signs {
            assert_eq!(reader.recv(&mut buffer).unwrap(), "WATCHDOG=1\n".len());
        }
        supervisor.turn(now);
        assert_eq!(reader.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock, "not before its time");
        supervisor.turn(now + RETRY);
        let length = reader.recv(&mut buffer).unwrap();
        let told = String::from_utf8_lossy(&buffer[..length]);
        assert_eq!(told, "READY=1\nWATCHDOG=1\nSTOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=12000000\n");
        assert_eq!(supervisor.sleep(now), None);
    }
}
