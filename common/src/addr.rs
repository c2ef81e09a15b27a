//! Addresses and ports as they lie in packets and maps.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 16-bit number in network byte order: the value that a plain 16-bit load of
/// the packet's bytes gives.
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
pub struct Be16(pub u16);

impl Be16 {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An IPv6 address, or an IPv4 address in IPv4-mapped form (`::ffff:a.b.c.d`,
/// RFC 4291 section 2.5.5.2), as two 64-bit words loaded from its bytes.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Addr(pub [u64; 2]);

/// The word that marks an IPv4-mapped address: bytes 8 to 11 are `0, 0, ff, ff`.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Addr {
    /// The unspecified address `::`, used where no address is set.
    pub const UNSPECIFIED: Self = Self([0, 0]);

    /// From the 32-bit word that a load of an IPv4 address' bytes gives.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        #[cfg(target_endian = "little")]
        return Self([0, (MAPPED as u64) | ((word as u64) << 32)]);
        #[cfg(target_endian = "big")]
        return Self([0, ((MAPPED as u64) << 32) | word as u64]);
    }

    /// The word that a load of the IPv4 address' bytes gives; meaningful only
    /// for an IPv4-mapped address.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        #[cfg(target_endian = "little")]
        return (self.0[1] >> 32) as u32;
        #[cfg(target_endian = "big")]
        return self.0[1] as u32;
    }

    /// Whether this is an IPv4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        #[cfg(target_endian = "little")]
        return self.0[0] == 0 && (self.0[1] as u32) == MAPPED;
        #[cfg(target_endian = "big")]
        return self.0[0] == 0 && ((self.0[1] >> 32) as u32) == MAPPED;
    }

    /// The sixteen bytes in network order.
    #[inline(always)]
    pub fn octets(&self) -> [u8; 16] {
        let (a, b) = (self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes());
        [
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5],
            b[6], b[7],
        ]
    }

    /// From sixteen bytes in network order.
    #[inline(always)]
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u64::from_ne_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]),
            u64::from_ne_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]),
        ])
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::from_octets(v4.to_ipv6_mapped().octets()),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        core::net::Ipv6Addr::from(addr.octets()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    #[test]
    fn v4_is_mapped_and_back() {
        let ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        let addr = Addr::from(ip);
        assert!(addr.is_v4());
        assert_eq!(addr.v4_word().to_ne_bytes(), [192, 0, 2, 7]);
        assert_eq!(Addr::from_v4_word(addr.v4_word()), addr);
        assert_eq!(IpAddr::from(addr), ip);
    }

    #[test]
    fn v6_keeps_its_bytes() {
        let ip: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        let addr = Addr::from(IpAddr::V6(ip));
        assert!(!addr.is_v4());
        assert_eq!(addr.octets(), ip.octets());
        assert_eq!(IpAddr::from(addr), IpAddr::V6(ip));
    }

    #[test]
    fn port_is_big_endian() {
        assert_eq!(Be16::new(80).0.to_ne_bytes(), [0, 80]);
        assert_eq!(Be16::new(80).host(), 80);
    }
}
