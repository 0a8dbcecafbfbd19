//! One question to a DNS server, as a pod would ask it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

/// Any number: answers are matched by it, and a socket asks only once.
const QUESTION_NUMBER: [u8; 2] = [0x4f, 0x52];

/// Asks `server` for the address of `name`, and waits a tenth of a second at most. `None` if the answer has no address.
pub(crate) fn ask(server: Ipv4Addr, name: &str) -> io::Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.connect(SocketAddrV4::new(server, 53))?;
    socket.send(&question(name))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(address_in(&answer[..length]))
}

/// Header with one question and recursion wished for; the name label by label; type A, class Internet.
fn question(name: &str) -> Vec<u8> {
    let mut packet = QUESTION_NUMBER.to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or_default());
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// The answer's last record is the address, and its last four bytes are it, since nothing else was asked for.
fn address_in(packet: &[u8]) -> Option<Ipv4Addr> {
    let answered = packet.get(..2)? == QUESTION_NUMBER && packet.get(6..8)? != [0, 0];
    let last: [u8; 4] = *packet.last_chunk()?;
    answered.then(|| Ipv4Addr::from(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_spells_the_name_in_labels() {
        let packet = question("a.bc");
        assert_eq!(&packet[12..], [1, b'a', 2, b'b', b'c', 0, 0, 1, 0, 1]);
    }

    #[test]
    fn an_answer_without_records_has_no_address() {
        assert_eq!(address_in(&[0x4f, 0x52, 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0]), None);
    }
}
