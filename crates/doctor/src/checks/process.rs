//! The named pod's processes: what CRIU finds in them.

use std::collections::BTreeSet;

use super::counted;
use crate::facts::{Known, Process};
use crate::finding::{Finding, Question};
use crate::text::Text;

pub fn check(subject: &str, process: Known<&Process>) -> Vec<Finding> {
    let question = Question { check: "processes", subject };
    let process = match process {
        Ok(process) => process,
        Err(why) => return vec![question.unknown(&why)],
    };
    if process.unread > 0 {
        let why =
            format!("{} of its {} processes could not be read", process.unread, process.count);
        return vec![question.unknown(&Text::from(why))];
    }
    let mut findings: Vec<Finding> = refused(subject, process).into_iter().flatten().collect();
    findings.extend(doubtful(subject, process).into_iter().flatten());
    findings.push(connections(subject, process));
    if findings.len() == 1 {
        findings.push(question.ok(format!(
            "nothing is known that keeps CRIU from dumping its {}",
            counted(process.count, "process", "processes")
        )));
    }
    findings
}

/// What fails every dump, or the restore after it.
fn refused(subject: &str, process: &Process) -> [Option<Finding>; 5] {
    let ask = |check| Question { check, subject };
    [
        process.io_uring.then(|| {
            ask("io-uring").failure(
                "it has an io_uring, which CRIU can't dump",
                "switch it off in the application: for Node.js and libuv set UV_USE_IO_URING=0",
            )
        }),
        process.user_namespace.then(|| {
            ask("user-namespace").failure(
                "it runs in a user namespace, which CRIU can't dump",
                "leave hostUsers: false out of its spec",
            )
        }),
        listed(&process.terminals).map(|names| {
            ask("open-terminal").failure(
                format!("it has a terminal open, which can't be dumped: {names}"),
                "leave tty and stdin out of its spec, and end what kubectl exec -it or attach began",
            )
        }),
        listed(&process.devices).map(|names| {
            ask("open-device").failure(
                format!("it has a device open, whose state stays behind: {names}"),
                "have the application close it, or leave the pod where it is",
            )
        }),
        listed(&process.protocols).map(|names| {
            ask("protocols").failure(
                format!("its pod has sockets of a kind that CRIU can't dump: {names}"),
                "have the application use TCP, UDP or Unix sockets: a Go program without MPTCP by \
                 GODEBUG=multipathtcp=0",
            )
        }),
    ]
}

/// What fails some.
fn doubtful(subject: &str, process: &Process) -> [Option<Finding>; 4] {
    let ask = |check| Question { check, subject };
    [
        (process.overlay_watches > 0).then(|| {
            ask("inotify").warning(
                format!(
                    "it watches {} of its image by inotify; some versions of CRIU can't dump that \
                     on an overlay",
                    counted(process.overlay_watches, "file", "files")
                ),
                "try a checkpoint, or switch the watching off, or watch files of a volume",
            )
        }),
        listed(&process.handles).map(|names| {
            ask("handles").warning(
                format!("it has handles open that CRIU is not known to dump: {names}"),
                "have the application close them, or try a checkpoint of a copy first",
            )
        }),
        (process.unix_connected > 0).then(|| {
            ask("unix-sockets").note(format!(
                "it has {}: one whose other end is outside of the container fails \
                 the dump",
                counted(process.unix_connected, "connected Unix socket", "connected Unix sockets")
            ))
        }),
        (process.unlisted_sockets > 0).then(|| {
            ask("sockets").note(format!(
                "it has {} that the kernel's lists don't have: not bound yet, or of a family that \
                 CRIU can't dump",
                counted(process.unlisted_sockets, "socket", "sockets")
            ))
        }),
    ]
}

fn connections(subject: &str, process: &Process) -> Finding {
    let question = Question { check: "tcp", subject };
    let listening = counted(process.tcp_listening, "port", "ports");
    match process.tcp_established {
        0 => question.ok(format!("no TCP connection is open; it listens on {listening}")),
        open => question.note(format!(
            "{} open: closed in the copy, and the application must connect again by itself",
            counted(open, "TCP connection is", "TCP connections are")
        )),
    }
}

fn listed(names: &BTreeSet<Text>) -> Option<String> {
    let names: Vec<&str> = names.iter().map(Text::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
