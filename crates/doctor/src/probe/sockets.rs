//! The sockets of a container: which of its network's it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::read;
use crate::facts::Process;
use crate::text::Text;

const ESTABLISHED: &str = "01";
const LISTENING: &str = "0A";
/// Of a Unix socket.
const CONNECTED: &str = "03";
/// What CRIU has no word for. They are counted for the network of the whole pod.
const UNKNOWN: [&str; 7] = ["AF_VSOCK", "MPTCP", "MPTCPv6", "SCTP", "SCTPv6", "SMC", "SMC6"];
/// The kernel's other lists, and in which column the inode is.
const OTHERS: [(&str, usize); 8] = [
    ("udp", 9),
    ("udp6", 9),
    ("udplite", 9),
    ("udplite6", 9),
    ("raw", 9),
    ("raw6", 9),
    ("packet", 8),
    ("netlink", 9),
];

/// Counts those of `inodes` that matter. `process` is any of the container's: they share a network.
pub fn count(process: &Path, inodes: &BTreeSet<u64>, found: &mut Process) {
    let list = |name: &str| read(&process.join("net").join(name)).unwrap_or_default();
    let mut listed = BTreeSet::new();
    for name in ["tcp", "tcp6"] {
        let states = states(&list(name), 9, 3);
        let held = || states.iter().filter(|(inode, _)| inodes.contains(*inode));
        found.tcp_established += number(held().filter(|(_, state)| *state == ESTABLISHED).count());
        found.tcp_listening += number(held().filter(|(_, state)| *state == LISTENING).count());
        listed.extend(states.into_keys());
    }
    let unix = states(&list("unix"), 6, 5);
    let connected =
        |(inode, state): &(&u64, &String)| inodes.contains(*inode) && *state == CONNECTED;
    found.unix_connected = number(unix.iter().filter(connected).count());
    listed.extend(unix.into_keys());
    for (name, column) in OTHERS {
        listed.extend(states(&list(name), column, 0).into_keys());
    }
    found.unlisted_sockets = number(inodes.difference(&listed).count());
    found.protocols = protocols(&list("protocols"));
}

/// The state of each socket in a list, by inode. Its first line is a heading.
fn states(list: &str, inode: usize, state: usize) -> BTreeMap<u64, String> {
    let socket = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some((words.get(inode)?.parse().ok()?, (*words.get(state)?).to_owned()))
    };
    list.lines().skip(1).filter_map(socket).collect()
}

/// `MPTCP  1976  2  …`: name, size, and how many there are.
fn protocols(list: &str) -> BTreeSet<Text> {
    let used = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, _, count) = (words.next()?, words.next()?, words.next()?);
        let used = UNKNOWN.contains(&name) && count.parse::<i64>().is_ok_and(|count| count > 0);
        used.then(|| Text::from(name))
    };
    list.lines().skip(1).filter_map(used).collect()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
