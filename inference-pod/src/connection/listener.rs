//! Listening sockets: opened on both families, closed without losing whom the kernel has taken.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{SockFilter, SockRef, Socket, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

/// Connections that the kernel holds while we are busy.
const BACKLOG: i32 = 1024;

/// A peer that has been silent for a minute is asked whether it is there, four times.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// Opens a listening socket. On 0.0.0.0 it takes what comes to any address, of IPv6 too where the system has that: a pod of a
/// cluster with IPv6 may have no other.
///
/// # Errors
/// What the system said, for example that the port is taken.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() == IpAddr::from(Ipv4Addr::UNSPECIFIED) {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        if let Ok(listener) = listen_on(any) {
            return Ok(listener);
        }
    }
    listen_on(address)
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    // Its connections inherit it: of a peer that is gone without a word nobody else would tell.
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Closes a listener without losing the connections that the kernel has already accepted for it.
pub(super) fn close(listener: TcpListener) -> Vec<TcpStream> {
    /// Classic BPF for «return 0»: every packet to the listener is dropped, so a new client tries again and meets a
    /// closed port, while connections already established are not concerned.
    const DROP_ALL: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];
    if let Err(error) = SockRef::from(&listener).attach_filter(&DROP_ALL) {
        tracing::debug!(%error, "cannot stop new connections before the listener closes");
    }
    let mut accepted = Vec::new();
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            accepted.extend(stream);
        }
    }
    accepted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_one_of_either_family() {
        let port = listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        let port = (port.local_addr().unwrap().port(), port);
        TcpStream::connect((Ipv4Addr::LOCALHOST, port.0)).await.unwrap();
        // Where the machine has IPv6.
        if listen(SocketAddr::from((Ipv6Addr::LOCALHOST, 0))).is_ok() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port.0)).await.unwrap();
        }
        let one = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        assert_eq!(one.local_addr().unwrap().ip(), Ipv4Addr::LOCALHOST);
    }
}
