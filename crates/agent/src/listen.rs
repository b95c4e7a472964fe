//! Where an agent listens: IPv4 and IPv6 by one socket, and IPv4 where there is nothing else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::TcpListener;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Listens at `address`. `[::]` is every address of the node's or pod's, `0.0.0.0` where the kernel has
/// no IPv6.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = anywhere(address, bind)?;
    TcpListener::from_std(socket)
}

fn anywhere<T>(
    address: SocketAddr,
    bind: impl Fn(SocketAddr) -> Result<T, Errno>,
) -> io::Result<T> {
    let is_any = address.ip() == Ipv6Addr::UNSPECIFIED;
    let bound = match bind(address) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if is_any => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    };
    Ok(bound?)
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Connections of an agent before it must not keep this one from starting.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Whatever `net.ipv6.bindv6only` says.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Whether `peer` is one of `known`; nobody being known, everybody is. An IPv4 peer has an address of
/// IPv6 where it came by such a socket.
pub(crate) fn is_heard(known: &[IpAddr], peer: IpAddr) -> bool {
    let same = |one: &IpAddr| one.to_canonical() == peer.to_canonical();
    known.is_empty() || known.iter().any(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    #[test]
    fn without_ipv6_it_is_ipv4() {
        for missing in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let bind =
                |it: SocketAddr| if it.is_ipv6() { Err(missing) } else { Ok(it.to_string()) };
            assert_eq!(anywhere(at("[::]:9443"), bind).unwrap(), "0.0.0.0:9443");
            assert_eq!(anywhere(at("10.0.0.7:9443"), bind).unwrap(), "10.0.0.7:9443");
            // It was asked for, and nothing else is what was meant.
            assert!(anywhere(at("[fd00::1]:9443"), bind).is_err());
        }
        let taken = |_| Err::<(), _>(Errno::ADDRINUSE);
        let error = anywhere(at("[::]:9443"), taken).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn both_kinds_of_addresses_are_listened_at() {
        let listener = listen(at("[::]:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let mut ways = vec!["127.0.0.1"];
        if address.is_ipv6() {
            ways.push("::1");
        }
        for way in ways {
            let way: IpAddr = way.parse().unwrap();
            let to = SocketAddr::new(way, address.port());
            let (there, here) = tokio::join!(tokio::net::TcpStream::connect(to), listener.accept());
            there.unwrap();
            let peer = here.unwrap().1.ip();
            assert!(is_heard(&[way], peer), "{peer} is {way}");
            assert!(!is_heard(&["10.0.0.9".parse().unwrap()], peer));
        }
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let known = [ip("10.0.0.7"), ip("::ffff:10.0.0.8"), ip("fd00::1")];
        for heard in ["10.0.0.7", "::ffff:10.0.0.7", "10.0.0.8", "::ffff:a00:8", "fd00:0::1"] {
            assert!(is_heard(&known, ip(heard)), "{heard}");
        }
        // `::10.0.0.7` is an address of IPv6, whatever it looks like.
        for other in ["10.0.0.9", "::ffff:10.0.0.9", "::10.0.0.7", "fd00::2", "::1", "::"] {
            assert!(!is_heard(&known, ip(other)), "{other}");
        }
        assert!(is_heard(&[], ip("10.0.0.9")));
    }
}
