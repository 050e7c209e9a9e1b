//! Real listening sockets: bound or inherited, with their options set, and handed to mio.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::warn;
use mio::net::{TcpListener, UnixListener};
use mio::{Interest, Registry, Token};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::acceptor::Listen;
use crate::reactor::Poller;
use crate::reactor::address::{Endpoint, is_group};
use crate::reactor::socket::{Origin, Socket, unix_address, unix_path};

/// How long to wait, at the start, for others that replace a socket file in the same directory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The options of listening sockets. Connections inherit those of theirs, which saves a system call each.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "cli", derive(clap::Args), command(next_help_heading = "Sockets"))]
pub struct SocketOptions {
    /// Let the kernel hold up to N connections that have not been accepted yet. With a short backlog, bursts of
    /// connects are slow: what does not fit is dropped, and tried again after a second
    #[cfg_attr(feature = "cli", arg(help_heading = "Sockets", long, value_name = "N", default_value_t = SocketOptions::default().backlog,
        value_parser = crate::values::whole::<u32>(1..=u32::MAX.into())))]
    pub backlog: u32,

    /// Size of each connection's receive buffer in the kernel, such as 64KiB (SO_RCVBUF). By default the kernel tunes
    /// it
    #[cfg_attr(feature = "cli", arg(help_heading = "Sockets", long, value_name = "SIZE", value_parser = crate::values::buffer_size))]
    pub recv_buffer: Option<usize>,

    /// Size of each connection's send buffer in the kernel, such as 64KiB (SO_SNDBUF). By default the kernel tunes it.
    /// A tiny one, such as 4KiB, makes partial sends visible at -vv
    #[cfg_attr(feature = "cli", arg(help_heading = "Sockets", long, value_name = "SIZE", value_parser = crate::values::buffer_size))]
    pub send_buffer: Option<usize>,

    /// Leave Nagle's algorithm on: small sends wait until earlier ones have been acknowledged (RFC 896). By default
    /// TCP_NODELAY is set
    #[cfg_attr(feature = "cli", arg(help_heading = "Sockets", long))]
    pub nagle: bool,

    /// Share the port with other processes (SO_REUSEPORT). The kernel distributes connections among them: run one
    /// process per core, each with this option
    #[cfg_attr(feature = "cli", arg(help_heading = "Sockets", long))]
    pub reuse_port: bool,
}

impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions { backlog: 4096, recv_buffer: None, send_buffer: None, nagle: false, reuse_port: false }
    }
}

/// A listening socket of either family in the poll.
#[derive(Debug)]
pub struct Listener {
    /// The file that goes when the listener does. It goes first: as long as the socket is there nobody takes the file
    /// for one that was left behind, and no other file can have its inode.
    _file: Option<SocketFile>,
    socket: Listening,
    options: SocketOptions,
    registry: Registry,
    /// It was bound here, and not handed over: nobody else accepts from it.
    is_ours: bool,
    /// Accepted, but the poll had no room for it; the peer is kept until it has.
    unregistered: Option<(Socket, Origin)>,
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Listens on `address`, with `token` in the poll of `registry`.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when the address is in use or needs a privilege (bind(2)).
    pub fn tcp(address: SocketAddr, options: &SocketOptions, registry: &Registry, token: Token) -> io::Result<Self> {
        // Linux would bind to it, and nobody could ever connect.
        if is_group(address.ip()) {
            let cause = "nobody can connect to a broadcast or multicast address: listen on an address of this machine, or on 0.0.0.0";
            return Err(io::Error::new(ErrorKind::InvalidInput, cause));
        }
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A server that is restarted may have connections of its former life in TIME_WAIT.
        socket.set_reuse_address(true)?;
        prepare(&socket, address, options)?;
        socket.set_tcp_nodelay(!options.nagle)?;
        // A peer that vanished, without a word from its kernel, is found out in the end: after two hours of silence,
        // unless the system's settings say otherwise (tcp(7), on `tcp_keepalive_time`).
        socket.set_keepalive(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let listener = Listener::inherited_tcp(socket.into(), options, registry, token)?;
        Ok(Listener { is_ours: true, ..listener })
    }

    /// Listens on the socket file `path`, or on an abstract name, with `token` in the poll of `registry`. A file that a
    /// server has left behind which is not there any more is replaced.
    ///
    /// # Errors
    ///
    /// What the kernel reports; `AddrInUse` if a socket is bound to it, `AlreadyExists` if it is another kind of file.
    pub fn unix(path: &Path, options: &SocketOptions, registry: &Registry, token: Token) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let address = unix_address(path)?;
        let is_file = address.as_pathname().is_some();
        match socket.bind(&address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && is_file => replace_stale(path, &socket, &address)?,
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(in_use()),
            bound => bound?,
        }
        let file = if is_file { Some(SocketFile::of(path)?) } else { None };
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        let listener = Listener::inherited_unix(socket.into(), options, registry, token)?;
        Ok(Listener { _file: file, is_ours: true, ..listener })
    }

    /// Takes over a socket that listens already.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left.
    pub fn inherited_tcp(
        socket: std::net::TcpListener,
        options: &SocketOptions,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let inherited = SockRef::from(&socket);
        inherited.set_tcp_nodelay(!options.nagle)?;
        inherited.set_keepalive(true)?;
        // An urgent byte is data in its place (RFC 862; RFC 6093, 3). Connections inherit that too. Multipath TCP, as whoever
        // made the socket may have chosen, has no urgent data, and so no such option.
        match inherited.set_out_of_band_inline(true) {
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
            result => result?,
        }
        let mut socket = TcpListener::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Listener::new(Listening::Tcp(socket), options, registry)
    }

    /// Takes over a socket that listens already. Its file is its maker's.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left.
    pub fn inherited_unix(
        socket: StdUnixListener,
        options: &SocketOptions,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let mut socket = UnixListener::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Listener::new(Listening::Unix(socket), options, registry)
    }

    fn new(socket: Listening, options: &SocketOptions, registry: &Registry) -> io::Result<Self> {
        let (options, registry) = (options.clone(), registry.try_clone()?);
        Ok(Listener { socket, options, registry, is_ours: false, unregistered: None, _file: None })
    }

    /// Where it listens, with the real port.
    ///
    /// # Errors
    ///
    /// What the kernel reports (getsockname(2)).
    pub fn endpoint(&self) -> io::Result<Endpoint> {
        Ok(match &self.socket {
            Listening::Tcp(socket) => Endpoint::Tcp(socket.local_addr()?),
            Listening::Unix(socket) => Endpoint::Unix(unix_path(&socket.local_addr()?)),
        })
    }

    fn take(&mut self) -> io::Result<(Socket, Origin)> {
        if let Some((socket, origin)) = self.unregistered.take() {
            return Ok((socket.renew(), origin));
        }
        Ok(match &self.socket {
            Listening::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                (Socket::Tcp(stream), Origin::Ip(peer))
            }
            Listening::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                // Of a Unix listener its connections inherit nothing.
                let accepted = SockRef::from(&stream);
                if let Some(size) = self.options.recv_buffer {
                    accepted.set_recv_buffer_size(size)?;
                }
                if let Some(size) = self.options.send_buffer {
                    accepted.set_send_buffer_size(size)?;
                }
                (Socket::Unix(stream), Origin::Unix)
            }
        })
    }
}

impl Listen for Listener {
    type Stream = Socket;

    fn accept(&mut self, token: Token) -> io::Result<(Socket, Origin)> {
        let (mut stream, origin) = self.take()?;
        match self.registry.register(&mut stream, token, Poller::interest()) {
            Ok(()) => Ok((stream, origin)),
            Err(error) => {
                self.unregistered = Some((stream, origin));
                Err(error)
            }
        }
    }

    fn close_backlog(&mut self) -> usize {
        // A backlog of 0 lets no more connections in, and keeps those that are in it (listen(2)). Where the system sees that
        // otherwise, the number bounds what is still accepted. The backlog of a socket that was handed over is also the
        // next instance's, and whoever handed it over keeps it open: it stays as long as it is.
        if self.is_ours {
            let _ = match &self.socket {
                Listening::Tcp(socket) => SockRef::from(socket).listen(0),
                Listening::Unix(socket) => SockRef::from(socket).listen(0),
            };
        }
        self.options.backlog as usize + 1
    }
}

/// Sets the options that a socket of the internet families must have before it is bound.
pub(super) fn prepare(socket: &socket2::Socket, address: SocketAddr, options: &SocketOptions) -> io::Result<()> {
    if address.is_ipv6() {
        // [::] means IPv6 alone, whatever the system's default, so that 0.0.0.0 can stand beside it.
        socket.set_only_v6(true)?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    // Before listening, because the window scale is settled in the handshake (tcp(7)).
    if let Some(size) = options.recv_buffer {
        socket.set_recv_buffer_size(size)?;
    }
    if let Some(size) = options.send_buffer {
        socket.set_send_buffer_size(size)?;
    }
    Ok(())
}

/// Binds `socket` in place of a socket file that was left behind.
///
/// Of several servers that find the same file, one replaces it: they take turns by a lock on its directory (flock(2)),
/// and a socket that is bound is in use, whether it listens yet or not.
fn replace_stale(path: &Path, socket: &socket2::Socket, address: &SockAddr) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _lock = lock(directory)?;
    match fs::symlink_metadata(path).map(|metadata| metadata.file_type()) {
        Ok(kind) if !kind.is_socket() => {
            let kind = if kind.is_symlink() { "a symbolic link" } else { "no socket" };
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("there is a file already, and it is {kind}")));
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match liveness(path) {
        Liveness::Dead => fs::remove_file(path).map_err(|error| {
            io::Error::new(error.kind(), format!("a socket file was left behind there, and cannot be removed: {error}"))
        })?,
        Liveness::Gone => {}
        Liveness::Alive => return Err(in_use()),
        Liveness::Unknown(error) if error.kind() == ErrorKind::PermissionDenied => {
            let cause = "permission denied: the socket file is another user's, who may be listening on it";
            return Err(io::Error::new(ErrorKind::PermissionDenied, cause));
        }
        Liveness::Unknown(error) => return Err(error),
    }
    match socket.bind(address) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(in_use()),
        bound => bound,
    }
}

fn in_use() -> io::Error {
    io::Error::new(ErrorKind::AddrInUse, "somebody listens on it")
}

/// Whether a socket file has its socket.
#[derive(Debug)]
enum Liveness {
    Alive,
    Dead,
    /// There is no file any more.
    Gone,
    Unknown(io::Error),
}

/// Asks without making a connection, which a server with a limit would count, and one with a full backlog refuse: a
/// datagram socket is of the wrong kind for any that is there (EPROTOTYPE, before anything else is looked at), and
/// is refused where there is none (connect(2); so do unix_find_bsd of Linux, and unp_connectat of the BSDs and macOS).
fn liveness(path: &Path) -> Liveness {
    let probe = socket2::Socket::new(Domain::UNIX, Type::DGRAM, None);
    match probe.and_then(|probe| probe.connect(&SockAddr::unix(path)?)) {
        Err(error) if error.raw_os_error() == Some(Errno::PROTOTYPE.raw_os_error()) => Liveness::Alive,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Liveness::Dead,
        Err(error) if error.kind() == ErrorKind::NotFound => Liveness::Gone,
        Err(error) => Liveness::Unknown(error),
        // A datagram socket.
        Ok(()) => Liveness::Alive,
    }
}

/// Locks a directory until the result is dropped, where it can be opened at all: one that cannot be listed cannot.
fn lock(directory: &Path) -> io::Result<Option<fs::File>> {
    let Ok(opened) = fs::File::open(directory) else { return Ok(None) };
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&opened, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(opened)),
            Err(Errno::WOULDBLOCK) if began.elapsed() < LOCK_TIMEOUT => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::WOULDBLOCK) => {
                let cause = format!("another process keeps a lock on its directory, {}", directory.display());
                return Err(io::Error::new(ErrorKind::WouldBlock, cause));
            }
            // Not every file system has locks.
            Err(_) => return Ok(None),
        }
    }
}

/// A socket file of our own, removed when this is dropped unless it has become somebody else's.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Its device and its inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Says so if the kernel will cut the backlog that was asked for (listen(2), on `somaxconn`).
pub fn check_backlog(backlog: u32) {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    if let Some(limit) = limit.ok().and_then(|text| text.trim().parse::<u32>().ok())
        && limit < backlog
    {
        warn!(
            "the kernel limits the backlog of {backlog} to {limit}: raise net.core.somaxconn (sysctl) to get all of it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd};

    use mio::unix::SourceFd;

    /// A connection accepted from a listener with these options.
    fn accepted(options: &SocketOptions) -> socket2::Socket {
        let poll = mio::Poll::new().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let mut listener = Listener::tcp(any, options, poll.registry(), Token(0)).unwrap();
        let _client = dial(&listener);
        loop {
            match listener.accept(Token(1)) {
                Ok((Socket::Tcp(stream), _)) => return std::net::TcpStream::from(stream).into(),
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }

    fn dial(listener: &Listener) -> std::net::TcpStream {
        let Endpoint::Tcp(address) = listener.endpoint().unwrap() else { unreachable!() };
        std::net::TcpStream::connect(address).unwrap()
    }

    #[test]
    fn stop_leaves_backlog_of_an_inherited_socket() {
        let poll = mio::Poll::new().unwrap();
        let theirs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let handed_over = theirs.try_clone().unwrap();
        let options = SocketOptions::default();
        let mut listener = Listener::inherited_tcp(handed_over, &options, poll.registry(), Token(0)).unwrap();
        listener.close_backlog();
        drop(listener);
        // Whoever handed it over can still be connected to by several at once.
        let address = theirs.local_addr().unwrap();
        let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(500)).unwrap();
        let peers: Vec<_> = (0..5).map(connect).collect();
        theirs.set_nonblocking(false).unwrap();
        assert!(peers.iter().all(|_| theirs.accept().is_ok()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    #[ignore = "needs Multipath TCP in the kernel"]
    fn an_inherited_multipath_tcp_listener_is_taken() {
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::MPTCP)).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(1).unwrap();
        let poll = mio::Poll::new().unwrap();
        let options = SocketOptions::default();
        let listener = Listener::inherited_tcp(socket.into(), &options, poll.registry(), Token(0)).unwrap();
        assert!(dial(&listener).peer_addr().is_ok());
    }

    #[test]
    fn connections_inherit_the_options_of_their_listener() {
        let socket = accepted(&SocketOptions::default());
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        let options = SocketOptions {
            nagle: true,
            recv_buffer: Some(100_000),
            send_buffer: Some(50_000),
            ..SocketOptions::default()
        };
        let socket = accepted(&options);
        assert!(!socket.tcp_nodelay().unwrap());
        // Linux doubles what it is asked for (socket(7)), others do not.
        assert!([100_000, 200_000].contains(&socket.recv_buffer_size().unwrap()));
        assert!([50_000, 100_000].contains(&socket.send_buffer_size().unwrap()));
    }

    #[test]
    fn a_peer_that_cannot_be_registered_is_kept() {
        let poll = mio::Poll::new().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let mut listener = Listener::tcp(any, &SocketOptions::default(), poll.registry(), Token(0)).unwrap();
        let client = dial(&listener);
        let accepted = loop {
            match listener.take() {
                Ok(accepted) => break accepted,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        };
        let Socket::Tcp(stream) = &accepted.0 else { unreachable!() };
        let descriptor = stream.as_raw_fd();
        // Registered already, so that it cannot be.
        poll.registry().register(&mut SourceFd(&descriptor), Token(2), Interest::READABLE).unwrap();
        listener.unregistered = Some(accepted);
        assert_eq!(listener.accept(Token(1)).unwrap_err().kind(), ErrorKind::AlreadyExists);
        poll.registry().deregister(&mut SourceFd(&descriptor)).unwrap();
        assert_eq!(listener.accept(Token(1)).unwrap().1, Origin::Ip(client.local_addr().unwrap()));
        assert_eq!(listener.accept(Token(1)).unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn stale_socket_file_is_replaced_live_one_kept() {
        let poll = mio::Poll::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listen = || Listener::unix(&path, &SocketOptions::default(), poll.registry(), Token(0));
        let listener = listen().unwrap();
        assert_eq!(listener.endpoint().unwrap(), Endpoint::Unix(path.clone()));
        assert_eq!(listen().unwrap_err().kind(), ErrorKind::AddrInUse, "it is in use");
        drop(listener);
        assert!(!path.exists());
        // As a server leaves it that was killed: nobody listens, and the file is there.
        drop(StdUnixListener::bind(&path).unwrap());
        let listener = listen().unwrap();
        // Somebody else has taken the name: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        let _other = StdUnixListener::bind(&path).unwrap();
        drop(listener);
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(listen().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        // Nor is a link replaced, wherever it leads.
        let link = directory.path().join("link");
        for target in ["socket", "nowhere"] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            let error = Listener::unix(&link, &SocketOptions::default(), poll.registry(), Token(0)).unwrap_err();
            assert!(error.to_string().contains("symbolic link"), "{error}");
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
            fs::remove_file(&link).unwrap();
        }
    }

    #[test]
    fn bound_socket_is_in_use_before_it_listens() {
        let poll = mio::Poll::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let other = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        other.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        let listen = || Listener::unix(&path, &SocketOptions::default(), poll.registry(), Token(0));
        assert_eq!(listen().unwrap_err().kind(), ErrorKind::AddrInUse);
        // And with a backlog that is full, and no probe is found in it.
        other.listen(0).unwrap();
        let waiting = Socket::connect_unix(&path).unwrap();
        while Socket::connect_unix(&path).is_ok() {}
        assert_eq!(listen().unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(waiting);
        drop(other);
        listen().unwrap();
    }

    #[test]
    fn stale_file_found_by_many_is_replaced_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for _ in 0..20 {
            drop(StdUnixListener::bind(&path).unwrap());
            let together = std::sync::Barrier::new(4);
            let polls: Vec<_> = (0..4).map(|_| mio::Poll::new().unwrap()).collect();
            let listeners: Vec<_> = std::thread::scope(|scope| {
                let start = |poll| {
                    let (path, together) = (&path, &together);
                    scope.spawn(move || {
                        together.wait();
                        let poll: &mio::Poll = poll;
                        Listener::unix(path, &SocketOptions::default(), poll.registry(), Token(0))
                    })
                };
                let threads: Vec<_> = polls.iter().map(start).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let errors = listeners.iter().filter_map(|it| it.as_ref().err());
            assert!(errors.clone().all(|error| error.kind() == ErrorKind::AddrInUse), "{listeners:?}");
            assert_eq!(errors.count(), 3);
            Socket::connect_unix(&path).expect("the one that listens is the one that has the file");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn abstract_name_has_no_file_and_one_listener() {
        let poll = mio::Poll::new().unwrap();
        let path = PathBuf::from(format!("@echoloop-test-{}", std::process::id()));
        let listen = || Listener::unix(&path, &SocketOptions::default(), poll.registry(), Token(0));
        let mut listener = listen().unwrap();
        assert_eq!(listener.endpoint().unwrap(), Endpoint::Unix(path.clone()));
        assert!(!path.exists());
        Socket::connect_unix(&path).unwrap();
        assert_eq!(listener.accept(Token(1)).unwrap().1, Origin::Unix);
        assert_eq!(listen().unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(listener);
        listen().unwrap();
    }

    #[test]
    fn unix_connections_get_the_options_of_their_listener() {
        let poll = mio::Poll::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let options = SocketOptions { send_buffer: Some(50_000), ..SocketOptions::default() };
        let mut listener = Listener::unix(&path, &options, poll.registry(), Token(0)).unwrap();
        let mut client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (socket, origin) = listener.accept(Token(1)).unwrap();
        assert_eq!(origin, Origin::Unix);
        let Socket::Unix(stream) = &socket else { unreachable!() };
        assert!([50_000, 100_000].contains(&SockRef::from(&stream.as_fd()).send_buffer_size().unwrap()));
        drop(socket);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}
