//! The sockets of a server, as they are bound one after the other: streams, datagrams, bound or inherited.

use std::io;

use anyhow::{Context, anyhow};
use log::warn;
use rustix::io::Errno;

use super::admin::Admin;
use super::datagrams::DatagramEcho;
use super::echo::StreamService;
use super::supervisor::Inherited;
use crate::reactor::address::{Address, Endpoint};
use crate::reactor::socket::Socket;
use crate::reactor::{Datagrams, Listener, Poller, Protocol, Reactor, SocketOptions, UdpPort};

/// Binds sockets and hands them to the sources that serve them.
pub(super) struct Binder<'a, P: StreamService<Socket>> {
    pub poller: &'a Poller,
    pub options: &'a SocketOptions,
    pub streams: &'a mut Reactor<Socket, P>,
    pub datagrams: &'a mut Datagrams<UdpPort, DatagramEcho>,
    /// Where it listens, with the real ports.
    pub endpoints: Vec<Endpoint>,
}

impl<P: StreamService<Socket>> Binder<'_, P> {
    /// Binds to all that an address stands for.
    pub fn bind(&mut self, address: &Address) -> anyhow::Result<()> {
        let resolved = address.resolve().with_context(|| format!("cannot resolve {address}"))?;
        bind_all(address, &resolved, |endpoint| match self.bind_one(endpoint) {
            Err(_) if self.endpoints.contains(endpoint) => {
                Err(io::Error::other("it is given twice; leave it out once"))
            }
            bound => bound,
        })
    }

    fn bind_one(&mut self, endpoint: &Endpoint) -> io::Result<()> {
        let (options, registry) = (self.options, self.poller.registry());
        let bound = match endpoint {
            Endpoint::Udp(address) => {
                let token = self.datagrams.add(|token| UdpPort::bind(*address, options, registry, token))?;
                self.udp_endpoint(token)?
            }
            stream => listen_on(self.streams, stream, options, self.poller)?,
        };
        self.endpoints.push(bound);
        Ok(())
    }

    /// Takes over a socket that is bound already.
    pub fn inherit(&mut self, socket: Inherited) -> io::Result<()> {
        let (options, registry) = (self.options, self.poller.registry());
        let bound = match socket {
            Inherited::Tcp(socket) => {
                add(self.streams, |token| Listener::inherited_tcp(socket, options, registry, token))?
            }
            Inherited::Unix(socket) => {
                add(self.streams, |token| Listener::inherited_unix(socket, options, registry, token))?
            }
            Inherited::Udp(socket) => {
                let token = self.datagrams.add(|token| UdpPort::inherited(socket, registry, token))?;
                self.udp_endpoint(token)?
            }
        };
        self.endpoints.push(bound);
        Ok(())
    }

    fn udp_endpoint(&mut self, token: mio::Token) -> io::Result<Endpoint> {
        let address = self.datagrams.with(token, |_, outlet| outlet.socket().local_addr());
        address.unwrap_or(Err(io::ErrorKind::NotFound.into())).map(Endpoint::Udp)
    }
}

/// Binds the admin interface to all that its addresses stand for.
pub(super) fn bind_admin(admin: &mut Admin<Socket>, addresses: &[Address], poller: &Poller) -> anyhow::Result<()> {
    // The echo's options are not for these: on a port that several processes share, a client would reach any of them.
    let options = SocketOptions::default();
    for address in addresses {
        let resolved = address.resolve().with_context(|| format!("cannot resolve {address}"))?;
        if let Address::Tcp(host) = address {
            admin.add_host(host.name());
        }
        bind_all(address, &resolved, |endpoint| {
            if let Endpoint::Tcp(address) = endpoint {
                admin.add_host(&address.ip().to_canonical().to_string());
            }
            let bound = listen_on(&mut admin.reactor, endpoint, &options, poller)?;
            admin.endpoints.push(bound);
            Ok(())
        })?;
    }
    Ok(())
}

/// Has a reactor listen on an endpoint of the kinds that have streams. Returns the endpoint with the real port.
fn listen_on<P: Protocol<Socket>>(
    reactor: &mut Reactor<Socket, P>,
    endpoint: &Endpoint,
    options: &SocketOptions,
    poller: &Poller,
) -> io::Result<Endpoint> {
    let registry = poller.registry();
    match endpoint {
        Endpoint::Tcp(address) => add(reactor, |token| Listener::tcp(*address, options, registry, token)),
        Endpoint::Unix(path) => add(reactor, |token| Listener::unix(path, options, registry, token)),
        Endpoint::Udp(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn add<P: Protocol<Socket>>(
    reactor: &mut Reactor<Socket, P>,
    make: impl FnOnce(mio::Token) -> io::Result<Listener>,
) -> io::Result<Endpoint> {
    let mut endpoint = None;
    reactor.listen(|token| {
        let listener = make(token)?;
        endpoint = Some(listener.endpoint()?);
        Ok(listener)
    })?;
    endpoint.ok_or(io::ErrorKind::NotFound.into())
}

/// Binds to all endpoints of an address. A name may well stand for addresses that this machine does not have, as
/// `localhost` does for ::1 where IPv6 is off: those are left out, as long as there is another.
fn bind_all(
    asked: &Address,
    resolved: &[Endpoint],
    mut bind: impl FnMut(&Endpoint) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut absent = Vec::new();
    for endpoint in resolved {
        let Err(error) = bind(endpoint) else { continue };
        let is_absent = is_absent(&error);
        let remedy = remedy(endpoint, &error).map_or(String::new(), |remedy| format!("; {remedy}"));
        let error = anyhow::Error::new(error).context(format!("cannot listen on {}", describe(asked, endpoint)));
        let error = if remedy.is_empty() { error } else { anyhow!("{error:#}{remedy}") };
        if !is_absent {
            return Err(error);
        }
        absent.push(error);
    }
    if absent.len() == resolved.len() {
        return absent.into_iter().next().map_or(Ok(()), Err);
    }
    absent.iter().for_each(|error| warn!("{error:#}; its other addresses are served"));
    Ok(())
}

/// What helps against an error that the kernel has only a few words for (bind(2), ip(7), unix(7)).
fn remedy(endpoint: &Endpoint, error: &io::Error) -> Option<&'static str> {
    let errno = Errno::from_io_error(error)?;
    match endpoint {
        Endpoint::Tcp(address) | Endpoint::Udp(address) => match errno {
            Errno::ADDRINUSE => Some("stop whoever listens there, or take another port; port 0 is a free one"),
            Errno::ADDRNOTAVAIL => Some("this machine has no such address; 0.0.0.0 and [::] stand for all that it has"),
            Errno::ACCESS => Some("low ports need a privilege (CAP_NET_BIND_SERVICE); 7777 needs none"),
            Errno::INVAL if address.ip().to_canonical().is_ipv4() => {
                Some("write the IPv4 address as such, as in 127.0.0.1:7777")
            }
            Errno::INVAL => Some("a link-local address needs its interface, as in [fe80::1%eth0]:7777"),
            _ => None,
        },
        Endpoint::Unix(_) => match errno {
            Errno::NOENT => Some("its directory must be there"),
            Errno::ACCESS => Some("it takes the permission to make files in its directory"),
            _ => None,
        },
    }
}

/// Whether an address cannot be bound to because this machine does not have it, or not its family (bind(2), ip(7)).
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::ADDRNOTAVAIL, Errno::AFNOSUPPORT, Errno::PROTONOSUPPORT];
    absent.map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error())
}

/// An address as it was asked for, and as it was resolved if that says more.
fn describe(asked: &Address, found: &Endpoint) -> String {
    let (asked, found) = (asked.to_string(), found.to_string());
    if asked == found || format!("tcp:{found}") == asked { found } else { format!("{asked} ({found})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_served_where_its_addresses_exist() {
        let asked = "localhost:7777".parse().unwrap();
        let both = ["[::1]:7777", "127.0.0.1:7777"].map(|text| Endpoint::Tcp(text.parse().unwrap()));
        let without = |missing: usize, errno: Errno| {
            let mut bound = Vec::new();
            let outcome = bind_all(&asked, &both[..=missing.max(1)], |endpoint| {
                if both[..missing].contains(endpoint) {
                    return Err(errno.into());
                }
                bound.push(endpoint.clone());
                Ok(())
            });
            (outcome.map_err(|error| format!("{error:#}")), bound)
        };
        assert_eq!(without(1, Errno::ADDRNOTAVAIL), (Ok(()), vec![both[1].clone()]));
        assert_eq!(without(1, Errno::AFNOSUPPORT), (Ok(()), vec![both[1].clone()]));
        let (outcome, _) = without(1, Errno::ADDRINUSE);
        let error = outcome.unwrap_err();
        assert!(
            error.starts_with("cannot listen on localhost:7777 ([::1]:7777): ") && error.ends_with("is a free one")
        );
    }
}
