//! The few network frames that are sent and understood here: ARP (RFC 826) and ICMP echo (RFC 792) over Ethernet and IPv4.

/// The address of an Ethernet station.
pub type Station = [u8; 6];

/// The addresses of QEMU's user network: this machine and its gateway.
const OWN: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

const ETHERNET: usize = 14;
const IP: usize = 20;
const PAYLOAD: usize = 400;
/// A ping with its headers.
const PING: usize = ETHERNET + IP + 8 + PAYLOAD;

fn ethernet(frame: &mut [u8], to: Station, from: Station, kind: [u8; 2]) {
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame[12..14].copy_from_slice(&kind);
}

/// Who has the gateway's address?
pub fn arp_request(own: Station) -> [u8; 60] {
    let mut frame = [0; 60];
    ethernet(&mut frame, [0xFF; 6], own, [0x08, 0x06]);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&own);
    frame[28..32].copy_from_slice(&OWN);
    frame[38..42].copy_from_slice(&GATEWAY);
    frame
}

/// The station that says that it has the gateway's address.
pub fn arp_answer(frame: &[u8]) -> Option<Station> {
    let answers =
        frame.get(12..14)? == [0x08, 0x06] && frame.get(20..22)? == [0, 2] && frame.get(28..32)? == GATEWAY;
    frame.get(22..28)?.try_into().ok().filter(|_| answers)
}

/// The checksum of the Internet (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xFFFF) + (sum >> 16);
    (!(folded + (folded >> 16)) as u16).to_be_bytes()
}

/// Are you there?
pub fn echo_request(own: Station, gateway: Station, number: u16) -> [u8; PING] {
    let mut frame = [0; PING];
    ethernet(&mut frame, gateway, own, [0x08, 0x00]);
    let (ip, echo) = frame[ETHERNET..].split_at_mut(IP);
    ip[..2].copy_from_slice(&[0x45, 0]);
    ip[2..4].copy_from_slice(&((PING - ETHERNET) as u16).to_be_bytes());
    ip[8..10].copy_from_slice(&[64, 1]);
    ip[12..16].copy_from_slice(&OWN);
    ip[16..20].copy_from_slice(&GATEWAY);
    let sum = checksum(ip);
    ip[10..12].copy_from_slice(&sum);
    echo[0] = 8;
    echo[4..6].copy_from_slice(&[0x46, 0x50]);
    echo[6..8].copy_from_slice(&number.to_be_bytes());
    for (at, byte) in echo[8..].iter_mut().enumerate() {
        *byte = (at as u16 ^ number.wrapping_mul(257)) as u8;
    }
    let sum = checksum(echo);
    echo[2..4].copy_from_slice(&sum);
    frame
}

/// Whether `frame` is the answer to `request`: the same number and the same payload.
pub fn is_echo_answer(frame: &[u8], request: &[u8; PING]) -> bool {
    let echo = ETHERNET + IP;
    frame.len() >= PING
        && frame[12..14] == [0x08, 0x00]
        && frame[ETHERNET + 12..ETHERNET + 16] == GATEWAY
        && frame[echo] == 0
        && frame[echo + 4..PING] == request[echo + 4..]
}
