//! The node's end of the pod's cable, as the kernel's tables of routes name it.

use std::net::{IpAddr, Ipv6Addr};

const IPV4: &str = "/proc/net/route";
const IPV6: &str = "/proc/net/ipv6_route";
/// `RTF_UP` and `RTF_GATEWAY`.
const USED: u32 = 0x1 | 0x2;

/// The gateways of the default routes. A table that can't be read has none.
pub fn gateways() -> Vec<IpAddr> {
    let table = |path| std::fs::read_to_string(path).unwrap_or_default();
    ipv4(&table(IPV4)).chain(ipv6(&table(IPV6))).collect()
}

/// Interface, destination, gateway, flags, three others, mask. Addresses are words as the processor has
/// them in memory.
fn ipv4(table: &str) -> impl Iterator<Item = IpAddr> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let (to, by, flags, mask) = (number(1)?, number(2)?, number(3)?, number(7)?);
        (to == 0 && mask == 0 && flags & USED == USED).then(|| IpAddr::from(by.to_ne_bytes()))
    })
}

/// Destination and its prefix, source and its prefix, gateway, three others, flags, interface. Addresses
/// are as they are written, without colons.
fn ipv6(table: &str) -> impl Iterator<Item = IpAddr> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u128::from_str_radix(fields.get(at)?, 16).ok();
        let (to, prefix, by, flags) = (number(0)?, number(1)?, number(4)?, number(8)?);
        let used = u128::from(USED);
        let is_default = to == 0 && prefix == 0 && flags & used == used;
        is_default.then(|| IpAddr::from(Ipv6Addr::from(by)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn of_ipv4_the_default_routes_count() {
        let table = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth1\t0000000A\t0200000A\t0003\t0\t0\t0\t000000FF\t0\t0\t0
eth2\t00000000\t0300000A\t0003\t0\t0\t0\t00000080\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003
eth0\t00000000\tno word\t0003\t0\t0\t0\t00000000\t0\t0\t0
";
        assert_eq!(ipv4(table).collect::<Vec<_>>(), of(&["192.0.2.1", "10.0.0.1"]));
        assert_eq!(ipv4("").next(), None);
    }

    #[test]
    fn of_ipv6_too() {
        let (zero, metrics) = ("0".repeat(32), "00000400 00000003 00000000");
        let line = |to: &str, prefix: &str, by: &str, flags: &str| {
            format!("{to} {prefix} {zero} 00 {by} {metrics} {flags}     eth0\n")
        };
        let (global, local) =
            ("fd000000000000000000000000000001", "fe8000000000000000fc00fffe000001");
        let table = [
            line("fd000000000000000000000000000000", "40", &zero, "00000001"),
            line(&zero, "00", global, "00000003"),
            line(&zero, "00", local, "00450003"),
            line(&zero, "01", local, "00000003"),
            line("20010db8000000000000000000000000", "20", local, "00000003"),
            // Of a pod without a way out.
            line(&zero, "00", &zero, "00200200"),
            format!("{zero} 00 {zero} 00 {global}\n"),
            "\n".to_owned(),
        ];
        let found: Vec<_> = ipv6(&table.concat()).collect();
        assert_eq!(found, of(&["fd00::1", "fe80::fc:ff:fe00:1"]));
    }
}
