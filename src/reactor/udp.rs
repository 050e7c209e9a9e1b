//! UDP sockets: bound, inherited or connected, and from which of our addresses an answer must come.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, Type};

use super::address::is_group;
use super::datagrams::{DatagramSocket, Envelope};
use super::listener::{SocketOptions, prepare};
use super::poller::Poller;

/// The least that a datagram takes of its socket's receive buffer, in bytes: on the BSDs an mbuf, and more on Linux.
const MIN_CHARGE: usize = 256;

/// A UDP socket on a poll, bound or connected.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    /// The peer, if it is connected.
    peer: Option<SocketAddr>,
    /// Room for control messages, if it may get some: one that is bound to all addresses has each datagram tell to which
    /// it was sent.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    control: Option<Vec<u8>>,
}

impl UdpPort {
    /// Binds to `address`, with `token` in the poll of `registry`.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when the address is in use or needs a privilege (bind(2)).
    pub fn bind(address: SocketAddr, options: &SocketOptions, registry: &Registry, token: Token) -> io::Result<Self> {
        if is_for_many(address)? {
            let cause = "broadcast and multicast are not answered: listen on an address of this machine, or on 0.0.0.0";
            return Err(io::Error::new(ErrorKind::InvalidInput, cause));
        }
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        prepare(&socket, address, options)?;
        socket.bind(&address.into())?;
        UdpPort::inherited(socket.into(), registry, token)
    }

    /// Takes over a socket that is bound already.
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no descriptor left.
    pub fn inherited(socket: std::net::UdpSocket, registry: &Registry, token: Token) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let control = pktinfo::ask(&socket)?;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        if socket.local_addr()?.ip().is_unspecified() {
            log::warn!(
                "udp: answers come from the address that the route back has, which need not be the one that was asked: \
                 listen on each address instead of all"
            );
        }
        let mut socket = UdpSocket::from_std(socket);
        registry.register(&mut socket, token, Interest::READABLE)?;
        Ok(UdpPort {
            socket,
            peer: None,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            control,
        })
    }

    /// Connects to `target` from `source`, or from an address that the kernel chooses, with `token` in the poll of
    /// `registry`. An unreachable port is reported then (udp(7)).
    ///
    /// # Errors
    ///
    /// What the kernel reports, as when there is no route.
    pub fn connect(target: SocketAddr, source: Option<IpAddr>, registry: &Registry, token: Token) -> io::Result<Self> {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let connected = || {
            let socket = UdpSocket::bind(SocketAddr::new(source.unwrap_or(any), 0))?;
            socket.connect(target)?;
            io::Result::Ok(socket)
        };
        let mut socket = connected()?;
        if socket.local_addr()? == target {
            // The kernel gave it the very port that it is to send to: nobody listens there, and it would answer itself.
            // While it is open, the kernel gives another one, if there is one.
            socket = connected().map_err(|_| ErrorKind::ConnectionRefused)?;
        }
        registry.register(&mut socket, token, Poller::interest())?;
        Ok(UdpPort {
            socket,
            peer: Some(target),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            control: None,
        })
    }

    /// Where it is bound, with the real port.
    ///
    /// # Errors
    ///
    /// What the kernel reports (getsockname(2)).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Whether datagrams to `address` go to many. Which addresses are for broadcast depends on the networks of this machine:
/// none can be connected to without SO_BROADCAST (connect(2), on EACCES). Nothing is sent by that.
fn is_for_many(address: SocketAddr) -> io::Result<bool> {
    if address.ip().is_unspecified() {
        return Ok(false);
    }
    if is_group(address.ip()) {
        return Ok(true);
    }
    let probe = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    let discard = SocketAddr::new(address.ip(), 9);
    Ok(matches!(probe.connect(&discard.into()), Err(error) if error.kind() == ErrorKind::PermissionDenied))
}

impl DatagramSocket for UdpPort {
    fn max_queued(&self) -> usize {
        let buffer = socket2::SockRef::from(&self.socket).recv_buffer_size();
        buffer.map_or(usize::MAX, |bytes| bytes / MIN_CHARGE + 1)
    }

    fn receive(&mut self, into: &mut [u8]) -> io::Result<(usize, Envelope)> {
        if let Some(from) = self.peer {
            return Ok((self.socket.recv(into)?, Envelope::from(from)));
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(control) = &mut self.control {
            return self.socket.try_io(|| pktinfo::receive(&self.socket, into, control));
        }
        let (length, from) = self.socket.recv_from(into)?;
        Ok((length, Envelope::from(from)))
    }

    fn send(&mut self, bytes: &[u8], envelope: &Envelope) -> io::Result<()> {
        if self.peer.is_some() {
            return self.socket.send(bytes).map(|_| ());
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(to) = envelope.to {
            return self.socket.try_io(|| pktinfo::send(&self.socket, bytes, envelope.from, to));
        }
        self.socket.send_to(bytes, envelope.from).map(|_| ())
    }
}

/// Which of our addresses a datagram was sent to (ip(7), `IP_PKTINFO`; ipv6(7), `IPV6_PKTINFO`).
#[cfg(any(target_os = "linux", target_os = "android"))]
mod pktinfo {
    use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::{AsFd, AsRawFd};

    use nix::libc;
    use nix::sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    };

    use super::Envelope;

    /// Room for control messages: the address, and what the process that created the socket may have asked for. What does not
    /// fit is truncated, and the datagram is received all the same (recvmsg(2), `MSG_CTRUNC`).
    const CONTROL: usize = 1024;

    /// Asks for it, where there can be several. Returns room for the answer.
    pub fn ask(socket: &std::net::UdpSocket) -> io::Result<Option<Vec<u8>>> {
        let address = socket.local_addr()?.ip();
        if !address.is_unspecified() {
            return Ok(None);
        }
        if address.is_ipv4() {
            setsockopt(&socket.as_fd(), sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket.as_fd(), sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Some(vec![0; CONTROL]))
    }

    pub fn receive(socket: &impl AsRawFd, into: &mut [u8], control: &mut [u8]) -> io::Result<(usize, Envelope)> {
        let mut pieces = [IoSliceMut::new(into)];
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut pieces, Some(control), MsgFlags::empty())?;
        let mut envelope = Envelope { from: SocketAddr::from(([0; 4], 0)), to: None, to_many: false };
        // An error says that some were cut off.
        for control in message.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let [local, header] = [info.ipi_spec_dst, info.ipi_addr].map(|it| it.s_addr.to_ne_bytes());
                    envelope.to = Some(IpAddr::from(local));
                    // To a broadcast or multicast address: the answer would come from another one than was asked.
                    envelope.to_many = local != header;
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let to = IpAddr::from(info.ipi6_addr.s6_addr);
                    envelope.to_many = super::super::address::is_group(to);
                    envelope.to = Some(to);
                }
                _ => {}
            }
        }
        let from = message.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
        });
        let from = from.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a datagram without an address"))?;
        envelope.from = from;
        Ok((message.bytes, envelope))
    }

    pub fn send(socket: &impl AsRawFd, bytes: &[u8], destination: SocketAddr, source: IpAddr) -> io::Result<()> {
        let pieces = [IoSlice::new(bytes)];
        let destination = SockaddrStorage::from(destination);
        let (v4, v6);
        let control = match source {
            IpAddr::V4(source) => {
                let ipi_spec_dst = libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) };
                v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: libc::in_addr { s_addr: 0 } };
                ControlMessage::Ipv4PacketInfo(&v4)
            }
            IpAddr::V6(source) => {
                v6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 };
                ControlMessage::Ipv6PacketInfo(&v6)
            }
        };
        sendmsg(socket.as_raw_fd(), &pieces, &[control], MsgFlags::empty(), Some(&destination))?;
        Ok(())
    }
}
